"""Rounds of federated training as stored: phase, commits, verdicts, certificate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from consortium.domain.codec import from_json, to_json
from consortium.domain.job import JobState
from consortium.domain.training import Certificate, Commit, Round, RoundPhase, Ruling, Settlement, Verdict
from consortium.errors import ConflictError
from consortium.keys.canonical import digest_json
from consortium.state import tables as t
from consortium.state.data import agreements


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """The stored side of a round."""

    job: str
    number: int
    phase: RoundPhase
    expected: tuple[str, ...]
    fixed: tuple[str, ...]
    deadline_ms: int


def find(connection: Connection, job: str, number: int) -> RoundRow | None:
    """Return a round, or None before its first commit."""
    same = (t.rounds.c.job == job) & (t.rounds.c.number == number)
    row = connection.execute(select(t.rounds).where(same)).one_or_none()
    return None if row is None else _row(row)


def unfinished(connection: Connection) -> list[RoundRow]:
    """Return rounds that are neither closed nor disputed, by job and number."""
    ended = (RoundPhase.CLOSED.value, RoundPhase.DISPUTED.value)
    query = select(t.rounds).where(t.rounds.c.phase.not_in(ended)).order_by(t.rounds.c.job, t.rounds.c.number)
    return [_row(row) for row in connection.execute(query)]


def numbers(connection: Connection, job: str) -> list[int]:
    """Return the numbers of a job's rounds, ascending."""
    query = select(t.rounds.c.number).where(t.rounds.c.job == job).order_by(t.rounds.c.number)
    return list(connection.execute(query).scalars())


def open_round(connection: Connection, job: str, number: int, expected: Iterable[str]) -> RoundRow:
    """Store a new round."""
    connection.execute(
        t.rounds.insert().values(
            job=job,
            number=number,
            phase=RoundPhase.OPEN.value,
            expected=sorted(expected),
            fixed=[],
            deadline_ms=0,
        )
    )
    row = find(connection, job, number)
    if row is None:
        raise RuntimeError("a round just stored is not there")
    return row


def change(connection: Connection, job: str, number: int, **values: Any) -> None:
    """Change columns of a round."""
    same = (t.rounds.c.job == job) & (t.rounds.c.number == number)
    connection.execute(t.rounds.update().where(same).values(**values))


def add_commit(connection: Connection, commit: Commit, epoch: str, now_ms: int) -> bool:
    """Keep a commit; False where it is known.

    A leg that was started anew (another `epoch`) replaces what it committed before. Raises ConflictError where the
    same epoch committed something else before.
    """
    same = (t.commits.c.job == commit.job) & (t.commits.c.round == commit.round) & (t.commits.c.site == commit.site)
    row = connection.execute(select(t.commits.c.doc, t.commits.c.epoch).where(same)).one_or_none()
    if row is not None:
        known = row.doc
        if digest_json(known) == digest_json(commit):
            return False
        if row.epoch != epoch:
            connection.execute(t.commits.update().where(same).values(doc=to_json(commit), epoch=epoch, at_ms=now_ms))
            return True
        raise ConflictError(
            f"{commit.site} committed {known['digest']} to round {commit.round} before", where=commit.job
        )
    connection.execute(
        t.commits.insert().values(
            job=commit.job, round=commit.round, site=commit.site, doc=to_json(commit), epoch=epoch, at_ms=now_ms
        )
    )
    return True


def add_verdict(connection: Connection, verdict: Verdict, epoch: str, now_ms: int) -> bool:
    """Keep a verdict; False where it is known.

    A leg that was started anew (another `epoch`) replaces its verdict. Raises ConflictError where the same epoch said
    otherwise before.
    """
    same = (
        (t.verdicts.c.job == verdict.job)
        & (t.verdicts.c.round == verdict.round)
        & (t.verdicts.c.judge == verdict.judge)
        & (t.verdicts.c.site == verdict.site)
    )
    row = connection.execute(select(t.verdicts.c.doc, t.verdicts.c.epoch).where(same)).one_or_none()
    if row is not None:
        if digest_json(row.doc) == digest_json(verdict):
            return False
        if row.epoch != epoch:
            connection.execute(t.verdicts.update().where(same).values(doc=to_json(verdict), epoch=epoch, at_ms=now_ms))
            return True
        raise ConflictError(f"{verdict.judge} judged {verdict.site} otherwise before", where=verdict.job)
    connection.execute(
        t.verdicts.insert().values(
            job=verdict.job,
            round=verdict.round,
            judge=verdict.judge,
            site=verdict.site,
            doc=to_json(verdict),
            epoch=epoch,
            at_ms=now_ms,
        )
    )
    return True


