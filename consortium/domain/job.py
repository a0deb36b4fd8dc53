"""Jobs, attempts, legs and leases, their states and the transitions between them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from typing import Any

from consortium.domain import ids
from consortium.domain.data import ArtifactClass
from consortium.domain.decision import Denial, Reason

MAX_GPUS = 100_000
"""What one leg may ask for at its site."""


class JobKind(StrEnum):
    """What a job does; each kind is a program in `jobs/` and a config in `configs/job/`."""

    CLEAN = "clean"
    TOKENIZE = "tokenize"
    PRETRAIN = "pretrain"
    EVALUATE = "evaluate"


READ: dict[JobKind, tuple[ArtifactClass, ...]] = {
    JobKind.CLEAN: (ArtifactClass.RAW, ArtifactClass.CLEAN),
    JobKind.TOKENIZE: (ArtifactClass.CLEAN,),
    JobKind.PRETRAIN: (ArtifactClass.TOKENS,),
    JobKind.EVALUATE: (ArtifactClass.TOKENS,),
}
"""Classes of datasets that the legs of a kind can take as inputs."""


class JobState(StrEnum):
    """States of a job as users see them."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    PREEMPTING = "preempting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DENIED = "denied"

    @property
    def final(self) -> bool:
        """Whether the job will never change again."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.DENIED)


JOB_TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.STARTING, JobState.CANCELLED, JobState.DENIED, JobState.FAILED}),
    JobState.STARTING: frozenset(
        {JobState.RUNNING, JobState.PENDING, JobState.PREEMPTING, JobState.CANCELLED, JobState.FAILED}
    ),
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.PENDING, JobState.PREEMPTING}
    ),
    JobState.PREEMPTING: frozenset({JobState.PENDING, JobState.CANCELLED, JobState.FAILED, JobState.SUCCEEDED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.DENIED: frozenset(),
}


class LegState(StrEnum):
    """States of a leg's current epoch.

    `offered` to the site; `held` when it accepted (capacity reserved there); `starting` when told to start; `running`
    once Ray runs it; `stopping` until the site confirms the stop. The rest are final for the epoch.
    """

    OFFERED = "offered"
    HELD = "held"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    REFUSED = "refused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"

    @property
    def final(self) -> bool:
        """Whether this epoch of the leg has ended."""
        return self in (
            LegState.REFUSED,
            LegState.SUCCEEDED,
            LegState.FAILED,
            LegState.STOPPED,
            LegState.LOST,
        )


class Fault(StrEnum):
    """Whose fault a failed leg was.

    The program's: never retried. The site's: retried with backoff. A node's: the same, and not on that node.
    """

    USER = "user"
    SITE = "site"
    NODE = "node"


class Priority(StrEnum):
    """Priority classes, highest first when sorted by `rank`."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 is served first."""
        return _RANKS[self]


_RANKS = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one leg needs at its site."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic reads it from the class
    __left_out__ = frozenset({"throughput"})

    gpus: int
    walltime_s: int
    flavors: tuple[str, ...] = ()
    """Acceptable flavors; empty means any."""
    gpus_per_worker: int = 1
    throughput: dict[str, str] = field(default_factory=dict)
    """How fast the job runs on each of `flavors` (decimal strings, only their ratios count); empty: as the measured
    factors say. The walltime holds on any of them."""

    def __post_init__(self) -> None:
        if not 1 <= self.gpus <= MAX_GPUS:
            raise ValueError(f"gpus must be 1 to {MAX_GPUS:,} per site, got {self.gpus}")
        if not 1 <= self.walltime_s <= 366 * 86_400:
            raise ValueError(f"walltime_s must be 1 second to 366 days, got {self.walltime_s}")
        if self.gpus_per_worker < 1 or self.gpus % self.gpus_per_worker:
            raise ValueError(f"gpus ({self.gpus}) must be a multiple of gpus_per_worker ({self.gpus_per_worker})")
        if self.throughput and set(self.throughput) != set(self.flavors):
            raise ValueError("throughput must be given for every one of the flavors, or for none")
        for flavor in sorted(self.throughput):
            check_throughput(flavor, self.throughput[flavor])


def check_throughput(flavor: str, text: str) -> None:
    """Raise ValueError unless `text` is a decimal number from 0.001 to 1000."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError) as fault:
        raise ValueError(f"throughput of {flavor} must be a decimal number, got {text!r}") from fault
    if not set(text) <= set("0123456789.") or not Fraction(1, 1000) <= value <= 1000:
        raise ValueError(f"throughput of {flavor} must be 0.001 to 1000, got {text}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayMember:
    """Which of the jobs that were submitted together a job is: `index` runs from 0 to `size` - 1."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic reads it from the class

    id: str
    index: int
    size: int
    limit: int = 0
    """The most members that are in line or at work at a time; 0: all of them."""

    def __post_init__(self) -> None:
        if not ids.is_id(self.id, "arr"):
            raise ValueError(f"array {self.id!r} must be an id of the form arr-…")
        if not 1 <= self.size <= MAX_ARRAY:
            raise ValueError(f"an array has 1 to {MAX_ARRAY:,} members, got {self.size:,}")
        if not 0 <= self.index < self.size:
            raise ValueError(f"index must be 0 to {self.size - 1}, got {self.index}")
        if not 0 <= self.limit <= self.size:
            raise ValueError(f"limit must be 0 (none) to {self.size}, got {self.limit}")


