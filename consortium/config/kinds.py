"""What each kind of job takes: frozen dataclasses whose fields are the keys of `params`, with their bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from consortium.config.build import Locate, build, unknown
from consortium.domain import ids
from consortium.domain.bounds import FieldError, within
from consortium.domain.cleaning import CleanConfig
from consortium.domain.job import JobKind, Priority, check_throughput
from consortium.domain.pretraining import EvaluateConfig, OuterConfig, PretrainConfig, StartConfig
from consortium.domain.tokenizing import TokenizeConfig
from consortium.domain.units import moment_ms
from consortium.errors import ConfigError

_STRICT: dict[str, str] = {"extra": "forbid"}


PARAMS: dict[JobKind, type[Any]] = {
    JobKind.CLEAN: CleanConfig,
    JobKind.TOKENIZE: TokenizeConfig,
    JobKind.PRETRAIN: PretrainConfig,
    JobKind.EVALUATE: EvaluateConfig,
}
GROUPS: dict[JobKind, dict[str, str]] = {
    JobKind.CLEAN: {"clean": ""},
    JobKind.TOKENIZE: {},
    JobKind.PRETRAIN: {"model": "model", "data": "data", "optim": "optim", "outer": "outer"},
    JobKind.EVALUATE: {},
}
"""The config groups a kind picks from, and under which key of its params a choice lands (empty: at the top)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobKeys:
    """The keys every kind of job has."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    name: str
    account: str
    """Empty: the submitter's partner."""
    purpose: str
    inputs: tuple[str, ...]
    """Names or ids of datasets."""
    sites: tuple[str, ...]
    min_sites: int
    priority: Priority
    gpus: int
    """Per site."""
    gpus_per_worker: int
    walltime_s: int
    flavors: tuple[str, ...]
    """`h100-sxm`, or with how fast it runs there `a100-80g:0.4`; without a number it is 1."""
    model: str = ""
    """For `evaluate`: the pretrain job."""
    after: tuple[str, ...] = ()
    """Jobs that must succeed first."""
    deadline: str = ""
    """When it must have ended: a time or a span from now; empty: none."""
    preemptible: bool = True
    checkpoint_every_s: int = 0

    def __post_init__(self) -> None:
        if not ids.is_name(self.name):
            raise FieldError(f"job name {self.name!r}: lower-case letters, digits, '.', '_' and '-' only", "name")
        if self.account and not ids.is_account(self.account):
            what = f"account {self.account!r} must be a partner ('fr') or a project under one ('fr/health')"
            raise FieldError(what, "account")
        if not ids.is_name(self.purpose):
            what = f"purpose {self.purpose!r}: lower-case letters, digits, '.', '_' and '-' only"
            raise FieldError(what, "purpose")
        within(
            self, gpus=(1, 100_000), gpus_per_worker=(1, 100_000), walltime_s=(1, 366 * 86_400), min_sites=(1, 1_000)
        )
        if self.gpus % self.gpus_per_worker:
            what = f"gpus ({self.gpus}) must be a multiple of gpus_per_worker ({self.gpus_per_worker})"
            raise FieldError(what, "gpus_per_worker", "gpus")
        within(self, checkpoint_every_s=(0, 366 * 86_400))
        if self.deadline:
            try:
                moment_ms(self.deadline, 0)
            except ValueError as fault:
                raise FieldError(f"deadline: {fault}", "deadline") from fault
        self._check_lists()

    def _check_lists(self) -> None:
        for index, job in enumerate(self.after):
            if not ids.is_id(job, "job"):
                what = f"after: {job!r} is no job id such as job-…"
                raise FieldError(what, f"after.{index}", fix="`consortium jobs` lists them")
        for index, site in enumerate(self.sites):
            if not ids.is_site(site):
                what = f"sites: {site!r} must be a partner's id and a number, such as fr-1"
                raise FieldError(what, f"sites.{index}", fix="`consortium sites` lists them")
        for index, flavor in enumerate(self.flavors):
            name, colon, factor = flavor.partition(":")
            try:
                check_throughput(name, factor if colon else "1")
            except ValueError as fault:
                raise FieldError(f"flavors: {flavor!r}: {fault}", f"flavors.{index}") from fault
        for field_name in ("inputs", "sites", "flavors", "after"):
            values = self.flavor_names if field_name == "flavors" else getattr(self, field_name)
            if len(set(values)) != len(values) or not all(values):
                raise FieldError(f"{field_name} must be names, each given once, got {list(values)}", field_name)

    @property
    def flavor_names(self) -> tuple[str, ...]:
        """The acceptable flavors."""
        return tuple(flavor.partition(":")[0] for flavor in self.flavors)

    @property
    def throughput(self) -> dict[str, str]:
        """How fast it runs on each of them; empty where none says so."""
        if not any(":" in flavor for flavor in self.flavors):
            return {}
        pairs = (flavor.partition(":") for flavor in self.flavors)
        return {name: factor or "1" for name, _, factor in pairs}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedJob:
    """A job as its config and the overrides say, validated; not yet a spec: nobody has signed it."""

    kind: JobKind
    name: str
    account: str
    purpose: str
    inputs: tuple[str, ...]
    model: str
    gpus: int
    gpus_per_worker: int
    walltime_s: int
    flavors: tuple[str, ...]
    throughput: dict[str, str]
    sites: tuple[str, ...]
    min_sites: int
    priority: Priority
    after: tuple[str, ...]
    deadline: str
    preemptible: bool
    checkpoint_every_s: int
    params: dict[str, Any] = field(default_factory=dict)


