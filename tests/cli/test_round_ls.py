"""What a person sees of a round: refusals with reasons, who is left out, weights, and how a dispute ended."""

from __future__ import annotations

from consortium.cli.rounds import _cells, summary
from consortium.domain.training import Commit, Recomputed, Round, RoundPhase, Ruling, Verdict
from consortium.train import disputes
from consortium.train.rounds import certify

JOB = "job-0000000000000000000000000a"
SITES = ("de-1", "fr-1", "uy-1")


def test_a_round_with_a_refusal_a_ruling_and_a_settled_dispute() -> None:
    commits = tuple(
        Commit(job=JOB, round=3, site=site, tokens=100, steps=1, digest=f"sha256:{site}", norm="0x1p+0", loss="0x1p+0")
        for site in (*SITES, "zz-1")
    )
    verdicts = tuple(
        Verdict(
            job=JOB, round=3, judge=judge, site=commit.site, digest=commit.digest, accept=commit.site != "uy-1",
            reason="outlier" if commit.site == "uy-1" else "",
        )
        for judge in SITES
        for commit in commits
    )  # fmt: skip
    ruling = Ruling(job=JOB, round=2, site="zz-1", action="reject", reason="broken", by="fr/bruno")
    certificate = certify(JOB, 3, "sha256:before", commits, verdicts, rulings=(ruling,))
    current = Round(
        job=JOB, number=3, phase=RoundPhase.CLOSED, expected=SITES, commits=commits, verdicts=verdicts,
        certificate=certificate, rulings=(ruling,),
        outer_digests={"de-1": "sha256:one", "fr-1": "sha256:two", "uy-1": "sha256:one", "zz-1": "sha256:three"},
    )  # fmt: skip
    assert _cells(summary(current))[-1] == "differ"
    same = Recomputed(certificate=disputes.certificate_digest(certificate), momentum="m", outer="sha256:one")
    found = disputes.settle(current, dict.fromkeys(SITES, same))
    shown = summary(Round(**{name: getattr(current, name) for name in Round.__slots__} | {"settlement": found}))
    assert shown["weights"] == {"de-1": 0.5, "fr-1": 0.5}
    assert shown["settlement"]["differ"] == ["fr-1"], "who is left out has no say, and is not asked"
    assert _cells(shown) == (
        3, "closed", "de-1 0.500 fr-1 0.500", "uy-1: outlier", "zz-1", "settled: fr-1 differed"
    )  # fmt: skip


def test_an_open_round_names_whom_it_waits_for() -> None:
    current = Round(job=JOB, number=3, phase=RoundPhase.OPEN, expected=SITES, committed=("de-1",))
    assert _cells(summary(current))[1] == "open, waits for fr-1,uy-1"
