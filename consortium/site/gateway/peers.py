"""Another state's egress store, read with the distrust that a stranger's server is due.

It may answer slowly, for ever, or with more than was asked for. So nothing is read but a GET's answer, as many bytes as
were announced, within a time that their number allows; and only a few at once, so that a peer that holds them up holds
up nobody else's calls to the gateway.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from consortium.errors import AuthError, NotFoundError, UnreachableError, VerificationError
from consortium.site.settings import StoreSettings

LANES = 4
"""Objects read from one peer at once."""
WAIT_S = 20.0
"""For a lane: the leg asks again."""
LEAST_S = 60.0
LEAST_BYTES_PER_S = 128 << 10
"""What a peer has to send at least, over an object's whole length, once `LEAST_S` are over."""
_REGION = re.compile(rb"[a-z0-9-]{1,40}")
_NAMED = re.compile(rb"<Region>([a-z0-9-]{1,40})</Region>")
_KEY = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9_.=-]*(/[A-Za-z0-9_=-][A-Za-z0-9_.=-]*){0,20}\Z")


class PeerStore:
    """One peer's bucket at an S3 endpoint, which this site may read. Safe to share by threads."""

    def __init__(self, settings: StoreSettings, *, wait_s: float = WAIT_S, least_s: float = LEAST_S) -> None:
        self.url = f"{settings.endpoint.rstrip('/')}/{settings.bucket}"
        self._credentials = Credentials(settings.access_key, settings.secret())
        self._region = "us-east-1"
        """What stores that know no regions take; others name theirs when they are asked for the first time."""
        self._lanes = threading.BoundedSemaphore(LANES)
        self._wait_s = wait_s
        self._least_s = least_s
        timeout = httpx.Timeout(30.0, connect=5.0)
        self._http = httpx.Client(timeout=timeout, headers={"Accept-Encoding": "identity"}, follow_redirects=False)

    def get(self, key: str, *, size: int) -> bytes:
        """Read an object whole.

        Raises NotFoundError for an absent one, AuthError for refused credentials, VerificationError unless it has
        `size` bytes, and UnreachableError where the store does not answer, in time or at all.
        """
        if not _KEY.match(key) or len(key) > 1_000:
            raise VerificationError(f"no key of an artifact: {key[:80]!r}", where=self.url)
        with self._lane():
            with self._answer(key) as answer:
                if answer.status_code == 200 or not (region := _region_named(answer)):
                    return self._read(answer, key, size)
            self._region = region
            with self._answer(key) as answer:
                return self._read(answer, key, size)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @contextmanager
    def _lane(self) -> Iterator[None]:
        if not self._lanes.acquire(timeout=self._wait_s):
            raise UnreachableError(f"{LANES} objects are being read from this store already", where=self.url)
        try:
            yield
        finally:
            self._lanes.release()

    @contextmanager
    def _answer(self, key: str) -> Iterator[httpx.Response]:
        url = f"{self.url}/{key}"
        request = AWSRequest("GET", url)
        S3SigV4Auth(self._credentials, "s3", self._region).add_auth(request)
        try:
            with self._http.stream("GET", url, headers=dict(request.headers.items())) as answer:
                yield answer
        except (httpx.HTTPError, httpx.StreamError) as fault:
            raise UnreachableError(
                f"the object store does not answer: {fault or type(fault).__name__}", where=url, fix="try again"
            ) from fault

    def _read(self, answer: httpx.Response, key: str, size: int) -> bytes:
        where = f"{self.url}/{key}"
        if answer.status_code == 404:
            raise NotFoundError("no such object", where=where)
        if answer.status_code in (401, 403):
            raise AuthError("the object store refused the credentials", where=where, fix="check the store's key files")
        if answer.status_code != 200:
            raise UnreachableError(f"the object store answered {answer.status_code}", where=where, fix="try again")
        until_s = time.monotonic() + self._least_s + size / LEAST_BYTES_PER_S
        data = bytearray()
        for part in answer.iter_raw():
            data += part
            if len(data) > size:
                raise VerificationError(f"the object has more than {size} bytes", where=where)
            if time.monotonic() > until_s:
                raise UnreachableError(f"the object store sent {len(data)} of {size} bytes in time", where=where)
        if len(data) != size:
            raise VerificationError(f"the object has {len(data)} bytes, not {size}", where=where)
        return bytes(data)


def _region_named(answer: httpx.Response) -> str:
    """Return the region that a refusal names, in S3's way; empty where it names none."""
    if answer.status_code not in (301, 400):
        return ""
    if named := answer.headers.get("x-amz-bucket-region", ""):
        return named if _REGION.fullmatch(named.encode()) else ""
    said = next(answer.iter_raw(4096), b"")
    found = _NAMED.search(said)
    return found[1].decode() if found else ""
