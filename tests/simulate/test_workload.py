"""The rules a trace is completed by, against values computed by hand; reading its files; made-up jobs."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from consortium.config import load_scenario
from consortium.config.quota import QuotaEntry
from consortium.config.scenario import JobEntry, Scenario, Sharing, SiteEntry, StreamEntry, TraceEntry, WindowEntry
from consortium.errors import UsageError
from consortium.scheduler import WindowKind
from consortium.simulate.run import workload
from consortium.simulate.streams import make_jobs
from consortium.simulate.trace import find_trace, read_trace
from consortium.simulate.workload import draws, pinned, walltime_s, worker_gpus
from consortium.simulate.world import accounts, sites
from tests.simulate.builders import scenario

HEADER = "job_id,submission_time,duration,num_gpu\n"


def test_a_job_is_drawn_from_the_first_sixteen_digits_of_its_hash() -> None:
    """`printf 1 | sha256sum` is 6b86b273ff34fce1...; the first job of the real trace is the other example."""
    assert draws("1") == (0x6B86B273, 0xFF34FCE1)
    assert draws("965d744f-0445-c1a8-12af-97e4c536c66e") == (0x61930CCD, 0xDA540D3E)
    assert draws("1", seed=7) != draws("1")


def test_three_in_ten_jobs_are_pinned_by_the_last_decimal_digit() -> None:
    """0x61930ccd, of the real trace's first job, is 1,637,027,021: its last digit is 1, below 3."""
    assert [tenths for tenths in range(11) if pinned(0x61930CCD, tenths)] == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert pinned(12, 3)
    assert not pinned(13, 3)


def test_walltime_is_log_uniform_between_its_factors() -> None:
    assert walltime_s(0, 1000, (1.1, 20.0)) == 1100
    assert walltime_s(2**31, 1000, (1.1, 20.0)) == 4691  # the geometric mean: sqrt(1.1 * 20) = 4.6904...
    assert walltime_s(2**32 - 1, 1000, (1.1, 20.0)) == 20_000
    assert walltime_s(0xFF34FCE1, 600, (1.1, 20.0)) == 11_893  # 1.1 * 18.1818 ** 0.99690 = 19.8211
    assert walltime_s(0xDA540D3E, 2429, (1.1, 20.0)) == 31_703  # 1.1 * 18.1818 ** 0.85284 = 13.0517


def test_a_job_sits_on_one_node_or_on_whole_ones_where_it_can() -> None:
    sizes = {1: 1, 3: 3, 5: 5, 8: 8, 12: 4, 16: 8, 24: 8, 30: 2, 64: 8, 17: 1}
    assert {gpus: worker_gpus(gpus, 8) for gpus in sizes} == sizes
    assert worker_gpus(8, 4) == 4


