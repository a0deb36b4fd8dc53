"""What goes because of other documents: duplicates, near-duplicates, and contributors that a screen finds.

It needs all shards at once, but only what is small of them: 16 bytes of key and 240 of signature per candidate, and the
texts of those pairs that share a band. Who is set aside is found first, among all candidates; duplicates are then
sought among the others, so that no honest document goes because a set-aside one stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consortium.data import dedup, neardup, poisoning
from consortium.data.jaccard import Exact, TextsOf
from consortium.data.minhash import Signatures
from consortium.data.shingles import I64
from consortium.domain.cleaning import CleanConfig

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why documents go: rule, value and threshold of their annotations. An empty value: what stands for them."""

    rule: str
    value: str
    threshold: str


@dataclass(frozen=True, slots=True)
class Part:
    """What is small of one screened shard's candidates, in their order. Unneeded parts are None."""

    keys: bytes
    signatures: Signatures | None = None
    observed: poisoning.Observed | None = None

    def __len__(self) -> int:
        return len(self.keys) // dedup.KEY_BYTES


@dataclass(frozen=True, slots=True)
class Fates:
    """Per shard: which candidate stands for each (numbered over the dataset), and why it goes.

    `why` [candidates] are places in `reasons`, -1 where a candidate stays.
    """

    stands: list[I64]
    why: list[I64]
    reasons: tuple[Reason, ...]


def decide(parts: Sequence[Part], config: CleanConfig, texts_of: TextsOf) -> Fates:
    """Return every candidate's fate. Pure but for `texts_of`; the same for any cut of the dataset into shards.

    Where duplicates have the same words, the earliest stays, which is the only thing that goes by the shards' order.
    """
    starts = np.cumsum([0, *map(len, parts)])
    look = _Look(parts, config, texts_of)
    everyone: list[Mask] = [np.ones(len(part), dtype=bool) for part in parts]
    exact, stands = look.clusters(everyone)
    why = [np.full(len(part), -1, dtype=np.int64) for part in parts]
    reasons = [Reason("dedup.exact", "", ""), Reason("dedup.near", "", f"{config.near.threshold:g}")]
    if config.quarantine and parts and all(part.observed is not None for part in parts):
        seen = poisoning.merge([part.observed for part in parts if part.observed is not None])
        findings = poisoning.judge(seen, np.concatenate(stands), config.poisoning)
        found = poisoning.first_findings(findings, config.poisoning)
        if found:
            number = {finding.contributor: at for at, finding in enumerate(found.values(), len(reasons))}
            reasons += [Reason(each.rule, each.value, each.threshold) for each in found.values()]
            of_group = np.array([number.get(contributor, -1) for contributor, _ in seen.groups], dtype=np.int64)
            why = list(np.split(of_group[seen.of], starts[1:-1]))
            exact, stands = look.clusters([part < 0 for part in why])
    for shard, start in enumerate(starts[:-1].tolist()):
        own = np.arange(start, start + len(parts[shard]))
        gone = (stands[shard] != own) & (why[shard] < 0)
        equal = gone & (exact[shard] != own)
        why[shard][gone] = 1
        why[shard][equal] = 0
        stands[shard][equal] = exact[shard][equal]  # the same text, though that may have a near-duplicate itself
    return Fates(stands, why, tuple(reasons))


class _Look:
    """Finds duplicates among some of the candidates; texts once compared are remembered."""

    def __init__(self, parts: Sequence[Part], config: CleanConfig, texts_of: TextsOf) -> None:
        self.parts, self.config = parts, config
        self.signatures = [part.signatures for part in parts if part.signatures is not None]
        self.verify = Exact(self.signatures, config.near, texts_of) if config.dedup == "near" else None

    def clusters(self, among: list[Mask]) -> tuple[list[I64], list[I64]]:
        """Return who stands for each candidate: by equal texts alone, and in the end."""
        if self.config.dedup == "none":
            starts = np.cumsum([0, *map(len, self.parts)])
            alone = [np.arange(start, start + len(part)) for part, start in zip(self.parts, starts[:-1], strict=True)]
            return alone, alone
        exact = dedup.survivors([part.keys for part in self.parts], among=among)
        if self.verify is None or not self.parts:
            return exact, exact
        open_ = [mine & own for mine, own in zip(among, neardup.stay(exact), strict=True)]
        near = np.concatenate(neardup.survivors(self.signatures, self.config.near, self.verify, among=open_))
        return exact, [near[part] for part in exact]
