"""Whom a round waits for, and for how long."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection

from consortium.domain.job import Job
from consortium.domain.training import Standing
from consortium.server import legs
from consortium.server.core import Core
from consortium.server.rulings import rejected
from consortium.state import jobs, rounds
from consortium.state.rounds import RoundRow
from consortium.state.sites import all_sites
from consortium.train.rounds import left_out, screening_of, standing_before


def pause(connection: Connection, row: RoundRow) -> bool:
    """Nobody is at work, such as after an eviction: the round waits for the legs' return, and its grace starts anew."""
    if row.deadline_ms:
        rounds.change(connection, row.job, row.number, deadline_ms=0)
    return False


def standing(connection: Connection, job: Job, number: int) -> Standing | None:
    """Return what the last round of the same fragment left; None where the job neither clips nor quarantines."""
    rule = screening_of(job.spec.params)
    return standing_before(*rule, number, lambda earlier: rounds.read(connection, job.id, earlier))[0]


def grace_over(core: Core, connection: Connection, row: RoundRow) -> bool:
    """Return whether the time to wait for others is over; it begins with the first time that this is asked."""
    now_ms = core.clock.now_ms()
    if not row.deadline_ms:
        rounds.change(connection, row.job, row.number, deadline_ms=now_ms + core.settings.round_grace_ms)
        return False
    return now_ms >= row.deadline_ms


def expected(core: Core, connection: Connection, job: Job, number: int) -> list[str]:
    """Sites whose commits a round waits for: legs at work, and legs to be offered again at a site that is there.

    Not those that an admin's ruling leaves out, nor, while others are there, those in quarantine.
    """
    stored = all_sites(connection)
    sites = set(at_work(job))
    for row in jobs.waiting_legs(connection):
        if row.job == job.id and legs.awaited(core, row, stored.get(row.site)):
            sites.add(row.site)
    heard = sites - rejected(connection, job.id, number)
    ruled = rounds.rulings(connection, job.id, number)
    return sorted(heard - left_out(number, ruled, standing(connection, job, number)) or heard)


def quorate(
    connection: Connection, job: Job, number: int, committed: Collection[str], expected: Collection[str]
) -> bool:
    """Return whether as many sites have committed to a round as suffice once its grace is over.

    A site that is left out does not count, but where only such sites are `expected`.
    """
    quorum = legs.outer_number(job, "quorum")
    out = left_out(number, rounds.rulings(connection, job.id, number), standing(connection, job, number))
    return 0 < quorum <= len(set(committed) - (out - set(expected)))


def at_work(job: Job) -> list[str]:
    """Return the sites of a job's legs that are at work."""
    attempt = job.attempt
    return [] if attempt is None else sorted(leg.site for leg in attempt.legs if leg.state in legs.AT_WORK)
