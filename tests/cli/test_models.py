"""`generate` and `export` as people type them, on a machine with a site's private store, and on one without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from consortium.data import bpe
from consortium.storage.objects import ObjectStore
from tests.conftest import Call
from tests.home import made_at
from tests.s3 import S3
from tests.train.hub import JOB
from tests.train.test_export import kept, made
from tests.train.test_export import tokenizer as tokenizer

pytestmark = pytest.mark.integration


@pytest.fixture
def at_home(s3: S3, store: ObjectStore, tmp_path: Path, tokenizer: bytes) -> Path:
    """A machine with fr-1's private store, which keeps two outer states of a job and its tokenizer."""
    home = made_at(tmp_path, s3, store)
    kept(store, *made(tokenizer))
    store.put_addressed("jobs/job-of-tokenize/tokenizers", tokenizer, ".json")
    return home


def test_text_goes_on_and_is_the_same_again(at_home, call: Call):
    typed = ("generate", JOB, "Gesetz", "--tokens", "12", "--seed", "4")
    first, again = (call(*typed, home=at_home) for _ in range(2))
    other = call(*typed, "--round", "0", home=at_home)
    assert first.code == 0, first.err
    assert first.out.startswith("Gesetz")
    assert len(first.out) > len("Gesetz\n")
    assert first.out == again.out != other.out


def test_a_folder_with_weights_config_and_tokenizer_is_written(at_home, call: Call, tmp_path, tokenizer):
    folder = tmp_path / "out"
    done = call("export", JOB, str(folder), "--precision", "float32", home=at_home)
    assert (done.code, done.out) == (0, f"{folder}\n"), done.err
    assert "weights" in done.err
    origin, vector = made(tokenizer)
    parameters = origin.layout.split(vector * 2)
    written = load_file(folder / "model.safetensors")
    assert (written["model.embed_tokens.weight"].numpy() == parameters["embedding.weight"]).all()
    assert json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None} == json.loads(tokenizer)
    again = call("export", JOB, str(folder), home=at_home)
    assert (again.code, again.out) == (2, "")
    assert "not empty" in again.err


def test_a_checkpoint_for_torch_is_written(at_home, call: Call, tmp_path):
    folder = tmp_path / "dcp"
    done = call("export", JOB, str(folder), "--layout", "dcp", home=at_home)
    assert (done.code, done.out) == (0, f"{folder}\n"), done.err
    assert (folder / ".metadata").exists()
    half = call("export", JOB, str(tmp_path / "half"), "--layout", "dcp", "--precision", "bfloat16", home=at_home)
    assert half.code == 2
    assert "written in float32" in half.err


def test_a_model_or_tokenizer_that_is_not_here_is_said_so(at_home, call: Call, store: ObjectStore, tokenizer):
    absent = call("generate", JOB[:-1] + "b", "x", home=at_home)
    assert absent.code == 5
    assert "kept at fr-1 here" in absent.err
    assert call("generate", JOB, "x", "--round", "7", home=at_home).code == 5
    store.delete(f"jobs/job-of-tokenize/tokenizers/{bpe.tokenizer_digest(tokenizer).removeprefix('sha256:')}.json")
    lost = call("generate", JOB, "x", home=at_home)
    assert lost.code == 5
    assert "does not hold the tokenizer" in lost.err


def test_checkpoints_are_listed_pinned_and_checked(at_home, call: Call, store: ObjectStore):
    listed = call("checkpoints", JOB, "--pin", "1", "--prune", "2", home=at_home)
    assert listed.code == 0, listed.err
    assert [line.split()[1] for line in listed.out.splitlines()[1:]] == ["0", "1"]
    assert listed.out.splitlines()[-1].endswith("pinned")
    assert "fr-1: 0 rounds pruned" in listed.err
    assert call("checkpoints", JOB, "--prune", "1", home=at_home).code == 2
    key = next(key for key in store.list(f"jobs/{JOB}/outer/1/") if key.endswith(".f32"))
    store.put(key, b"damaged")
    checked = call("checkpoints", JOB, "--verify", "--json", home=at_home)
    assert checked.code == 7
    assert [bool(one["fault"]) for one in json.loads(checked.out)["fr-1"]] == [False, True]
    assert call("checkpoints", JOB[:-1] + "b", home=at_home).code == 5
