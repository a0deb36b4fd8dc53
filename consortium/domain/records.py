"""Records: every fact a report rests on, signed by its origin, numbered without gaps and chained.

The canonical JSON (RFC 8785) of a record without `signature` is what is signed; with it, it is the ledger's payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class RecordType(StrEnum):
    """Families of records; docs/accounting.md says what each is about."""

    PLEDGE = "pledge"
    QUOTA = "quota"
    POLICY = "policy"
    ROSTER = "roster"
    SITE = "site"
    DATASET = "dataset"
    JOB = "job"
    DECISION = "decision"
    REFUSAL = "refusal"
    LEASE = "lease"
    USAGE = "usage"
    CROSSING = "crossing"
    ROUND = "round"
    MANIFEST = "manifest"
    RUN = "run"
    FACTOR = "factor"
    DOWNTIME = "downtime"
    APPROVAL = "approval"
    KEY = "key"
    DISPUTE = "dispute"
    EDITION = "edition"
    RE_EXECUTION = "re_execution"


SITE_MAY_WRITE = (
    RecordType.USAGE,
    RecordType.CROSSING,
    RecordType.REFUSAL,
    RecordType.MANIFEST,
    RecordType.DOWNTIME,
    RecordType.RE_EXECUTION,
)
"""What a site's records may tell of; the rest is the server's."""
SITES_ALONE = (RecordType.USAGE, RecordType.CROSSING, RecordType.RE_EXECUTION)
"""What only a site may write, and only of itself: the server has no GPUs, borders or inner steps of its own."""


class Evidence(StrEnum):
    """How well a figure is founded."""

    DECLARED = "declared"
    CROSS_CHECKED = "cross-checked"
    RE_EXECUTED = "re-executed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A signed fact. `origin` is a site id, or `server`; `seq` counts from 0 per origin without gaps."""

    type: RecordType
    origin: str
    seq: int
    previous: str
    """`sha256:` of the canonical JSON of the origin's record before this one; empty for the first."""
    at_ms: int
    body: dict[str, Any]
    signature: str = ""


RE_EXECUTION_TOLERANCE = 0.2
"""Relative L2 distance of two pseudo-gradients of the same inner steps on unlike processors.

Measured between AVX2 and no vector instructions, from fresh parameters: 4e-7 after 30 steps, 7e-5 after 60, 0.07 after
100, 0.33 after 200; steps on other text come to a distance of about 1 and more. So sample rounds of up to 100 steps
elsewhere, and longer ones on the same kind of machine, where nothing but the same bits passes for certain.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReExecution:
    """What doing the inner steps behind one contribution again, at its site, came to. Floats as hex.

    The site records it. With `by` and `signature` an auditor says that it came out so under their eyes.
    """

    job: str
    round: int
    site: str
    digest: str
    """Of the contribution, as committed."""
    same_bits: bool
    distance: str
    """L2 norm of the difference over the norm of what was contributed."""
    cosine: str
    tolerance: str
    drawn: tuple[int, ...]
    """The rounds that were to be done again, this one among them: `draw` of `seed`, or those that were named."""
    seed: str = ""
    """Empty where the rounds were named."""
    code_digest: str = ""
    by: str = ""
    """An auditor, such as `uy/carmen`; empty where the site speaks for itself."""
    signature: str = ""

    def __post_init__(self) -> None:
        for name in ("distance", "cosine", "tolerance"):
            try:
                float.fromhex(getattr(self, name))
            except OverflowError as fault:
                raise ValueError(f"{name} is larger than a float holds") from fault
        if self.round < 1 or self.round not in self.drawn:
            raise ValueError(f"round {self.round} is none of those that were to be done again")

    @property
    def holds(self) -> bool:
        """Whether it came to the same: in every bit, or within a tolerance that is not above the stated one."""
        tolerance = min(float.fromhex(self.tolerance), RE_EXECUTION_TOLERANCE)
        return self.same_bits or float.fromhex(self.distance) <= tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """GPUs held by one epoch of a leg over the half-open interval [start_ms, end_ms), UTC."""

    leg: str
    epoch: str
    job: str
    account: str
    site: str
    flavor: str
    gpus: int
    start_ms: int
    end_ms: int

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.end_ms < self.start_ms:
            raise ValueError(f"usage of {self.leg} must hold GPUs over an interval that does not end before it starts")

    @property
    def gpu_ms(self) -> int:
        """GPU-milliseconds of the row."""
        return self.gpus * (self.end_ms - self.start_ms)
