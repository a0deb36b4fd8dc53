"""One S3 bucket, seen as a flat map from key to bytes.

Works against AWS S3, MinIO and `rclone serve s3`: nothing here relies on conditional writes, presigned URLs or rename.
Objects that must not change are stored under keys that hold their SHA-256 (`put_addressed`).
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, Any, NamedTuple

from consortium.domain.protocol import StoreAccess
from consortium.errors import AuthError, NotFoundError, UnreachableError, UsageError, VerificationError
from consortium.keys.canonical import digest as sha256

_ABSENT = {"404", "NoSuchKey", "NotFound", "NoSuchBucket"}
_BEYOND = {"416", "InvalidRange"}
_REFUSED = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_WHOLE_BYTES = 1 << 32
"""A larger object is sent in parts: S3 takes 5 GB in one piece at most, and vectors of large models are larger."""
_PART_BYTES = 64 << 20
_CLIENTS = threading.Lock()
"""boto3's default session is not safe to build clients from in several threads at once."""


class Addressed(NamedTuple):
    """Where a content-addressed object lies and what it hashes to (`sha256:` and 64 hex digits)."""

    key: str
    digest: str


class Entry(NamedTuple):
    """An object in a listing; `etag` changes when its bytes do."""

    key: str
    size: int
    etag: str