@pytest.fixture
def traced() -> Scenario:
    trace = TraceEntry(dataset="some", files={"de": "cluster02", "fr": "cluster01"})
    return scenario(jobs={}, trace=trace, pinned_tenths=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with gzip.open(tmp_path / "cluster01.csv.gz", "wt") as out:
        out.write(f"{HEADER}a,100,600,1\n1,50,600.5,8\nnothing,1,0,1\nnone,1,5,0\n")
    (tmp_path / "cluster02.csv").write_text("num_gpu,job_id,extra,duration,submission_time\n16,9,x,1200,50\n")
    return tmp_path


def test_files_are_read_with_and_without_compression_in_order_of_submission(traced: Scenario, folder: Path) -> None:
    jobs, empty = read_trace(traced, folder)
    told = [(job.id, job.partner, job.submit_ms, job.run_ms, job.gpus, job.gpus_per_worker) for job in jobs]
    assert told == [
        ("1", "fr", 50_000, 600_500, 8, 8),
        ("9", "de", 50_000, 1_200_000, 16, 8),
        ("a", "fr", 100_000, 600_000, 1, 1),
    ]
    assert empty == 2
    assert [job.walltime_s >= 1.1 * job.run_ms / 1000 for job in jobs] == [True] * 3


def test_pinned_jobs_may_run_at_home_only_and_all_do_where_nothing_is_shared(traced: Scenario, folder: Path) -> None:
    """The first draws of `1`, `9` and `a` are 0x6b86b273, 0x19581e27 and 0xca978112: they end in 9, 7 and 0."""
    assert {job.id: job.allowed for job in read_trace(traced, folder)[0]} == {"1": (), "9": (), "a": ("fr-1",)}
    alone = scenario(jobs={}, trace=traced.trace, sharing=Sharing.NONE)
    assert {job.id: job.allowed for job in read_trace(alone, folder)[0]} == {
        "1": ("fr-1",), "9": ("de-1",), "a": ("fr-1",),
    }  # fmt: skip


def test_the_first_jobs_only(traced: Scenario, folder: Path) -> None:
    assert traced.trace is not None
    few = scenario(jobs={}, trace=TraceEntry(dataset="some", files=traced.trace.files, jobs=2))
    assert [job.id for job in read_trace(few, folder)[0]] == ["1", "9"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("job,submission_time,duration,num_gpu\n", "no column job_id"),
        ("", "no column job_id, submission_time, duration, num_gpu"),
        (f"{HEADER}a,100,600\n", "cluster02.csv:2"),
        (f"{HEADER}a,100,600,1\nb,soon,600,1\n", "cluster02.csv:3"),
        (f"{HEADER}a,100,600,1.5\n", "whole GPUs"),
        (f"{HEADER}x,100,inf,1\n", "cluster02.csv:2"),
        (f"{HEADER}1,100,600,1\n", "job 1 is there twice"),
        (f"{HEADER}x,-500,600,1\n", "cluster02.csv:2"),
        (f"{HEADER}x,1700000000000,600,1\n", "cluster02.csv:2"),
        (f"{HEADER}a,100,600,1\n\nx,100,9223372036854775808,1\n", "cluster02.csv:4"),
        (f'{HEADER}"x,100,600,1\n' + "y" * 200_000, "cannot read the trace"),
    ],
)
def test_a_bad_row_is_named(traced: Scenario, folder: Path, text: str, words: str) -> None:
    (folder / "cluster02.csv").write_text(text)
    trace = TraceEntry(dataset="some", files={"fr": "cluster01", "de": "cluster02"})
    with pytest.raises(UsageError, match=words):
        read_trace(scenario(jobs={}, trace=trace), folder)


def test_a_missing_file_says_what_is_expected(traced: Scenario, folder: Path) -> None:
    (folder / "cluster02.csv").unlink()
    with pytest.raises(UsageError, match=r"(?s)cluster02\.csv\.gz.*cluster01\.csv\.gz, cluster02\.csv\.gz") as fault:
        read_trace(traced, folder)
    assert str(folder) in str(fault.value)


def test_a_byte_order_mark_and_blank_lines_are_passed_over(traced: Scenario, folder: Path) -> None:
    (folder / "cluster02.csv").write_text(f"\ufeff{HEADER}\nz,50,600,1\n\n")
    assert "z" in [job.id for job in read_trace(traced, folder)[0]]


def test_a_damaged_gzip_is_named(traced: Scenario, folder: Path) -> None:
    packed = bytearray(gzip.compress(HEADER.encode()))
    packed[10] |= 0b110  # a kind of block that there is not
    (folder / "cluster01.csv.gz").write_bytes(packed)
    with pytest.raises(UsageError, match="cannot read the trace"):
        read_trace(traced, folder)


def test_a_file_that_is_no_gzip_is_named(traced: Scenario, folder: Path) -> None:
    (folder / "cluster01.csv.gz").write_text(HEADER)
    with pytest.raises(UsageError, match="cannot read the trace"):
        read_trace(traced, folder)


def test_the_folder_comes_from_the_option_then_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    monkeypatch.setenv("CONSORTIUM_TRACES", str(tmp_path))
    assert find_trace(None, "some") == tmp_path / "some"
    assert find_trace(tmp_path, "some") == tmp_path
    with pytest.raises(UsageError, match=r"\$CONSORTIUM_TRACES/other") as fault:
        find_trace(None, "other")
    assert str(tmp_path / "other") in str(fault.value.where)
    with pytest.raises(UsageError, match="columns job_id"):
        find_trace(tmp_path / "nowhere", "some")


STREAM = StreamEntry(account="fr", until_h=48, per_hour=5, gpus={"1": 3, "8": 1}, run_h=(0.5, 2))


