"""What a job looks like while it is followed: lines for a pipe, a table for a terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from consortium.cli.watch import changed, page, round_line, told
from consortium.domain.job import Attempt, Epoch, Job, JobKind, JobState, Leg, LegState
from consortium.domain.training import Certificate, Commit, Contribution, Round, RoundPhase, Verdict
from tests import builders

JOB = builders.new_id("job", 1)
TRAINING = {
    "phase": "train", "round": 3, "rounds": 40, "step": 40, "steps": 100, "tokens_s": 12_345, "loss": 5.43211,
    "sent": 25_200_000, "received": 1, "waited_s": 31.4, "kept": "2.0",
}  # fmt: skip


def following(kind: JobKind, progress: dict[str, dict[str, Any]]) -> Job:
    at = builders.new_id("att", 1)
    legs = tuple(
        Leg(id=builders.new_id("leg", number), attempt=at, job=JOB, site=site, epoch=Epoch(incarnation=1, counter=1),
            state=LegState.RUNNING, nodes={"n0": 1}, inputs=())
        for number, site in enumerate(("de-1", "fr-1"))
    )  # fmt: skip
    return Job(
        id=JOB, spec=builders.spec(kind), signature="", state=JobState.RUNNING, created_ms=0, updated_ms=0, version=1,
        attempts=(Attempt(id=at, job=JOB, number=1, started_ms=0, legs=legs),), progress=progress,
        target_sites=("de-1", "fr-1"),
    )  # fmt: skip


def shown(job: Job, rounds: list[str], width: int = 120) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(page(job, rounds))
    return console.export_text()


def test_a_training_is_a_row_per_site_with_speed_loss_bytes_and_waiting():
    job = following(JobKind.PRETRAIN, {"fr-1": TRAINING, "de-1": {"phase": "waiting", "round": 3, "rounds": 40}})
    text = shown(job, ["round 2 closed: 10 tokens"])
    assert job.id in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["fr-1"][1:] == ["running", "train", "3/40", "40/100", "12,345", "5.4321", "25.2", "MB", "31", "s"]
    assert rows["de-1"][1:4] == ["running", "waiting", "3/40"]
    assert "round 2 closed" in text
    early = {"phase": "waiting for the initial state", "site": "de-1", "tokens_s": 0, "sent": 0, "waited_s": 0.0}
    assert told(early) == "waiting for the initial state"
    line = changed(job)
    assert line.startswith("running    de-1: waiting 3/40; fr-1: train 3/40, step 40/100, tokens/s 12,345, loss 5.4321")


def test_a_narrow_terminal_keeps_the_ids_and_numbers_whole():
    lines = shown(following(JobKind.PRETRAIN, {"fr-1": TRAINING}), [], width=64).splitlines()
    assert lines[0].startswith(f"{JOB}  ")
    assert [line.split()[0] for line in lines[2:]] == ["de-1", "fr-1"], "one line a site"
    assert "3/40  40/100    12,345  5.4321  25.2 MB    31 s" in lines[3]
    early = shown(following(JobKind.PRETRAIN, {}), [], width=60).splitlines()
    assert early[0].startswith(f"{JOB}  "), "its id is not broken to the width of a small table"


@pytest.mark.parametrize(
    "odd",
    [
        {"rounds": 3, "step": 2},
        {"round": "x", "rounds": 3},
        {"round": 1, "rounds": 3, "step": 2},
        {"tokens_s": "inf", "waited_s": "[/bold]"},
        {"round": 1, "rounds": 3, "phase": "[/bold]", "sent": [1]},
        {"round": None, "rounds": 3},
        {"tokens_s": 5, "loss": float("nan"), "sent": float("inf")},
    ],
)
def test_what_no_training_says_is_shown_as_it_came(odd):
    job = following(JobKind.PRETRAIN, {"fr-1": odd, "de-1": TRAINING})
    assert told(odd) == ", ".join(f"{key} {value}" for key, value in odd.items())
    assert "40/100" in shown(job, [], width=200)
    assert told(odd) in shown(job, [], width=200)
    assert told(odd) in changed(job)


def test_other_kinds_are_shown_in_their_own_words():
    job = following(JobKind.CLEAN, {"fr-1": {"phase": "clean", "shards": 3}})
    assert "phase clean, shards 3" in shown(job, [])
    assert told({"phase": "clean", "shards": 3}) == "phase clean, shards 3"
    assert changed(following(JobKind.CLEAN, {})) == "running"


def test_a_round_says_who_counted_and_who_was_refused_and_why():
    commits = [
        Commit(job=JOB, round=2, site=site, tokens=100, steps=5, digest=site, norm=(1.0).hex(), loss=loss.hex())
        for site, loss in (("de-1", 2.0), ("fr-1", 3.0), ("uy-1", 9.0))
    ]
    counted = tuple(
        Contribution(site=site, digest=site, tokens=100, weight=(0.5).hex(), clip=(1.0).hex())
        for site in ("de-1", "fr-1")
    )
    one = Round(
        job=JOB, number=2, phase=RoundPhase.CLOSED, expected=("de-1", "fr-1", "uy-1"), commits=tuple(commits),
        verdicts=(Verdict(job=JOB, round=2, judge="fr-1", site="uy-1", digest="uy-1", accept=False, reason="norm"),),
        certificate=Certificate(
            job=JOB, round=2, previous_outer="", contributions=counted, verdicts_digest=""
        ),
    )  # fmt: skip
    assert round_line(one) == ("round 2 closed: 200 tokens, loss 2.5000 (de-1 2.0000, fr-1 3.0000; uy-1 refused: norm)")
    wild = [replace(commit, loss=(1.7e308).hex()) if commit.site == "fr-1" else commit for commit in commits]
    assert "loss 2.0000 (de-1 2.0000;" in round_line(replace(one, commits=tuple(wild)))
