"""Whether the rounds in a report hold: their parts, who signed them, who ruled, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from consortium.domain.codec import from_json
from consortium.domain.ids import SERVER
from consortium.domain.records import Record, RecordType
from consortium.domain.training import Round, Ruling
from consortium.errors import UsageError, VerificationError
from consortium.keys.roster import verify_ruling
from consortium.keys.trust import Trust
from consortium.ledger.origins import record_id
from consortium.reports.facts import round_of, signed_digests
from consortium.reports.people import with_people
from consortium.reports.training import specs_of
from consortium.train.evidence import check_agreed, check_parts, check_signatures
from consortium.train.rounds import check_certificate, check_standing, screening_of, standing_before


def check_rounds(records: Sequence[Record], keys: Trust) -> None:
    """Raise VerificationError where a round does not hold, or stands there twice; `records` are in the log's order.

    A ruling must be signed by an admin in the rosters of the time when it went on record, or else of the round's.
    """
    specs = specs_of(records)
    accounts = {job: spec.account for job, spec in specs.items()}
    seen: dict[tuple[str, int], str] = {}
    rounds: dict[tuple[str, int], Round] = {}
    ruled: set[Ruling] = set()
    for record, people in with_people(records, RecordType.ROUND, RecordType.APPROVAL):
        if (given := ruling_of(record)) is not None:
            with suppress(VerificationError):  # a roster may reach the log right after the ruling: the round says
                verify_ruling(given, people, accounts.get(given.job, ""))
                ruled.add(given)
        if record.type is not RecordType.ROUND:
            continue
        item, where = round_of(record), f"record {record_id(record)}"
        before = seen.setdefault((item.job, item.number), record_id(record))
        if before != record_id(record):
            raise VerificationError(f"round {item.number} of {item.job} stands in record {before} too", where=where)
        _round(item, keys, where)
        _agreed(item, signed_digests(record), keys, where)
        rounds[item.job, item.number] = item
        if item.job in specs:
            _standing(item, specs[item.job].params, rounds)
        for ruling in item.rulings:
            if ruling not in ruled:
                verify_ruling(ruling, people, accounts.get(item.job, ""))
                ruled.add(ruling)


def ruling_of(record: Record) -> Ruling | None:
    """Return the ruling that an `approval` record of the server holds; None where it is of something else."""
    if record.type is not RecordType.APPROVAL or record.origin != SERVER or record.body.get("kind") != "ruling":
        return None
    where = f"record {record_id(record)}"
    try:
        return from_json(Ruling, record.body.get("ruling"), where=where)
    except UsageError as fault:
        raise VerificationError(fault.what, where=where) from fault


def _round(item: Round, keys: Trust, where: str) -> None:
    check_parts(item, where)
    committed: set[str] = set()
    for commit in item.commits:
        if commit.site in committed:
            raise VerificationError(f"{commit.site} stands in the round with two commits", where=where)
        if commit.tokens <= 0:
            raise VerificationError(f"{commit.site}'s commit is of {commit.tokens} tokens", where=where)
        committed.add(commit.site)
    for site in item.outer_digests or {}:
        keys.site_key(site)
    check_signatures(item, keys, f"round {item.number} of {item.job}")
    check_certificate(item, item.certificate.previous_outer if item.certificate else "")


def _agreed(item: Round, signed: Mapping[str, Mapping[str, str]], keys: Trust, where: str) -> None:
    """Check that sites signed the outer state's digests that stand in a round, where it says that they did."""
    if signed and check_agreed(keys, item.job, f"outer/{item.number}", signed) != (item.outer_digests or {}):
        raise VerificationError("its outer digests are not those that sites signed", where=where)


def _standing(item: Round, params: Mapping[str, Any], rounds: Mapping[tuple[str, int], Round]) -> None:
    """Check what a certificate says of the rounds before, as far as these are in the report."""
    rule = screening_of(params)
    expected, known = standing_before(*rule, item.number, lambda number: rounds.get((item.job, number)))
    if known and item.certificate is not None:
        check_standing(item.certificate, expected, past=True)
