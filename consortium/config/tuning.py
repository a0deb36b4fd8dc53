"""What a consortium agreed on for the scheduler, and for what becomes of legs that fail."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

from consortium.domain.bounds import within
from consortium.domain.job import JobKind
from consortium.scheduler.types import Settings

_STRICT: dict[str, str] = {"extra": "forbid"}
_DAY_S = 86_400
_HANG_S = 7_200
_AGREED = Settings()


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerTuning:
    """The fields of the scheduler's `Settings`, which say what each means, with their bounds."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    preemption: bool = _AGREED.preemption
    min_run_s: int = _AGREED.min_run_s
    stop_s: int = _AGREED.stop_s
    disruption_percent: int = _AGREED.disruption_percent
    ageing_s: int = _AGREED.ageing_s
    half_life_s: int = _AGREED.half_life_s
    credit_percent: int = _AGREED.credit_percent
    reservations: int = _AGREED.reservations
    backfill_depth: int = _AGREED.backfill_depth

    def __post_init__(self) -> None:
        within(self, min_run_s=(0, 30 * _DAY_S), stop_s=(1, _DAY_S), disruption_percent=(0, 100_000))
        within(self, ageing_s=(60, 366 * _DAY_S), half_life_s=(60, 3_660 * _DAY_S), credit_percent=(0, 1_000))
        within(self, reservations=(1, 10_000), backfill_depth=(0, 1_000_000))

    @property
    def settings(self) -> Settings:
        """The same as the scheduler takes it."""
        return Settings(**{item.name: getattr(self, item.name) for item in dataclasses.fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryTuning:
    """How often, how soon and where a leg that failed by no fault of its program is tried again."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    max_tries: int = 5
    """How often a job may fail at a site within the window before the site is given up."""
    backoff_ms: int = 1_000
    """The wait after the first failure; each further one doubles it."""
    max_backoff_ms: int = 60_000
    cordon_faults: int = 3
    """Faults of one node within the window after which it is cordoned."""
    cordon_jobs: int = 2
    """Jobs that these faults must be of: one bad job takes no node away from the others."""
    window_s: int = _DAY_S
    """How long a fault counts."""
    hang_s: dict[str, int] = field(default_factory=lambda: {kind.value: _HANG_S for kind in JobKind})
    """By kind of job: after how long without a sign of life from its program a leg counts as hanging."""

    def __post_init__(self) -> None:
        within(self, max_tries=(1, 1_000), backoff_ms=(1, 3_600_000))
        within(self, max_backoff_ms=(self.backoff_ms, _DAY_S * 1_000))
        within(self, cordon_faults=(1, 1_000), cordon_jobs=(1, 1_000), window_s=(60, 366 * _DAY_S))
        known = [kind.value for kind in JobKind]
        for kind, seconds in self.hang_s.items():
            if kind not in known:
                raise ValueError(f"hang_s: {kind!r} is no kind of job; kinds: {', '.join(known)}")
            if not 60 <= seconds <= 30 * _DAY_S:
                raise ValueError(f"hang_s of {kind} must be 60 to {30 * _DAY_S:,}, got {seconds:,}")

    def wait_ms(self, failures: int) -> int:
        """Return how long to wait after the `failures`-th failure."""
        return min(self.backoff_ms << min(max(failures - 1, 0), 32), self.max_backoff_ms)
