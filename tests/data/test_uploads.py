"""Uploads that are killed, doubled, or whose input changes under them."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from consortium.data.in_place import describe_in_place
from consortium.data.register import Upload, register_collection
from consortium.data.sample import generate
from consortium.domain.codec import to_json
from consortium.domain.data import Dataset, Description
from consortium.errors import AuthError, ConflictError, NotFoundError, UsageError
from consortium.keys.canonical import digest_json
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table
from tests.data.archives import page, record
from tests.s3 import S3

pytestmark = pytest.mark.integration
ID = "ds-00000000000000000000000001"
SHARD_BYTES = 60_000

PROGRAM = """
import json, sys
from consortium.data.register import register_collection
from consortium.domain.codec import to_json
from consortium.storage.objects import ObjectStore

folder, shard_bytes, *access = sys.argv[1:]
def tell(now):
    print("at", now.done, flush=True)
made = register_collection([folder], ObjectStore(*access), "laws-es", "uy-1", dataset_id="DATASET",
                           shard_text_bytes=int(shard_bytes), progress=tell)
print(json.dumps(to_json(made)), flush=True)
""".replace("DATASET", ID)


def collection(folder: Path) -> Path:
    """Files of every kind, some of them broken."""
    folder.mkdir()
    generate("es", documents=900).write(folder / "a.jsonl")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress((folder / "a.jsonl").read_bytes())[:-500])
    (folder / "c.warc").write_bytes(b"".join(record(page(f"Loi {n}"), number=n) for n in range(1, 10)) + b"junk")
    for number in range(20):
        (folder / f"d{number:02}.html").write_bytes(page(f"Décret {number}"))
    (folder / "e.jsonl").write_text("{\n" * 50)
    return folder


def registered(folder: Path | str, store: ObjectStore, **more: Any) -> Dataset:
    given: dict[str, Any] = {"dataset_id": ID, "shard_text_bytes": SHARD_BYTES}
    return register_collection([folder], store, "laws-es", "uy-1", **(given | more))


def shards(store: ObjectStore) -> list[str]:
    return [key for key in store.list() if "/uploads/" not in key]


def test_a_run_that_is_killed_again_and_again_writes_what_an_undisturbed_one_writes(s3: S3, tmp_path: Path) -> None:
    folder, whole, cut = collection(tmp_path / "in"), s3.fresh(), s3.fresh()
    expected = registered(folder, whole)
    assert len(expected.shards) > 10
    command = [sys.executable, "-c", PROGRAM, str(folder), str(SHARD_BYTES)]
    command += [s3.endpoint, s3.access_key, s3.secret_key, cut.bucket]
    draw, begun = random.Random(4), 0
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("at") and draw.random() < 0.004:
                break
        time.sleep(draw.random() / 50)  # anywhere between two documents, two shards, or two requests
        process.kill()
        process.communicate()
        before, begun = begun, len(list(cut.list("datasets/laws-es/uploads/")))
        assert begun >= before
    assert begun > 0
    last = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(last.stdout.splitlines()[-1]) == to_json(expected)
    assert shards(cut) == shards(whole)


def test_a_second_run_reads_nothing_again_until_the_first_is_finished(store: ObjectStore, tmp_path: Path) -> None:
    folder, notes, told = collection(tmp_path / "in"), list[str](), list[Any]()
    first = Upload([folder], store, "laws-es", shard_text_bytes=SHARD_BYTES)
    made = first.run("uy-1", dataset_id=ID)
    assert registered(folder, store, note=notes.append, progress=told.append) == made
    unread = "not readable: 50 json, 1 read, 1 warc"
    assert notes == [f"going on after {made.documents:,} documents that an earlier run wrote", unread]
    assert {(now.done, now.documents) for now in told} == {(0, 0)}
    first.finish()
    assert shards(store) == list(store.list())
    assert registered(folder, store, note=notes.append) == made
    assert notes[2:] == [unread]


def test_what_was_quarantined_before_a_kill_is_in_the_list_after_it(s3: S3, tmp_path: Path) -> None:
    folder, store, whole = collection(tmp_path / "in"), s3.fresh(), s3.fresh()
    made = registered(folder, store)
    journal = list(store.list("datasets/laws-es/uploads/"))
    for keep in (len(journal) - 1, len(journal) // 2, 1):
        for key in journal[keep:]:
            store.delete(key)
        assert registered(folder, store) == made
    assert made == registered(folder, whole)
    assert made.attributes["quarantine_reasons"] == "50 json, fewer than 10 read, fewer than 10 warc"
    assert made.attributes["quarantined"] == "at least 52"
    listed = store.get(made.attributes["quarantine_key"]).splitlines()
    assert (len(listed), json.loads(listed[-1])) == (53, {"counts": {"json": 50, "read": 1, "warc": 1}})


def test_a_shard_that_is_gone_and_an_entry_that_is_torn_are_written_again(store: ObjectStore, tmp_path: Path) -> None:
    folder = collection(tmp_path / "in")
    made = registered(folder, store)
    journal = list(store.list("datasets/laws-es/uploads/"))
    store.delete(made.shards[3].key)
    assert registered(folder, store) == made
    assert store.size(made.shards[3].key) == made.shards[3].size_bytes
    store.put(journal[2], store.get(journal[2])[:-40] + b"}")
    store.put(journal[5], store.get(journal[5]).replace(b'"documents"', b'"documentz"'))
    assert registered(folder, store) == made


def test_a_changed_input_is_noticed_and_starts_anew(store: ObjectStore, tmp_path: Path) -> None:
    folder, notes = collection(tmp_path / "in"), list[str]()
    made = registered(folder, store)
    os.utime(folder / "a.jsonl", ns=(1, 1))
    assert registered(folder, store, note=notes.append) == made  # touched: the same bytes, read anew
    (folder / "d00.html").write_bytes(page("Décret 0 bis"))
    changed = registered(folder, store, note=notes.append)
    anew = "the input, or the program, changed since an upload that was not finished: starting anew"
    assert [note for note in notes if "not readable" not in note] == [anew] * 2
    assert changed.shards[:-1] == made.shards[:-1]
    assert changed.shards[-1] != made.shards[-1]


def test_a_file_that_changes_while_it_is_read_stops_the_run(store: ObjectStore, tmp_path: Path) -> None:
    folder = collection(tmp_path / "in")

    def touch(now: Any) -> None:
        if now.documents == 500:
            os.utime(folder / "a.jsonl", ns=(1, 1))

    with pytest.raises(ConflictError, match=r"a\.jsonl changed"):
        registered(folder, store, progress=touch)


def test_two_runs_at_once_do_not_collide(s3: S3, tmp_path: Path) -> None:
    folder, store, alone = collection(tmp_path / "in"), s3.fresh(), s3.fresh()
    expected = registered(folder, alone)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: registered(folder, store), range(2)))
    assert both == [expected, expected]
    assert shards(store) == shards(alone)


def test_a_collection_in_s3_is_read_with_what_the_aws_command_line_uses(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, source, store = collection(tmp_path / "in"), s3.fresh(), s3.fresh()
    for path in folder.iterdir():
        source.put(f"laws/2020/{path.name}", path.read_bytes())
    source.put("laws-old/x.txt", b"another collection")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint)
    with pytest.raises(AuthError, match="no credentials") as fault:
        registered(f"s3://{source.bucket}/laws", store)
    assert "AWS_ACCESS_KEY_ID" in str(fault.value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    local = registered(folder, store)
    remote = registered(f"s3://{source.bucket}/laws/2020", store)
    assert remote.shards == local.shards
    assert registered(f"s3://{source.bucket}/laws", store).documents == local.documents
    with pytest.raises(NotFoundError, match="no such object or prefix"):
        registered(f"s3://{source.bucket}/law", store)


@pytest.mark.parametrize(
    ("given", "keep", "said"),
    [
        (("Archives",), False, ["Archives", "Archives"]),
        (("Archives",), True, ["Archives", "BnF"]),
        (("Archives", "BnF"), False, ["", "BnF"]),
        ((), False, ["", "BnF"]),
    ],
)
def test_one_contributor_is_everybodys_whatever_the_rows_claim_unless_their_claims_are_kept(
    store: ObjectStore, tmp_path: Path, given: tuple[str, ...], keep: bool, said: list[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": "y", "contributor": "BnF"}\n')
    about = Description(contributors=given, consent_until="2030-01-01")
    made = registered(tmp_path, store, about=about, keep_contributors=keep)
    assert read_table(store.get(made.shards[0].key)).column("contributor").to_pylist() == said
    assert made.about == about


def test_shards_that_lie_in_the_private_store_are_registered_where_they_are(store: ObjectStore, tmp_path: Path) -> None:
    made = registered(collection(tmp_path / "in"), store)
    before = list(store.list())
    given: dict[str, Any] = {"dataset_id": ID, "territory": "uy", "version": 1}

    def described(path: str) -> Dataset:
        return describe_in_place([path], store, "laws-es", "uy-1", **given)

    for shard in made.shards:
        store.put(shard.key.replace("datasets/laws-es/", "given/"), store.get(shard.key))
    found = described(f"s3://{store.bucket}/given")
    assert {(s.digest, s.documents) for s in found.shards} == {(s.digest, s.documents) for s in made.shards}
    assert found.languages == made.languages
    assert before == [key for key in store.list() if not key.startswith("given/")]
    for data, said in ((b"PAR1", "not a readable"), (store.get(made.shards[0].key)[:-9], "not a readable")):
        store.put("given/x.parquet", data)
        with pytest.raises(UsageError, match=said) as fault:
            described(f"s3://{store.bucket}/given")
        assert "given/x.parquet" in str(fault.value)
    with pytest.raises(UsageError, match="does not lie in the private store"):
        described(str(tmp_path))
    with pytest.raises(NotFoundError):
        described(f"s3://{store.bucket}/nothing")


def test_a_journal_says_nothing_of_any_text(store: ObjectStore, tmp_path: Path) -> None:
    made = registered(collection(tmp_path / "in"), store)
    texts = [str(t) for s in made.shards for t in read_table(store.get(s.key)).column("text").to_pylist()]
    kept = b"".join(store.get(key) for key in store.list("datasets/laws-es/uploads/")).decode()
    assert not any(text[:60] in kept for text in texts)
    assert digest_json(asdict(made.about)) == digest_json(asdict(Description()))
