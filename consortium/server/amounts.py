"""How many rounds and topics of one job a site may bring: as many as the job has, or can have."""

from __future__ import annotations

from sqlalchemy import Connection

from consortium.domain.job import Job
from consortium.errors import UsageError
from consortium.server import legs
from consortium.state import data

TOPICS = 200
"""That a site may publish digests for in a job, besides those of its rounds."""
TOPICS_OF_ROUND = 10


def check_round(job: Job, number: int) -> None:
    """Raise UsageError where a job has no such round. Round 0 is what comes before the first, in every job."""
    last = legs.outer_number(job, "rounds")
    if not 0 <= number <= last:
        has = f"the job has rounds 1 to {last}" if last else "the job has none"
        raise UsageError(f"there is no round {number}: {has}", where=job.id)


def check_topics(connection: Connection, job: Job, site: str) -> None:
    """Raise UsageError where a site published digests for more topics than a job has."""
    most = TOPICS + TOPICS_OF_ROUND * legs.outer_number(job, "rounds")
    if data.count_topics(connection, job.id, site) > most:
        raise UsageError(f"{site} published digests for {most:,} topics already", where=job.id)
