from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Crossing, CrossingSide
from consortium.domain.records import Record, RecordType
from consortium.errors import NotFoundError, UsageError, VerificationError
from consortium.keys.signing import SigningKey, sign_value
from consortium.keys.strict import read_bounded
from consortium.ledger.origins import record_id
from consortium.reports.build import build_report
from consortium.reports.facts import read_facts
from consortium.reports.figures import figures
from consortium.reports.text import MAX_BYTES, parse_report, read_report, render_json
from consortium.reports.verify import verify_report

_spec = util.spec_from_file_location("report_builders", Path(__file__).with_name("builders.py"))
assert _spec is not None
assert _spec.loader is not None
b = util.module_from_spec(_spec)
sys.modules["report_builders"] = b
_spec.loader.exec_module(b)


@pytest.fixture(scope="module")
def world() -> Any:
    return b.example()


@pytest.fixture(scope="module")
def log(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with world.log(tmp_path_factory.mktemp("ledger")) as ledger:
        yield ledger


def build(world: Any, log: Any, partner: str = "fr", period: str = b.PERIOD) -> dict[str, Any]:
    return build_report(
        partner=partner, period=period, log=log, sites=world.sites, trust=world.trust, key=world.keys["server"],
        made_ms=1_777_000_000_123,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(world: Any, log: Any) -> dict[str, Any]:
    return build(world, log)


class TestFigures:
    def test_gpu_time_delivered_and_consumed_in_both_books(self, report: dict[str, Any]) -> None:
        delivered, consumed = report["figures"]["delivered"], report["figures"]["consumed"]
        assert {(r["site"], r["account"]): r["time"]["gpu_hours"] for r in delivered["rows"]} == {
            ("fr-1", "de"): "4.0000", ("fr-1", "fr"): "8.0000",
        }  # fmt: skip
        assert delivered["total"]["gpu_ms"] == delivered["total"]["server_gpu_ms"] == 12 * b.HOUR
        assert delivered["total"]["evidence"] == "cross-checked"
        assert consumed["total"]["gpu_ms"] == 16 * b.HOUR
        assert consumed["total"]["reference_gpu_hours"] == "10.4960"

    def test_borders_by_class_with_evidence(self, report: dict[str, Any]) -> None:
        rows = {(r["sender"], r["recipient"]): r for r in report["figures"]["crossings"]}
        assert set(rows) == {("de-1", "fr-1"), ("fr-1", "consortium"), ("fr-1", "de-1")}
        assert rows["fr-1", "de-1"]["released_bytes"] == rows["fr-1", "de-1"]["received_bytes"] == 1001
        assert rows["fr-1", "de-1"]["evidence"] == "cross-checked"
        assert rows["fr-1", "consortium"]["received_bytes"] is None
        assert rows["fr-1", "consortium"]["evidence"] == "declared"

    def test_rounds_and_datasets(self, report: dict[str, Any]) -> None:
        (round_row,) = report["figures"]["rounds"]
        assert (round_row["tokens"], round_row["weight"], round_row["weight_percent"]) == (
            1000,
            (0.25).hex(),
            "25.0000",
        )
        assert (round_row["accepting_judges"], round_row["evidence"]) == (["de-1", "fr-1"], "cross-checked")
        (dataset,) = report["figures"]["datasets"]
        assert (dataset["name"], dataset["tokens"], dataset["manifest_digest"]) == ("laws-fr", 89, None)

    def test_without_receipts_the_servers_book_is_unknown(self, world: Any, log: Any) -> None:
        report = build(world, log, "uy")
        (row,) = report["figures"]["delivered"]["rows"]
        assert (row["time"]["server_gpu_ms"], row["time"]["leases_without_receipt"]) == (None, 1)
        assert row["time"]["evidence"] == "declared"

    def test_a_period_without_records_says_so_and_verifies(self, world: Any, log: Any) -> None:
        report = build(world, log, period="2025-12")
        assert report["figures"]["delivered"]["total"]["gpu_ms"] is None
        assert report["leaves"] == []
        verify_report(report, world.trust)

    def test_an_earlier_period_holds_only_its_own(self, world: Any, log: Any) -> None:
        assert build(world, log, period="2026-02")["figures"]["delivered"]["total"]["gpu_ms"] == 8 * (b.HOUR - 1)

    def test_usage_metered_twice_is_counted_once_and_shown(self, tmp_path: Path) -> None:
        world = b.World()
        first = world.usage(b.row("a", "fr-1", "fr", 0, 100))
        again = world.usage(b.row("a", "fr-1", "fr", 0, 100))
        with world.log(tmp_path) as log:
            found = build(world, log)["figures"]
        assert found["delivered"]["total"]["gpu_ms"] == 800
        assert [(r["record"], r["against"]) for r in found["not_billed"]] == [(record_id(again), record_id(first))]

    def test_another_sites_usage_of_a_leg_takes_nothing_from_what_was_delivered(
        self, report: dict[str, Any], tmp_path: Path
    ) -> None:
        world = b.example()
        world.usage(replace(b.row("a", "de-1", "fr", 0, 10 * b.HOUR), gpus=1))
        with world.log(tmp_path) as log:
            found = build(world, log)["figures"]
        assert found["delivered"] == report["figures"]["delivered"]
        assert found["not_billed"] == []
        (forged,) = [r["time"] for r in found["consumed"]["rows"] if (r["site"], r["account"]) == ("de-1", "fr")]
        assert (forged["leases_without_receipt"], forged["evidence"]) == (1, "declared")
        total = found["consumed"]["total"]
        assert (total["gpu_ms_without_receipt"], total["gpu_ms"]) == (10 * b.HOUR, 26 * b.HOUR)

    def test_usage_beyond_its_month_is_shown_and_not_billed(self, tmp_path: Path) -> None:
        world = b.World()
        world.usage(b.row("a", "fr-1", "fr", 0, 300 * 24 * b.HOUR))
        with world.log(tmp_path) as log:
            found = build(world, log)["figures"]
        assert found["delivered"]["total"]["gpu_ms"] is None
        assert [(r["record"], r["against"], r["gpu_ms"]) for r in found["not_billed"]] == [
            ("fr-1:0", "", 8 * 300 * 24 * b.HOUR)
        ]

    @pytest.mark.parametrize(("partner", "period"), [("xx", b.PERIOD), ("fr", "2026-3"), ("FR", b.PERIOD)])
    def test_bad_questions_are_named(self, world: Any, log: Any, partner: str, period: str) -> None:
        with pytest.raises(UsageError):
            build(world, log, partner, period)


class TestVerification:
    def test_says_what_was_checked_and_whose_keys_it_rests_on(self, world: Any, report: dict[str, Any]) -> None:
        text = render_json(report)
        assert verify_report(text, world.trust).trust == "given"
        found = verify_report(text)
        assert (found.trust, found.partner, found.period) == ("file", "fr", b.PERIOD)
        assert found.leaves == len(report["leaves"])
        printed = found.fingerprints["site fr-1"]
        assert re.fullmatch("([0-9a-f]{4} ){7}[0-9a-f]{4}", printed), "128 bits, for people to compare"
        assert report["fingerprints"]["site fr-1"] == printed.replace(" ", "")[:16], "what stands in files stays"

    def test_rendering_is_stable(self, report: dict[str, Any]) -> None:
        text = render_json(report)
        assert render_json(parse_report(text)) == text

    def test_another_consortiums_keys_do_not_verify_it(self, report: dict[str, Any]) -> None:
        with pytest.raises(VerificationError, match="another key for log"):
            verify_report(report, b.example().trust)

    def test_keys_with_the_same_label_are_not_the_same(
        self, world: Any, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("consortium.keys.trust.key_label", lambda key: "0" * 16)
        monkeypatch.setattr("consortium.keys.trust.fingerprint", lambda key: "0" * 16)
        forged = resign(world, report | {"fingerprints": dict.fromkeys(report["fingerprints"], "0" * 16)})
        mine = replace(world.trust, sites=world.trust.sites | {"fr-1": b.example().trust.sites["fr-1"]})
        with pytest.raises(VerificationError, match="another key for site fr-1"):
            verify_report(forged, mine)

    def test_a_site_the_reader_does_not_know_is_not_believed(self, world: Any, report: dict[str, Any]) -> None:
        known = {name: keys for name, keys in world.trust.sites.items() if name != "de-1"}
        with pytest.raises(VerificationError, match="no trusted key for the records of 'de-1'"):
            verify_report(report, replace(world.trust, sites=known))

    def test_needs_no_server_database_or_heavy_library(self, report: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "fr.json"
        path.write_text(render_json(report))
        code = (
            "import sys; from consortium.reports.verify import verify_report; from consortium.reports.text import "
            "read_report; verify_report(read_report(sys.argv[1])); heavy = {'ray', 'torch', 'mlflow', 'sqlalchemy', "
            "'hydra', 'fastapi', 'boto3', 'httpx', 'numpy', 'pyarrow'} & set(sys.modules); "
            "sys.exit(str(heavy) if heavy else 0)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_files_that_are_no_reports(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        with pytest.raises(NotFoundError):
            read_report(path)
        for text in ("", "{", "[]", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 0.10}', '{"a": 1e999}', "[" * 100_000):
            path.write_text(text)
            with pytest.raises(VerificationError, match="not a report"):
                read_report(path)
        path.write_text('{"a": ' + "7" * 5000 + "}")
        with pytest.raises(VerificationError, match="5,000 digits"):
            read_report(path)
        path.write_bytes(b"\xff\xfe{}")
        with pytest.raises(VerificationError, match="UTF-8"):
            read_report(path)
        with pytest.raises(VerificationError, match="not a valid report"):
            verify_report({})

    def test_neither_an_endless_nor_a_silent_file_is_waited_for(self, tmp_path: Path) -> None:
        large = tmp_path / "large.json"
        with open(large, "wb") as sparse:
            sparse.truncate(MAX_BYTES + 1)
        with pytest.raises(UsageError, match="larger than 1,024 MiB"):
            read_report(large)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UsageError, match="nobody writes to this pipe"):
            read_report(tmp_path / "pipe")
        with pytest.raises(UsageError, match="Is a directory"):
            read_report(tmp_path)
        with pytest.raises(OSError, match="larger than 3 MiB"):
            read_bounded("/dev/zero", 3 << 20)

    def test_a_pipe_is_read_to_its_end(self, report: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "fr.json"
        path.write_text(render_json(report))
        code = "import sys; from consortium.reports.text import read_report; print(read_report(sys.argv[1])['partner'])"
        for line in ('cat "$2" | "$0" -c "$1" -', '"$0" -c "$1" <(sleep 0.2; cat "$2")', '"$0" -c "$1" - < "$2"'):
            done = subprocess.run(["bash", "-c", line, sys.executable, code, path], capture_output=True, text=True)
            assert done.stdout == "fr\n", done.stderr


def first_total(doc: dict[str, Any]) -> None:
    doc["figures"]["delivered"]["total"]["gpu_ms"] += 1


def leaf_of(doc: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(leaf for leaf in doc["leaves"] if leaf["payload"]["type"] == kind)


def resign(world: Any, doc: dict[str, Any]) -> dict[str, Any]:
    """A server that lies signs its lie."""
    return sign_value(world.keys["server"], {k: v for k, v in doc.items() if k != "signature"})


LIES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (first_total, r"figures.delivered.total.gpu_ms: the report says 43200001, its leaves give 43200000"),
    (lambda d: d["figures"]["rounds"][0].update(tokens=1001), r"figures.rounds\[0\].tokens"),
    (lambda d: d["figures"]["crossings"].pop(), "figures.crossings"),
    (lambda d: d["figures"]["delivered"]["total"].update(evidence="re-executed"), "evidence"),
    (lambda d: d["sites"][1].update(reference_factor="2.0"), "reference_gpu_hours"),
    (lambda d: leaf_of(d, "usage")["payload"]["body"]["rows"][0].update(gpus=7), "signature of leaf"),
    (lambda d: leaf_of(d, "usage").update(salt="00" * 32), "not proven to stand in the log"),
    (lambda d: leaf_of(d, "lease")["proof"].pop(), "not proven to stand in the log"),
    (lambda d: leaf_of(d, "lease").update(index=0), "log's order"),
    (lambda d: leaf_of(d, "lease").update(record_id="server:99"), "holds record server:0"),
    (lambda d: d["leaves"].remove(leaf_of(d, "usage")), "records are not all here"),
    (lambda d: d["leaves"].remove(leaf_of(d, "crossing")), "records are not all here"),
    (lambda d: d["leaves"].remove(leaf_of(d, "round")), "figures.rounds"),
    (lambda d: d["leaves"].append(d["leaves"][0]), "log's order"),
    (lambda d: leaf_of(d, "usage")["payload"].update(extra=1), "has other fields"),
    (lambda d: d.update(checkpoint=d["checkpoint"].replace("\n", "\n1", 1)), "signature of the note"),
    (lambda d: d["fingerprints"].update({"site fr-1": "0" * 16}), "fingerprints"),
    (lambda d: d["trust"]["sites"]["fr-1"].update(signing=SigningKey.generate().public), "fingerprints"),
    (lambda d: d.update(format="consortium-report/3"), "format"),
    (lambda d: d.update(period="2026-04"), "records|begin|figures"),
]


@pytest.mark.parametrize(("lie", "message"), LIES)
def test_even_a_lie_the_server_signs_is_found(
    world: Any, report: dict[str, Any], lie: Callable[[dict[str, Any]], Any], message: str
) -> None:
    doc = json.loads(json.dumps(report))
    lie(doc)
    with pytest.raises(VerificationError, match=message):
        verify_report(resign(world, doc), world.trust)


def test_a_number_that_readers_would_round_is_not_taken_for_its_text(tmp_path: Path) -> None:
    world = b.World()
    world.usage(b.row("a", "fr-1", "fr", 0, b.HOUR))
    world.add("server", RecordType.DATASET, {"dataset": b.dataset("laws-fr", "fr-1"), "note": 2**53 + 1})
    text = render_json(world.report(tmp_path))
    verify_report(text, world.trust)
    for honest, other in (('"9007199254740993"', "9007199254740993"), ('"index": 0', '"index": -0')):
        assert honest in text
        with pytest.raises(VerificationError, match="no writer of ours"):
            verify_report(text.replace(honest, other, 1), world.trust)


@pytest.mark.parametrize("change", [{"made_ms": 5}, {"limits": []}, {"signature": ""}, {"partner": "de"}, {"more": 1}])
def test_what_no_leaf_covers_the_servers_signature_does(report: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(VerificationError):
        verify_report(report | change)


def digits(text: str) -> list[int]:
    return [i for i, character in enumerate(text) if character.isdigit()]


def rejected_after_flips(text: str, places: list[int], trust: Any) -> None:
    for count, at in enumerate(places):
        changed = text[:at] + str((int(text[at]) + 1 + count % 9) % 10) + text[at + 1 :]
        try:
            verify_report(changed, trust)
        except VerificationError as fault:
            assert fault.what  # noqa: PT017  the place of the digit that went unseen is the point of the else branch
        else:
            pytest.fail(f"accepted a changed digit at {at}: …{text[max(0, at - 60) : at + 20]}…")


def test_any_one_changed_digit_is_rejected(world: Any, report: dict[str, Any]) -> None:
    text = render_json(report)
    places = digits(text)
    sample = places[:: len(places) // 150]
    rejected_after_flips(text, sample, world.trust)
    rejected_after_flips(text, sample[::10], None)
    tail = text.index('"signature"', text.rindex('"period"'))
    rejected_after_flips(text, [at for at in places if at > tail][:40], world.trust)


@pytest.mark.long
def test_every_single_digit_matters(world: Any, report: dict[str, Any]) -> None:
    text = render_json(report)
    rejected_after_flips(text, digits(text), world.trust)


class TestWhatOriginsMaySay:
    def facts(self, record: Record) -> None:
        figures(read_facts([record], "fr", b.PERIOD), "fr", {})

    def test_a_site_meters_only_itself(self) -> None:
        world = b.World()
        record = world.usage(b.row("a", "de-1", "fr", 0, 10))
        with pytest.raises(VerificationError, match="fr-1 metered GPUs of de-1"):
            self.facts(replace(record, origin="fr-1"))

    def test_only_the_server_writes_leases_and_rounds(self) -> None:
        world = b.World()
        for record in (world.lease(b.row("a", "fr-1", "fr", 0, 10)), world.round("job-t", 1, {"fr-1": 1})):
            with pytest.raises(VerificationError, match="only the server may"):
                self.facts(replace(record, origin="fr-1"))

    def test_a_site_records_only_its_own_end_of_a_border(self) -> None:
        world = b.World()
        world.passage("de-1", "fr-1", "sha256:1", 5, "job-t")
        with pytest.raises(VerificationError, match="a release that is de-1's to record"):
            self.facts(replace(world.records[0], origin="fr-1"))
        assert world.records[0].body["crossings"][0]["side"] == CrossingSide.RELEASE

    @pytest.mark.parametrize("lie", [{"size_bytes": -1}, {"count": 0}, {"at_ms": b.START - 1}, {"at_ms": 10**20}])
    def test_a_crossing_has_a_size_a_count_and_a_time_in_its_period(self, lie: dict[str, Any]) -> None:
        world = b.World()
        world.passage("fr-1", "de-1", "sha256:1", 5, "job-t")
        (item,) = from_json(list[Crossing], world.records[0].body["crossings"])
        record = world.crossing("fr-1", replace(item, **lie))
        with pytest.raises(VerificationError, match=r"a crossing|is no time") as caught:
            self.facts(record)
        assert caught.value.where == f"record {record_id(record)}"

    def test_a_partner_does_not_cross_check_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(b.FACTORS, "fr-2", ("h100-sxm", "1.0"))
        world = b.World()
        world.passage("fr-1", "fr-2", "sha256:1", 5, "job-t")
        world.passage("fr-1", "de-1", "sha256:1", 5, "job-t")
        rows = figures(read_facts(world.records, "fr", b.PERIOD), "fr", {}).crossings
        assert [(row.recipient, row.matched_count, row.evidence.value) for row in rows] == [
            ("de-1", 1, "cross-checked"), ("fr-2", 1, "declared"),
        ]  # fmt: skip

    @pytest.mark.parametrize("body", [{}, {"rows": 5}, {"rows": [{}]}, {"rows": [], "cumulative": None}])
    def test_malformed_bodies_are_named(self, body: dict[str, Any]) -> None:
        record = b.World().add("fr-1", RecordType.USAGE, {"period": b.PERIOD} | body)
        with pytest.raises(VerificationError, match="fr-1:0"):
            self.facts(record)


def test_a_certificate_that_does_not_follow_from_its_verdicts_is_found(tmp_path: Path) -> None:
    world = b.World()
    honest = world.round("job-t", 1, {"de-1": 3000, "fr-1": 1000})
    world.records.clear()
    world.heads.clear()
    body = json.loads(json.dumps(honest.body))
    round_ = body["round"]
    round_["certificate"]["contributions"][1]["weight"] = (0.5).hex()
    certificate = {k: v for k, v in round_["certificate"].items() if k != "signature"}
    round_["certificate"] = sign_value(world.keys["server"], certificate)
    world.add("server", RecordType.ROUND, body)
    with world.log(tmp_path) as log, pytest.raises(VerificationError, match="does not follow from the verdicts"):
        build(world, log)


def test_an_erased_leaf_is_shown_and_the_report_still_verifies(tmp_path: Path) -> None:
    world = b.example()
    decision = world.records[-1]
    with world.log(tmp_path) as log:
        index = log.find(record_id(decision))
        log.erase(index, "order 7")
        report = build(world, log)
    assert [(gone["index"], gone["order"]) for gone in report["erased"]] == [(index, "order 7")]
    verify_report(render_json(report), world.trust)
    report["erased"][0]["data"] = "0" * 64
    with pytest.raises(VerificationError, match="not proven"):
        verify_report(report, world.trust)


def test_the_log_may_grow_while_a_report_is_made(world: Any, report: dict[str, Any], tmp_path: Path) -> None:
    more = b.World(keys=world.keys, heads=dict(world.heads))
    later = more.usage(b.row("later", "fr-1", "fr", 9 * b.HOUR, 10 * b.HOUR))
    with world.log(tmp_path) as log:

        class Growing:
            def checkpoint(self) -> str:
                note = log.checkpoint()
                log.append([(record_id(later), later)])
                return str(note)

            entries = staticmethod(log.entries)
            inclusion = staticmethod(log.inclusion)

        again = build(world, Growing())
        assert log.size == len(world.records) + 1
    assert again["figures"] == report["figures"]
    assert len(again["leaves"]) == len(report["leaves"])


def test_records_survive_json(world: Any) -> None:
    assert [from_json(Record, to_json(record)) for record in world.records] == world.records


@pytest.mark.parametrize("limits", [[], ["(nothing: every figure was re-executed)\x1b]0;x\x07"]])
def test_a_report_states_the_limits_of_its_format(world: Any, report: dict[str, Any], limits: list[str]) -> None:
    with pytest.raises(VerificationError, match="limits of its format"):
        verify_report(resign(world, report | {"limits": limits}), world.trust)


@pytest.mark.parametrize("at_ms", [10**17, 10**20, 10**40, -1, -(10**17)])
def test_a_record_of_no_time_is_named(tmp_path: Path, at_ms: int) -> None:
    world = b.World()
    world.round("job-t", 1, {"fr-1": 1}, at_ms)
    with world.log(tmp_path) as log, pytest.raises(VerificationError, match="is no time") as caught:
        build(world, log)
    assert caught.value.where == "record server:0"


def test_erased_leaves_stand_once_in_order_and_are_not_shown(tmp_path: Path) -> None:
    world = b.example()
    with world.log(tmp_path) as log:
        for number in (-1, -2):
            log.erase(log.find(record_id(world.records[number])), "order 7")
        report = build(world, log)
        hidden = next(leaf for leaf in report["leaves"] if leaf["payload"]["type"] == "lease")
        shown = {"index": hidden["index"], "record_id": hidden["record_id"], "order": "order 7",
                 "data": log.entry(hidden["index"]).data, "proof": hidden["proof"]}  # fmt: skip
    first, second = report["erased"]
    for erased, why in (
        ([first, first], "each once"),
        ([second, first], "log's order"),
        ([shown], "not shown"),
        ([first | {"order": ""}], "names no order"),
    ):
        with pytest.raises(VerificationError, match=why):
            verify_report(resign(world, report | {"erased": erased}), world.trust)
    assert any("only the server's word" in check for check in verify_report(report, world.trust).checks)
