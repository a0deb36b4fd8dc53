"""Whatever stands in a file or in a record, verifying says that it holds or what does not: no other error comes out."""

from __future__ import annotations

import json
import tempfile
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consortium.domain.codec import from_json, to_json
from consortium.domain.records import Record, RecordType, ReExecution
from consortium.errors import ConsortiumError, VerificationError
from consortium.keys.signing import sign_value
from consortium.ledger import tree
from consortium.ledger.notes import sign_note
from consortium.ledger.origins import record_id
from consortium.ledger.proofs import checkpoint_text, leaf_data
from consortium.reports.build import build_report
from consortium.reports.facts import read_facts
from consortium.reports.figures import figures
from consortium.reports.text import render_json
from consortium.reports.verify import verify_report
from tests.reports import builders as b
from tests.reports.test_rounds import ADMIN, ANNA, DRAFT, commits_of, put, roster, verdicts_of
from tests.reports.test_sites import site_file

HOSTILE = st.sampled_from([
    None, True, "", "\x1b[2J", "\ud800", "0", "-1", "1/0", "1e9999", "nan", "0x1p99999", "fr-1", "server", "de", [], {},
    [[]], {"a": []}, 0, -1, 1, 2**53, 2**63, 10**20, -(10**20), 10**40, 10**400, 0.5, -0.0, 1e308, 5e-324,
])  # fmt: skip
MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@lru_cache(maxsize=1)
def small() -> tuple[Any, dict[str, Any]]:
    """One record of each kind that a report reads, and the report."""
    world = b.World()
    row = b.row("a", "fr-1", "fr", 0, b.HOUR)
    world.usage(row)
    world.lease(row)
    site_file(world, "fr-1")
    world.passage("fr-1", "de-1", "sha256:fr-1", 1001, "job-t")
    world.add("server", RecordType.DATASET, {"dataset": b.dataset("laws-fr", "fr-1"), "job": "", "leg": ""})
    roster(world, ADMIN.replace("admin", "admin, auditor"))
    ruling = sign_value(ANNA, DRAFT)
    world.add("server", RecordType.APPROVAL, {"kind": "ruling", "job": "job-t", "ruling": ruling})
    commits = commits_of(world, {"de-1": 3000, "fr-1": 1000})
    put(world, commits, verdicts_of(world, commits), rulings=(ruling,))
    again = ReExecution(
        job="job-t", round=1, site="de-1", digest="sha256:de-1", same_bits=True, distance=(0.0).hex(),
        cosine=(1.0).hex(), tolerance=(0.0).hex(), drawn=(1,), by="fr/anna",
    )  # fmt: skip
    world.add("de-1", RecordType.RE_EXECUTION, sign_value(ANNA, again))
    with tempfile.TemporaryDirectory() as folder, world.log(Path(folder)) as log:
        made = build_report(partner="fr", period=b.PERIOD, log=log, sites=world.sites, trust=world.trust,
                            key=world.keys["server"], made_ms=1_777_000_000_123)  # fmt: skip
    return world, made


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = deepcopy(value)
    at = copy
    for key in path[:-1]:
        at = at[key]
    if new is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return copy


def check(document: Any) -> None:
    """Verify as the command line does; only one kind of error may come out."""
    try:
        text = render_json(document)
    except (ValueError, TypeError, UnicodeEncodeError):
        text = json.dumps(document)
    for given_keys in (small()[0].trust, None):
        try:
            verify_report(text, given_keys)
        except VerificationError as fault:
            assert fault.what  # noqa: PT017  what holds passes, and what does not is named


@MANY
@given(data=st.data())
def test_a_file_with_anything_in_any_place_verifies_or_is_named(data: st.DataObject) -> None:
    world, made = small()
    place = data.draw(st.sampled_from(places({k: v for k, v in made.items() if k != "signature"})[1:]))
    document = changed(made, place, data.draw(st.one_of(HOSTILE, st.just(...))))
    check(document)
    try:
        signed = sign_value(world.keys["server"], {k: v for k, v in document.items() if k != "signature"})
    except (ConsortiumError, ValueError, TypeError):
        return  # what cannot be signed nobody signs
    check(signed)


@MANY
@given(data=st.data())
def test_a_record_with_anything_in_any_place_that_all_sign_verifies_or_is_named(data: st.DataObject) -> None:
    world, made = small()
    records = [leaf["payload"] for leaf in made["leaves"]]
    number = data.draw(st.integers(0, len(records) - 1))
    fields = {k: v for k, v in records[number].items() if k != "signature"}
    place = data.draw(st.sampled_from(places(fields)[1:]))
    lie = changed(fields, place, data.draw(st.one_of(HOSTILE, st.just(...))))
    try:
        records[number] = sign_value(world.keys[records[number]["origin"]], lie)
        document = forged(world, made, records)
    except (ConsortiumError, ValueError, TypeError):
        return
    check(document)


def forged(world: Any, made: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the report that a server would sign that lies: other records, a log of them, and figures where any are."""
    datas = [leaf_data("00" * 32, record) for record in records]
    hashes: dict[tuple[int, int], bytes] = {}
    for level, index, value in tree.grow(lambda *at: hashes[at], 0, [tree.hash_leaf(data) for data in datas]):
        hashes[level, index] = value
    size, stored = len(records), lambda *at: hashes[at]
    text = checkpoint_text(b.NAME, size, tree.root(stored, size))
    leaves = [
        {"index": i, "record_id": f"{one.get('origin')}:{one.get('seq')}", "salt": "00" * 32, "payload": one,
         "proof": [step.hex() for step in tree.inclusion(stored, i, size)]}
        for i, one in enumerate(records)
    ]  # fmt: skip
    document = made | {"leaves": leaves, "checkpoint": sign_note(text, b.NAME, world.keys["server"])}
    factors = {site["id"]: site["reference_factor"] for site in made["sites"]}
    try:
        facts = read_facts([from_json(Record, one) for one in records], "fr", b.PERIOD)
        document["figures"] = to_json(figures(facts, "fr", factors))
    except Exception:  # the verifier meets the same fault, and has to name it
        pass
    return sign_value(world.keys["server"], {k: v for k, v in document.items() if k != "signature"})


def test_what_is_mutated_holds_as_it_is() -> None:
    world, made = small()
    verify_report(made, world.trust)
    verify_report(forged(world, made, [leaf["payload"] for leaf in made["leaves"]]), world.trust)
    kinds = {leaf["payload"]["type"] for leaf in made["leaves"]}
    assert kinds >= {"usage", "lease", "crossing", "dataset", "roster", "approval", "round", "site"}
    assert all(record_id(record) for record in world.records)
