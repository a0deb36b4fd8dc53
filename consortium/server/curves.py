"""What the pictures of a training show: its rounds from the database, what legs measured from the tracking server."""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import Connection

from consortium.domain.job import Job, JobKind, JobState
from consortium.errors import NotFoundError, UsageError
from consortium.reports.training import measured_losses
from consortium.server.core import Core
from consortium.server.rounds import job_rounds
from consortium.state import data, jobs
from consortium.tracking.tracker import Tracker
from consortium.train.plot import Curves, Measured, Span, points, spans


def curves(core: Core, job_id: str) -> Curves:
    """Return a training's curves; without a timeline while the tracking server is away.

    Raises NotFoundError for an unknown job, UsageError for one that trains nothing, and UnreachableError.
    """
    with core.db.read() as connection:
        job = jobs.find_job(connection, job_id)
        if job.spec.kind is not JobKind.PRETRAIN:
            raise UsageError(f"{job_id} is a {job.spec.kind.value} job: only a training has curves", where=job_id)
        languages: dict[str, set[str]] = {}
        for name in job.spec.inputs:
            item = data.find_dataset(connection, name)
            languages.setdefault(item.site, set()).update(item.languages)
        found = points(job_rounds(connection, job_id))
        legs = [leg for attempt in job.attempts for leg in attempt.legs]
        runs = [(leg.site, str(jobs.leg_row(connection, leg.id).tracking_run)) for leg in legs]
        held_out = _held_out(connection, job)
    return Curves(
        job=job_id,
        name=job.spec.name,
        languages={site: tuple(sorted(spoken)) for site, spoken in sorted(languages.items())},
        points=found,
        spans=() if core.tracking_away else _spans(Tracker(core.settings.mlflow_url), runs),
        held_out=held_out,
    )


def _spans(tracker: Tracker, runs: list[tuple[str, str]]) -> tuple[Span, ...]:
    """Return what every leg did in each round; a later attempt's leg counts before an earlier one's."""
    found: dict[tuple[str, int], Span] = {}
    for site, run in runs:
        with suppress(NotFoundError):  # a run that somebody deleted
            found |= {(span.site, span.round): span for span in spans(site, tracker.history(run) if run else {})}
    return tuple(found[key] for key in sorted(found))


def _held_out(connection: Connection, job: Job) -> tuple[Measured, ...]:
    """Return what `evaluate` jobs measured of the job's outer states."""
    found = []
    for other in jobs.list_jobs(connection, states=[JobState.SUCCEEDED]):
        if other.spec.kind is not JobKind.EVALUATE or other.spec.model != job.id:
            continue
        for site in sorted(other.result):
            measured = measured_losses(other.result[site].get("metrics"))
            found += [Measured(language=language, round=n, loss=loss) for language, n, loss in sorted(measured)]
    return tuple(dict.fromkeys(found))
