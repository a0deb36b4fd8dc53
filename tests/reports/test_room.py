"""A report has room for so much of what others wrote; what it has none for is left out whole, and named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consortium.domain.data import ArtifactClass, Crossing, CrossingSide
from consortium.domain.records import Evidence, RecordType, ReExecution
from consortium.errors import VerificationError
from consortium.keys.signing import sign_value
from consortium.reports.build import build_report
from consortium.reports.model import LIMITS_OF
from consortium.reports.text import render_json
from consortium.reports.verify import verify_report
from tests.reports import builders as b

ROOM = 200_000


def crossing(sender: str, recipient: str) -> Crossing:
    return Crossing(
        sender=sender, recipient=recipient, side=CrossingSide.RELEASE, artifact_class=ArtifactClass.STATISTIC,
        size_bytes=1, count=1, digest="sha256:x", job="job-x", at_ms=b.START,
    )  # fmt: skip


def made(world: Any, folder: Path, partner: str = "fr", room_bytes: int = ROOM) -> dict[str, Any]:
    with world.log(folder) as log:
        return build_report(
            partner=partner, period=b.PERIOD, log=log, sites=world.sites, trust=world.trust, key=world.keys["server"],
            made_ms=1_777_000_000_123, room_bytes=room_bytes,
        )  # fmt: skip


def flooded() -> Any:
    """Germany's site writes crossings of France's in ever larger records."""
    world = b.example()
    world.passage("uy-1", "fr-1", "sha256:9", 9009, "job-t")
    for _ in range(3):
        world.crossing("de-1", *[crossing("de-1", "fr-1")] * 200)
    return world


def test_one_sites_flood_takes_nothing_from_what_others_wrote_and_is_named(tmp_path: Path) -> None:
    honest = made(b.example(), tmp_path / "honest")
    world = flooded()
    report = made(world, tmp_path / "flooded")
    assert len(render_json(report)) < len(render_json(honest)) + ROOM
    assert report["left_out"] == [{"origin": "de-1", "family": "crossing", "records": 5}]
    rows = {(row["sender"], row["recipient"]): row for row in report["figures"]["crossings"]}
    assert rows["uy-1", "fr-1"]["evidence"] == Evidence.CROSS_CHECKED
    assert (rows["fr-1", "de-1"]["released_bytes"], rows["fr-1", "de-1"]["received_bytes"]) == (1001, None)
    assert rows["de-1", "fr-1"]["released_count"] is None, "not known, and not zero"
    for table in ("delivered", "consumed"):
        assert report["figures"][table] == honest["figures"][table], "its usage is another family, and fits"
    checks = verify_report(report, world.trust).checks
    assert "left out for want of room, so that they count nowhere: 5 crossing records of de-1" in checks


def test_its_own_crossings_a_partner_gets_whatever_their_size(tmp_path: Path) -> None:
    report = made(flooded(), tmp_path, "de", room_bytes=0)
    (found,) = [one for one in report["figures"]["completeness"] if one["family"] == "crossing"]
    assert (found["origin"], found["records"]) == ("de-1", 6)
    assert {item["origin"] for item in report["left_out"]} == {"fr-1", "uy-1"}


def test_usage_that_is_left_out_leaves_the_servers_book_alone(tmp_path: Path) -> None:
    world = b.example()
    for number in range(60):
        world.usage(replace(b.row(f"f{number}", "de-1", "fr", 0, b.HOUR), gpus=1))
    report = made(world, tmp_path)
    assert report["left_out"] == [{"origin": "de-1", "family": "usage", "records": 61}]
    away = {row["site"]: row["time"] for row in report["figures"]["consumed"]["rows"]}["de-1"]
    assert (away["gpu_ms"], away["server_gpu_ms"], away["evidence"]) == (None, 8 * b.HOUR, "declared")
    total = report["figures"]["consumed"]["total"]
    assert (total["gpu_ms"], total["server_gpu_ms"]) == (8 * b.HOUR, 16 * b.HOUR)
    assert total["evidence"] == "declared"


def test_what_others_write_of_no_figure_is_in_no_report(tmp_path: Path) -> None:
    world = b.example()
    before = len(made(world, tmp_path / "before")["leaves"])
    redone = ReExecution(
        job="job-t", round=1, site="de-1", digest="sha256:de-1", same_bits=True, distance=(0.0).hex(),
        cosine=(1.0).hex(), tolerance=(0.2).hex(), drawn=(1,),
    )  # fmt: skip
    world.add("de-1", RecordType.RE_EXECUTION, {"padding": "x" * 50_000} | b.to_json(redone))
    for kind in (RecordType.REFUSAL, RecordType.DOWNTIME, RecordType.MANIFEST):
        world.add("de-1", kind, {"job": "job-t", "padding": "x" * 50_000})
    assert len(made(world, tmp_path / "after")["leaves"]) == before


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (lambda d: d["left_out"].append({"origin": "fr-1", "family": "crossing", "records": 1}), "cannot be what"),
        (lambda d: d["left_out"].append({"origin": "uy-1", "family": "crossing", "records": 1}), "cannot be what"),
        (lambda d: d["left_out"].append({"origin": "uy-1", "family": "refusal", "records": 1}), "cannot be what"),
        (lambda d: d["left_out"].append({"origin": "xx-1", "family": "usage", "records": 1}), "xx-1"),
        (lambda d: d["left_out"].append({"origin": "server", "family": "usage", "records": 1}), "server"),
        (lambda d: d["left_out"].append(d["left_out"][0]), "cannot be what"),
        (lambda d: d["left_out"][0].update(records=0), "cannot be what"),
        (
            lambda d: d.update(format="consortium-report/4", limits=list(LIMITS_OF["consortium-report/4"])),
            "leaves nothing out",
        ),
        (lambda d: d.update(format="consortium-report/4"), "limits of its format"),
    ],
)
def test_what_cannot_have_been_left_out_is_found(tmp_path: Path, lie: Any, message: str) -> None:
    world = flooded()
    report = made(world, tmp_path)
    lie(report)
    lied = sign_value(world.keys["server"], {key: value for key, value in report.items() if key != "signature"})
    with pytest.raises(VerificationError, match=message):
        verify_report(lied, world.trust)


def test_a_report_of_the_format_before_still_verifies(tmp_path: Path) -> None:
    world = b.example()
    report = json.loads(render_json(made(world, tmp_path)))
    report |= {"format": "consortium-report/4", "limits": list(LIMITS_OF["consortium-report/4"])}
    del report["left_out"], report["signature"]
    earlier = sign_value(world.keys["server"], report)
    assert verify_report(earlier, world.trust).limits == LIMITS_OF["consortium-report/4"]
