"""Admins' rulings on sites' parts in a training: rejected, let in again, withdrawn.

A ruling is signed by the admin and holds from a round whose commits are not fixed yet, so that what it changes shows
in the certificate for anyone to recompute. Requests store rulings; only the loop ends a withdrawn site's leg, once the
rounds that it still takes part in are closed.
"""

from __future__ import annotations

import logging

from sqlalchemy import Connection

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.ids import partner_of
from consortium.domain.job import Job, JobState, Leg, LegState
from consortium.domain.partner import Role
from consortium.domain.records import RecordType
from consortium.domain.training import RoundPhase, Ruling
from consortium.errors import ConflictError, ForbiddenError, NotFoundError, UsageError
from consortium.keys.roster import verify_ruling
from consortium.keys.tokens import Claims
from consortium.server import legs
from consortium.server.auth import need
from consortium.server.core import Core
from consortium.state import jobs, rounds
from consortium.state.data import said_of_states
from consortium.state.evict import evict
from consortium.train.disputes import parties, published
from consortium.train.rounds import left_out, withdrawn

log = logging.getLogger(__name__)
MAX_REASON = 500


def take_ruling(core: Core, connection: Connection, claims: Claims, ruling: Ruling) -> None:
    """Keep an admin's ruling and put it on record.

    Raises ForbiddenError where it is not theirs to give, ConflictError where the round is fixed, nobody would be left,
    or an earlier ruling stands in the way, VerificationError where the signature does not hold.
    """
    need(claims, Role.ADMIN)
    job = jobs.find_job(connection, ruling.job)
    if ruling.by != claims.subject:
        raise ForbiddenError(f"{claims.subject} cannot rule as {ruling.by}")
    owner, site_owner = partner_of(job.spec.account), partner_of(ruling.site)
    if claims.partner != owner and (ruling.action == "readmit" or claims.partner != site_owner):
        raise ForbiddenError(
            f"{ruling.action} of {ruling.site} is not {claims.subject}'s to decide: the job is {job.spec.account}'s",
            where=job.id,
            fix=f"ask an admin of {owner}",
        )
    _check(connection, job, ruling)
    verify_ruling(ruling, core.federation.rosters, job.spec.account)
    if rounds.add_ruling(connection, ruling, core.clock.now_ms()):
        core.record(connection, RecordType.APPROVAL, {"kind": "ruling", "job": job.id, "ruling": ruling})


def _check(connection: Connection, job: Job, ruling: Ruling) -> None:
    last = legs.outer_number(job, "rounds")
    where = f"{job.id} round {ruling.round}"
    if not last:
        raise UsageError("the job has no rounds", where=job.id)
    if job.state.final:
        raise ConflictError(f"the job is {job.state.value}", where=job.id)
    sites = taking_part(job)
    if ruling.site not in sites:
        raise NotFoundError(
            f"{ruling.site[:80]!r} takes no part in the job", where=job.id, fix=", ".join(sorted(sites))
        )
    if not 0 < len(ruling.reason.strip()) <= MAX_REASON:
        raise UsageError(f"a ruling needs a reason of at most {MAX_REASON} characters", where=where)
    known = rounds.rulings(connection, job.id, last)
    if ruling in known:
        return
    first = rounds.first_open(connection, job.id)
    if not first <= ruling.round <= last:
        fix = f"rule from round {first} on" if first <= last else "the last round's commits are fixed; cancel the job"
        raise ConflictError("the round takes no rulings any more, or the job has no such round", where=where, fix=fix)
    if ruling.action == "readmit":
        same = [one for one in known if (one.site, one.round) == (ruling.site, ruling.round)]
        if any(one.site == ruling.site and one.action == "withdraw" for one in known):
            raise ConflictError(f"{ruling.site} was withdrawn and has no leg to let in again", where=where)
        if same and same[0].action != "readmit":
            fix = f"readmit it from round {ruling.round + 1} on"
            raise ConflictError(f"{ruling.site} is left out of this very round", where=where, fix=fix)
        return
    _check_left(connection, job, ruling, known)


def _check_left(connection: Connection, job: Job, ruling: Ruling, known: tuple[Ruling, ...]) -> None:
    """Raise ConflictError where a ruling that leaves a site out would leave too few, or none that holds a state."""
    where, sites = f"{job.id} round {ruling.round}", taking_part(job)
    least = max(1, job.spec.min_sites) if ruling.action == "withdraw" else 1
    given, there = (*known, ruling), sites - _given_up(connection, job)
    held = said_of_states(connection, job.id) if ruling.round > 1 else frozenset()
    # Also from where an earlier ruling for a later round holds.
    for number in sorted({max(one.round, ruling.round) for one in given}):
        # Who is withdrawn stays away, though an earlier ruling lets it in again from a later round on.
        stay = there - withdrawn(number, given)
        if (left := len(stay - left_out(number, given, None))) < least:
            what = f"{left} sites would be left in round {number}, the job needs {least}"
            raise ConflictError(what, where=where, fix=f"consortium cancel {job.id}")
        if held and not stay & held:
            what = (
                f"no site would be left in round {number} that holds what was trained: {', '.join(sorted(stay))} join"
            )
            raise ConflictError(what, where=where, fix="withdraw it once another has published an outer state")


