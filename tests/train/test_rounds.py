"""The certificate rule: examples by name, then properties over everything that could arrive."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.domain.training import Commit, Round, RoundPhase, Verdict
from consortium.errors import VerificationError
from consortium.train.rounds import certify, check_certificate, counted_commits, verdicts_digest

SITES = ("aa-1", "bb-1", "cc-1", "dd-1", "ee-1")


def commit(site: str, tokens: int = 100, digest: str = "", **changes) -> Commit:
    fields = {"job": "job-1", "round": 2, "steps": 10, "norm": "0x1p+0", "loss": "0x1p+0", "signature": f"by {site}"}
    return Commit(site=site, tokens=tokens, digest=digest or f"sha256:{site}", **(fields | changes))


def verdict(judge: str, site: str, accept: bool = True, digest: str = "", **changes) -> Verdict:
    fields = {"job": "job-1", "round": 2, "reason": "" if accept else "norm"} | changes
    return Verdict(judge=judge, site=site, accept=accept, digest=digest or f"sha256:{site}", **fields)


def everyone(sites, accept=lambda judge, site: True):
    return [verdict(judge, site, accept(judge, site)) for judge in sites for site in sites]


def accepted(commits, verdicts) -> list[str]:
    return [part.site for part in certify("job-1", 2, "sha256:before", commits, verdicts).contributions]


THREE = [commit(site) for site in SITES[:3]]


@pytest.mark.parametrize(
    ("what", "verdicts", "expected"),
    [
        ("all accept all", everyone(SITES[:3]), ["aa-1", "bb-1", "cc-1"]),
        ("two of three refuse one", everyone(SITES[:3], lambda j, s: s != "cc-1" or j == "cc-1"), ["aa-1", "bb-1"]),
        ("one of three refuses", everyone(SITES[:3], lambda j, s: j != "aa-1"), ["aa-1", "bb-1", "cc-1"]),
        ("nobody spoke", [], []),
        ("one judge alone is no majority of three", everyone(SITES[:3])[:3], []),
        ("a silent judge counts as no", everyone(SITES[:3])[:6], ["aa-1", "bb-1", "cc-1"]),
        ("a verdict on another digest is none",
         [*everyone(SITES[:3], lambda j, s: s != "cc-1"),
          *(verdict(j, "cc-1", digest="sha256:other") for j in SITES)], ["aa-1", "bb-1"]),
        ("outsiders do not judge",
         [*everyone(SITES[:1]), *(verdict(j, s) for j in ("xx-1", "yy-1", "zz-1") for s in SITES[:3])], []),
        ("verdicts on another round are none", [replace(v, round=3) for v in everyone(SITES[:3])], []),
    ],
)  # fmt: skip
def test_what_is_accepted(what, verdicts, expected):
    assert accepted(THREE, verdicts) == expected, what


def test_a_judge_that_says_yes_and_no_has_said_nothing():
    said = [*everyone(SITES[:2]), verdict("aa-1", "bb-1", accept=False)]
    assert accepted(THREE[:2], said) == ["aa-1"]


def test_a_site_with_two_different_commits_is_left_out():
    commits = [*THREE, commit("bb-1", digest="sha256:second")]
    assert [one.site for one in counted_commits("job-1", 2, commits)] == ["aa-1", "cc-1"]
    assert [one.site for one in counted_commits("job-1", 2, [*THREE, THREE[1]])] == ["aa-1", "bb-1", "cc-1"]


def test_a_commit_without_tokens_or_of_another_round_does_not_count():
    commits = [commit("aa-1", tokens=0), commit("bb-1", round=1), commit("cc-1", job="job-2"), commit("dd-1")]
    assert [one.site for one in counted_commits("job-1", 2, commits)] == ["dd-1"]


def test_weights_are_the_share_of_tokens_as_exact_hex():
    made = certify("job-1", 2, "", [commit("aa-1", 100), commit("bb-1", 300)], everyone(SITES[:2]))
    assert [part.weight for part in made.contributions] == [(0.25).hex(), (0.75).hex()]
    assert {part.clip for part in made.contributions} == {"0x1.0000000000000p+0"}


commits_of_any_kind = st.lists(
    st.builds(
        commit,
        st.sampled_from(SITES),
        tokens=st.integers(0, 10**12),
        digest=st.sampled_from(["sha256:1", "sha256:2"]),
        round=st.sampled_from([2, 2, 2, 3]),
    ),
    max_size=7,
)
verdicts_of_any_kind = st.lists(
    st.builds(
        verdict,
        st.sampled_from((*SITES, "zz-1")),
        st.sampled_from(SITES),
        accept=st.booleans(),
        digest=st.sampled_from(["sha256:1", "sha256:2"]),
        round=st.sampled_from([2, 2, 2, 3]),
    ),
    max_size=40,
)


@settings(max_examples=120, deadline=None)
@given(commits_of_any_kind, verdicts_of_any_kind, st.randoms(use_true_random=False))
def test_order_duplication_and_signatures_change_nothing(commits, verdicts, shuffle: random.Random):
    made = certify("job-1", 2, "sha256:before", commits, verdicts)
    again_commits, again = [*commits, *commits[:2]], [*verdicts, *verdicts[:5]]
    shuffle.shuffle(again_commits)
    shuffle.shuffle(again)
    again = [replace(one, signature=f"sealed {at}") for at, one in enumerate(again)]
    assert certify("job-1", 2, "sha256:before", again_commits, again) == made
    assert verdicts_digest(again) == verdicts_digest(verdicts)


@settings(max_examples=120, deadline=None)
@given(commits_of_any_kind, verdicts_of_any_kind)
def test_no_contribution_without_a_majority_that_names_its_digest(commits, verdicts):
    made = certify("job-1", 2, "sha256:before", commits, verdicts)
    sites = [part.site for part in made.contributions]
    assert sites == sorted(set(sites))
    judges = {one.site for one in counted_commits("job-1", 2, commits)}
    for part in made.contributions:
        yes = {v.judge for v in verdicts if v.accept and (v.site, v.digest, v.round) == (part.site, part.digest, 2)}
        assert 2 * len(yes & judges) > len(judges)
        assert any((one.site, one.digest, one.tokens) == (part.site, part.digest, part.tokens) for one in commits)


@settings(max_examples=120, deadline=None)
@given(commits_of_any_kind, verdicts_of_any_kind)
def test_weights_sum_to_one_and_order_by_tokens(commits, verdicts):
    made = certify("job-1", 2, "sha256:before", commits, verdicts)
    if not made.contributions:
        return
    weights = [Fraction(float.fromhex(part.weight)) for part in made.contributions]
    assert abs(sum(weights) - 1) < Fraction(len(weights), 2**52)
    by_tokens = sorted(made.contributions, key=lambda part: part.tokens)
    assert [float.fromhex(p.weight) for p in by_tokens] == sorted(float.fromhex(p.weight) for p in by_tokens)


@settings(max_examples=80, deadline=None)
@given(commits_of_any_kind, verdicts_of_any_kind, verdicts_of_any_kind)
def test_a_certificate_stands_only_with_what_implies_it(commits, verdicts, others):
    made = certify("job-1", 2, "sha256:before", commits, verdicts)
    current = Round(job="job-1", number=2, phase=RoundPhase.CERTIFIED, expected=SITES, commits=tuple(commits))
    assert check_certificate(replace(current, verdicts=tuple(verdicts), certificate=made), "sha256:before") == made
    with pytest.raises(VerificationError, match="previous_outer"):
        check_certificate(replace(current, verdicts=tuple(verdicts), certificate=made), "sha256:another")
    if verdicts_digest(others) != verdicts_digest(verdicts):
        with pytest.raises(VerificationError, match="does not follow"):
            check_certificate(replace(current, verdicts=tuple(others), certificate=made), "sha256:before")


def test_a_round_without_certificate_is_not_one_with_an_empty_certificate():
    with pytest.raises(VerificationError, match="no certificate"):
        check_certificate(Round(job="j", number=1, phase=RoundPhase.CERTIFIED, expected=()), "")
