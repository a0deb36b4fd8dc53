"""A job's training checkpoints as people see them: listed, checked, pinned and pruned in a site's private store.

They are what `consortium.train.keep` writes: the outer state after each round, and the inner steps under way. All of it
is JSON and fp32 vectors under keys that hold their SHA-256; nothing is pickled, and nothing else keeps the same again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consortium.errors import ConsortiumError, NotFoundError, UsageError, VerificationError
from consortium.train.keep import Keep

if TYPE_CHECKING:
    from consortium.storage.objects import ObjectStore

FEWEST = 2
"""Newest states that pruning always leaves: a damaged or disputed one falls back on the one before."""
_AUDITED = ("round.json", "certificate.json", "received")
"""What an audit needs of a round however old; what peers sent has a retention of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A state that training can go on from."""

    round: int
    """The round after which it was made; with `inner`, the one in which it was."""
    inner: bool = False
    """Whether it is of inner steps in mid-round. The leg replaces and drops these itself."""
    size_bytes: int
    """Of the state, and of this site's own contribution to the round."""
    pinned: bool = False
    fault: str = ""
    """What is wrong with it, where it was checked."""


class Checkpoints:
    """The checkpoints of one job in one site's store."""

    def __init__(self, store: ObjectStore, job: str) -> None:
        self._store = store
        self._keep = Keep(store, job)
        self._root = f"jobs/{job}"

    def listed(self, *, verify: bool = False) -> tuple[Checkpoint, ...]:
        """Return the checkpoints, oldest first; with `verify` every byte is read and held against its digest."""
        sizes: dict[tuple[int, bool], int] = {}
        whole: set[tuple[int, bool]] = set()
        pinned = set()
        for number, name, size in self._objects():
            inner = name.startswith("inner/")
            if not name.startswith("audit/"):
                sizes[number, inner] = sizes.get((number, inner), 0) + size
            if name in ("outer/state.json", "inner/inner.json"):
                whole.add((number, inner))
            if name == "outer/pinned":
                pinned.add(number)
        return tuple(
            Checkpoint(
                round=number,
                inner=inner,
                size_bytes=sizes[number, inner],
                pinned=number in pinned and not inner,
                fault=self._fault(number, inner) if verify else "",
            )
            for number, inner in sorted(whole)
        )

    def pin(self, number: int) -> None:
        """Keep a round's state whatever is pruned. Raises NotFoundError where there is none."""
        self._must_be_kept(number)
        self._store.put(f"{self._root}/outer/{number}/pinned", b"")

    def unpin(self, number: int) -> None:
        """Let a round's state be pruned again. Raises NotFoundError where there is none."""
        self._must_be_kept(number)
        self._store.delete(f"{self._root}/outer/{number}/pinned")

    def prune(self, newest: int) -> tuple[int, int]:
        """Delete all states but the `newest`, round 0 and pinned ones, and this site's contributions to their rounds.

        Returns how many rounds that was and how many bytes. What was deleted can be neither gone on from, evaluated nor
        re-executed. Rounds as certified stay. Raises UsageError for fewer than two.
        """
        if newest < FEWEST:
            raise UsageError(
                f"at least the {FEWEST} newest states stay, got {newest}", fix=f"keep {FEWEST} or more, or pin others"
            )
        listed = [one for one in self.listed() if not one.inner]
        spared = {0, *(one.round for one in listed[-newest:]), *(one.round for one in listed if one.pinned)}
        last = listed[-1].round if listed else -1
        doomed = [
            (number, name, size) for number, name, size in self._objects() if self._goes(number, name, spared, last)
        ]
        # The pointer first: what it names is not looked for once it is gone.
        for number, name, _ in sorted(doomed, key=lambda one: (not one[1].endswith(".json"), one)):
            room, _, rest = name.partition("/")
            self._store.delete(f"{self._root}/{'outer' if room == 'outer' else 'rounds'}/{number}/{rest}")
        return len({number for number, _, _ in doomed}), sum(size for _, _, size in doomed)

    @staticmethod
    def _goes(number: int, name: str, spared: Collection[int], last: int) -> bool:
        """Rounds after the newest state are still under way."""
        return number not in spared and number <= last and not name.startswith("audit/")

    def _objects(self) -> list[tuple[int, str, int]]:
        """Return round, `outer/…`, `own/…`, `inner/…` or `audit/…`, and size of each object kept of rounds."""
        found = []
        for entry in self._store.entries(f"{self._root}/"):
            room, _, rest = entry.key.removeprefix(f"{self._root}/").partition("/")
            number, _, name = rest.partition("/")
            if room not in ("outer", "rounds") or not number.isdecimal():
                continue
            found.append((int(number), room, name, entry.size))
        made = {number for number, room, name, _ in found if room == "rounds" and name == "contribution.json"}
        return [
            (number, f"{'outer' if room == 'outer' else _kind(name, number in made)}/{name}", size)
            for number, room, name, size in found
        ]

    def _must_be_kept(self, number: int) -> None:
        if number not in (kept := self._keep.rounds()):
            raise NotFoundError(f"no state after round {number} is kept", fix=f"kept are {_ranges(kept) or 'none'}")

    def _fault(self, number: int, inner: bool) -> str:
        """What is wrong with a state, or with this site's contribution to its round."""
        if not inner:
            try:
                size = self._keep.measured(number)[0].layout.size
                (self._keep.stepped if self._keep.thinned(number) else self._keep.outer)(number, size)
            except (VerificationError, NotFoundError) as fault:
                return fault.what
        found = self._fault_named(number, inner)
        return f"the contribution to it: {found}" if found and not inner else found

    def _fault_named(self, number: int, inner: bool) -> str:
        """What is wrong with a contribution or inner steps: nothing where there are none.

        A leg at work replaces what they name; it is looked at anew then.
        """
        fault, before = "", None
        while True:
            try:
                pointer = self._keep.named(number, inner=inner)
            except NotFoundError:
                return ""
            except VerificationError as found:
                return found.what
            if pointer == before:
                return fault
            try:
                self._keep.read(pointer)
            except (VerificationError, NotFoundError) as found:
                fault, before = found.what, pointer
            else:
                return ""


def _kind(name: str, made: bool) -> str:
    """What an object of a round is for; vectors are the contribution's where there is one, else of steps under way."""
    if name.startswith(_AUDITED):
        return "audit"
    return "own" if made and name != "inner.json" else "inner"


def _ranges(numbers: Collection[int]) -> str:
    """Return ascending numbers in words: 0 to 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs)


def faults(listed: Collection[Checkpoint]) -> ConsortiumError | None:
    """Return the error that checked checkpoints come to; None where all are sound."""
    bad = [one for one in listed if one.fault]
    if not bad:
        return None
    return VerificationError(
        f"{len(bad)} of {len(listed)} checkpoints do not read back, the first of round {bad[0].round}: {bad[0].fault}",
        fix="restore the private store; a leg goes back to the newest state that reads back",
    )