def read(connection: Connection, job: str, number: int) -> Round | None:
    """Return a round as legs read it: once it is judged, only the commits that make it."""
    same = (t.rounds.c.job == job) & (t.rounds.c.number == number)
    row = connection.execute(select(t.rounds).where(same)).one_or_none()
    if row is None:
        return None
    commits = connection.execute(
        select(t.commits.c.doc)
        .where((t.commits.c.job == job) & (t.commits.c.round == number))
        .order_by(t.commits.c.site)
    ).scalars()
    verdicts = connection.execute(
        select(t.verdicts.c.doc)
        .where((t.verdicts.c.job == job) & (t.verdicts.c.round == number))
        .order_by(t.verdicts.c.judge, t.verdicts.c.site)
    ).scalars()
    taken = tuple(from_json(Commit, doc, where=job) for doc in commits)
    if row.phase != RoundPhase.OPEN.value:
        taken = tuple(commit for commit in taken if commit.site in row.fixed)
    return Round(
        job=job,
        number=number,
        phase=RoundPhase(row.phase),
        expected=tuple(row.expected),
        commits=taken,
        verdicts=tuple(from_json(Verdict, doc, where=job) for doc in verdicts),
        certificate=None if row.certificate is None else from_json(Certificate, row.certificate, where=job),
        outer_digests=agreements(connection, job, f"outer/{number}"),
        deadline_ms=row.deadline_ms,
        rulings=rulings(connection, job, number),
        settlement=None if row.settlement is None else from_json(Settlement, row.settlement, where=job),
    )


def add_ruling(connection: Connection, ruling: Ruling, now_ms: int) -> bool:
    """Keep an admin's ruling; False where it is known. Raises ConflictError where another one rules the same."""
    keys = {name: getattr(ruling, name) for name in ("job", "round", "site", "action")}
    same = [t.rulings.c[name] == value for name, value in keys.items()]
    known = connection.execute(select(t.rulings.c.doc).where(*same)).scalar()
    if known is None:
        connection.execute(t.rulings.insert().values(**keys, doc=to_json(ruling), at_ms=now_ms))
    elif digest_json(known) != digest_json(ruling):
        what = f"{known['by']} ruled so on {ruling.site} for round {ruling.round} before"
        raise ConflictError(what, where=ruling.job)
    return known is None


def rulings(connection: Connection, job: str, number: int) -> tuple[Ruling, ...]:
    """Return what was ruled for a round or an earlier one, by round, site and action."""
    query = select(t.rulings.c.doc).where((t.rulings.c.job == job) & (t.rulings.c.round <= number))
    ordered = query.order_by(t.rulings.c.round, t.rulings.c.site, t.rulings.c.action)
    return tuple(from_json(Ruling, doc, where=job) for doc in connection.execute(ordered).scalars())


def withdrawals(connection: Connection) -> list[Ruling]:
    """Return the withdrawals from jobs that have not ended, by job, round and site."""
    going = t.jobs.c.state.not_in([state.value for state in JobState if state.final])
    query = select(t.rulings.c.doc).join(t.jobs, t.jobs.c.id == t.rulings.c.job)
    query = query.where(going & (t.rulings.c.action == "withdraw"))
    ordered = query.order_by(t.rulings.c.job, t.rulings.c.round, t.rulings.c.site)
    return [from_json(Ruling, doc, where="rulings") for doc in connection.execute(ordered).scalars()]


def left_for_good(connection: Connection) -> dict[str, frozenset[str]]:
    """Return by job the sites that were withdrawn from it and have left; jobs that have ended are not named."""
    found: dict[str, frozenset[str]] = {}
    for ruling in withdrawals(connection):
        sites = connection.execute(select(t.jobs.c.sites).where(t.jobs.c.id == ruling.job)).scalar() or []
        if ruling.site not in sites:
            found[ruling.job] = found.get(ruling.job, frozenset()) | {ruling.site}
    return found


def first_open(connection: Connection, job: str) -> int:
    """Return the number of the first round whose commits are not fixed yet."""
    fixed = (t.rounds.c.job == job) & (t.rounds.c.phase != RoundPhase.OPEN.value)
    return 1 + (connection.execute(select(func.max(t.rounds.c.number)).where(fixed)).scalar() or 0)


def _row(row: Any) -> RoundRow:
    return RoundRow(
        job=row.job,
        number=row.number,
        phase=RoundPhase(row.phase),
        expected=tuple(row.expected),
        fixed=tuple(row.fixed),
        deadline_ms=row.deadline_ms,
    )
