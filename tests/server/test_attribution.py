"""Figures on training as the server gives them to people and to the tracking server."""

from __future__ import annotations

from consortium.config import compose_job
from consortium.domain.records import Evidence
from consortium.domain.training import Commit, Round, RoundPhase
from consortium.reports.training import Run, Work
from consortium.server.attribution import Attributed, metrics, retained
from consortium.train.attribution import Share


def test_the_tracking_server_gets_what_is_known_of_each_site_and_round() -> None:
    commit = Commit(job="job-1", round=2, site="fr-1", tokens=100, steps=5, digest="", norm="", loss=(4.5).hex())
    closed = Round(job="job-1", number=2, phase=RoundPhase.CLOSED, expected=("fr-1",), commits=(commit,))
    share = Share(job="job-1", round=2, site="fr-1", partner="fr", accepted=True, reasons=(), tokens=100, steps=5,
                  flops=None, weight=0.5, bytes_sent=77, bytes_received=None, loss_share=None)  # fmt: skip
    run = Run(job="job-1", rounds=(closed,), flops_per_token=None, parameters=None, parent="")
    work = Work(held=(), differed=(), evidence=Evidence.DECLARED)
    assert metrics(Attributed(run=run, shares=((share, work),), partners={})) == {
        2: {"tokens.fr-1": 100.0, "weight.fr-1": 0.5, "bytes_sent.fr-1": 77.0, "loss.fr-1": 4.5}
    }


def test_what_retained_contributions_take_is_said_of_the_whole_job() -> None:
    params = compose_job("pretrain", ["outer.rounds=10", "outer.keep_received=4", "outer.code=bf16"]).params
    kept = retained(params, 1_000_000, 3)
    assert kept["rounds"] == 4
    assert 4 * 2 * 2_000_000 <= kept["bytes_per_site"] < 4 * 2 * 2_001_000
    assert retained(params, None, 3) == {"rounds": 4, "bytes_per_site": None}, "of a plugged-in model"
    assert retained(compose_job("pretrain").params, None, 3) == {"rounds": 0, "bytes_per_site": 0}
