"""What peers sent to a round: fetched side by side and kept on disk while the round lasts.

There are as many vectors as sites, and one of a large model is gigabytes. So bytes are written as they come in, are
used once they hash to what was committed, and a vector that they stand for is decoded into a file and read through the
page cache: however many are fetched at once, only the vector at work takes memory that cannot be given back. A peer
whose store hangs keeps nobody waiting but who waits for its own bytes. The files lie in the temporary directory and
have no names: they go with who holds them, or with the process.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from consortium.domain.training import Commit
from consortium.errors import ConsortiumError, NotFoundError, UnreachableError
from consortium.train import parcels
from consortium.train.codes import Code
from consortium.train.exchange import Exchange
from consortium.train.outer import Vector
from consortium.train.sharded import Holding, by_slices

Bytes = npt.NDArray[np.uint8]
Number = TypeVar("Number", np.uint8, np.float32)
_PREFIX = "consortium-round-"
SMALLEST_BYTES = 1024
"""What may be fetched whatever the code: a header that says that a vector is not finite."""


class Asked:
    """Commits whose bytes are fetched once they are announced, each in a thread of its own."""

    def __init__(self, received: Received, commits: Iterable[Commit], size: int) -> None:
        self.faults: dict[str, str] = {}
        """Reason codes of the commits that could not be had, by site."""
        self._ended: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._received = received
        self._size = size
        self.absent = {commit.site: commit for commit in commits}
        """Those of which nothing is announced yet."""
        self.waiting = set(self.absent)
        """Sites of which it is not known yet."""

    def look(self) -> None:
        """Begin to fetch what is announced by now."""
        for commit in self._received.announced(self.absent.values(), self._size):
            del self.absent[commit.site]
            fetch = threading.Thread(target=self._take, args=(commit,), name=f"fetch {commit.site}", daemon=True)
            fetch.start()

    def give_up(self) -> None:
        """Wait no longer for what is not announced by now."""
        self.faults |= dict.fromkeys(self.absent, "missing")
        self.waiting -= self.absent.keys()
        self.absent.clear()

    def wait(self, timeout_s: float) -> None:
        """Wait until one more has ended, for so long at the most."""
        try:
            site, fault = self._ended.get(timeout=timeout_s)
        except queue.Empty:
            return
        self.waiting.discard(site)
        if fault:
            self.faults[site] = fault

    def _take(self, commit: Commit) -> None:
        self._ended.put((commit.site, self._fault(commit)))

    def _fault(self, commit: Commit) -> str:
        try:
            self._received.take(commit.round, commit.site, commit.digest, self._size)
        except NotFoundError:
            return "missing"
        except UnreachableError:
            return "unreachable"
        except (ConsortiumError, OSError):
            return "digest"
        return ""


class Received:
    """Contributions by digest. Safe to use from several threads."""

    def __init__(self, exchange: Exchange, code: Code, holders: Holding | None = None) -> None:
        self._exchange = exchange
        self._code = code
        self._holders = holders
        self._held: dict[str, Bytes] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    def __getitem__(self, digest: str) -> memoryview:
        return self._held[digest].data

    def take(self, number: int, site: str, digest: str, size: int) -> None:
        """Fetch a contribution to round `number` unless it is here, from its site or from who passes it on.

        Raises what `parcels.fetch_into` raises.
        """
        if digest in self:
            return
        with tempfile.TemporaryFile(prefix=_PREFIX) as file:
            parcels.fetch_into(
                self._exchange,
                file,
                self._code.kind,
                digest,
                round=number,
                first=site,
                most_bytes=self._most_bytes(size),
            )
            self._held[digest] = _mapped(file, np.dtype(np.uint8))

    def _most_bytes(self, size: int) -> int:
        return max(self._code.bytes_for(size), SMALLEST_BYTES)

    def of(self, commits: Iterable[Commit], own: Mapping[str, bytes]) -> Mapping[str, bytes | memoryview]:
        """Return by site what commits stand for and is here; `own` first."""
        return _Here(self, {commit.site: commit.digest for commit in commits if commit.digest in self}, own)

    def announced(self, commits: Iterable[Commit], size: int) -> list[Commit]:
        """Return those of a round's commits of which their own sites announced the bytes to this site.

        A commit's digest is known before its bytes are announced: what another site announces under it may be anything,
        and must not be all that is looked at.
        """
        asked = list(commits)
        inbox = self._exchange.inbox(asked[0].round) if asked else []
        kind, most_bytes = self._code.kind, self._most_bytes(size)
        senders = {
            one: [
                parts[0].sender for parts in parcels.offers(inbox, kind, one.digest, one.round, most_bytes=most_bytes)
            ]
            for one in asked
        }
        return [one for one in asked if one.site in senders[one]]

    def take_all(self, commits: Iterable[Commit], size: int) -> Asked:
        """Return the contributions that are not here, to be fetched."""
        return Asked(self, (commit for commit in commits if commit.digest not in self), size)

    def decode(self, data: bytes | memoryview, size: int) -> Vector:
        """Return the vector that `data` stands for, on disk where it is not `data` itself; in slices, each on its own.

        Raises VerificationError as `Code.decode` does.
        """
        vector = self._code.decode(data, size, self._holders)
        return vector if self._code.name == "fp32" and self._holders is None else _on_disk(vector)

    def state_in(self, data: bytes | memoryview, size: int) -> Vector:
        """Return the optimiser's state that crossed with a vector of `size` elements, on disk."""
        return _on_disk(self._code.state_in(data, size))

    def clear(self, spared: Collection[str] = ()) -> None:
        """Let go of everything but the contributions `spared`; vectors that somebody holds stay readable."""
        for digest in sorted(self._held.keys() - set(spared)):
            del self._held[digest]


@by_slices
def _on_disk(vector: Vector) -> Vector:
    """Return the same values, to be read from a file."""
    with tempfile.TemporaryFile(prefix=_PREFIX) as file:
        vector.tofile(file)
        return _mapped(file, vector.dtype)


def _mapped(file: BinaryIO, dtype: np.dtype[Number]) -> npt.NDArray[Number]:
    """Return what a file holds, to be read from it; it may be closed."""
    file.flush()
    if not file.seek(0, os.SEEK_END):
        return np.empty(0, dtype=dtype)
    mapped = np.memmap(file, dtype=dtype, mode="r")
    return np.asarray(mapped)


class _Here(Mapping[str, bytes | memoryview]):
    def __init__(self, received: Received, digests: Mapping[str, str], own: Mapping[str, bytes]) -> None:
        self._received = received
        self._digests = digests
        self._own = own

    def __getitem__(self, site: str) -> bytes | memoryview:
        return self._own[site] if site in self._own else self._received[self._digests[site]]

    def __iter__(self) -> Iterator[str]:
        return iter({*self._own, *self._digests})

    def __len__(self) -> int:
        return len({*self._own, *self._digests})