def job_kind(kind: str) -> JobKind:
    """Return the kind called `kind`. Raises ConfigError with the nearest right name."""
    try:
        return JobKind(kind)
    except ValueError as fault:
        raise unknown("job kind", kind, [k.value for k in JobKind], "KIND") from fault


def validate_params(kind: JobKind | str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the params of a job spec after checking every key, type and bound. Raises ConfigError."""
    return build_params(job_kind(str(kind)), params, lambda *paths: ".".join(["params", *map(str, paths[0])]))


def build_params(kind: JobKind, params: dict[str, Any], locate: Locate, also: Iterable[str] = ()) -> dict[str, Any]:
    """Return the params of a kind, checked, as plain JSON. Raises ConfigError."""
    built = build(PARAMS[kind], params, locate, also=also)
    if isinstance(built, PretrainConfig):
        _check_start(built.start, locate)
        _check_delay(built.outer, locate)
    result: dict[str, Any] = _plain(dataclasses.asdict(built))
    return result


def _check_start(start: StartConfig, locate: Locate) -> None:
    """Refuse what would be passed over: who forgot `job` or `weights` would pay for training from nothing.

    Jobs that were submitted before this was checked may say it, so `StartConfig` takes it.
    """
    if start.round != -1 and not start.job:
        raise ConfigError(
            f"start.round is {start.round}, and no start.job says of which job",
            where=locate(("start", "round")),
            fix="add start.job=job-…, or leave start.round out",
        )
    if start.digest and not start.weights:
        raise ConfigError(
            f"start.digest is {start.digest!r}, and no start.weights says of which file",
            where=locate(("start", "digest")),
            fix="add start.weights=KEY, or leave start.digest out",
        )


def _check_delay(outer: OuterConfig, locate: Locate) -> None:
    """Refuse what would train nothing, or next to nothing: each round takes all steps back that the next one is of.

    Jobs that were submitted before this was checked may say it, so `OuterConfig` takes it.
    """
    if outer.fragments == 1 and not outer.mix and outer.delay == outer.inner_steps:
        raise ConfigError(
            f"outer.delay is {outer.delay:,}, all of a round's steps, and with one fragment and outer.mix 0 the round "
            "before undoes each of them",
            where=locate(("outer", "delay")),
            fix="a smaller outer.delay, an outer.mix above 0, or more outer.fragments",
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
