"""What the loop sees to besides placing: jobs that can never run any more, run times, fair-share history."""

from __future__ import annotations

import logging

from sqlalchemy import Connection, select

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Job, JobState
from consortium.scheduler import fair_advance, observe
from consortium.server import legs, snapshots
from consortium.server.core import Core
from consortium.server.waits import comes_after
from consortium.state import jobs, shares, waits
from consortium.state import tables as t

log = logging.getLogger(__name__)
HISTORY_MS = 60_000
"""How often the fair-share history is moved on."""
MAX_GAP_MS = 600_000
"""Of a longer time without a server only so much counts as held; the rest only decays."""


def see_to(core: Core) -> None:
    """End hopeless jobs, count run times, move the history on. Each in a transaction of its own, if there is any."""
    end_hopeless(core)
    count_run_times(core)
    move_history(core)


def end_hopeless(core: Core) -> None:
    """End pending jobs whose dependency failed, and those that can no longer be done by their deadline."""
    with core.db.read() as connection:
        orphans = {item.job: item for item in reversed(waits.unmet(connection, hopeless=True))}
        late = [row.id for row in waits.past_start(connection, core.clock.now_ms()) if row.id not in orphans]
    for job_id, item in sorted(orphans.items()):
        reason = comes_after(item.after, item.name, item.state)
        _end(core, job_id, reason)
    for job_id in late:
        with core.db.read() as connection:
            found = jobs.find_job(connection, job_id)
            reason_late = _too_late(core, connection, found)
        if reason_late is not None:
            _end(core, job_id, reason_late)


def _too_late(core: Core, connection: Connection, job: Job) -> Reason | None:
    done_ms = snapshots.kept_run_time(connection).get(job.id, 0)
    by_ms = jobs.start_by_ms(job.spec, done_ms)
    if core.clock.now_ms() <= by_ms or jobs.open_attempt(connection, job.id) is not None:
        return None
    left_s = (job.spec.resources.walltime_s * 1000 - done_ms) // 1000
    return Reason(
        code=ReasonCode.DEADLINE,
        message=f"it may take {left_s} s more, which its deadline no longer leaves",
        numbers={"deadline_ms": job.spec.deadline_ms, "start_by_ms": by_ms, "left_s": left_s},
        fix="submit it again with less walltime or a later deadline",
    )


def _end(core: Core, job_id: str, reason: Reason) -> None:
    with core.db.write() as connection:
        if jobs.find_job(connection, job_id).state is JobState.PENDING:
            legs.end_job(core, connection, job_id, JobState.CANCELLED, reason)
            core.tracking_bell.set()
            log.info("%s ends before it ran: %s", job_id, reason.message)


def count_run_times(core: Core) -> None:
    """Count how long the jobs ran that ended since the last time."""
    with core.db.read() as connection:
        if not waits.unobserved(connection, limit=1):
            return
    with core.db.write() as connection:
        run_times = shares.load_run_times(connection)
        for job_id in waits.unobserved(connection, limit=1000):
            job = jobs.find_job(connection, job_id)
            ran_ms = _ran_ms(connection, job)
            if ran_ms > 0:
                walltime_s = job.spec.resources.walltime_s
                run_times = observe(run_times, job.spec.account, walltime_s, (ran_ms + 999) // 1000)
            waits.set_observed(connection, job_id)
        shares.save_run_times(connection, run_times)


def _ran_ms(connection: Connection, job: Job) -> int:
    """How long a job ran in the attempt that it ended with; 0 where it ended before, or by its site's fault.

    A leg's epochs add up, and the longest leg counts: that is how long the job held its GPUs.
    """
    last = job.attempt
    if last is None or (job.reason is not None and job.reason.code is ReasonCode.SITE_FAULT):
        return 0
    if jobs.attempt_row(connection, last.id).ended_ms != job.updated_ms:
        return 0
    query = select(t.epochs.c.leg, t.epochs.c.running_ms, t.epochs.c.final_ms).where(
        t.epochs.c.leg.in_([leg.id for leg in last.legs]) & (t.epochs.c.running_ms > 0)
    )
    ran: dict[str, int] = {}
    for leg, running_ms, final_ms in connection.execute(query):
        ran[leg] = ran.get(leg, 0) + max(0, (final_ms or job.updated_ms) - running_ms)
    return max(ran.values()) + snapshots.kept_before(connection, job.id, last.id) if ran else 0


def move_history(core: Core) -> None:
    """Move the fair-share history on by what was held since the last time, at most each minute."""
    now_ms = core.clock.now_ms()
    with core.db.read() as connection:
        history, since_ms = shares.load_history(connection)
        if since_ms and now_ms - since_ms < HISTORY_MS:
            return
        snapshot = snapshots.standing(core, connection).snapshot
    accounts, settings = snapshot.accounts, snapshot.settings
    if since_ms:
        gap_ms = max(0, now_ms - since_ms - MAX_GAP_MS)
        if gap_ms:
            history = fair_advance(history, accounts, (), snapshot.sites, settings, gap_ms)
        history = fair_advance(history, accounts, snapshot.held, snapshot.sites, settings, now_ms - since_ms - gap_ms)
    with core.db.write() as connection:
        shares.save_history(connection, history, now_ms)
