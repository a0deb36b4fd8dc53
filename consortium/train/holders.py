"""The ranks of a site that hold vectors in slices, and what rank 0 lets them do with them (see `sharded`).

Every rank has one `Holders` over a process group of its own, of gloo: what is computed of slices is computed on hosts,
beside the training steps, whose collectives have another group. The other ranks do what rank 0 says, in a thread; one
thing at a time, whichever of rank 0's threads asks. What travels inside the group is trusted as the site's own.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from consortium.errors import ConsortiumError, UnreachableError
from consortium.train.redistribute import redistribute, views
from consortium.train.sharded import Each, Ranges, Sharded, cut, lengths

Array = npt.NDArray[Any]
PIECE_BYTES = 1 << 26
"""What crosses between two ranks at a time."""
_MOST_RESULTS = 4
"""Arrays that one function may return."""
_MEET_S = 300.0
"""How long the ranks may take to find each other."""


@dataclass(frozen=True, slots=True)
class _Slices:
    """Stands for a handle where ranks are told what to do."""

    slot: int


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a rank says of an array that it holds from now on."""

    slot: int
    length: int


@dataclass(frozen=True, slots=True)
class _Fault:
    """What a rank raised."""

    error: Exception


class Holders:
    """One rank's side: the slices that it holds. Rank 0's is what handles speak through."""

    def __init__(self, rank: int, world: int, *, timeout_s: float) -> None:
        """Find the other ranks, which wait for rank 0's word up to `timeout_s` later on.

        Raises UnreachableError where they cannot be found.
        """
        self.rank = rank
        self.world = world
        _meet()
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self._held: dict[int, Array] = {}
        self._asking = threading.Lock()
        self._over = False
        """Whether ranks do no longer, or not all of them did, what rank 0 says."""
        self._numbers = count(1)
        self._gone: deque[int] = deque()

    # -- rank 0 ---------------------------------------------------------------------------------------------------

    def map(self, function: Callable[..., Any], *given: Any) -> Any:
        """See `consortium.train.sharded.Holding`. Raises what the first rank raised."""
        first = self.reserve()
        said = self._ask(self._apply, function, _told(given), first)
        if any(isinstance(one, _Fault) for one in said):
            self._gone.extend(range(first, first + _MOST_RESULTS))
            _raise_first(said)
        return self._of_all(said)

    def place(self, vector: Array, ranges: tuple[Ranges, ...] | None = None) -> Sharded:
        """Cut a vector of rank 0 into slices."""
        ranges = ranges or cut(len(vector), self.world)
        slot, sizes = self.reserve(), lengths(ranges)
        self._ask(self._scatter, slot, sizes, vector.dtype.str, local=(vector, ranges))
        return Sharded(self, slot, sizes)

    def pieces(self, vector: Sharded) -> Iterator[Array]:
        """Yield the elements of all slices, in pieces of `PIECE_BYTES` at the most; the next one comes meanwhile."""
        most = PIECE_BYTES // self.of(vector.slot).itemsize
        places = [
            (rank, start, min(length, start + most))
            for rank, length in enumerate(vector.lengths)
            for start in range(0, length, most)
        ]
        with ThreadPoolExecutor(1, thread_name_prefix="pieces") as thread:
            coming: deque[Future[Array]] = deque()
            for place in places:
                coming.append(thread.submit(self._piece, vector.slot, *place))
                if len(coming) > 1:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()

    def _piece(self, slot: int, rank: int, start: int, stop: int) -> Array:
        if not rank:
            return self.of(slot)[start:stop]
        piece = np.empty(stop - start, dtype=self.of(slot).dtype)
        self._ask(self._give, slot, rank, start, stop, local=(piece,))
        return piece

    def move(self, vector: Any, held: tuple[Ranges, ...], wanted: tuple[Ranges, ...]) -> Sharded:
        """Return what each rank wants of the elements that the ranks hold."""
        slot = self.reserve()
        self._ask(self._move, vector.slot, slot, held, wanted)
        return Sharded(self, slot, lengths(wanted))

    def reserve(self) -> int:
        """Return a slot under which all ranks are about to keep a slice."""
        return next(self._numbers) * _MOST_RESULTS

    def drop(self, slot: int) -> None:
        """Forget slices, when ranks are next told something."""
        self._gone.append(slot)

    def stop(self) -> None:
        """Let the other ranks' `serve` return."""
        self._ask(None)

    # -- all ranks ------------------------------------------------------------------------------------------------

    def keep(self, slot: int, slice_: Array) -> None:
        """Hold a slice."""
        self._held[slot] = slice_

    def of(self, slot: int) -> Array:
        """Return the slice held here."""
        return self._held[slot]

    def serve(self) -> None:
        """Do what rank 0 says until it says no more. All ranks but 0.

        Where that is not possible the process ends: nobody else would learn that this rank holds its slices no longer.
        """
        try:
            self._serve()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _serve(self) -> None:
        while True:
            told: list[Any] = [None]
            dist.broadcast_object_list(told, src=0, group=self._group)
            name, args, gone = told[0]
            self._forget(gone)
            if name is None:
                return
            dist.gather_object(getattr(self, name)(*args), None, dst=0, group=self._group)

    # -- telling and doing ----------------------------------------------------------------------------------------

    def _ask(self, what: Callable[..., Any] | None, *args: Any, local: tuple[Any, ...] = ()) -> list[Any]:
        """Let all ranks do this and return what each says; rank 0 is given what is `local` to it besides.

        Where that fails on the way ranks may be waiting for each other, so nothing is asked of them after it.
        """
        with self._asking:
            if self._over:
                raise UnreachableError("the ranks that hold the outer state no longer do what they are told")
            self._over = True
            gone = [self._gone.popleft() for _ in range(len(self._gone))]
            told = (what.__name__ if what is not None else None, args, gone)
            dist.broadcast_object_list([told], src=0, group=self._group)
            self._forget(gone)
            if what is None:
                return []
            said: list[Any] = [None] * self.world
            dist.gather_object(what(*args, *local), said, dst=0, group=self._group)
            self._over = False
        return said

    def _forget(self, slots: list[int]) -> None:
        for slot in slots:
            self._held.pop(slot, None)

    def _apply(self, function: Callable[..., Any], given: Any, first: int) -> Any:
        try:
            result = function(*self._local(given))
        except Exception as fault:  # rank 0 raises it: it may be what a vector is refused for
            if not isinstance(fault, ConsortiumError):
                traceback.print_exc()
                fault.add_note(f"on rank {self.rank} of the site")
            return _Fault(fault)
        several = isinstance(result, tuple)
        results = result if several else (result,)
        if len(results) > _MOST_RESULTS:
            raise ValueError(f"{function} returns {len(results)} values, at most {_MOST_RESULTS} have room")
        said = [self._kept(first + at, one) if isinstance(one, np.ndarray) else one for at, one in enumerate(results)]
        return tuple(said) if several else said[0]

    def _kept(self, slot: int, array: Array) -> _Kept:
        self.keep(slot, array)
        return _Kept(slot, len(array))

    def _local(self, given: Any) -> Any:
        """Return arguments with this rank's slices in place of handles, and its own of what each rank is given."""
        if isinstance(given, _Slices):
            return self.of(given.slot)
        if isinstance(given, Each):
            return given[self.rank]
        if isinstance(given, (tuple, list)):
            return type(given)(self._local(one) for one in given)
        return {key: self._local(one) for key, one in given.items()} if isinstance(given, dict) else given

    def _of_all(self, said: list[Any]) -> Any:
        if all(isinstance(one, tuple) for one in said):
            return tuple(self._of_all(list(several)) for several in zip(*said, strict=True))
        if all(isinstance(one, _Kept) for one in said):
            return Sharded(self, said[0].slot, tuple(one.length for one in said))
        return said

    def _scatter(
        self, slot: int, sizes: tuple[int, ...], kind: str, vector: Array | None = None, ranges: Any = ()
    ) -> None:
        if vector is None:
            slice_ = np.empty(sizes[self.rank], dtype=np.dtype(kind))
            for part in _pieces(slice_):
                dist.recv(torch.from_numpy(part), src=0, group=self._group)
            self.keep(slot, slice_)
            return
        for rank in range(self.world):
            slice_ = np.concatenate([vector[:0], *(vector[start:stop] for start, stop in ranges[rank])])
            if not rank:
                self.keep(slot, slice_)
                continue
            for part in _pieces(slice_):
                dist.send(torch.from_numpy(part), dst=rank, group=self._group)

    def _give(self, slot: int, rank: int, start: int, stop: int, piece: Array | None = None) -> None:
        if piece is not None:
            dist.recv(torch.from_numpy(piece), src=rank, group=self._group)
        elif rank == self.rank:
            part = np.require(self.of(slot)[start:stop], requirements=["C", "W"])
            dist.send(torch.from_numpy(part), dst=0, group=self._group)

    def _move(self, source: int, slot: int, held: tuple[Ranges, ...], wanted: tuple[Ranges, ...]) -> None:
        mine = torch.from_numpy(np.require(self.of(source), requirements=["C", "W"]))
        found = torch.empty(lengths(wanted)[self.rank], dtype=mine.dtype)
        sources, targets = views(mine, held[self.rank]), views(found, wanted[self.rank])
        redistribute(sources, held, targets, wanted, self.rank, group=self._group)
        self.keep(slot, found.numpy())


