"""Models that jobs read: who is behind them, and whether there is one yet.

A model goes back to the training that made it and, where that went on from another (`start.job`), to that one too.
Every site that any of them ran at is behind it: what its data said is in the parameters, so its partner has a say in
what is made of them. A file named by `start.weights` says nothing of its origin that the server could check.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from consortium.domain.decision import Denial, PolicyDecision
from consortium.domain.ids import partner_of
from consortium.domain.job import Job, JobKind, JobSpec, JobState
from consortium.domain.partner import Site
from consortium.domain.pretraining import PretrainConfig, unlike
from consortium.domain.training import RoundPhase
from consortium.errors import ConflictError, NotFoundError, UsageError
from consortium.policy import Behind, requests_for_model
from consortium.server.federation import Federation
from consortium.state import data, jobs, rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestry:
    """The trainings behind a model, newest first, and by site the categories of the data each read there."""

    jobs: tuple[Job, ...] = ()
    sites: tuple[tuple[str, tuple[str, ...]], ...] = ()


def ancestry(connection: Connection, spec: JobSpec) -> Ancestry:
    """Return what is behind the model that a job reads; nothing where it reads none, or names one that is not there."""
    found: list[Job] = []
    categories: dict[str, set[str]] = {}
    name = spec.reads_model
    while name and name not in {job.id for job in found}:
        try:
            job = jobs.find_job(connection, name)
        except NotFoundError:
            break
        found.append(job)
        for site in {*job.target_sites, *(leg.site for attempt in job.attempts for leg in attempt.legs)}:
            categories.setdefault(site, set())
        for dataset in (data.find_dataset(connection, key) for key in job.spec.inputs):
            categories.setdefault(dataset.site, set()).update(dataset.categories)
        name = job.spec.reads_model
    sites = tuple((site, tuple(sorted(categories[site]))) for site in sorted(categories))
    return Ancestry(jobs=tuple(found), sites=sites)


def judge_model(federation: Federation, spec: JobSpec, behind: Ancestry, hosts: dict[str, Site]) -> PolicyDecision:
    """Return what the partners behind a model say of a job that reads it at `hosts`; a site that left answers no."""
    there = [Behind(site=federation.sites[site], categories=c) for site, c in behind.sites if site in federation.sites]
    decision = federation.policies.decide_all(requests_for_model(spec, there, hosts))
    gone = [site for site, _ in behind.sites if site not in federation.sites]
    if not gone:
        return decision
    return PolicyDecision(allowed=False, denials=(*decision.denials, *map(_gone, gone)), consulted=decision.consulted)


def _gone(site: str) -> Denial:
    partner = partner_of(site)
    return Denial(
        partner=partner,
        clause=f"{partner}/base",
        message=f"the model was trained at {site}, which is no site of the federation any more: nobody answers for it",
        file=f"configs/policy/{partner}.yaml",
        line=1,
        would_pass=f"a model that {site} had no part in, or {site}'s signed site file",
    )


def check_evaluated(connection: Connection, spec: JobSpec) -> None:
    """Raise UsageError, ConflictError or NotFoundError unless the model to measure is there."""
    if not spec.model:
        raise UsageError("an evaluate job needs model: the id of a pretrain job")
    model = _training(connection, spec.model, "model")
    if model.state is not JobState.SUCCEEDED:
        raise ConflictError(f"{spec.model} is {model.state.value}: it has no model yet", where="model")


def check_start(connection: Connection, spec: JobSpec, sites: tuple[str, ...]) -> None:
    """Raise UsageError, ConflictError or NotFoundError unless the training to go on from left the outer state wanted.

    It must have ended, since its newest outer state is another one in every round, and the first of `sites` in order
    of ids, which reads the state, must have been among its own.
    """
    start = spec.params.get("start")
    name = spec.reads_model
    if not name or not isinstance(start, dict):
        return
    model = _training(connection, name, "start.job")
    if not model.state.final:
        raise ConflictError(
            f"{name} is {model.state.value}: its outer state is not its last yet",
            where="start.job",
            fix="submit this job when it has ended",
        )
    stored = (rounds.find(connection, name, number) for number in rounds.numbers(connection, name))
    closed = [row.number for row in stored if row is not None and row.phase is RoundPhase.CLOSED]
    if model.state is not JobState.SUCCEEDED and not closed:
        raise ConflictError(
            f"{name} is {model.state.value} and closed no round: it left no outer state to go on from",
            where="start.job",
        )
    wanted = int(start.get("round", -1))
    if closed and wanted > closed[-1]:
        raise UsageError(
            f"{name} ended with round {closed[-1]}", where="start.round", fix=f"{closed[-1]} or less, or -1"
        )
    theirs = {*model.target_sites, *(leg.site for attempt in model.attempts for leg in attempt.legs)}
    if sites and sites[0] not in theirs:
        raise UsageError(
            f"{sites[0]}, the job's first site, reads the model, and took no part in {name}",
            where="start.job",
            fix=f"the first site in order of ids must be one of {', '.join(sorted(theirs))}",
        )
    if start.get("resume"):
        _check_resumed(connection, spec, sites, model, closed)


def _check_resumed(
    connection: Connection, spec: JobSpec, sites: tuple[str, ...], model: Job, closed: list[int]
) -> None:
    """Raise UsageError unless a job is the training that it resumes: the same steps, at sites that took part in it."""
    params = PretrainConfig.of(spec.params)
    if params.start.round not in closed:
        raise UsageError(
            f"{model.id} closed no round {params.start.round}", where="start.round", fix="resume it after one it closed"
        )
    theirs = _by_site(connection, model.spec)
    strangers = sorted(set(sites) - theirs.keys())
    if strangers:
        raise UsageError(
            f"{', '.join(strangers)} took no part in {model.id}: they have no state to resume",
            where="sites",
            fix=f"name sites among {', '.join(sorted(theirs))}",
        )
    wrong = [*unlike(PretrainConfig.of(model.spec.params), params)]
    ours = _by_site(connection, spec)
    wrong += [f"the inputs at {site} are others" for site in sites if ours.get(site) != theirs[site]]
    if wrong:
        raise UsageError(
            f"that would be another training than {model.id}: {'; '.join(wrong)}",
            where="start.resume",
            fix="`consortium submit pretrain --resume` takes the rest over; start.job alone goes on from the model",
        )


def _by_site(connection: Connection, spec: JobSpec) -> dict[str, set[str]]:
    """Return the inputs of a job by the site where they live."""
    found: dict[str, set[str]] = {}
    for name in spec.inputs:
        found.setdefault(data.find_dataset(connection, name).site, set()).add(name)
    return found


def _training(connection: Connection, name: str, where: str) -> Job:
    found = jobs.find_job(connection, name)
    if found.spec.kind is not JobKind.PRETRAIN:
        raise UsageError(f"{name} is a {found.spec.kind.value} job, not a pretrain job", where=where)
    return found
