"""Verdicts: what a leg checks of each contribution of a round before it says yes.

Reason codes: `missing` (no such artifact was announced), `unreachable` (its sender's store does not answer), `digest`
(the bytes are not the committed ones), `shape` (not one fp32 per parameter), `finite` (a NaN or infinity), `norm` (not
the committed norm), `outlier` (norm above ten times the median of the round's). Empty means accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from consortium.domain.training import Commit
from consortium.errors import VerificationError
from consortium.train.outer import Vector, digest_of, from_bytes, norm_of

OUTLIER_FACTOR = 10.0
NORM_TOLERANCE = 1e-5
"""Relative; norms are summed in fp64, so honest ones agree far better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """One contribution after the checks: its vector where it could be read, and why it is refused where it is."""

    commit: Commit
    reason: str = ""
    norm: float = math.nan
    vector: Vector | None = None

    def as_verdict(self) -> dict[str, str | bool]:
        """Return what this leg tells the gateway, which signs it."""
        return {
            "site": self.commit.site,
            "digest": self.commit.digest,
            "accept": not self.reason,
            "reason": self.reason,
            "norm": "" if math.isnan(self.norm) else self.norm.hex(),
        }


def screen(
    commits: Sequence[Commit], received: Mapping[str, bytes], faults: Mapping[str, str], size: int
) -> tuple[Screened, ...]:
    """Judge the commits of a round, in site order.

    `received` holds plaintexts by site, `faults` the reason code of each that could not be had. `size` is the model's.
    """
    first = [
        _check(commit, received.get(commit.site), faults.get(commit.site, "missing"), size)
        for commit in sorted(commits, key=lambda commit: commit.site)
    ]
    norms = [one.norm for one in first if not one.reason]
    middle = median(norms) if norms else 0.0
    return tuple(
        Screened(commit=one.commit, reason="outlier", norm=one.norm, vector=one.vector)
        if not one.reason and middle > 0 and one.norm > OUTLIER_FACTOR * middle
        else one
        for one in first
    )


def _check(commit: Commit, data: bytes | None, fault: str, size: int) -> Screened:
    if data is None:
        return Screened(commit=commit, reason=fault)
    if digest_of(data) != commit.digest:
        return Screened(commit=commit, reason="digest")
    try:
        vector = from_bytes(data, size, what=f"the contribution of {commit.site}")
    except VerificationError:
        return Screened(commit=commit, reason="shape")
    if not bool(np.isfinite(vector).all()):
        return Screened(commit=commit, reason="finite", vector=vector)
    norm = norm_of(vector)
    try:
        declared = float.fromhex(commit.norm)
    except (ValueError, OverflowError):
        declared = math.nan
    honest = math.isclose(norm, declared, rel_tol=NORM_TOLERANCE, abs_tol=1e-12)
    return Screened(commit=commit, reason="" if honest else "norm", norm=norm, vector=vector)
