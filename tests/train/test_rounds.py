"""The certificate rule: examples by name, then properties over everything that could arrive."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.domain.codec import to_json
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Commit, Round, RoundPhase, Ruling, Standing, Verdict
from consortium.errors import VerificationError
from consortium.keys.canonical import digest_json
from consortium.train.rounds import (
    certify,
    check_certificate,
    check_standing,
    counted_commits,
    first_standing,
    left_out,
    standing_after,
    verdicts_digest,
)

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


def test_a_partner_with_most_of_the_sites_does_not_outvote_the_others():
    sites = ("aa-1", "aa-2", "aa-3", "bb-1", "cc-1")
    commits = [commit(site) for site in sites]
    against = everyone(sites, lambda judge, site: (judge[:2] == "aa") == (site[:2] == "aa"))
    assert accepted(commits, against) == ["bb-1", "cc-1"], "it has one vote of three, and is refused by the two"
    assert accepted(commits, everyone(sites, lambda judge, _: judge != "aa-1")) == list(sites)


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


MANY = (*SITES, "aa-2", "aa-3", "bb-2")
"""Some partners have several sites."""
commits_of_any_kind = st.lists(
    st.builds(
        commit,
        st.sampled_from(MANY),
        tokens=st.integers(0, 10**12),
        digest=st.sampled_from(["sha256:1", "sha256:2"]),
        round=st.sampled_from([2, 2, 2, 3]),
    ),
    max_size=7,
)
verdicts_of_any_kind = st.lists(
    st.builds(
        verdict,
        st.sampled_from((*MANY, "zz-1")),
        st.sampled_from(MANY),
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
        partners = {judge[:2] for judge in judges}
        votes = [Fraction(len(of & yes), len(of)) for of in ({j for j in judges if j[:2] == p} for p in partners)]
        assert 2 * sum(votes) > len(partners), "each partner has one vote, its sites share it"
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


# -- what certificates hand on: clipping, quarantine, rulings -------------------------------------------------------


def closed(commits, verdicts, *, standing=None, rulings=(), number=2) -> Round:
    made = certify("job-1", number, "", commits, verdicts, rulings=rulings, standing=standing)
    return Round(job="job-1", number=number, phase=RoundPhase.CERTIFIED, expected=SITES, commits=tuple(commits),
                 verdicts=tuple(verdicts), certificate=made, rulings=tuple(rulings))  # fmt: skip


def ruling(site: str, action: str = "reject", number: int = 2) -> Ruling:
    return Ruling(job="job-1", round=number, site=site, action=action, reason="its norms", by="fr/anna")


def stands(clip: float = 2.0, window: int = 4, quarantine: int = 2, **state) -> Standing:
    return Standing(clip=clip.hex(), window=window, quarantine=quarantine, **state)


def norms(*values: float) -> tuple[str, ...]:
    return tuple(float(value).hex() for value in values)


def test_a_job_that_neither_clips_nor_quarantines_has_the_certificates_it_always_had():
    assert first_standing(ScreenRule(), 1) is None
    made = closed(THREE, everyone(SITES[:3])).certificate
    assert "standing" not in to_json(made)
    assert digest_json(made) == "sha256:6ef4c2fc3b6d990a34f0cc19381c3506256caeb392048a162cb9f48cbcf17699"


def test_a_contribution_above_the_limit_is_scaled_down_to_it():
    commits = [commit("aa-1", norm=(2.0).hex()), commit("bb-1", norm=(16.0).hex()), commit("cc-1", norm="nonsense")]
    current = closed(commits, everyone(SITES[:3]), standing=stands(norms=norms(1, 2, 9)))
    assert [float.fromhex(part.clip) for part in current.certificate.contributions] == [1.0, 0.25, 0.0]
    after = standing_after(current)
    assert after.norms == norms(2, 9, 2, 4), "as applied, the oldest gone, and no norm of who states none"
    check_certificate(current, "")


def test_a_partners_sites_leave_one_norm_together():
    sites = ("aa-1", "bb-1", "xx-1", "xx-2", "xx-3")
    commits = [commit(site, norm=(0.001 if site[:2] == "xx" else 2.0).hex()) for site in sites]
    after = standing_after(closed(commits, everyone(sites), standing=stands(window=8, fragments=1)))
    assert after.norms == norms(2, 2, 0.001), "or who brings more sites says what is too large for the others"


def test_trainings_that_began_by_the_rule_before_go_on_by_it():
    sites, before = ("aa-1", "xx-1", "xx-2"), stands(window=8)
    assert before.fragments == 0
    commits = [commit(site, norm=(2.0).hex()) for site in sites]
    current = closed(commits, everyone(sites), standing=before)
    after = standing_after(current)
    assert (after.norms, after.fragments) == (norms(2, 2, 2), 0)
    assert "fragments" not in to_json(after)
    begins = first_standing(ScreenRule(clip=2.0, clip_window=8, quarantine=2), 1)
    check_standing(current.certificate, begins, past=True)
    with pytest.raises(VerificationError, match="the round before left"):
        check_standing(current.certificate, begins)
    with pytest.raises(VerificationError, match="the round before left"):
        check_standing(current.certificate, replace(begins, norms=norms(2)), past=True)


def test_without_norms_of_past_rounds_nothing_is_clipped():
    current = closed(THREE, everyone(SITES[:3]), standing=stands())
    assert {part.clip for part in current.certificate.contributions} == {"0x1.0000000000000p+0"}
    assert standing_after(current).norms == norms(1, 1, 1)


def refusing(site: str, reason: str = "cosine"):
    return [replace(v, reason=v.reason and reason) for v in everyone(SITES[:3], lambda j, s: s != site or j == site)]


def test_a_site_refused_twice_in_a_row_is_left_out_until_it_is_readmitted():
    standing = stands(quarantine=2)
    for number, expected in ((2, 1), (3, 2)):
        commits = [replace(one, round=number) for one in THREE]
        said = [replace(v, round=number) for v in refusing("cc-1")]
        standing = standing_after(closed(commits, said, standing=standing, number=number))
        assert standing.refused == (("cc-1", expected),)
    commits = [replace(one, round=4) for one in THREE]
    yes = [replace(v, round=4) for v in everyone(SITES[:3])]
    assert sites_of(closed(commits, yes, standing=standing, number=4)) == ["aa-1", "bb-1"]
    back = closed(commits, yes, standing=standing, number=4, rulings=[ruling("cc-1", "readmit", 4)])
    assert sites_of(back) == ["aa-1", "bb-1", "cc-1"]
    assert standing_after(back).refused == ()
    check_certificate(back, "")


def test_a_readmitted_site_is_back_in_every_fragment():
    yes, back = everyone(SITES[:3]), [ruling("cc-1", "readmit", 7)]
    for number, expected in ((6, ["aa-1", "bb-1"]), (7, [*SITES[:3]]), (8, [*SITES[:3]]), (9, ["aa-1", "bb-1"])):
        commits = [replace(one, round=number) for one in THREE]
        said = [replace(v, round=number) for v in yes]
        standing = stands(refused=(("cc-1", 2),), fragments=2)
        current = closed(commits, said, standing=standing, number=number, rulings=[r for r in back if number >= 7])
        assert sites_of(current) == expected, number


def test_a_site_that_could_not_be_reached_is_not_on_its_way_to_quarantine():
    assert standing_after(closed(THREE, refusing("cc-1", "unreachable"), standing=stands())).refused == ()


def test_an_admin_rejects_and_readmits_a_site():
    yes = everyone(SITES[:3])
    assert sites_of(closed(THREE, yes, rulings=[ruling("bb-1")])) == ["aa-1", "cc-1"]
    assert sites_of(closed(THREE, yes, rulings=[ruling("bb-1", number=1), ruling("bb-1", "readmit")])) == [*SITES[:3]]
    assert sites_of(closed(THREE, yes, rulings=[ruling("bb-1", "readmit"), ruling("bb-1")])) == ["aa-1", "cc-1"]
    assert sites_of(closed(THREE, yes, rulings=[ruling("bb-1", number=3)])) == [*SITES[:3]]
    assert sites_of(closed(THREE, yes, rulings=[replace(ruling("bb-1"), job="job-2")])) == [*SITES[:3]]


def sites_of(current: Round) -> list[str]:
    return [part.site for part in current.certificate.contributions]


def test_a_standing_that_the_round_before_did_not_leave_is_refused():
    current = closed(THREE, everyone(SITES[:3]), standing=stands())
    check_standing(current.certificate, stands())
    with pytest.raises(VerificationError, match="the round before left"):
        check_standing(current.certificate, stands(norms=norms(1e9)))


rulings_of_any_kind = st.lists(
    st.builds(ruling, st.sampled_from(SITES), st.sampled_from(["reject", "readmit"]), st.integers(1, 3)), max_size=4
)
standings = st.builds(
    stands,
    clip=st.sampled_from([0.0, 2.0]),
    quarantine=st.integers(0, 2),
    norms=st.lists(st.floats(1e-30, 1e30), max_size=4).map(lambda found: norms(*found)),
    refused=st.dictionaries(st.sampled_from(SITES), st.integers(1, 3)).map(lambda found: tuple(sorted(found.items()))),
)


@settings(max_examples=120, deadline=None)
@given(commits_of_any_kind, verdicts_of_any_kind, rulings_of_any_kind, standings, st.randoms(use_true_random=False))
def test_with_a_standing_too_order_and_duplication_change_nothing(commits, verdicts, rulings, standing, shuffle):
    current = closed(commits, verdicts, standing=standing, rulings=rulings)
    again = [[*commits, *commits[:2]], [*verdicts, *verdicts[:5]], [*rulings, *rulings[:1]]]
    for one in again:
        shuffle.shuffle(one)
    other = closed(again[0], again[1], standing=standing, rulings=again[2])
    assert other.certificate == current.certificate
    assert standing_after(other) == standing_after(current)


@settings(max_examples=120, deadline=None)
@given(commits_of_any_kind, verdicts_of_any_kind, rulings_of_any_kind, standings)
def test_nobody_left_out_contributes_and_nothing_applied_is_above_the_limit(commits, verdicts, rulings, standing):
    current = closed(commits, verdicts, standing=standing, rulings=rulings)
    out = left_out(2, rulings, standing)
    assert not out & {part.site for part in current.certificate.contributions}
    after = standing_after(current)
    if float.fromhex(standing.clip) and standing.norms:
        limit = 2.0 * median(map(float.fromhex, standing.norms))
        new = after.norms[len(after.norms) - len(current.certificate.contributions) :]
        assert all(float.fromhex(norm) <= limit * (1 + 1e-12) for norm in new)
    assert len(after.norms) <= standing.window