MAX_ARRAY = 1_000
MAX_AFTER = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What an engineer submits and signs. Everything a site needs to judge and run the job is in here."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic reads it from the class
    __left_out__ = frozenset({"after", "array", "deadline_ms", "preemptible", "checkpoint_every_s"})

    kind: JobKind
    name: str
    account: str
    submitter: str
    """Person id, `fr/amelie`."""
    purpose: str
    inputs: tuple[str, ...]
    """Dataset ids. Each leg runs at a site and reads the inputs that live there."""
    resources: Resources
    params: dict[str, Any]
    """The composed, validated config of the kind: plain JSON."""
    code_digest: str
    """Digest of the code the submitter means to run; a site runs it only where it installed the same."""
    sites: tuple[str, ...] = ()
    """Sites to run at. Empty: the homes of the inputs (a job goes to its data), or any one site without inputs."""
    min_sites: int = 1
    """Legs that must remain for a federated job to go on."""
    priority: Priority = Priority.NORMAL
    model: str = ""
    """For `evaluate`: the id of the pretrain job whose outer states are read."""
    submitted_ms: int = 0
    nonce: str = ""
    """Random, so that two equal submissions differ and a signed spec cannot be replayed as a new job."""
    after: tuple[str, ...] = ()
    """Jobs that must succeed first; it ends with the first of them that does not."""
    array: ArrayMember | None = None
    deadline_ms: int = 0
    """When it must have ended: it is not started where its walltime would go beyond. 0: none."""
    preemptible: bool = True
    """Whether it may be stopped for a job with a better right to its GPUs, and run again."""
    checkpoint_every_s: int = 0
    """How often its program keeps its progress, as far as its submitter knows; 0: not known."""

    def __post_init__(self) -> None:
        if not ids.is_name(self.name):
            raise ValueError(f"job name {self.name!r}: lower-case letters, digits, '.', '_' and '-' only")
        if not ids.is_account(self.account):
            raise ValueError(f"account {self.account!r} must be a partner ('fr') or a project under one ('fr/health')")
        if self.min_sites < 1:
            raise ValueError(f"min_sites must be at least 1, got {self.min_sites}")
        if len(set(self.after)) != len(self.after) or len(self.after) > MAX_AFTER:
            raise ValueError(f"after must name at most {MAX_AFTER} jobs, each once, got {len(self.after)}")
        for job in self.after:
            if not ids.is_id(job, "job"):
                raise ValueError(f"after names {job!r}, which is no job id")
        if not 0 <= self.deadline_ms < 1 << 48:
            raise ValueError(f"deadline_ms must be UTC Unix milliseconds, got {self.deadline_ms}")
        if not 0 <= self.checkpoint_every_s <= 366 * 86_400:
            raise ValueError(f"checkpoint_every_s must be 0 (not known) to 366 days, got {self.checkpoint_every_s}")

    @property
    def reads_model(self) -> str:
        """The job whose model it measures or goes on from (`start.job`); empty: none."""
        if self.kind is not JobKind.PRETRAIN:
            return self.model
        start = self.params.get("start")
        return str(start.get("job") or "") if isinstance(start, dict) else ""


def extends(amended: JobSpec, spec: JobSpec) -> bool:
    """Whether an amended spec says what `spec` says, with more inputs or sites and nothing else."""
    wider = set(spec.inputs) <= set(amended.inputs) and set(spec.sites) <= set(amended.sites)
    # Without sites the inputs' homes say where it runs: naming some would leave others out.
    wider = wider and bool(spec.sites) == bool(amended.sites)
    return wider and replace(amended, inputs=spec.inputs, sites=spec.sites) == spec


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedSpec:
    """A job spec with its submitter's Ed25519 signature (base64) over the spec's canonical JSON."""

    spec: JobSpec
    signature: str


MAX_COUNT = 2**63 - 1
"""What a database keeps as a whole number."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Epoch:
    """Fences a lease: (server incarnation, counter). A site obeys only the highest it has seen for a leg."""

    incarnation: int
    counter: int

    def __post_init__(self) -> None:
        for name, value in (("incarnation", self.incarnation), ("counter", self.counter)):
            if not 0 <= value <= MAX_COUNT:
                raise ValueError(f"an epoch's {name} must be 0 to {MAX_COUNT:,}")

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.counter}"

    @classmethod
    def parse(cls, text: str) -> Epoch:
        """Return the epoch written as `incarnation.counter`."""
        incarnation, _, counter = text.partition(".")
        return cls(incarnation=int(incarnation), counter=int(counter))


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """The part of an attempt at one site."""

    id: str
    attempt: str
    job: str
    site: str
    epoch: Epoch
    state: LegState
    nodes: dict[str, int]
    """GPUs taken per node id."""
    inputs: tuple[str, ...]
    """Ids of the job's inputs that live at this site."""
    tries: int = 1
    """How many epochs this leg has had."""
    fault: Fault | None = None
    reason: str = ""
    updated_ms: int = 0

    @property
    def gpus(self) -> int:
        """GPUs the leg holds."""
        return sum(self.nodes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at running a job; its legs start together or not at all."""

    id: str
    job: str
    number: int
    started_ms: int
    legs: tuple[Leg, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A submitted job as the server knows it."""

    id: str
    spec: JobSpec
    signature: str
    state: JobState
    created_ms: int
    updated_ms: int
    version: int
    """Counts changes; compare-and-swap is on it."""
    reason: Reason | None = None
    attempts: tuple[Attempt, ...] = ()
    result: dict[str, Any] = field(default_factory=dict)
    """Per site, what the leg reported: manifest digests, metrics, outputs."""
    tracking_run: str = ""
    target_sites: tuple[str, ...] = ()
    """Where it must run, settled at submission; empty: any one site."""
    denials: tuple[Denial, ...] = ()
    """The clauses of the partners' policies that denied it."""
    progress: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per site, what the latest attempt's leg last said of itself."""

    @property
    def attempt(self) -> Attempt | None:
        """The latest attempt."""
        return self.attempts[-1] if self.attempts else None
