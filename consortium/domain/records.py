"""Records: every fact a report rests on, signed by its origin, numbered without gaps and chained.

The canonical JSON (RFC 8785) of a record without `signature` is what is signed; with it, it is the ledger's payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class RecordType(StrEnum):
    """Families of records; DESIGN section 8 gives their meaning."""

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
