"""What a file in `configs/scenario/` may say: a federation, a workload and what happens to sites, for `simulate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from consortium.config.build import nearest
from consortium.config.quota import QuotaEntry
from consortium.config.schemas import decimal
from consortium.config.tuning import SchedulerTuning
from consortium.domain import ids
from consortium.domain.bounds import FieldError, number, within
from consortium.domain.job import Priority
from consortium.domain.partner import Cotenancy, SiteState
from consortium.scheduler.types import Settings, WindowKind

_STRICT: dict[str, str] = {"extra": "forbid"}


class Sharing(StrEnum):
    """Whether the partners share at all: `pool`, one cohort; `none`, each keeps to its own sites."""

    POOL = "pool"
    NONE = "none"


def _range(name: str, pair: tuple[float, float], low: float, high: float) -> None:
    if not (low <= pair[0] <= pair[1] <= high):
        bounds = f"{number(low)} to {number(high)}"
        raise FieldError(f"{name} must be two numbers from {bounds}, the smaller first, got {list(pair)}", name)


def _account(name: str) -> None:
    if not ids.is_account(name):
        raise ValueError(f"account {name!r} must be a partner ('fr') or a project under one ('fr/health')")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteEntry:
    """A site: `gpus` in nodes of `node_gpus` (the last one may be smaller)."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    gpus: int
    node_gpus: int = 8
    flavor: str = "gpu"
    cotenancy: Cotenancy = Cotenancy.OPEN

    def __post_init__(self) -> None:
        within(self, gpus=(1, 1_000_000), node_gpus=(1, 1_024))

    def nodes(self, name: str) -> dict[str, int]:
        """Return the nodes of the site called `name`, with their GPUs: ids are unique over all sites."""
        count = -(-self.gpus // self.node_gpus)
        return {f"{name}-n{at:03d}": min(self.node_gpus, self.gpus - at * self.node_gpus) for at in range(count)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEntry:
    """Jobs of a recorded trace: one file of jobs per partner."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    dataset: str
    """The folder below `$CONSORTIUM_TRACES` where no folder is named."""
    files: dict[str, str]
    """Partner to the stem of its file, such as `cluster01`."""
    walltime_factor: tuple[float, float] = (1.1, 20.0)
    """The walltime limit over the run time: log-uniform between the two, by the job's id."""
    checkpoint_every_s: int = 1_800
    jobs: int = 0
    """Only that many, the earliest; 0: all."""

    def __post_init__(self) -> None:
        for partner in self.files:
            if not ids.is_partner(partner):
                raise ValueError(f"files: {partner!r} is not a partner, such as fr")
        _range("walltime_factor", self.walltime_factor, 1, 1_000)
        within(self, checkpoint_every_s=(0, 10_000_000), jobs=(0, 100_000_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEntry:
    """Jobs made up by a seeded generator: a steady stream (`per_hour`), bursts (`burst_jobs` each), or both."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    account: str
    from_h: float = 0.0
    until_h: float
    per_hour: float = 0.0
    """Mean arrivals; the times between them are exponential."""
    burst_jobs: int = 0
    burst_every_h: float = 0.0
    """Hours from one burst to the next; the first is at `from_h`."""
    gpus: dict[str, int]
    """GPUs of a job (per site) to how often: `{"1": 6, "8": 1}`."""
    run_h: tuple[float, float]
    """Run time: log-uniform between the two."""
    walltime_factor: tuple[float, float] = (1.1, 20.0)
    checkpoint_every_s: int = 1_800
    priority: Priority = Priority.NORMAL
    flavors: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    """The exact sites, all together; empty: any one site."""
    preemptible: bool = True

    def __post_init__(self) -> None:
        _account(self.account)
        within(self, from_h=(0, 100_000), until_h=(self.from_h, 100_000), per_hour=(0, 100_000))
        within(self, burst_jobs=(0, 1_000_000), burst_every_h=(0, 100_000), checkpoint_every_s=(0, 10_000_000))
        if self.burst_jobs and not self.burst_every_h:
            raise ValueError("burst_every_h must be above 0 where there are burst_jobs")
        if not self.gpus or any(not size.isdecimal() or int(size) < 1 for size in self.gpus):
            raise ValueError(f"gpus must map sizes such as '8' to how often, got {sorted(self.gpus)}")
        if any(weight < 0 for weight in self.gpus.values()) or not sum(self.gpus.values()):
            raise ValueError("gpus needs counts of at least 0, and one above 0")
        _range("run_h", self.run_h, 0.001, 100_000)
        _range("walltime_factor", self.walltime_factor, 1, 1_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEntry:
    """One job, written out."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    account: str
    at_s: float = 0.0
    run_s: float
    walltime_s: int
    gpus: int
    """Per site."""
    checkpoint_every_s: int = 1_800
    priority: Priority = Priority.NORMAL
    flavors: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    """The exact sites, all together; empty: any one site."""
    preemptible: bool = True

    def __post_init__(self) -> None:
        _account(self.account)
        within(self, at_s=(0, 1_000_000_000), run_s=(0.001, 1_000_000_000), gpus=(1, 1_000_000))
        within(self, checkpoint_every_s=(0, 10_000_000), walltime_s=(self.run_s, 1_000_000_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEntry:
    """A site changes its state at a time. `withdrawn` with notice: its legs may run on for that long."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    at_h: float
    site: str
    state: SiteState
    notice_h: float = 0.0

    def __post_init__(self) -> None:
        within(self, at_h=(0, 100_000), notice_h=(0, 100_000))
        if self.notice_h and self.state is not SiteState.WITHDRAWN:
            raise ValueError(f"notice_h goes with state withdrawn, not with {self.state.value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEntry:
    """Nodes set aside for an interval: for maintenance, or reserved for an account."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    kind: WindowKind
    site: str
    nodes: tuple[str, ...] = ()
    from_h: float
    until_h: float
    account: str = ""

    def __post_init__(self) -> None:
        within(self, from_h=(0, 100_000), until_h=(self.from_h, 100_000))
        if (self.kind is WindowKind.RESERVATION) != bool(self.account):
            raise ValueError("account names whom a reservation is for; maintenance is for nobody")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A federation, its workload, and what happens; composed from `configs/scenario/`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    name: str
    about: str
    variant: str = ""
    """The choice among `configs/scenario/variant/`, where the scenario has one."""
    seed: int = 0
    sharing: Sharing = Sharing.POOL
    pinned_tenths: int = 0
    """So many of ten jobs of a trace may run at their own partner's sites only."""
    cycle_s: int = 30
    """The least virtual time between two scheduling cycles."""
    recheck_s: int = 300
    """The most virtual time without one while jobs wait: by then a running job may have become evictable."""
    history_s: int = 1_800
    """How often the fair-share history is brought up to date."""
    estimate_every: int = 0
    """Of so many jobs that have to wait, one is told when it starts, and that is judged; 0: none."""
    flavors: dict[str, str] = field(default_factory=lambda: {"gpu": "1.0"})
    """Flavor to its reference factor."""
    sites: dict[str, SiteEntry]
    quotas: dict[str, dict[str, QuotaEntry]] = field(default_factory=dict)
    """Account to flavor to quota. A partner not named here has its own sites' GPUs as nominal, may borrow and lends."""
    weights: dict[str, int] = field(default_factory=dict)
    trace: TraceEntry | None = None
    streams: dict[str, StreamEntry] = field(default_factory=dict)
    jobs: dict[str, JobEntry] = field(default_factory=dict)
    changes: dict[str, ChangeEntry] = field(default_factory=dict)
    windows: dict[str, WindowEntry] = field(default_factory=dict)
    settings: dict[str, int | bool] = field(default_factory=dict)
    """Fields of the scheduler's `Settings` that differ from their defaults."""

    def __post_init__(self) -> None:
        within(self, pinned_tenths=(0, 10), cycle_s=(0, 86_400), recheck_s=(1, 864_000), history_s=(1, 864_000))
        within(self, seed=(0, 2**53), estimate_every=(0, 1_000_000))
        if self.trace is None and not self.streams and not self.jobs:
            raise ValueError("trace, streams or jobs must say what there is to do")
        self._check_sites()
        self._check_accounts()
        self._check_flavors()
        _ = self.scheduler

    @property
    def scheduler(self) -> Settings:
        """The scheduler's settings."""
        fields = {item.name: item for item in dataclasses.fields(SchedulerTuning)}
        for name, value in self.settings.items():
            if name not in fields:
                raise ValueError(f"settings: there is no {name!r}; {nearest(name, fields)}")
            if isinstance(fields[name].default, bool) != isinstance(value, bool):
                raise ValueError(f"settings: {name} cannot be {value}")
        try:
            return SchedulerTuning(**self.settings).settings  # type: ignore[arg-type]  # checked one by one above
        except ValueError as fault:
            raise ValueError(f"settings: {fault}") from fault

    def nominal(self, account: str, flavor: str) -> int:
        """Return an account's own GPUs: as stated, else of its sites those that no project has; 0 for a project."""
        entry = self.quotas.get(account, {}).get(flavor)
        if entry is not None and entry.nominal is not None:
            return entry.nominal
        if "/" in account:
            return 0
        own = sum(site.gpus for name, site in self.sites.items() if name[:2] == account and site.flavor == flavor)
        projects = [quotas for name, quotas in self.quotas.items() if name.startswith(f"{account}/")]
        return max(0, own - sum(quotas[flavor].nominal or 0 for quotas in projects if flavor in quotas))

    def _check_sites(self) -> None:
        for name in self.sites:
            if not ids.is_site(name):
                raise ValueError(f"sites: {name!r} must be a partner and a number, such as fr-1")
        if not self.sites:
            raise ValueError("sites must name at least one")
        for what, entries in (("changes", self.changes), ("windows", self.windows)):
            for key, entry in entries.items():
                _known("site", f"{what}: {key}", (entry.site,), self.sites)
        for key, window in self.windows.items():
            there = tuple(self.sites[window.site].nodes(window.site)) if window.nodes else ()
            for node in window.nodes:
                if node not in there:
                    has = there[0] if len(there) == 1 else f"{there[0]} to {there[-1]}"
                    raise ValueError(f"windows: {key}: {window.site} has no node {node!r}; it has {has}")
        for what, key, work in self._work():
            _known("site", f"{what}: {key}", work.sites, self.sites)

    def _check_accounts(self) -> None:
        known = {ids.partner_of(site) for site in self.sites} | set(self.quotas)
        for account in known:
            if not ids.is_account(account) or ids.partner_of(account) not in known:
                raise ValueError(f"quotas: {account!r} must be a partner or a project under one that is there")
        for what, key, work in self._work():
            _known("account", f"{what}: {key}", (work.account,), known)
        for key, window in self.windows.items():
            _known("account", f"windows: {key}", (window.account,) if window.account else (), known)
        _known("account", "weights", self.weights, known)
        _known("account", "trace: files", self.trace.files if self.trace else (), known)
        for account, weight in self.weights.items():
            if not 1 <= weight <= 1_000_000:
                raise ValueError(f"weights: {account} must be 1 to 1,000,000, got {weight:,}")

    def _check_flavors(self) -> None:
        for flavor, factor in self.flavors.items():
            if not ids.is_name(flavor):
                raise ValueError(f"flavors: {flavor!r} must be lower-case letters, digits, '.', '_' and '-'")
            decimal("flavors", factor, "0.001", "1000")
        for key, site in self.sites.items():
            _known("flavor", f"sites: {key}", (site.flavor,), self.flavors)
        for account, quotas in self.quotas.items():
            _known("flavor", f"quotas: {account}", quotas, self.flavors)
            for flavor, entry in quotas.items():
                own = self.nominal(account, flavor)
                if entry.lending_limit is not None and entry.lending_limit > own:
                    what = f"quotas: {account}: lending_limit of {flavor}"
                    raise ValueError(f"{what} is {entry.lending_limit:,}, and its nominal {own:,}")
        for what, key, work in self._work():
            _known("flavor", f"{what}: {key}", work.flavors, self.flavors)

    def _work(self) -> list[tuple[str, str, StreamEntry | JobEntry]]:
        return [("streams", *item) for item in self.streams.items()] + [("jobs", *item) for item in self.jobs.items()]


def _known(what: str, where: str, names: Iterable[str], there: Iterable[str]) -> None:
    for name in names:
        if name not in there:
            raise ValueError(f"{where}: there is no {what} {name!r}; {nearest(name, there)}")
