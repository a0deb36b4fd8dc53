"""Training in a report: who brought what to which model, from rounds, crossings, measurements and re-executions.

All of it follows from leaves: a `round` record has commits and certificate, the `job` record the model's shape and what
it went on from, the `dataset` records of its inputs the vocabulary, the `manifest` of an `evaluate` job the losses, a
`re_execution` record what a site's inner steps came to when they were done again. Pure; writer and verifier both call
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from consortium.domain.codec import from_json
from consortium.domain.data import CONTRIBUTIONS, Crossing, CrossingSide, Dataset
from consortium.domain.ids import SERVER, partner_of
from consortium.domain.job import JobKind, JobSpec
from consortium.domain.partner import Role
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.records import Evidence, Record, RecordType, ReExecution
from consortium.domain.training import MAX_LOSS, Commit, Round
from consortium.errors import NotFoundError, UsageError, VerificationError
from consortium.keys.canonical import digest_json
from consortium.keys.roster import Rosters
from consortium.keys.signing import verify_value
from consortium.ledger.origins import record_id
from consortium.reports.model import TrainingRow
from consortium.reports.people import with_people
from consortium.train.attribution import Lineage, Share, lineage, shares, totals
from consortium.train.sizes import flops_per_token, parameter_count

_SIZE = re.compile(r"[1-9][0-9]{0,8}\Z")
_ROUND = re.compile(r"[0-9]{1,9}\Z")
UNKNOWN = "unknown"
"""Stands in a lineage for what nobody can say: the trainings behind a file that `start.weights` names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training as the leaves tell of it."""

    job: str
    rounds: tuple[Round, ...]
    """All its closed rounds up to the end of the report's period, whoever took part in them."""
    flops_per_token: int | None
    """None of a plugged-in model, or where neither job nor vocabulary is among the leaves."""
    parameters: int | None
    """None as well then."""
    parent: str
    """The job it went on from, or `UNKNOWN`; empty where it began anew."""
    parent_round: int = -1
    """After which of that job's rounds; -1: the last."""
    held_out: dict[int, dict[str, float]] = field(default_factory=dict)
    """Losses of its outer states in nats per token, by round and series of measurements."""

    @property
    def whole(self) -> bool:
        """Whether no round is missing from the first on."""
        return [item.number for item in self.rounds] == list(range(1, len(self.rounds) + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Redone:
    """A re-execution that is on record, and who besides the site vouches for it."""

    what: ReExecution
    auditor: str
    """Of another partner than the site's, in its roster, its signature under the result; empty where there is none."""

    @property
    def said(self) -> str:
        """By whom, as reports say it."""
        return f"{self.auditor} at {self.what.site}" if self.auditor else self.what.site


RedoneBy = Mapping[tuple[str, int, str], tuple[Redone, ...]]
"""Re-executions by job, round and digest of the contribution."""
Crossed = tuple[int | None, int | None]
"""Bytes sent and received; None where no crossing is on record."""


def specs_of(records: Iterable[Record]) -> dict[str, JobSpec]:
    """Return the specs of the training and measuring jobs in `job` records of the server.

    Raises VerificationError where two records say different things of one job.
    """
    found: dict[str, JobSpec] = {}
    for record in records:
        spec = record.body.get("spec")
        if record.type is not RecordType.JOB or record.origin != SERVER or not isinstance(spec, dict):
            continue
        if spec.get("kind") in (JobKind.PRETRAIN.value, JobKind.EVALUATE.value):
            job, said = str(record.body.get("job")), _parse(JobSpec, spec, record)
            if found.setdefault(job, said) != said:
                raise VerificationError(f"another record says otherwise of {job}", where=f"record {record_id(record)}")
    return found


def ancestry(jobs: Iterable[str], specs: Mapping[str, JobSpec]) -> set[str]:
    """Return `jobs` and every training that one of them goes back to."""
    found, todo = set[str](), list(jobs)
    while todo:
        job = todo.pop()
        if job and job not in found:
            found.add(job)
            todo.append(specs[job].reads_model if job in specs else "")
    return found


def read_runs(records: Iterable[Record], rounds: Iterable[Round]) -> dict[str, Run]:
    """Return the trainings by job; `rounds` are those of all of them."""
    kept = list(records)
    specs = specs_of(kept)
    words = _vocabularies(kept)
    losses = _losses(kept, specs)
    by_job: dict[str, list[Round]] = {job: [] for job, spec in specs.items() if spec.kind is JobKind.PRETRAIN}
    for item in rounds:
        by_job.setdefault(item.job, []).append(item)
    return {
        job: _run(job, tuple(sorted(found, key=lambda one: one.number)), specs.get(job), words, losses.get(job, {}))
        for job, found in sorted(by_job.items())
    }


def _run(
    job: str,
    rounds: tuple[Round, ...],
    spec: JobSpec | None,
    words: Mapping[str, int],
    held_out: dict[int, dict[str, float]],
) -> Run:
    params, sizes = None, {words[name] for name in spec.inputs if name in words} if spec else set()
    with suppress(UsageError):  # of another release: its shape is not for this one to say
        params = PretrainConfig.of(spec.params) if spec else None
    known = params is not None and len(sizes) == 1 and not params.model.plugin
    size = sizes.pop() if known else 0
    from_file = params is None or bool(params.start.weights)
    return Run(
        job=job,
        rounds=rounds,
        flops_per_token=flops_per_token(params.model, size) if params and known else None,
        parameters=parameter_count(params.model, size) if params and known else None,
        parent=UNKNOWN if from_file else params.start.job if params else "",
        parent_round=params.start.round if params else -1,
        held_out=held_out,
    )


def read_redone(records: Iterable[Record]) -> RedoneBy:
    """Return the re-executions on record; `records` stand in the log's order.

    An auditor counts whom its partner's newest roster before the record names, unless that had expired. Raises
    VerificationError where one is not its origin's to record.
    """
    found: dict[tuple[str, int, str], list[Redone]] = {}
    for record, people in with_people(records, RecordType.RE_EXECUTION):
        what = _parse(ReExecution, record.body, record)
        if what.site != record.origin:
            raise VerificationError(
                f"{record.origin} recorded a re-execution that is {what.site}'s to record",
                where=f"record {record_id(record)}",
            )
        one = Redone(what=what, auditor=_countersigned(what, people))
        found.setdefault((what.job, what.round, what.digest), []).append(one)
    return {key: tuple(sorted(held, key=lambda one: one.said)) for key, held in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How well a commit's tokens, steps and FLOPs are founded.

    What a site says of itself founds nothing better than its commit did: only a result with the signature of another
    partner's auditor counts, and one that came out otherwise undoes it.
    """

    held: tuple[str, ...]
    """By whom the inner steps were done again and came to the same."""
    differed: tuple[str, ...]
    evidence: Evidence

    @classmethod
    def of(cls, commit: Commit, redone: RedoneBy) -> Work:
        """Return how well a commit is founded."""
        found = [
            one for one in redone.get((commit.job, commit.round, commit.digest), ()) if one.what.site == commit.site
        ]
        differed = [one.said for one in found if not one.what.holds]
        independent = any(one.auditor for one in found) and not differed
        return cls(
            held=tuple(dict.fromkeys(one.said for one in found if one.what.holds)),
            differed=tuple(dict.fromkeys(differed)),
            evidence=Evidence.RE_EXECUTED if independent else Evidence.DECLARED,
        )


def shares_of(run: Run, crossings: Iterable[Crossing]) -> dict[tuple[int, str], Share]:
    """Return the shares of a run by round and site; of a commit that contradicts another, the one that counted."""
    found: dict[tuple[int, str], Share] = {}
    for one in shares(run.rounds, flops_per_token=run.flops_per_token, crossings=crossings, held_out=run.held_out):
        if one.accepted or (one.round, one.site) not in found:
            found[one.round, one.site] = one
    return found


def crossed(crossings: Iterable[Crossing], partner: str) -> dict[str, Crossed]:
    """Return by job what pseudo-gradients took across the partner's borders, in parts or whole, its own and relayed."""
    found: dict[str, Crossed] = {}
    for item in crossings:
        if item.artifact_class not in CONTRIBUTIONS:
            continue
        sent, received = found.get(item.job, (None, None))
        if item.side is CrossingSide.RELEASE and partner_of(item.sender) == partner:
            sent = (sent or 0) + item.size_bytes
        elif item.side is CrossingSide.RECEIPT and partner_of(item.recipient) == partner:
            received = (received or 0) + item.size_bytes
        found[item.job] = sent, received
    return found


def training_rows(
    runs: Mapping[str, Run], own: Mapping[str, Iterable[tuple[Share, Work]]], bytes_by_job: Mapping[str, Crossed]
) -> tuple[TrainingRow, ...]:
    """Return a partner's part in each training; `own` are its shares in the period, by job."""
    rows = []
    for job, mine in sorted(own.items()):
        parts = list(mine)
        if not parts:
            continue
        (total,) = totals(share for share, _ in parts)
        again = [share for share, founded in parts if founded.evidence is Evidence.RE_EXECUTED]
        behind, (sent, received) = _lineage(job, runs), bytes_by_job.get(job, (None, None))
        rows.append(
            TrainingRow(
                job=job,
                rounds=total.rounds,
                refused=total.refused,
                tokens=total.tokens,
                accepted_tokens=total.accepted_tokens,
                re_executed_tokens=sum(one.tokens for one in again),
                flops=total.flops,
                weight=decimal(total.weight),
                bytes_sent=sent,
                bytes_received=received,
                loss_share_nats=None if total.loss_share is None else decimal(total.loss_share),
                model_flops=_flops(runs[job]),
                lineage=tuple(name for name in behind.jobs if name != job),
                lineage_flops=behind.flops,
                general_purpose=behind.general_purpose,
                systemic_risk=behind.systemic_risk,
                evidence=Evidence.RE_EXECUTED if len(again) == len(parts) else Evidence.DECLARED,
            )
        )
    return tuple(rows)


def decimal(value: float) -> str:
    """Render with six decimals, rounded half-even once."""
    return f"{value:.6f}"


def _lineage(job: str, runs: Mapping[str, Run]) -> Lineage:
    """Return what is behind a model; of a training that it went on from, the rounds up to the one it began with."""
    flops: dict[str, int | None] = {}
    parents: dict[str, str] = {}
    at, last = job, -1
    while at and at not in flops:
        run = runs.get(at)
        flops[at] = None if run is None else _flops(run, last)
        parents[at], last = ("", -1) if run is None else (run.parent, run.parent_round)
        at = parents[at]
    return lineage(job, parents, flops)


def _flops(run: Run, last: int = -1) -> int | None:
    """The FLOPs of all commits to closed rounds (up to `last`), refused ones too; None where a round is missing."""
    if run.flops_per_token is None or not run.whole or last > len(run.rounds):
        return None
    counted = run.rounds if last < 0 else run.rounds[:last]
    return sum(commit.tokens for item in counted for commit in item.commits) * run.flops_per_token


def _vocabularies(records: Iterable[Record]) -> dict[str, int]:
    found = {}
    for record in records:
        if record.type is RecordType.DATASET:
            body = record.body.get("dataset")
            dataset: Dataset = _parse(Dataset, body if isinstance(body, dict) else record.body, record)
            size = dataset.attributes.get("vocab_size", "")
            if _SIZE.match(size):
                found[dataset.id] = int(size)
    return found


def _losses(records: Iterable[Record], specs: Mapping[str, JobSpec]) -> dict[str, dict[int, dict[str, float]]]:
    """Return by training the losses that `evaluate` jobs measured; a series is one site, language, text and sample.

    A program leaves them and nobody checks them: what is no loss of a round is unknown, and stops no report.
    """
    found: dict[str, dict[int, dict[str, float]]] = {}
    for record in records:
        spec = specs.get(str(record.body.get("job"))) if record.type is RecordType.MANIFEST else None
        if spec is None or spec.kind is not JobKind.EVALUATE or record.origin != SERVER:
            continue
        sample = {name: spec.params.get(name) for name in ("batches", "batch_size")}
        text = digest_json({"inputs": sorted(spec.inputs), **sample})
        for language, number, loss in measured_losses(record.body.get("metrics")):
            series = f"{record.body.get('site')} {language} {text}"
            found.setdefault(spec.model, {}).setdefault(number, {})[series] = loss
    return found


def measured_losses(metrics: Any) -> list[tuple[str, int, float]]:
    """Return language, round and loss of what an `evaluate` job says it measured; what has no such form is left out."""
    by_round = metrics.get("by_round") if isinstance(metrics, dict) else None
    return [
        (language, int(number), float(loss))
        for language, losses in (sorted(by_round.items()) if isinstance(by_round, dict) else ())
        for number, loss in (losses.items() if isinstance(losses, dict) else ())
        if _ROUND.match(number) and type(loss) in (int, float) and abs(loss) < MAX_LOSS
    ]


def _countersigned(what: ReExecution, people: Rosters) -> str:
    """Return the auditor of another partner who signed a re-execution; empty where there is none."""
    if not what.by or partner_of(what.by) == partner_of(what.site):
        return ""
    try:
        person = people.person(what.by)
        verify_value(person.signing_key, what, what="a re-execution")
    except (NotFoundError, VerificationError):
        return ""
    return person.id if Role.AUDITOR in person.roles else ""


def _parse(cls: type[Any], data: Any, record: Record) -> Any:
    where = f"record {record_id(record)}"
    try:
        return from_json(cls, data, where=where)
    except UsageError as fault:
        raise VerificationError(fault.what, where=where) from fault
