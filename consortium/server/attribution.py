"""Who brought what to a model, as the server's records say so far: the figures of the monthly reports, of all partners.

Reports compute them from leaves with proofs; this answers `show` and fills MLflow while a training goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, cast, select

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import CONTRIBUTIONS, Crossing
from consortium.domain.ids import partner_of
from consortium.domain.job import JobKind
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.records import Record, RecordType
from consortium.domain.training import Commit, Round, RoundPhase
from consortium.errors import UsageError
from consortium.reports.training import Run, Work, crossed, read_redone, read_runs, shares_of, training_rows
from consortium.server.ancestry import ancestry
from consortium.server.rounds import job_rounds
from consortium.state import jobs
from consortium.state import tables as t
from consortium.train.attribution import Share
from consortium.train.book import cost_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributed:
    """A training's figures: its shares by round and site with how well each is founded, and the rows by partner."""

    run: Run
    shares: tuple[tuple[Share, Work], ...]
    partners: dict[str, Any]
    """A report's `training` row by partner, as JSON."""


def attribute(connection: Connection, job: str) -> Attributed:
    """Return who brought what to the model of a training. Raises UsageError for another kind of job."""
    spec = jobs.find_job(connection, job).spec
    if spec.kind is not JobKind.PRETRAIN:
        raise UsageError(f"{job} is a {spec.kind.value} job: it trains no model", where=job)
    lineage = [job, *(found.id for found in ancestry(connection, spec).jobs)]
    rounds = [item for name in lineage for item in job_rounds(connection, name) if item.phase is RoundPhase.CLOSED]
    records = _records(connection, job, lineage)
    runs, redone = read_runs(records, rounds), read_redone(records)
    run, by_commit = runs[job], _works(rounds, job)
    crossings = crossings_of(connection, job, run.rounds)
    shares = shares_of(run, crossings)
    founded = tuple((shares[key], Work.of(by_commit[key], redone)) for key in sorted(shares))
    partners = sorted({share.partner for share, _ in founded})
    rows = {
        partner: training_rows(
            runs, {job: [one for one in founded if one[0].partner == partner]}, crossed(crossings, partner)
        )
        for partner in partners
    }
    return Attributed(run=run, shares=founded, partners={name: to_json(row) for name, (row,) in rows.items()})


def as_json(connection: Connection, job: str) -> dict[str, Any]:
    """Return the figures of a training as JSON: by round and site, by partner, and what retained contributions cost."""
    found = attribute(connection, job)
    rows = [
        to_json(share) | {"re_executed_by": work.held, "re_execution_differed": work.differed,
                          "work_evidence": work.evidence.value}
        for share, work in found.shares
    ]  # fmt: skip
    sites = {share.site for share, _ in found.shares}
    answer: dict[str, Any] = to_json(
        {
            "job": job,
            "flops_per_token": found.run.flops_per_token,
            "rounds": rows,
            "partners": found.partners,
            "retained": retained(jobs.find_job(connection, job).spec.params, found.run.parameters, len(sites)),
        }
    )
    return answer


def metrics(found: Attributed) -> dict[int, dict[str, float]]:
    """Return the figures by round as a tracking server takes them: `tokens.fr-1` and the like; what is unknown is left
    out."""
    by_round: dict[int, dict[str, float]] = {}
    for share, _ in found.shares:
        told = {
            "tokens": share.tokens, "flops": share.flops, "weight": share.weight, "bytes_sent": share.bytes_sent,
            "bytes_received": share.bytes_received, "loss_share": share.loss_share,
        }  # fmt: skip
        known = {f"{name}.{share.site}": float(value) for name, value in told.items() if value is not None}
        by_round.setdefault(share.round, {}).update(known)
    for item in found.run.rounds:
        for commit in item.commits:
            if (loss := commit.mean_loss) is not None:
                by_round.setdefault(item.number, {})[f"loss.{commit.site}"] = loss
    return by_round


