"""Rounds of federated training: when a set of commits is fixed, certified, closed or disputed.

Requests store commits, verdicts and digests; only the loop moves a round on. The certificate follows from the verdicts
by the pure rule in `consortium.train.rounds`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select

from consortium.domain.codec import from_json, to_json
from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Job, JobState, Leg
from consortium.domain.pretraining import MOST_PACE, PretrainConfig
from consortium.domain.records import RecordType
from consortium.domain.training import Commit, Round, RoundPhase, Settlement, Verdict
from consortium.errors import ConflictError, ForbiddenError, NotFoundError, UsageError
from consortium.keys.signing import sign_value, signed_bytes, verify_value
from consortium.server import awaited, legs
from consortium.server.core import Core
from consortium.state import jobs, rounds
from consortium.state import tables as t
from consortium.state.data import agreements, newest_agreement, signed_agreements
from consortium.state.rounds import RoundRow
from consortium.train import disputes
from consortium.train.rounds import certify, copied_from, left_out, shown_to
from consortium.train.schedule import Rounds
from consortium.train.votes import majority

log = logging.getLogger(__name__)
_MOST_CHARS = 80
_MOST_DIGITS = 9
"""Of a round's number: the database keeps no larger ones."""
_DONE = (RoundPhase.CERTIFIED, RoundPhase.CLOSED)


def restart_deadlines(core: Core) -> None:
    """After an absence of the server everybody gets the whole grace again."""
    until_ms = core.clock.now_ms() + core.settings.round_grace_ms
    with core.db.write() as connection:
        for row in rounds.unfinished(connection):
            if row.deadline_ms:
                rounds.change(connection, row.job, row.number, deadline_ms=until_ms)


def read_round(core: Core, connection: Connection, job_id: str, number: int, reader: str) -> Round:
    """Return a round as its `reader`, a site or a person, may see it; what nobody committed to yet is open and empty.

    While it is open nobody reads another's commit.
    """
    if number < 1:
        raise UsageError(f"rounds count from 1, got {number}")
    job = jobs.find_job(connection, job_id)
    found = rounds.read(connection, job_id, number)
    if found is not None:
        return shown_to(reader, found)
    return Round(
        job=job_id,
        number=number,
        phase=RoundPhase.OPEN,
        expected=tuple(awaited.expected(core, connection, job, number)),
        rulings=rounds.rulings(connection, job_id, number),
    )


def take_commit(core: Core, connection: Connection, site: str, commit: Commit) -> None:
    """Keep a site's commit.

    Raises ConflictError where the round no longer takes any, is not open yet, or has another site's commit to the same.
    """
    leg = live_leg(connection, commit.job, site)
    if commit.site != site:
        raise ForbiddenError(f"{site} cannot commit for {commit.site}")
    where = f"{commit.job} round {commit.round}"
    _check_lengths(where, commit.digest, commit.norm, commit.loss)
    _check_numbers(where, norm=commit.norm, loss=commit.loss)
    verify_value(core.federation.site(site).signing_key, commit, what=f"the commit of {site} to {where}")
    job = jobs.find_job(connection, commit.job)
    if commit.tokens <= 0:
        raise UsageError(f"a commit of {commit.tokens} tokens", where=where, fix="commit what was read, or nothing")
    if (most := _most_tokens(job, commit.round)) and commit.tokens > most:
        raise UsageError(f"no leg of the job reads {commit.tokens} tokens in a round: at most {most}", where=where)
    row = rounds.find(connection, commit.job, commit.round)
    if row is None:
        last = legs.outer_number(job, "rounds")
        if not 1 <= commit.round <= last:
            raise UsageError(f"the job has rounds 1 to {last}" if last else "the job has no rounds", where=where)
        if commit.round > 1:
            before = rounds.find(connection, commit.job, commit.round - 1)
            if before is None or before.phase not in _DONE:
                raise ConflictError(f"round {commit.round - 1} comes first", where=where)
        expected = awaited.expected(core, connection, job, commit.round)
        row = rounds.open_round(connection, commit.job, commit.round, expected)
    if row.phase is not RoundPhase.OPEN:
        if _repeats(connection, commit):
            return
        raise ConflictError(
            f"round {commit.round} is {row.phase.value} and takes no commits", where=where, fix="join the next round"
        )
    found = rounds.read(connection, commit.job, commit.round)
    if twin := copied_from(commit, found.commits if found is not None else ()):
        raise ConflictError(
            f"{twin} committed {commit.digest} to the round: it does not count for {site} as well",
            where=where,
            fix="where both trained: they read the same text in the same order; leave one of them out, or shuffle",
        )
    rounds.add_commit(connection, commit, str(leg.epoch), core.clock.now_ms())


