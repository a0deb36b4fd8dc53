"""Who brought what: by site and round, by partner, and over the trainings a model goes back to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consortium.domain.data import ArtifactClass, Crossing, CrossingSide
from consortium.domain.training import Round, RoundPhase, Standing
from consortium.errors import UsageError
from consortium.train.attribution import lineage, shares, totals
from consortium.train.rounds import certify
from tests.train.test_rounds import commit, everyone, refusing, ruling

SITES = ("aa-1", "aa-2", "bb-1")
PER_TOKEN = 6_000_000


def round_of(verdicts, number: int = 1, standing: Standing | None = None, rulings=()) -> Round:
    commits = tuple(replace(commit(site, 100 * n), round=number) for n, site in enumerate(SITES, start=1))
    said = tuple(replace(one, round=number) for one in verdicts)
    made = certify("job-1", number, "", commits, said, standing=standing, rulings=rulings)
    return Round(job="job-1", number=number, phase=RoundPhase.CLOSED, expected=SITES, commits=commits, verdicts=said,
                 certificate=made, rulings=tuple(rulings))  # fmt: skip


def crossing(sender: str, recipient: str, side: CrossingSide, size: int = 1_000) -> Crossing:
    return Crossing(sender=sender, recipient=recipient, side=side, artifact_class=ArtifactClass.PSEUDO_GRADIENT,
                    size_bytes=size, count=1, digest=f"sha256:{sender}", job="job-1", at_ms=0)  # fmt: skip


def test_each_site_gets_its_tokens_flops_weight_bytes_and_share_of_the_fall():
    crossings = [crossing("aa-1", to, CrossingSide.RELEASE) for to in ("aa-2", "bb-1")]
    crossings += [crossing("aa-1", "bb-1", CrossingSide.RECEIPT), crossing("aa-2", "bb-1", CrossingSide.RECEIPT, 500)]
    crossings += [replace(crossing("aa-1", "bb-1", CrossingSide.RELEASE), artifact_class=ArtifactClass.CONTROL)]
    held_out = {0: {"fr": 5.0, "de": 6.0, "es": 9.0}, 1: {"fr": 4.0, "de": 5.4}}
    found = shares([round_of(everyone(SITES))], flops_per_token=PER_TOKEN, crossings=crossings, held_out=held_out)
    assert [(one.site, one.partner, one.accepted) for one in found] == [
        ("aa-1", "aa", True), ("aa-2", "aa", True), ("bb-1", "bb", True)
    ]  # fmt: skip
    assert [one.flops for one in found] == [600_000_000, 1_200_000_000, 1_800_000_000]
    assert [one.weight for one in found] == [1 / 6, 1 / 3, 1 / 2]
    assert [one.bytes_sent for one in found] == [2_000, None, None]
    assert [one.bytes_received for one in found] == [None, None, 1_500]
    assert [one.loss_share for one in found] == pytest.approx([0.8 / 6, 0.8 / 3, 0.4])


def test_refused_work_is_counted_with_its_reason_and_brings_nothing():
    first = round_of(refused_last())
    found = shares([first], flops_per_token=PER_TOKEN, held_out={0: {"fr": 5.0}, 1: {"fr": 4.0}})
    last = found[-1]
    assert (last.accepted, last.reasons, last.weight, last.loss_share) == (False, ("cosine",), 0.0, 0.0)
    assert last.flops == 300 * PER_TOKEN
    assert sum(one.loss_share or 0 for one in found) == pytest.approx(1.0)


def refused_last():
    return [
        replace(one, accept=False, reason="cosine") if one.site == "bb-1" and one.judge != "bb-1" else one
        for one in everyone(SITES)
    ]


def test_a_site_left_out_by_an_admin_says_so():
    found = shares([round_of(everyone(SITES), rulings=[ruling("aa-2", number=1)])], flops_per_token=1)
    assert [one.reasons for one in found] == [(), ("left out",), ()]


def test_what_was_clipped_weighs_less():
    standing = Standing(clip=(0.5).hex(), window=4, quarantine=0, norms=((1.0).hex(),))
    found = shares([round_of(everyone(SITES), standing=standing)], flops_per_token=1)
    assert sum(one.weight for one in found) == pytest.approx(0.5)


def test_partners_are_summed_and_unknown_is_not_zero():
    rounds = [round_of(everyone(SITES)), round_of(refused_last(), number=2)]
    crossings = [crossing("bb-1", "aa-1", CrossingSide.RELEASE, 10)]
    aa, bb = totals(shares(rounds, flops_per_token=PER_TOKEN, crossings=crossings))
    assert (aa.partner, aa.rounds, aa.refused, aa.tokens, aa.accepted_tokens) == ("aa", 2, 0, 600, 600)
    assert (bb.partner, bb.rounds, bb.refused, bb.tokens, bb.accepted_tokens) == ("bb", 1, 1, 600, 300)
    assert aa.weight + bb.weight == pytest.approx(2)
    assert (aa.bytes_sent, aa.loss_share) == (None, None)
    assert bb.bytes_sent == 20, "the same digest in both rounds of this example"
    assert aa.flops + bb.flops == 1_200 * PER_TOKEN


def test_a_fall_measured_over_several_rounds_is_shared_out_over_all_of_them():
    rounds = [round_of(everyone(SITES)), round_of(refused_last(), number=2)]
    far = shares(rounds, flops_per_token=None, held_out={0: {"fr": 5.0}, 2: {"fr": 3.0}})
    assert [one.loss_share for one in far] == pytest.approx([1 / 6, 1 / 3, 1 / 2, 1 / 3, 2 / 3, 0.0])
    assert {one.flops for one in far} == {None}, "of a plugged-in model"
    assert totals(far)[0].flops is None
    gap = shares(rounds[1:], flops_per_token=1, held_out={0: {"fr": 5.0}, 2: {"fr": 3.0}})
    assert {one.loss_share for one in gap} == {None}, "a round of the span is missing"


def test_a_round_without_a_certificate_is_nobodys_yet():
    assert shares([replace(round_of(refusing("cc-1")), certificate=None)], flops_per_token=1) == ()


def test_the_flops_of_a_lineage_meet_the_thresholds_of_the_law():
    flops = {"job-a": 9 * 10**22, "job-b": 2 * 10**22, "job-c": 10**25}
    parents = {"job-b": "job-a", "job-c": "job-b"}
    assert lineage("job-a", parents, flops).general_purpose is False
    second = lineage("job-b", parents, flops)
    assert (second.jobs, second.flops) == (("job-a", "job-b"), 11 * 10**22)
    assert (second.general_purpose, second.systemic_risk) == (True, False)
    assert lineage("job-c", parents, flops).systemic_risk
    unknown = lineage("job-b", parents, {"job-a": None, "job-b": 10**24})
    assert (unknown.flops, unknown.general_purpose, unknown.systemic_risk) == (None, True, None)
    with pytest.raises(UsageError, match="not known"):
        lineage("job-b", parents, {"job-b": 1})
    with pytest.raises(UsageError, match="go back to themselves"):
        lineage("job-a", {"job-a": "job-a"}, flops)
