"""What server, agents, gateways and legs say to each other. All of it is of artifact class `control`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from consortium.domain.bounds import within
from consortium.domain.data import Dataset
from consortium.domain.job import MAX_COUNT, Epoch, Fault, LegState, SignedSpec

PROTOCOL_HEADER = "Consortium-Protocol"
"""Stands in every request, and in every answer of the server that is no problem document."""
PROBLEM_TYPE = "application/problem+json"
"""The media type of an error (RFC 9457)."""
MAX_REQUEST_BYTES = 32 << 20
"""Of any request that the server takes."""
MAX_RESULT_BYTES = 24 << 20
"""Of what the server hears of one leg's result, about 80,000 shards: a poll has room for other legs' reports too."""

MAX_LOG_CHARS = 5_000_000
"""Of the log of one epoch of a leg: what is longer stays in the site's archive only."""
MAX_LEASE_MS = 7 * 86_400_000
"""No server's files make a longer lease, nor a longer time to keep progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Voucher:
    """Who vouches for what a dataset is said to be: the person who registered it, or the leg that wrote it."""

    person: str = ""
    signature: str = ""
    """The person's, over the canonical JSON of the dataset as it was registered."""
    leg: str = ""
    """Where the site finds what it reported itself; empty for a registered dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegOffer:
    """The server asks a site to hold capacity for one epoch of a leg."""

    leg: str
    job: str
    attempt: str
    attempt_number: int
    epoch: Epoch
    site: str
    peers: tuple[str, ...]
    """Sites of all legs of the attempt, this one included, sorted."""
    nodes: dict[str, int]
    spec: SignedSpec
    inputs: tuple[Dataset, ...]
    """Those of the job's inputs that live at this site."""
    vouchers: dict[str, Voucher] = field(default_factory=dict)
    """By dataset id, one for each of `inputs`. Since protocol 2."""
    model_peers: tuple[str, ...] = ()
    """Sites behind the model that the job measures or goes on from, those behind that one included."""
    tracking_run: str = ""
    """MLflow run id of this leg."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegReport:
    """What a site says of one epoch of a leg at each poll, until the server has acknowledged a final state."""

    leg: str
    epoch: Epoch
    state: LegState
    reason: str = ""
    """Why it was refused, failed or stopped: a sentence for people."""
    reason_code: str = ""
    """For refusals: `policy`, `signature`, `roster`, `inputs`, `code`, `capacity`, `epoch`, `expired`."""
    denial: dict[str, Any] = field(default_factory=dict)
    """For refusals by policy: the `Denial` as JSON."""
    fault: Fault | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    """Small numbers for people: `{"phase": "train", "round": 3, "rounds": 4}`."""
    result: dict[str, Any] = field(default_factory=dict)
    """On success: `{"outputs": [Dataset…], "manifest_digest": …, "metrics": {…}}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """The last log checkpoint a site verified: tree size and root (hex)."""

    size: int
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PollRequest:
    """A site's call: what it is, what it holds, what happened."""

    site: str
    protocol: int
    healthy: bool
    """Whether the Ray cluster answers."""
    unhealthy_reason: str
    code_digest: str
    policy_digest: str
    highest_epoch: Epoch
    legs: tuple[LegReport, ...]
    pinned: Pinned | None = None
    next_seq: int = 0
    """The number the site's next record will have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegCommand:
    """The server tells a site to start or stop one epoch of a leg."""

    leg: str
    epoch: Epoch
    reason: str = ""
    keep_s: int = 0
    """Of a stop: how long the program may take to keep its progress before it is made to stop. Since protocol 2."""

    def __post_init__(self) -> None:
        within(self, keep_s=(0, MAX_LEASE_MS // 1000))


@dataclass(frozen=True, slots=True, kw_only=True)
class PollResponse:
    """The server's answer. Every poll renews the leases of the legs named in `renewed` for `lease_ms` from receipt."""

    incarnation: int
    protocol: int
    lease_ms: int
    checkpoint: str
    """The signed log checkpoint (C2SP signed note)."""
    consistency: tuple[str, ...]
    """Hex hashes proving that the checkpoint extends the pinned one."""
    offers: tuple[LegOffer, ...]
    starts: tuple[LegCommand, ...]
    stops: tuple[LegCommand, ...]
    renewed: tuple[str, ...]
    """Leg ids whose lease is renewed by this poll."""
    acknowledged: tuple[LegCommand, ...]
    """Final leg reports the server has committed; the site may forget them."""
    acked_seq: int = -1
    """Highest record number of this site that the server has committed."""
    hang_s: dict[str, int] = field(default_factory=dict)
    """By kind of job: after how long without a sign of life from its program a leg hangs. Since protocol 2."""

    def __post_init__(self) -> None:
        within(self, incarnation=(0, MAX_COUNT), lease_ms=(1, MAX_LEASE_MS), acked_seq=(-1, MAX_COUNT))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsTaken:
    """The server's answer to a site's records."""

    acked_seq: int
    """Highest record number of this site that the server has committed."""

    def __post_init__(self) -> None:
        within(self, acked_seq=(-1, MAX_COUNT))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAccess:
    """How a leg reaches its site's private store. The prefix is the leg's own; inputs are read by key."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str
    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LegContext:
    """What a running leg gets from its gateway when it shows its token."""

    job: str
    job_kind: str
    job_name: str
    attempt: str
    leg: str
    epoch: str
    site: str
    partner: str
    peers: tuple[str, ...]
    params: dict[str, Any]
    inputs: tuple[Dataset, ...]
    gpus: int
    gpus_per_worker: int
    gpu_resource: str
    store: StoreAccess
    model: str = ""
    tracking_run: str = ""
    min_sites: int = 1
    checkpoint_every_s: int = 0
    """How often the program is to keep its progress; 0: as often as it sees fit."""