class ObjectStore:
    """A bucket at an S3 endpoint. Picklable. Made on first use: one client for all buckets under a key in one process.

    Every method raises NotFoundError for an absent key or bucket, AuthError for refused credentials and
    UnreachableError where the endpoint does not answer after `attempts` tries.
    """

    def __init__(self, endpoint: str, access_key: str, secret_key: str, bucket: str, *, attempts: int = 5) -> None:
        self.endpoint = endpoint
        self.bucket = bucket
        self._access_key = access_key
        self._secret_key = secret_key
        self._attempts = attempts
        self._made: Any = None

    @classmethod
    def of(cls, access: StoreAccess) -> ObjectStore:
        """Return the store that a leg's context names."""
        return cls(access.endpoint, access.access_key, access.secret_key, access.bucket)

    @classmethod
    def ambient(cls, bucket: str, endpoint: str = "") -> ObjectStore:
        """Return a bucket as the AWS command line would open it: environment, profile, `AWS_ENDPOINT_URL_S3`."""
        return cls(endpoint, "", "", bucket)

    def __repr__(self) -> str:
        return f"ObjectStore({self.endpoint}/{self.bucket})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.endpoint, self._access_key, self._secret_key, self.bucket, self._attempts)

    @property
    def _client(self) -> Any:
        if self._made is None:
            make = _shared_client if self._access_key else _new_client
            with _CLIENTS:
                self._made = make(self.endpoint, self._access_key, self._secret_key, self._attempts)
        return self._made

    def ensure_bucket(self) -> None:
        """Make the bucket where it is missing."""
        try:
            with self._translated(""):
                self._client.head_bucket(Bucket=self.bucket)
        except NotFoundError:
            with self._translated(""):
                self._client.create_bucket(Bucket=self.bucket)

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole; a large one arrives in parts, and is there once the last one is."""
        with self._translated(key):
            if len(data) <= _WHOLE_BYTES:
                self._client.put_object(Bucket=self.bucket, Key=_checked(key), Body=data)
                return
            from boto3.s3.transfer import TransferConfig

            parts = TransferConfig(multipart_threshold=1, multipart_chunksize=_PART_BYTES, max_concurrency=4)
            self._client.upload_fileobj(io.BytesIO(data), self.bucket, _checked(key), Config=parts)

    def put_addressed(self, prefix: str, data: bytes, suffix: str = "", *, digest: str = "") -> Addressed:
        """Write `data` under `prefix/<hex of its SHA-256><suffix>`; writes nothing where it already stands there.

        Who computed the `digest` already saves computing it.
        Bytes of the same length that are not `data` are written over, as far as the store tells them apart (`_has`).
        """
        digest = digest or sha256(data)
        key = f"{prefix.rstrip('/')}/{digest.removeprefix('sha256:')}{suffix}"
        if not self._has(key, data):
            self.put(key, data)
        return Addressed(key, digest)

    def get(self, key: str, *, digest: str | None = None, size: int | None = None) -> bytes:
        """Read an object whole.

        Raises VerificationError unless the bytes hash to `digest` and are `size` in number, where these are given; a
        store that sends more is not read to its end.
        """
        with self._translated(key):
            body = self._client.get_object(Bucket=self.bucket, Key=_checked(key))["Body"]
            data: bytes = body.read() if size is None else body.read(size + 1)
        if size is not None and len(data) != size:
            body.close()
            found = f"more than {size}" if len(data) > size else str(len(data))
            raise VerificationError(f"the object has {found} bytes, not {size}", where=f"{self.bucket}/{key}")
        if digest is not None and sha256(data) != digest:
            raise VerificationError(
                f"the object's bytes hash to {sha256(data)}, not to {digest}",
                where=f"{self.bucket}/{key}",
                fix="restore the object from a copy, or register the dataset anew",
            )
        return data

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read `length` bytes from offset `start` (fewer at the object's end; VerificationError beyond it)."""
        if start < 0 or length < 1:
            raise UsageError(f"a range needs start >= 0 and length >= 1, got {start} and {length}", where=key)
        with self._translated(key):
            answer = self._client.get_object(
                Bucket=self.bucket, Key=_checked(key), Range=f"bytes={start}-{start + length - 1}"
            )
            data: bytes = answer["Body"].read()
        return data

    @contextmanager
    def fetched(self, key: str, digest: str) -> Iterator[IO[bytes]]:
        """Yield an object as a file of this machine's temporary folder, downloaded in parts where it is large.

        It has no name, so that a program that is killed leaves nothing of it on the disk; who maps it
        (`/proc/self/fd/N`) keeps its room taken. Raises VerificationError where it is not what `digest` says.
        """
        with tempfile.TemporaryFile() as file:
            with self._translated(key):
                self._client.download_fileobj(self.bucket, _checked(key), file)
            file.seek(0)
            found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                raise VerificationError(f"the object's bytes hash to {found}, not to {digest}", where=key)
            file.seek(0)
            yield file

    def size(self, key: str) -> int:
        """Return an object's size in bytes."""
        with self._translated(key):
            return int(self._client.head_object(Bucket=self.bucket, Key=_checked(key))["ContentLength"])

    def state(self, key: str) -> tuple[int, str]:
        """Return an object's size in bytes and its ETag."""
        with self._translated(key):
            found = self._client.head_object(Bucket=self.bucket, Key=_checked(key))
        return int(found["ContentLength"]), str(found["ETag"]).strip('"')

    def holds(self, key: str, size: int) -> bool:
        """Tell whether the key holds an object of `size` bytes."""
        try:
            return self.size(key) == size
        except NotFoundError:
            return False

    def exists(self, key: str) -> bool:
        """Tell whether the key holds an object."""
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys below `prefix`, sorted, page by page."""
        for entry in self.entries(prefix):
            yield entry.key

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield what lies below `prefix`, sorted by key, page by page."""
        with self._translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            for page in pages:
                for found in sorted(page.get("Contents", ()), key=lambda found: str(found["Key"])):
                    yield Entry(found["Key"], int(found["Size"]), str(found.get("ETag", "")).strip('"'))

    def delete(self, key: str) -> None:
        """Remove an object; an absent key is no error."""
        with self._translated(key):
            self._client.delete_object(Bucket=self.bucket, Key=_checked(key))

    def _has(self, key: str, data: bytes) -> bool:
        """Tell whether the key holds `data`, by its size and, where the ETag is an MD5, or one of parts, by that.

        It is where it is not encrypted with a key of the store's or the client's.
        """
        try:
            with self._translated(key):
                found = self._client.head_object(Bucket=self.bucket, Key=_checked(key))
        except NotFoundError:
            return False
        etag = str(found["ETag"]).strip('"')
        hashed = len(etag) == 32 or (len(etag) > 32 and etag[32:] == _parts_of(data))
        hashed = hashed and found.get("ServerSideEncryption", "AES256") == "AES256"
        hashed = hashed and "SSECustomerAlgorithm" not in found
        same = not hashed or etag == _etag(data, in_parts=len(etag) > 32)
        return bool(found["ContentLength"] == len(data) and same)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Turn boto3's errors into the package's own."""
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ProfileNotFound

        where = f"{self.endpoint}/{self.bucket}/{key}"
        try:
            yield
        except ClientError as fault:
            raise self._fault(fault, where) from fault
        except S3UploadFailedError as fault:
            raise UnreachableError(f"the upload failed: {fault}", where=where, fix="try again") from fault
        except (NoCredentialsError, ProfileNotFound) as fault:
            fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            raise AuthError(f"no credentials for the object store: {fault}", where=where, fix=fix) from fault
        except BotoCoreError as fault:
            raise UnreachableError(
                f"the object store does not answer: {fault}", where=where, fix="check that the store is running"
            ) from fault

    def _fault(self, fault: Any, where: str) -> AuthError | NotFoundError | UnreachableError | VerificationError:
        error = fault.response.get("Error", {})
        code, message = str(error.get("Code", "")), error.get("Message") or str(fault)
        if code in _ABSENT:
            return NotFoundError(f"no such object ({code})", where=where)
        if code in _BEYOND:
            return VerificationError("the object ends before the range that was asked for", where=where)
        if code in _REFUSED:
            return AuthError(
                f"the object store refused the credentials: {message}", where=where, fix="check the store's key files"
            )
        return UnreachableError(f"the object store failed: {code} {message}", where=where, fix="try again")


def _parts_of(data: bytes) -> str:
    """Return how the ETag of an object ends that was sent in parts."""
    return f"-{-(-len(data) // _PART_BYTES)}"


def _etag(data: bytes, *, in_parts: bool) -> str:
    """Return an object's MD5; of one that was sent in parts, the MD5 of their MD5s, and their number."""
    if not in_parts:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    view, whole = memoryview(data), hashlib.md5(usedforsecurity=False)
    for start in range(0, len(data), _PART_BYTES):
        whole.update(hashlib.md5(view[start : start + _PART_BYTES], usedforsecurity=False).digest())
    return whole.hexdigest() + _parts_of(data)


