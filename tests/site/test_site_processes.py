"""Agent and gateway as processes, on a real Ray head with token auth and real S3 stores, killed where it hurts."""

from __future__ import annotations

import itertools
import json
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from consortium.domain.codec import to_json
from consortium.domain.job import Fault, LegState
from consortium.domain.protocol import LegCommand
from consortium.local.ports import free_ports
from consortium.site.agent.logs import archive_key
from consortium.site.db import SiteDb
from consortium.site.legs import LegTable, new_leg
from consortium.site.settings import StoreSettings
from tests.s3 import S3
from tests.site.processes import GARBLED, LISTENER, PROGRAM, RayHead, Site, wait_for
from tests.site.world import World, consortium_server, script_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with tempfile.TemporaryDirectory(prefix="cs-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "ray.token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        head = RayHead(folder=Path(folder) / "r", token=token)
        head.start()
        yield head
        head.kill()


@pytest.fixture
def site(tmp_path: Path, head: RayHead, s3: S3) -> Iterator[Site]:
    marks, jobs = tmp_path / "marks", tmp_path / "jobs"
    marks.mkdir()
    jobs.mkdir()
    (jobs / "clean.py").write_text(PROGRAM.format(marks=str(marks)))
    (jobs / "evaluate.py").write_text(GARBLED)
    (jobs / "tokenize.py").write_text(LISTENER.format(marks=str(marks)))
    world = World(tmp_path / "world", jobs_dir=jobs)
    script = script_for(world)
    home = world.root / "fr-1"
    home.mkdir()
    (home / "s3.secret").write_text(s3.secret_key)
    stores = [s3.fresh() for _ in range(2)]
    private, egress = (
        StoreSettings(
            endpoint=s3.endpoint, bucket=store.bucket, access_key=s3.access_key, secret_path=str(home / "s3.secret")
        )
        for store in stores
    )
    port = free_ports(1)[0]
    with consortium_server(script) as server:
        settings = world.settings(
            server_url=server.url,
            gateway_url=f"http://127.0.0.1:{port}",
            gateway_port=port,
            ray_dashboard_url=head.url,
            ray_token_path=str(head.token),
            private_store=private,
            egress_store=egress,
            poll_ms=200,
        )
        config = home / "config.json"
        config.write_text(json.dumps(to_json(settings)))
        site = Site(world, script, head, marks, config, settings.gateway_url, stores[0])
        site.start("gateway")
        site.start("agent")
        yield site
        for what in list(site.children):
            site.kill(what)


def assert_gapless(intervals: list[tuple[int, int]]) -> int:
    assert intervals
    for left, right in itertools.pairwise(intervals):
        assert left[1] == right[0], intervals
    return intervals[-1][1] - intervals[0][0]


def test_an_agent_killed_in_mid_leg_neither_repeats_nor_bills_twice(site: Site) -> None:
    offer = site.offer(1)
    site.until_program_runs(offer)
    site.kill("agent")
    heard = len(site.script.polls)
    site.start("agent")
    wait_for("poll", lambda: len(site.script.polls) > heard)
    site.go(offer)
    report = site.until(offer, LegState.SUCCEEDED)
    assert report.result["metrics"] == {"loss": 1.5}
    assert report.progress == {"phase": "wait"}
    assert site.runs(offer) == 1
    billed_ms = assert_gapless(site.usage(offer))
    assert 1_000 < billed_ms < 120_000
    wait_for("log", lambda: any("hello from the leg" in piece["text"] for piece in site.script.logs))
    wait_for("deletion of the Ray job", lambda: f"{offer.leg}@{offer.epoch}" not in site.head.jobs())
    assert b"hello from the leg" in site.store.get(archive_key(new_leg(offer)))  # type: ignore[attr-defined]
    assert site.store.get(f"jobs/{offer.job}/out") == b"data"  # type: ignore[attr-defined]


def test_a_gateway_killed_in_mid_leg_is_outlasted(site: Site) -> None:
    offer = site.offer(2)
    site.until_program_runs(offer)
    site.kill("gateway")
    site.go(offer)
    site.start("gateway")
    assert site.until(offer, LegState.SUCCEEDED).result["metrics"] == {"loss": 1.5}
    assert site.runs(offer) == 1
    assert_gapless(site.usage(offer))


def test_a_leg_whose_lease_ends_is_stopped_and_reported_lost(site: Site) -> None:
    site.script.lease_ms = 6_000
    offer = site.offer(3)
    site.until_program_runs(offer)
    site.script.away = True
    table = LegTable(SiteDb(site.config.parent))
    wait_for("end", lambda: table.get(offer.leg, offer.epoch).state is LegState.LOST)  # type: ignore[union-attr]
    site.script.away = False
    report = site.until(offer, LegState.LOST)
    assert report.fault is Fault.SITE
    assert_gapless(site.usage(offer))


def test_a_program_that_listens_keeps_its_progress_before_it_makes_way(site: Site) -> None:
    offer = site.offer(6, "tokenize")
    site.until_program_runs(offer)
    table = LegTable(SiteDb(site.config.parent))
    wait_for("listening", lambda: table.get(offer.leg, offer.epoch).listens)  # type: ignore[union-attr]
    reason = "its 2 GPUs are taken back for job-x"
    site.script.stops[offer.leg] = LegCommand(leg=offer.leg, epoch=offer.epoch, reason=reason, keep_s=60)
    report = site.until(offer, LegState.STOPPED)
    assert (report.reason, report.fault, report.progress) == (reason, None, {"phase": "kept"})
    assert site.store.get(f"jobs/{offer.job}/kept") == b"progress"  # type: ignore[attr-defined]
    assert assert_gapless(site.usage(offer)) > 6_000, "the time it took to keep its progress is billed"


def test_a_program_that_does_not_listen_is_stopped_at_once(site: Site) -> None:
    offer = site.offer(7)
    site.until_program_runs(offer)
    began = time.monotonic()
    site.script.stops[offer.leg] = LegCommand(leg=offer.leg, epoch=offer.epoch, reason="make way", keep_s=600)
    site.until(offer, LegState.STOPPED)
    assert time.monotonic() - began < 60


def test_a_program_that_hangs_is_stopped_as_its_nodes_fault(site: Site) -> None:
    offer = site.offer(8)
    site.until_program_runs(offer)
    site.script.hang_s = {"tokenize": 1}
    time.sleep(3)
    site.until(offer, LegState.RUNNING)
    site.script.hang_s = {"clean": 2}
    report = site.until(offer, LegState.FAILED)
    assert report.fault is Fault.NODE
    assert "no sign of life" in report.reason


def test_where_ray_nodes_are_labelled_a_leg_starts_on_its_own_node(site: Site) -> None:
    first = site.offer(9)
    site.until_program_runs(first)
    site.kill("agent")
    changed = json.loads(site.config.read_text()) | {"ray_node_label": "consortium-node"}
    site.config.write_text(json.dumps(changed))
    with site.head.joined("consortium-node=n0"):
        site.start("agent")
        second = site.offer(10)
        site.until_program_runs(second)
        on, names = site.head.jobs(), [f"{offer.leg}@{offer.epoch}" for offer in (first, second)]
        head, own = (on[name] for name in names)
        assert own
        assert own != head, "without a label every program starts on the head"
        for offer in (first, second):
            site.go(offer)
            site.until(offer, LegState.SUCCEEDED)
        wait_for("deletion of the Ray jobs", lambda: not site.head.jobs().keys() & set(names))
        for offer in (first, second):
            assert b"hello from the leg" in site.store.get(archive_key(new_leg(offer)))  # type: ignore[attr-defined]


def test_a_log_that_is_no_text_is_said_to_be_none_and_keeps_no_other_back(site: Site) -> None:
    garbled, plain = site.offer(11, "evaluate"), site.offer(12)
    site.go(plain)
    for offer in (garbled, plain):
        site.until(offer, LegState.SUCCEEDED)
    names = {f"{offer.leg}@{offer.epoch}" for offer in (garbled, plain)}
    wait_for("deletion of the Ray jobs", lambda: not site.head.jobs().keys() & names)
    kept = site.store.get(archive_key(new_leg(garbled))).decode()  # type: ignore[attr-defined]
    assert f"job-driver-{garbled.leg}@{garbled.epoch}.log" in kept
    assert b"hello from the leg" in site.store.get(archive_key(new_leg(plain)))  # type: ignore[attr-defined]
    assert kept in "".join(piece["text"] for piece in site.script.logs if piece["leg"] == garbled.leg)


def test_a_ray_head_killed_in_mid_leg_is_the_sites_fault_and_billed_until_last_seen(site: Site) -> None:
    site.script.lease_ms = 120_000
    offer = site.offer(4)
    site.until_program_runs(offer)
    died_ms = time.time_ns() // 1_000_000
    site.head.kill()
    wait_for("bad health", lambda: not site.script.polls[-1].healthy)
    site.head.start()
    report = site.until(offer, LegState.FAILED)
    assert report.fault is Fault.SITE
    intervals = site.usage(offer)
    assert_gapless(intervals)
    assert intervals[-1][1] <= died_ms + 1_000
    wait_for("good health", lambda: site.script.polls[-1].healthy)
    again = site.offer(5)
    site.go(again)
    site.until(again, LegState.SUCCEEDED)


def test_both_end_cleanly_and_say_what_is_wrong_with_their_config(site: Site) -> None:
    wait_for("poll", lambda: site.script.polls)
    second = subprocess.run(
        [sys.executable, "-m", "consortium.site.agent", "--config", str(site.config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert second.returncode == 2
    assert "another agent of fr-1 is running" in second.stderr
    assert "Traceback" not in second.stderr
    broken = site.config.with_name("broken.json")
    broken.write_text(site.config.read_text()[:100])
    for what in ("agent", "gateway"):
        failed = subprocess.run(
            [sys.executable, "-m", f"consortium.site.{what}", "--config", str(broken)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert failed.returncode == 2
        assert "broken.json" in failed.stderr
        assert "Traceback" not in failed.stderr
    assert site.kill("agent", signal.SIGTERM) == 0
    assert site.kill("gateway", signal.SIGTERM) == 0
    repin = subprocess.run(
        [sys.executable, "-m", "consortium.site.agent", "--config", str(site.config), "--repin"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert repin.returncode == 0
