"""The spec of a job that resumes a training: what `consortium submit pretrain --resume JOB` submits.

It is the old spec again, with what is left of its rounds. Everything that would change a step stays as it was; the
server checks that (`consortium.domain.pretraining.unlike`): what is resumed is the same training.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from consortium.client.api import Client
from consortium.client.submission import code_digest_here
from consortium.config import compose_job, default_dirs
from consortium.config.overrides import JobOverride, parse_overrides
from consortium.domain import ids
from consortium.domain.codec import to_json
from consortium.domain.job import Job, JobKind, JobSpec
from consortium.domain.pretraining import RESUMED_WITH, PretrainConfig
from consortium.domain.training import RoundPhase
from consortium.domain.units import moment_ms
from consortium.errors import UsageError

_OF_SPEC = ("name", "sites", "min_sites", "priority", "preemptible", "checkpoint_every_s")
_OF_RESOURCES = ("gpus", "walltime_s", "gpus_per_worker", "flavors")
KEYS = tuple(sorted({*_OF_SPEC, *_OF_RESOURCES, "deadline", "start.round", *RESUMED_WITH} - {"model.name"}))
"""What may be said anew."""


def draft_resumed(
    client: Client,
    job: str,
    overrides: Sequence[str] = (),
    *,
    person: str,
    account: str = "",
) -> JobSpec:
    """Return the draft of a job that goes on where `job` ended: after its newest closed round, or after `start.round`.

    Of `overrides` only `KEYS` are taken; `outer.rounds` counts the rounds of the whole training. Raises ConfigError,
    and UsageError where the job is no training, closed no round, or has none left.
    """
    old = client.job(job)
    if old.spec.kind is not JobKind.PRETRAIN:
        raise UsageError(f"{job} is a {old.spec.kind.value} job: only a training is resumed", where="--resume")
    given = parse_overrides(JobKind.PRETRAIN, tuple(overrides), default_dirs().configs)
    for one in given:
        if one.choice or one.key not in KEYS:
            raise UsageError(
                f"{one.key!r} stays as it was when a training is resumed",
                where=one.where,
                fix=f"leave it out; what may change: {', '.join(KEYS)}",
            )
    values = {one.key: one.value for one in given}
    params = _params(client, old, values)
    paying = account or old.spec.account
    if ids.partner_of(paying) != ids.partner_of(person):
        raise UsageError(f"{person} cannot spend from account {paying!r}", fix="name an account of yours: --account")
    spec = replace(
        _said_anew(old, given),
        account=paying,
        submitter=person,
        params=params,
        code_digest=code_digest_here(),
    )
    return replace(spec, inputs=tuple(name for name in spec.inputs if client.dataset(name).site in spec.sites))


def _params(client: Client, old: Job, values: dict[str, Any]) -> dict[str, Any]:
    before = PretrainConfig.of(old.spec.params, where=old.id)
    after = int(values.pop("start.round", 0)) or _newest(client, old, before.outer.fragments)
    done = before.start.done + after
    whole = int(values.pop("outer.rounds", before.all_rounds))
    if whole <= done:
        raise UsageError(
            f"all {done} rounds of {old.id} are closed",
            where="--resume",
            fix=f"outer.rounds={done + before.outer.rounds} goes on to as many as that, where the rate is wsd",
        )
    params: dict[str, Any] = to_json(before)
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        if group in params:
            params[group][name] = value
        elif key in params:
            params[key] = value
    params["outer"]["rounds"] = whole - done
    params["start"] = {"job": old.id, "round": after, "resume": True, "done": done}
    checked: dict[str, Any] = to_json(PretrainConfig.of(params))
    return checked


def _newest(client: Client, old: Job, fragments: int) -> int:
    """Return the last closed round that ends a cycle of fragments."""
    closed = [one.number for one in client.rounds(old.id) if one.phase is RoundPhase.CLOSED]
    ended = [number for number in closed if number % fragments == 0]
    if not ended:
        raise UsageError(
            f"{old.id} is {old.state.value} and closed no round to go on from",
            where="--resume",
            fix="submit it as a new job",
        )
    return max(ended)


def _said_anew(old: Job, given: Sequence[JobOverride]) -> JobSpec:
    """Return the old spec with what overrides say of the job itself, and nothing that was for the old one alone."""
    now_ms = time.time_ns() // 1_000_000
    keys = {one.key for one in given}
    said = compose_job("pretrain", [one.text for one in given if one.key in (*_OF_SPEC, *_OF_RESOURCES, "deadline")])
    resources = {name: getattr(said, name) for name in _OF_RESOURCES if name in keys}
    if "flavors" in keys:
        resources["throughput"] = said.throughput
    spec = {name: getattr(said, name) for name in _OF_SPEC if name in keys}
    return replace(
        old.spec,
        **{"sites": old.target_sites, **spec},
        resources=replace(old.spec.resources, **resources),
        after=(),
        array=None,
        deadline_ms=moment_ms(said.deadline, now_ms) if "deadline" in keys and said.deadline else 0,
        submitted_ms=now_ms,
        nonce="",
    )