def _new_client(endpoint: str, access_key: str, secret_key: str, attempts: int) -> Any:
    """Return a client of an endpoint; without a key, of what environment and profile say now."""
    import boto3
    from botocore.config import Config

    config = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"},
        retries={"max_attempts": attempts, "mode": "standard"},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=16,
    )
    session = boto3.session.Session()
    return session.client(
        "s3",
        endpoint_url=endpoint or None,
        aws_access_key_id=access_key or None,
        aws_secret_access_key=secret_key or None,
        region_name="us-east-1" if access_key else session.region_name or "us-east-1",
        config=config,
    )


_shared_client = lru_cache(maxsize=64)(_new_client)
"""Clients are safe to share between threads, and making one takes 50 ms of a core."""


@lru_cache(maxsize=16)
def _restore(endpoint: str, access_key: str, secret_key: str, bucket: str, attempts: int) -> ObjectStore:
    return ObjectStore(endpoint, access_key, secret_key, bucket, attempts=attempts)


def _checked(key: str) -> str:
    """Refuse keys that a store on a file system would read as a path out of its bucket."""
    parts = key.split("/")
    if (
        not key
        or key.startswith("/")
        or any(part in ("", ".", "..") for part in parts[:-1])
        or parts[-1] in (".", "..")
    ):
        raise UsageError(f"not a valid object key: {key!r}", fix="use relative keys without empty or dot segments")
    return key