def test_streams_depend_on_their_name_and_the_seed_alone() -> None:
    first = make_jobs(scenario(jobs={}, streams={"s": STREAM}, seed=1))
    beside = make_jobs(scenario(jobs={}, streams={"a": STREAM, "s": STREAM}, seed=1))
    assert [job for job in beside if job.id.startswith("s-")] == list(first)
    assert [job.run_ms for job in beside if job.id.startswith("a-")] != [job.run_ms for job in first]
    assert make_jobs(scenario(jobs={}, streams={"s": STREAM}, seed=2)) != first


def test_a_stream_has_the_load_it_states() -> None:
    """240 expected over two days: within four standard deviations; a quarter of the jobs has eight GPUs."""
    jobs = make_jobs(scenario(jobs={}, streams={"s": STREAM}, seed=3))
    assert 178 <= len(jobs) <= 302
    assert 0.15 < sum(job.gpus == 8 for job in jobs) / len(jobs) < 0.35
    assert all(0.5 * 3600 <= job.run_ms / 1000 <= 2 * 3600 for job in jobs)
    assert all(1.1 * job.run_ms / 1000 <= job.walltime_s <= 20 * job.run_ms / 1000 + 1 for job in jobs)


def test_bursts_come_when_they_should() -> None:
    burst = StreamEntry(account="fr", from_h=2, until_h=20, burst_jobs=3, burst_every_h=8, gpus={"1": 1}, run_h=(1, 1))
    jobs = make_jobs(scenario(jobs={}, streams={"b": burst}))
    assert [job.submit_ms / 3_600_000 for job in jobs] == [2, 2, 2, 10, 10, 10, 18, 18, 18]


def test_jobs_that_are_not_told_apart_by_their_ids_are_refused(folder: Path) -> None:
    stream = StreamEntry(account="fr", until_h=8, burst_jobs=1, burst_every_h=8, gpus={"1": 1}, run_h=(1, 1))
    twice = scenario(jobs={"b-00001": JobEntry(account="de", run_s=60, walltime_s=100, gpus=1)}, streams={"b": stream})
    with pytest.raises(UsageError, match="two jobs of the workload are called b-00001"):
        workload(twice, None)
    traced = TraceEntry(dataset="some", files={"fr": "cluster01"})
    again = scenario(jobs={"1": JobEntry(account="de", run_s=60, walltime_s=100, gpus=1)}, trace=traced)
    with pytest.raises(UsageError, match="two jobs of the workload are called 1"):
        workload(again, folder)


def test_a_window_on_a_node_that_its_site_does_not_have_is_refused() -> None:
    kept = WindowEntry(kind=WindowKind.MAINTENANCE, site="fr-1", nodes=("fr-1-n000",), from_h=1, until_h=2)
    assert scenario(windows={"w": kept}).windows["w"] is kept
    with pytest.raises(ValueError, match=r"windows: w: fr-1 has no node 'n0'; it has fr-1-n000$"):
        scenario(windows={"w": replace(kept, nodes=("n0",))})
    with pytest.raises(ValueError, match=r"it has fr-1-n000 to fr-1-n002$"):
        scenario(windows={"w": replace(kept, nodes=("fr-1-n003",))}, sites={"fr-1": SiteEntry(gpus=20)})


def test_a_site_smaller_than_its_nodes_say_has_a_smaller_last_node() -> None:
    (site,) = sites(scenario(sites={"fr-1": SiteEntry(gpus=20)}))
    assert [(node.id, node.gpus) for node in site.nodes] == [("fr-1-n000", 8), ("fr-1-n001", 8), ("fr-1-n002", 4)]


def test_what_a_project_has_as_nominal_is_its_partners_no_more() -> None:
    tree = accounts(scenario(quotas={"fr/lab": {"gpu": QuotaEntry(nominal=3)}}))
    assert {account.id: [quota.nominal for quota in account.quotas] for account in tree} == {
        "": [], "de": [8], "fr": [5], "fr/lab": [3],
    }  # fmt: skip


def test_the_variants_of_the_real_trace_are_those_of_its_readme() -> None:
    found = {name: load_scenario("itp-ten-states", [f"variant={name}"]) for name in ("alone", "open", "sovereign")}
    assert {name: (item.sharing.value, item.pinned_tenths) for name, item in found.items()} == {
        "alone": ("none", 10), "open": ("pool", 0), "sovereign": ("pool", 3),
    }  # fmt: skip
    sizes = [site.gpus for _, site in sorted(found["open"].sites.items())]
    assert sizes == [64, 96, 144, 512, 16, 96, 272, 72, 32, 16]
    assert found["open"].scheduler.stop_s == 120