def take_verdicts(core: Core, connection: Connection, site: str, job: str, given: tuple[Verdict, ...]) -> None:
    """Keep a site's verdicts. Once the round is certified only repetitions are taken."""
    leg = live_leg(connection, job, site)
    for verdict in given:
        where = f"{job} round {verdict.round}"
        if verdict.judge != site or verdict.job != job:
            raise ForbiddenError(f"{site} cannot judge as {verdict.judge} in {verdict.job}")
        _check_lengths(where, verdict.digest, verdict.norm, verdict.reason)
        verify_value(core.federation.site(site).signing_key, verdict, what=f"a verdict of {site} in {where}")
        row = rounds.find(connection, job, verdict.round)
        if row is None or row.phase is RoundPhase.OPEN:
            raise ConflictError("the round is not judged yet", where=where, fix="wait until its commits are fixed")
        if verdict.site not in row.fixed:
            raise UsageError(f"{verdict.site[:80]!r} has no commit in the round", where=where)
        if row.phase is RoundPhase.JUDGING:
            rounds.add_verdict(connection, verdict, str(leg.epoch), core.clock.now_ms())


def _check_lengths(where: str, *values: str) -> None:
    """Raise UsageError for a digest, number or reason code that is none: all legs read it at every look."""
    if too_long := next((value for value in values if len(value) > _MOST_CHARS), ""):
        raise UsageError(
            f"{too_long[:40]!r}… has {len(too_long)} characters", where=where, fix=f"at most {_MOST_CHARS} are taken"
        )


def _check_numbers(where: str, **values: str) -> None:
    """Raise UsageError for what is no number in hexadecimal; one that is not finite is for the judges to refuse."""
    for name, value in values.items():
        try:
            float.fromhex(value)
        except (ValueError, OverflowError) as fault:
            raise UsageError(
                f"{name} {value!r} is no hexadecimal number", where=where, fix="such as 0x1.8p+1"
            ) from fault


def live_leg(connection: Connection, job_id: str, site: str) -> Leg:
    """Return the live leg of a job at a site; raises ConflictError where there is none."""
    job = jobs.find_job(connection, job_id)
    mine = [leg for attempt in job.attempts for leg in attempt.legs if leg.site == site and leg.state in jobs.LIVE]
    if not mine:
        raise ConflictError(f"{site} has no live leg of this job", where=job_id)
    return mine[-1]


def advance_all(core: Core) -> None:
    """Move every unfinished round on that can be."""
    with core.db.read() as connection:
        open_rounds = rounds.unfinished(connection)
    for row in open_rounds:
        try:
            moved = True
            while moved:
                with core.db.write() as connection:
                    moved = _advance(core, connection, row.job, row.number)
        except Exception:
            # One job's round must not keep everybody else's jobs from starting.
            log.exception("round %d of %s cannot be moved on", row.number, row.job)


def _advance(core: Core, connection: Connection, job_id: str, number: int) -> bool:
    row = rounds.find(connection, job_id, number)
    if row is None or row.phase in (RoundPhase.CLOSED, RoundPhase.DISPUTED):
        return False
    job = jobs.find_job(connection, job_id)
    if job.state.final:
        return False
    if row.phase not in _DONE and not awaited.expected(core, connection, job, number):
        return awaited.pause(connection, row)
    if row.phase is RoundPhase.OPEN:
        return _fix(core, connection, job, row)
    if row.phase is RoundPhase.JUDGING:
        return _certify(core, connection, job, row)
    return _close(core, connection, job, row)


def _fix(core: Core, connection: Connection, job: Job, row: RoundRow) -> bool:
    """Fix the set of commits: all expected are in, or a quorum is and the grace is over."""
    if row.number > 1:
        before = rounds.find(connection, row.job, row.number - 1)
        if before is None or before.phase is not RoundPhase.CLOSED:
            return False
    expected = awaited.expected(core, connection, job, row.number)
    committed = _sites_with_commit(connection, row)
    if tuple(expected) != row.expected:
        rounds.change(connection, row.job, row.number, expected=expected)
    if not committed:
        return False
    full = bool(expected) and set(expected) <= set(committed)
    if not full:
        if not awaited.quorate(connection, job, row.number, committed, expected):
            return False
        if not awaited.grace_over(core, connection, row):
            return False
    rounds.change(
        connection,
        row.job,
        row.number,
        phase=RoundPhase.JUDGING.value,
        fixed=committed,
        deadline_ms=core.clock.now_ms() + core.settings.round_grace_ms,
    )
    return True


