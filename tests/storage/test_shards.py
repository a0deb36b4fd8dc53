from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from consortium.errors import UsageError, VerificationError
from consortium.storage.shards import map_tokens, read_table, read_tokens, write_text
from tests.builders import token_shard


def test_the_same_rows_give_the_same_text_shard() -> None:
    rows = {"id": ["a", "b"], "text": ["été", "Straße\n"], "language": ["fr", "de"]}
    assert write_text(rows) == write_text({key: list(value) for key, value in rows.items()})
    table = read_table(write_text(rows))
    assert table.column("text").to_pylist() == ["été", "Straße\n"]
    assert table.column("licence").to_pylist() == ["", ""]


def test_a_broken_text_shard_is_named() -> None:
    with pytest.raises(VerificationError, match="shards/1"):
        read_table(b"PAR1 not really PAR1", where="shards/1")


@pytest.mark.parametrize(("vocab", "dtype"), [(256, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_tokens_take_the_least_width_and_come_back(vocab: int, dtype: str, tmp_path: Path) -> None:
    documents = [[1, 2, 3], [], [vocab - 1]]
    data = token_shard(documents, eos=0, vocab_size=vocab)
    shard = read_tokens(data)
    assert shard.tokens.dtype == np.dtype(dtype)
    assert shard.tokens.tolist() == [1, 2, 3, 0, 0, vocab - 1, 0]
    assert [document.tolist() for document in shard] == documents
    (tmp_path / "t").write_bytes(data)
    assert map_tokens(tmp_path / "t").tokens.tolist() == shard.tokens.tolist()


def test_more_shards_are_mapped_than_files_may_be_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, len(os.listdir("/proc/self/fd")) + 50), hard))
    try:
        for number in range(100):
            path = tmp_path / "t"
            path.write_bytes(token_shard([[number]], eos=0, vocab_size=256))
            held.append(map_tokens(path))
            path.unlink()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [int(shard.tokens[0]) for shard in held] == list(range(100))


def test_an_empty_token_shard_is_a_token_shard() -> None:
    assert read_tokens(token_shard([], eos=0, vocab_size=10)).documents == 0


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="vocabulary of 10"):
        token_shard([[1], [10]], eos=0, vocab_size=10)


@pytest.mark.parametrize("cut", [0, 5, 31, 40, -1])
def test_a_cut_token_shard_is_refused(cut: int) -> None:
    with pytest.raises(VerificationError):
        read_tokens(token_shard([[1, 2]], eos=0, vocab_size=10)[:cut])


def test_offsets_that_go_backwards_are_refused() -> None:
    data = bytearray(token_shard([[1], [2]], eos=0, vocab_size=10))
    data[40:48] = (9).to_bytes(8, "little")
    with pytest.raises(VerificationError, match="ascend"):
        read_tokens(bytes(data))
