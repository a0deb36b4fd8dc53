"""The operator's commands on sites against a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from consortium.cli.site import duration_s, moment
from consortium.errors import UsageError
from tests.conftest import Outcome
from tests.server.test_commands import person as person

pytestmark = pytest.mark.integration
As = Callable[..., Outcome]
NOW_MS = 1_795_000_000_000


def test_a_node_is_cordoned_shown_and_uncordoned(fed: Any, person: As) -> None:
    told = person("fr/bruno", "site", "cordon", "fr-1", "fr-1-n1", "--reason", "fan is loud")
    assert (told.code, told.out) == (0, "")
    assert "fr-1-n1 cordoned by fr/bruno: fan is loud" in told.err
    shown = {line.split()[0]: line for line in person("de/anna", "sites").out.splitlines()}
    assert "fr-1-n1 cordoned by fr/bruno: fan is loud" in shown["fr-1"]
    assert shown["de-1"].endswith("-")
    refused = person("de/bernd", "site", "uncordon", "fr-1", "fr-1-n1")
    assert refused.code == 2
    assert "ask an admin of fr" in refused.err
    assert "cordoned" not in person("fr/bruno", "site", "uncordon", "fr-1", "fr-1-n1").err


def test_a_site_that_never_called_is_said_to_whatever_else_is_known_of_it(fed: Any, person: As) -> None:
    for act in ("drain", "resume"):
        assert person("uy/bruno", "site", act, "uy-1").code == 0
    shown = {line.split()[0]: line for line in person("de/anna", "sites").out.splitlines()}
    assert "no: it never called" in shown["uy-1"]


def test_a_window_is_planned_listed_and_called_off(fed: Any, person: As) -> None:
    when = ["--from", "2027-03-01T08:00", "--to", "2027-03-01T12:00+00:00"]
    planned = person("fr/bruno", "site", "window", "fr-1", *when, "--nodes", "fr-1-n1", "--json")
    window = json.loads(planned.out)
    assert (window["kind"], window["nodes"], window["by"]) == ("maintenance", ["fr-1-n1"], "fr/bruno")
    assert window["end_ms"] - window["start_ms"] == 4 * 3_600_000
    listed = person("uy/alma", "site", "windows").out.splitlines()[1].split()
    assert listed[:3] == [window["id"], "fr-1", "maintenance"]
    assert listed[3:7] == ["2027-03-01", "08:00:00", "2027-03-01", "12:00:00"]
    assert listed[7:] == ["fr-1-n1", "-", "fr/bruno"]
    assert window["id"] in person("uy/alma", "site", "windows", "fr-1").out
    assert person("uy/alma", "site", "windows", "de-1").out == ""
    assert person("uy/alma", "site", "windows", "zz-9").code == 5
    reserved = ["--kind", "reservation", "--account", "fr/health"]
    clash = person("fr/bruno", "site", "window", "fr-1", *when, *reserved)
    assert clash.code == 2
    assert window["id"] in clash.err
    called_off = person("fr/bruno", "site", "call-off", window["id"])
    assert (called_off.code, "called off: maintenance at fr-1 (fr-1-n1)" in called_off.err) == (0, True)
    assert person("fr/bruno", "site", "call-off", window["id"]).code == 5
    soon = person("fr/bruno", "site", "window", "fr-1", "--from", "+1h", "--to", "+2h", *reserved, "--json")
    assert json.loads(soon.out)["account"] == "fr/health"
    assert person("fr/bruno", "site", "call-off", json.loads(soon.out)["id"]).code == 0


def test_a_recall_is_announced_and_taken_back(fed: Any, person: As) -> None:
    fed.site("uy-1")
    told = person("uy/bruno", "site", "withdraw", "uy-1", "--notice", "2h")
    assert told.code == 0
    assert "recalled by its partner from" in told.err
    assert "recalled by its partner from" in person("fr/amelie", "sites").out
    assert person("fr/bruno", "site", "withdraw", "uy-1", "--notice", "2h").code == 2
    assert "recalled" not in person("uy/bruno", "site", "resume", "uy-1").err


@pytest.mark.parametrize("text", ["2", "h", "-2h", "2 h", "1w", "", "+2h"])
def test_what_is_no_duration_is_said(text: str) -> None:
    with pytest.raises(UsageError, match="no duration"):
        duration_s(text, "--notice")


def test_moments_are_utc_or_count_from_now() -> None:
    assert [duration_s(text, "") for text in ("90s", "30m", "2h", "7d")] == [90, 1800, 7200, 604_800]
    assert moment("now", NOW_MS, "") == NOW_MS
    assert moment("+2h", NOW_MS, "") == NOW_MS + 7_200_000
    assert moment("2025-06-15T15:06:40", NOW_MS, "") == 1_750_000_000_000
    assert moment("2025-06-15T17:06:40+02:00", NOW_MS, "") == 1_750_000_000_000
    with pytest.raises(UsageError, match="no moment"):
        moment("tomorrow", NOW_MS, "--from")