def _certify(core: Core, connection: Connection, job: Job, row: RoundRow) -> bool:
    found = rounds.read(connection, row.job, row.number)
    if found is None:
        return False
    judges = set(row.fixed) & set(awaited.expected(core, connection, job, row.number))
    given = {(verdict.judge, verdict.site) for verdict in found.verdicts}
    standing = awaited.standing(connection, job, row.number)
    counting = set(row.fixed) - left_out(row.number, found.rulings, standing)
    complete = bool(judges) and all((judge, site) in given for judge in judges for site in counting)
    if not complete and not awaited.grace_over(core, connection, row):
        return False
    earlier = rounds.read(connection, row.job, row.number - 1)
    before = agreements(connection, row.job, f"outer/{row.number - 1}")
    if earlier is not None:
        states = [disputes.holding(earlier)]
    else:
        start, attempt = job.spec.params.get("start"), job.attempt
        sites = [leg.site for leg in attempt.legs] if attempt else []
        said = disputes.beginning(sites, before, resumed=isinstance(start, dict) and bool(start.get("resume")))
        told = {before[site] for site in row.fixed if site in before} or set(before.values())
        states = [said] if said else sorted(told)
    if len(states) > 1 or (before and not states[0]):
        _dispute(core, connection, row, before)
        return False
    certificate = certify(
        row.job,
        row.number,
        states[0] if states else "",
        found.commits,
        found.verdicts,
        rulings=found.rulings,
        standing=standing,
    )
    signed = sign_value(core.key, certificate)
    rounds.change(
        connection,
        row.job,
        row.number,
        phase=RoundPhase.CERTIFIED.value,
        certificate=to_json(signed),
        deadline_ms=0,
    )
    return True


def _close(core: Core, connection: Connection, job: Job, row: RoundRow) -> bool:
    found = rounds.read(connection, row.job, row.number)
    if found is None or found.certificate is None:
        return False
    published, counted = disputes.published(found), found.certificate.contributions
    if len(set(published.values())) > 1:
        settlement = _settlement(core, connection, job, row, found)
        if settlement is None:
            return False
        found = replace(found, settlement=settlement)
    elif not published or not _enough_agree(core, connection, job, row, found):
        return False
    rounds.change(connection, row.job, row.number, phase=RoundPhase.CLOSED.value, deadline_ms=0)
    body = {
        "job": row.job,
        "round": replace(found, phase=RoundPhase.CLOSED),
        "sites": sorted(c.site for c in counted),
        "tokens": sum(c.tokens for c in counted),
        "outer_digest": found.settlement.outer if found.settlement else next(iter(published.values())),
        "signed": signed_agreements(connection, row.job, f"outer/{row.number}"),
    }
    core.record(connection, RecordType.ROUND, body)
    return False


def check_agreement(connection: Connection, job: str, topic: str, digest: str) -> None:
    """Raise ConflictError for another outer state of a closed round than the one it was closed with.

    And for another state before round 1 than that one began with, once it is closed. What holds is read from what sites
    published, so who publishes late must not change it.
    """
    room, _, number = topic.partition("/")
    if room != "outer" or not (number.isascii() and number.isdigit()) or len(number) > _MOST_DIGITS:
        return
    found = rounds.read(connection, job, int(number) or 1)
    if found is None or found.phase is not RoundPhase.CLOSED:
        return
    begun = found.certificate.previous_outer if found.certificate is not None else ""
    holds = disputes.holding(found) if int(number) else begun or digest
    if digest != holds:
        said = f"round {number} is closed with" if int(number) else "round 1 began with"
        raise ConflictError(
            f"{said} the outer state {holds}, not {digest}",
            where=f"job {job}",
            fix="replay the round (`consortium audit replay`) to find who differs",
        )