def _meet() -> None:
    """Let the ranks find each other in a group that waits for minutes. Raises UnreachableError."""
    try:
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=_MEET_S))
        dist.barrier(group=group)
    except RuntimeError as fault:
        raise UnreachableError(
            f"the hosts of the training workers do not reach each other by gloo: {str(fault).splitlines()[0]}",
            fix="set GLOO_SOCKET_IFNAME on all nodes to the network interface that joins them",
        ) from fault
    dist.destroy_process_group(group)


def _raise_first(said: list[Any]) -> None:
    """Raise the first fault. Nothing but its own traceback holds it then, or the handles in the frames on its way."""
    fault = next(one.error for one in said if isinstance(one, _Fault))
    try:
        raise fault
    finally:
        said.clear()
        del fault


def _told(given: Any) -> Any:
    """Return arguments as ranks are told them. Raises TypeError for an array, which is not in slices."""
    if isinstance(given, Sharded):
        return _Slices(given.slot)
    if isinstance(given, np.ndarray):
        raise TypeError("an array beside vectors in slices: place it first")
    if isinstance(given, Each):
        return given
    if isinstance(given, (tuple, list)):
        return type(given)(_told(one) for one in given)
    return {key: _told(one) for key, one in given.items()} if isinstance(given, Mapping) else given


def _pieces(array: Array) -> Iterator[Array]:
    most = PIECE_BYTES // array.itemsize
    for start in range(0, len(array), most):
        yield array[start : start + most]