def taking_part(job: Job) -> set[str]:
    """Return the sites of a job: where it is to run, and where its attempt has legs."""
    return {*job.target_sites, *(leg.site for leg in (job.attempt.legs if job.attempt else ()))}


def _given_up(connection: Connection, job: Job) -> set[str]:
    """Return the sites that an attempt goes on without: their legs have ended and are not tried again."""
    if job.attempt is None or job.state is JobState.PREEMPTING or jobs.open_attempt(connection, job.id) is None:
        return set()  # all get another leg
    waiting = {row.id for row in jobs.waiting_legs(connection)}
    return {leg.site for leg in job.attempt.legs if leg.state not in jobs.LIVE and leg.id not in waiting}


def can_do_without(connection: Connection, job: Job, leg: Leg) -> bool:
    """Whether the others' rounds go on where a leg does not come back.

    One of them is left in each round whose commits are not fixed yet, somebody can say what a round came to whose
    commits are, and none waits for what this one begins with.
    """
    if legs.begins(connection, job, leg.site):
        return False
    sites = {other.site for other in legs.others(connection, leg)}
    first, last = rounds.first_open(connection, job.id), legs.outer_number(job, "rounds")
    fixed = rounds.read(connection, job.id, first - 1)
    told = fixed is None or fixed.phase is RoundPhase.CLOSED or bool(published(fixed))
    if fixed is not None and not told and not sites & set(parties(fixed)):
        return False
    known = rounds.rulings(connection, job.id, last)
    numbers = {max(one.round, first) for one in known}
    return all(sites - left_out(one, known, None) - withdrawn(one, known) for one in numbers if one <= last)


def rejected(connection: Connection, job_id: str, number: int) -> frozenset[str]:
    """Return the sites that rulings leave out of a round: it does not wait for them."""
    return left_out(number, rounds.rulings(connection, job_id, number), None)


def withdraw_due(core: Core) -> None:
    """End the legs of withdrawn sites whose last round is closed; the job goes on without them."""
    with core.db.read() as connection:
        due = [ruling for ruling in rounds.withdrawals(connection) if _due(connection, ruling)]
    for ruling in due:
        with core.db.write() as connection:
            _withdraw(core, connection, ruling)


def _due(connection: Connection, ruling: Ruling) -> bool:
    """Whether a withdrawn site's rounds are closed, and it still has a leg, or would get one."""
    job = jobs.find_job(connection, ruling.job)
    before = rounds.find(connection, job.id, ruling.round - 1)
    if ruling.round > 1 and (before is None or before.phase is not RoundPhase.CLOSED):
        return False
    return ruling.site in job.target_sites or any(leg.state in legs.AT_WORK for leg in _legs(job, ruling.site))


def _withdraw(core: Core, connection: Connection, ruling: Ruling) -> None:
    job = jobs.find_job(connection, ruling.job)
    if ruling.site in job.target_sites:
        jobs.leave_site(connection, job, ruling.site, core.clock.now_ms())
        log.info("%s is withdrawn from %s by %s", ruling.site, job.id, ruling.by)
    why = f"withdrawn from the job by {ruling.by}: {ruling.reason}"
    attempt = jobs.open_attempt(connection, job.id)
    if attempt is not None and (not attempt.started_ms or legs.begins(connection, job, ruling.site)):
        # A gang starts whole, and its first site says what training begins with: the job is placed again without it.
        reason = Reason(code=ReasonCode.PREEMPTED, message=f"{ruling.site} is {why}", site=ruling.site)
        evict(connection, job.id, reason, core.clock.now_ms())
        return
    for leg in _legs(job, ruling.site):
        if leg.state in legs.AT_WORK:
            jobs.set_leg(connection, leg, LegState.STOPPING, core.clock.now_ms(), reason=why)
        elif leg.state not in jobs.LIVE:
            jobs.set_retry(connection, leg.id, 0)
            legs.settle(core, connection, job.id)


def _legs(job: Job, site: str) -> list[Leg]:
    return [leg for leg in (job.attempt.legs if job.attempt else ()) if leg.site == site]
