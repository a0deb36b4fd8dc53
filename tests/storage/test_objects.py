from __future__ import annotations

import pickle
import secrets
import tempfile
from pathlib import Path

import pytest

from consortium.errors import AuthError, NotFoundError, UnreachableError, UsageError, VerificationError
from consortium.keys.canonical import digest
from consortium.storage.objects import ObjectStore
from tests.s3 import S3

pytestmark = pytest.mark.integration


def test_what_is_put_comes_back_whole_and_in_ranges(store: ObjectStore) -> None:
    data = secrets.token_bytes(100_000)
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data
    assert store.get_range("a/b.bin", 10, 20) == data[10:30]
    assert store.get_range("a/b.bin", 99_990, 50) == data[-10:]
    assert store.size("a/b.bin") == 100_000


def test_an_addressed_object_is_named_by_its_digest_and_put_once(store: ObjectStore) -> None:
    first = store.put_addressed("shards", b"text", ".parquet")
    assert first == store.put_addressed("shards/", b"text", ".parquet")
    assert first.key == f"shards/{first.digest.removeprefix('sha256:')}.parquet"
    assert store.get(first.key, digest=first.digest) == b"text"


def test_an_addressed_object_whose_bytes_changed_is_written_again(store: ObjectStore) -> None:
    first = store.put_addressed("shards", b"text", ".parquet")
    store.put(first.key, b"tex!")
    store.put_addressed("shards", b"text", ".parquet")
    assert store.get(first.key, digest=first.digest) == b"text"


def test_a_changed_object_is_noticed(store: ObjectStore) -> None:
    store.put("x", b"changed")
    with pytest.raises(VerificationError, match="hash to"):
        store.get("x", digest=digest(b"original"))


def test_listing_is_sorted_and_bounded_by_prefix(store: ObjectStore) -> None:
    for key in ("b/2", "b/1", "c/1", "b/deep/3"):
        store.put(key, b".")
    assert list(store.list("b/")) == ["b/1", "b/2", "b/deep/3"]
    store.delete("b/1")
    store.delete("b/1")
    assert not store.exists("b/1")
    assert len(list(store.list())) == 3


def test_a_large_object_is_fetched_in_parts_into_a_file_that_never_has_a_name(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data, asked = secrets.token_bytes(9_000_000), []
    store.put("big", data)

    def look(model: object, **_: object) -> None:
        asked.append(list(tmp_path.iterdir()))

    events = store._client.meta.events
    events.register("after-call.s3.GetObject", look)
    with store.fetched("big", digest(data)) as file:
        assert file.read() == data
        look(None)
    events.unregister("after-call.s3.GetObject", look)
    assert len(asked) > 1, "in parts"
    assert not any(asked), "no name at any time"
    with pytest.raises(VerificationError, match="hash to"), store.fetched("big", digest(b"other")):
        pass


def test_a_large_object_is_sent_in_parts(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consortium.storage.objects._WHOLE_BYTES", 6 << 20)
    monkeypatch.setattr("consortium.storage.objects._PART_BYTES", 5 << 20)
    called: list[str] = []
    store._client.meta.events.register("before-call.s3", lambda model, **_: called.append(model.name))
    small, large = secrets.token_bytes(6 << 20), secrets.token_bytes(16 << 20)
    for data in (small, large, large):
        address = store.put_addressed("vectors", data, ".f32")
        assert store.get(address.key, digest=address.digest) == data
    assert called.count("PutObject") == 1
    assert called.count("UploadPart") == 4
    store.put(address.key, bytes(len(large)))
    store.put_addressed("vectors", large, ".f32")
    assert store.get(address.key, digest=address.digest) == large, "bytes that changed are written again"


def test_an_absent_key_and_an_absent_bucket_are_not_found(s3, store: ObjectStore, tmp_path: Path) -> None:
    for call in (store.get, store.size, lambda key: store.fetched(key, digest(b"")).__enter__()):
        with pytest.raises(NotFoundError, match="nowhere"):
            call("nowhere")
    with pytest.raises(NotFoundError):
        s3.store("no-such-bucket").get("key")


def test_a_wrong_secret_is_refused(s3, store: ObjectStore) -> None:
    with pytest.raises(AuthError, match="refused the credentials"):
        ObjectStore(s3.endpoint, s3.access_key, "wrong", store.bucket).get("x")


def test_no_server_is_unreachable() -> None:
    with pytest.raises(UnreachableError, match="does not answer"):
        ObjectStore("http://127.0.0.1:9", "a", "b", "bucket", attempts=1).get("x")


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/..", "a/./b"])
def test_a_key_that_leaves_its_bucket_is_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(UsageError, match="object key"):
        store.put(key, b"x")


def test_a_store_travels_to_another_process_and_hides_its_secret(s3, store: ObjectStore) -> None:
    store.put("k", b"v")
    assert pickle.loads(pickle.dumps(store)).get("k") == b"v"
    assert s3.secret_key not in repr(store)


def test_buckets_under_one_key_share_a_client_and_no_other_does(s3: S3) -> None:
    one, other = s3.fresh(), s3.fresh()
    assert one._client is other._client
    assert ObjectStore(s3.endpoint, s3.access_key, "another", one.bucket)._client is not one._client
    here = [ObjectStore.ambient(one.bucket, s3.endpoint)._client for _ in range(2)]
    assert here[0] is not here[1], "the environment may have changed since"