def _enough_agree(core: Core, connection: Connection, job: Job, row: RoundRow, found: Round) -> bool:
    """Whether all at work published the same outer state, or a majority did and the others' grace is over."""
    parties, agreed = set(disputes.parties(found)), disputes.published(found).keys()
    if not parties & set(awaited.at_work(job)) - agreed:
        return True
    return majority(agreed, parties) and awaited.grace_over(core, connection, row)


def _settlement(core: Core, connection: Connection, job: Job, row: RoundRow, found: Round) -> Settlement | None:
    """Settle by recomputation which of a round's outer states holds; None while it is open, or where it stays so."""
    expected = set(awaited.expected(core, connection, job, row.number))
    if not expected:
        awaited.pause(connection, row)
        return None
    published, parts = disputes.published(found), disputes.topics(row.number)
    said = {part: signed_agreements(connection, row.job, topic) for part, topic in parts.items()}
    told = {part: {site: one["digest"] for site, one in sites.items()} for part, sites in said.items()}
    recomputed = disputes.recomputations(told)
    silent = expected & set(disputes.parties(found)) - recomputed.keys()
    # Everybody gets the whole grace to compute again, however late the word came that differs.
    heard_ms = newest_agreement(connection, row.job, f"outer/{row.number}")
    over = awaited.grace_over(core, connection, row)
    if silent and not (over and core.clock.now_ms() >= heard_ms + core.settings.round_grace_ms):
        return None
    settlement = disputes.settle(found, recomputed)
    evidence = {"settlement": settlement, "recomputed": recomputed, "signed": said}
    if not settlement.outer:
        _dispute(core, connection, row, published, evidence)
        return None
    rounds.change(connection, row.job, row.number, settlement=to_json(settlement))
    body = {"job": row.job, "round": row.number, "outer_digests": published, "decided": True, **evidence}
    core.record(connection, RecordType.DISPUTE, to_json(body))
    log.warning("%s round %d: %s differ; settled by recomputation", row.job, row.number, ", ".join(settlement.differ))
    return settlement


def _dispute(
    core: Core, connection: Connection, row: RoundRow, digests: dict[str, str], evidence: dict[str, Any] | None = None
) -> None:
    rounds.change(connection, row.job, row.number, phase=RoundPhase.DISPUTED.value)
    said = ", ".join(f"{site} {digest[:19]}" for site, digest in sorted(digests.items()))
    reason = Reason(
        code=ReasonCode.DISPUTE,
        message=f"the outer states around round {row.number} differ between sites, and recomputation left it undecided "
        f"who is wrong: {said}",
        numbers={"round": row.number},
        fix="replay the round at every site (`consortium audit replay`) to find who differs",
    )
    body = {"job": row.job, "round": row.number, "outer_digests": digests, "decided": False, **(evidence or {})}
    core.record(connection, RecordType.DISPUTE, to_json(body))
    legs.end_job(core, connection, row.job, JobState.FAILED, reason)


def _most_tokens(job: Job, number: int) -> int:
    """Return the most tokens that a leg can read in a round: refused or not, they count as work. 0: not known."""
    try:
        params = PretrainConfig.of(job.spec.params)
    except UsageError:
        return 0
    resources = job.spec.resources
    workers = resources.gpus // resources.gpus_per_worker
    steps = Rounds.of(params).steps(min(max(number, 1), params.outer.rounds))
    return MOST_PACE * steps * workers * params.data.batch_size * params.model.context


def _sites_with_commit(connection: Connection, row: RoundRow) -> list[str]:
    query = select(t.commits.c.site).where((t.commits.c.job == row.job) & (t.commits.c.round == row.number))
    return sorted(connection.execute(query).scalars())


def _repeats(connection: Connection, commit: Commit) -> bool:
    """Whether the site committed just that before: a commit that makes a round never changes, whoever restarts."""
    same = (t.commits.c.job == commit.job) & (t.commits.c.round == commit.round) & (t.commits.c.site == commit.site)
    known = connection.execute(select(t.commits.c.doc).where(same)).scalar()
    return known is not None and signed_bytes(from_json(Commit, known)) == signed_bytes(commit)


def job_rounds(connection: Connection, job_id: str, after: int = 0) -> list[Round]:
    """Return a job's rounds after number `after`, in order."""
    if not jobs.find_job(connection, job_id):
        raise NotFoundError(f"there is no job {job_id!r}")
    later = (number for number in rounds.numbers(connection, job_id) if number > after)
    found = (rounds.read(connection, job_id, number) for number in later)
    return [item for item in found if item is not None]
