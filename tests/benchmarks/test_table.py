"""What the benchmarks print."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.table import arguments, row, show

ROWS = (
    row("appends", 9903.0004, "records/s", 2900, least=10_000),
    row("mean wait", 0.6671, "h", 1.99, most=1.5),
    row("legs", 64, "legs"),
)


def test_a_row_is_met_up_to_its_target_and_without_one() -> None:
    assert [each.met for each in ROWS] == [False, True, True]
    assert row("share", 0.99, "share", least=0.99).met
    assert not row("share", 0.98996, "share", least=0.99).met  # though it is shown as 0.99


def test_rows_are_printed_as_a_table_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, as_json=False)
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert told == [
        ["appends", "9,903", "records/s", "reference", "2,900", "target", "10,000:", "MISSED"],
        ["mean", "wait", "0.667", "h", "reference", "1.99", "target", "1.5:", "met"],
        ["legs", "64", "legs"],
    ]
    show(ROWS, as_json=True)
    assert json.loads(capsys.readouterr().out)[1] == {
        "what": "mean wait", "value": 0.667, "unit": "h", "reference": 1.99, "target": 1.5, "met": True,
    }  # fmt: skip


def test_parts_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    parser = arguments("One line.\n\nMore.", ("rules", "again"))
    assert parser.parse_args([]).only == ("rules", "again")
    assert parser.parse_args(["--only", "again", "--json"]).only == ("again",)
    with pytest.raises(SystemExit):
        parser.parse_args(["--only", "again,agian"])
    assert "there is no part 'agian'; there are rules, again" in capsys.readouterr().err