def retained(params: Mapping[str, Any], parameters: int | None, sites: int) -> dict[str, Any]:
    """Return for how many rounds sites keep their peers' contributions for an audit, and what that takes at each.

    `bytes_per_site` is of the whole job; None of a model whose size is not known, and where the optimiser's state
    crosses too. A fragment crosses per round where there are several.
    """
    from consortium.train.codes import Code

    try:
        outer = PretrainConfig.of(dict(params)).outer
    except UsageError:  # of another release
        return {"rounds": None, "bytes_per_site": None}
    held = outer.rounds if outer.keep_received < 0 else min(outer.rounds, outer.keep_received)
    if parameters is None:
        return {"rounds": held, "bytes_per_site": None if held else 0}
    if outer.share != "none":
        return {"rounds": held, "bytes_per_site": None if held else 0}
    crossing = Code.of(outer).bytes_for(-(-parameters // outer.fragments))
    return {"rounds": held, "bytes_per_site": cost_bytes(outer.rounds, outer.keep_received, sites, crossing)}


def _works(rounds: Iterable[Round], job: str) -> dict[tuple[int, str], Commit]:
    """Return the commits that shares are of: of two of one site, the one that counted."""
    found: dict[tuple[int, str], Commit] = {}
    for item in rounds:
        counted = {part.digest for part in item.certificate.contributions} if item.certificate else set()
        for commit in item.commits if item.job == job else ():
            if commit.digest in counted or (item.number, commit.site) not in found:
                found[item.number, commit.site] = commit
    return found


def crossings_of(connection: Connection, job: str, rounds: Iterable[Round]) -> list[Crossing]:
    """Return what contributions took across borders, parts under the digest of the contribution that they are of."""
    from consortium.train.parcels import wholes

    columns = [column for column in t.crossings.c if column.name in Crossing.__dataclass_fields__]
    wanted = (t.crossings.c.job == job) & t.crossings.c.artifact_class.in_([one.value for one in CONTRIBUTIONS])
    rows = connection.execute(select(*columns).where(wanted).order_by(t.crossings.c.id))
    found = [from_json(Crossing, dict(row._mapping), where="crossings") for row in rows]
    named = t.artifacts.c.sender, t.artifacts.c.name, t.artifacts.c.digest
    announced = connection.execute(select(*named).where(t.artifacts.c.job == job).order_by(t.artifacts.c.id))
    whole = wholes(
        [(row.sender, row.name, row.digest) for row in announced],
        [commit.digest for item in rounds for commit in item.commits],
    )
    return [replace(one, digest=whole.get((one.sender, one.digest), one.digest)) for one in found]


def _records(connection: Connection, job: str, lineage: list[str]) -> list[Record]:
    """Return the records that the figures rest on besides rounds and crossings."""
    body = t.records.c.payload["body"]
    measuring = select(t.jobs.c.id).where(
        (t.jobs.c.kind == JobKind.EVALUATE.value) & cast(t.jobs.c.spec, String).contains(job)
    )
    measured = list(connection.execute(measuring).scalars())
    inputs = sorted({name for key in lineage for name in jobs.find_job(connection, key).spec.inputs})
    found = _of(connection, _is(RecordType.JOB) & body["job"].as_string().in_([*lineage, *measured]))
    registered = t.records.c.payload[("body", "dataset", "id")].as_string()
    found += _of(connection, _is(RecordType.DATASET) & registered.in_(inputs))
    found += _of(connection, _is(RecordType.MANIFEST) & body["job"].as_string().in_(measured))
    redone = _is(RecordType.RE_EXECUTION) & (body["job"].as_string() == job)
    auditors = sorted({partner_of(str(item.body.get("by") or "")) for item in _of(connection, redone)} - {""})
    rosters = _is(RecordType.ROSTER) & body["partner"].as_string().in_(auditors)
    return [*found, *_of(connection, redone | rosters)]


def _is(kind: RecordType) -> ColumnElement[bool]:
    return t.records.c.type == kind.value


def _of(connection: Connection, wanted: ColumnElement[bool]) -> list[Record]:
    """Return records in the log's order, those that it does not have yet last."""
    logged = t.records.c.ledger_index
    query = select(t.records.c.payload).where(wanted)
    rows = connection.execute(query.order_by(logged.is_(None), logged, t.records.c.origin, t.records.c.seq)).scalars()
    return [from_json(Record, payload, where="records") for payload in rows]
