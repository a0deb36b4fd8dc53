"""Crossings: what left and what arrived, by border and class, sender's records against the recipient's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from consortium.domain.data import ArtifactClass, Crossing, CrossingSide
from consortium.domain.ids import partner_of


@dataclass(frozen=True, slots=True, kw_only=True)
class BorderSum:
    """What passed from one site to another, of one class. A side that recorded nothing is None, never zero."""

    sender: str
    recipient: str
    artifact_class: ArtifactClass
    released_count: int | None
    released_bytes: int | None
    received_count: int | None
    received_bytes: int | None
    matched_count: int
    """Artifacts that both sides recorded, with the same digest, job and size."""
    agree: bool
    """Both sides recorded the same artifacts, each of them."""

    @property
    def cross_checked(self) -> bool:
        """Whether both sides agree and are of two partners: one that holds both ends vouches only for itself."""
        return self.agree and partner_of(self.sender) != partner_of(self.recipient)

    @property
    def size_bytes(self) -> int:
        """Bytes by the sender's record, or the recipient's where the sender has none."""
        return self.released_bytes if self.released_bytes is not None else (self.received_bytes or 0)

    @property
    def count(self) -> int:
        """Artifacts by the sender's record, or the recipient's where the sender has none."""
        return self.released_count if self.released_count is not None else (self.received_count or 0)


def border_sums(crossings: Iterable[Crossing]) -> tuple[BorderSum, ...]:
    """Sum crossings by sender, recipient and class, sorted; both sides' records go in together."""
    groups: dict[tuple[str, str, ArtifactClass], list[Crossing]] = {}
    for crossing in crossings:
        groups.setdefault((crossing.sender, crossing.recipient, crossing.artifact_class), []).append(crossing)
    return tuple(_sum(key, groups[key]) for key in sorted(groups))


def _sum(key: tuple[str, str, ArtifactClass], crossings: list[Crossing]) -> BorderSum:
    sides = {side: [item for item in crossings if item.side is side] for side in CrossingSide}
    released, received = sides[CrossingSide.RELEASE], sides[CrossingSide.RECEIPT]
    named = [Counter(_name(item) for item in side if item.digest) for side in (released, received)]
    return BorderSum(
        sender=key[0],
        recipient=key[1],
        artifact_class=key[2],
        released_count=_total(item.count for item in released),
        released_bytes=_total(item.size_bytes for item in released),
        received_count=_total(item.count for item in received),
        received_bytes=_total(item.size_bytes for item in received),
        matched_count=(named[0] & named[1]).total(),
        agree=bool(named[0]) and named[0] == named[1] and all(item.digest for item in crossings),
    )


def _name(crossing: Crossing) -> tuple[str, str, int, int]:
    return (crossing.job, crossing.digest, crossing.size_bytes, crossing.count)


def _total(values: Iterable[int]) -> int | None:
    """Sum, or None where there is nothing to sum: not recorded is not zero."""
    items = list(values)
    return sum(items) if items else None
