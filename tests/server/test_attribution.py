"""Figures on training as the server gives them to people and to the tracking server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from consortium.config import compose_job
from consortium.domain.codec import to_json
from consortium.domain.data import Artifact, ArtifactClass, Crossing, CrossingSide
from consortium.domain.records import Evidence
from consortium.domain.training import Commit, Round, RoundPhase
from consortium.reports.training import Run, Work
from consortium.server.attribution import Attributed, crossings_of, metrics, retained
from consortium.state import Database, data
from consortium.state import tables as t
from consortium.train.attribution import Share, shares
from consortium.train.rounds import certify
from tests.train.test_rounds import commit, everyone


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


def test_what_crossed_in_parts_is_of_the_contribution_that_the_parts_are_of(tmp_path: Path) -> None:
    sites = ("aa-1", "bb-1")
    commits = tuple(replace(commit(site, 100), digest=f"sha256:{site[0] * 64}") for site in sites)
    verdicts = [replace(one, digest=f"sha256:{one.site[0] * 64}") for one in everyone(sites)]
    closed = Round(job="job-1", number=1, phase=RoundPhase.CLOSED, expected=sites, commits=commits,
                   certificate=certify("job-1", 1, "", commits, verdicts))  # fmt: skip
    kind = ArtifactClass.PSEUDO_GRADIENT
    # aa-1 sends three parts, two of them the same bytes, and something that is no part; bb-1 its contribution whole.
    sent = [
        ("aa-1", f"g.{'a' * 16}.{n}.3", digest) for n, digest in ((1, "sha256:p"), (2, "sha256:p"), (3, "sha256:q"))
    ]
    sent += [("aa-1", f"g.{'c' * 16}.1.2", "sha256:r"), ("bb-1", "g", commits[1].digest)]
    database = Database(f"sqlite:///{tmp_path}/state.db")
    with database.write() as connection:
        for n, (sender, name, digest) in enumerate(sent):
            (to,) = set(sites) - {sender}
            artifact = Artifact(job="job-1", artifact_class=kind, name=name, round=1, sender=sender, recipients=(to,),
                                digest=digest, key=f"k{n}", size_bytes=10)  # fmt: skip
            data.announce(connection, artifact, 1)
            for side in CrossingSide:
                crossing = Crossing(sender=sender, recipient=to, side=side, artifact_class=kind, size_bytes=10, count=1,
                                    digest=digest, job="job-1", at_ms=1)  # fmt: skip
                connection.execute(t.crossings.insert().values(**to_json(crossing), origin=sender, seq=n))
    with database.read() as connection:
        found = shares([closed], flops_per_token=1, crossings=crossings_of(connection, "job-1", [closed]))
    database.close()
    assert [(one.site, one.bytes_sent, one.bytes_received) for one in found] == [("aa-1", 30, 10), ("bb-1", 10, 30)]
