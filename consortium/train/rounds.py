"""The certificate of a round follows from its commits and verdicts by a pure rule that anyone can recompute.

The rule, in full:

1. A commit counts if it is of this job and round, its token count is above zero, and its site made no second, different
   commit (a site that contradicts itself is left out).
2. The judges are the sites whose commits count. A judge accepts a commit if its verdict names the commit's digest and
   accepts. Silence, another digest, or two verdicts that differ are no acceptance.
3. A commit is accepted if judges with strictly more than half of the votes accept it. Each partner that judges has one
   vote, which its sites share equally (`consortium.train.votes`).
4. The weight of an accepted commit is its tokens over the tokens of all accepted ones, correctly rounded to a double;
   its clip scale is 1. Both travel as hex floats. Contributions are in site order.

Where the job clips or quarantines, the certificate carries a standing: what the rounds before left. Then

5. a commit's clip scale is min(1, clip times the median of the standing's norms over its own norm), 1 while there are
   no norms, and 0 where it states no norm above zero;
6. a site that was refused `quarantine` rounds in a row for what it sent is left out as in 1. A refusal is for what was
   sent where judges with more than half of the votes gave a reason other than `missing` and `unreachable`.

`standing_after` gives the next round's; of each partner it keeps one norm a round, the median of its sites'. And with
or without one: a site that an admin rejected or withdrew, and did not readmit since, is left out as in 1; a readmission
in round k takes effect in round k. Where a model goes in fragments, the round before is that of the same fragment.

A certificate without contributions is valid and leaves the outer state as it is. Signatures are not part of the rule:
who receives commits and verdicts checks them first. The order in which messages arrived changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from consortium.domain.codec import from_json
from consortium.domain.ids import partner_of
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Certificate, Commit, Contribution, Round, RoundPhase, Ruling, Standing, Verdict
from consortium.errors import VerificationError
from consortium.keys.canonical import digest_json
from consortium.train.votes import majority

NO_CLIP = float(1).hex()
NOT_ITS_FAULT = frozenset({"missing", "unreachable"})
"""Reasons of refusals that say nothing about what a site sent."""


def counted_commits(job: str, number: int, commits: Iterable[Commit]) -> tuple[Commit, ...]:
    """Return the commits that count in round `number` of `job`, one per site, in site order."""
    by_site: dict[str, Commit] = {}
    contradicted: set[str] = set()
    for commit in commits:
        if commit.job != job or commit.round != number or commit.tokens <= 0:
            continue
        known = by_site.setdefault(commit.site, commit)
        if replace(known, signature="") != replace(commit, signature=""):
            contradicted.add(commit.site)
    return tuple(by_site[site] for site in sorted(by_site) if site not in contradicted)


def copied_from(commit: Commit, commits: Iterable[Commit]) -> str:
    """Return the other site that committed the same bytes to the round; empty where none did.

    What honest sites can have in common is left out: vectors of zeros or that are not finite. No commit that states
    such a norm can stand for another vector, as judges hold the one against the other.
    """
    if not stated_norm(commit):
        return ""
    return next((one.site for one in commits if one.site != commit.site and one.digest == commit.digest), "")


def shown_to(reader: str, round_: Round) -> Round:
    """Return a round as a site or a person may read it: while it takes commits, of others' only whose they are.

    Who could read the rest could commit to a digest that is another's (`docs/adr/0013`).
    """
    if round_.phase is not RoundPhase.OPEN:
        return round_
    own = tuple(commit for commit in round_.commits if commit.site == reader)
    return replace(round_, commits=own, committed=tuple(sorted({commit.site for commit in round_.commits})))


def accepted_commits(counted: tuple[Commit, ...], verdicts: Iterable[Verdict]) -> tuple[Commit, ...]:
    """Return those of the `counted` commits that a majority of their sites accepts, in site order."""
    judges = {commit.site for commit in counted}
    said: dict[tuple[str, str], set[bool]] = {}
    digests = {commit.site: commit for commit in counted}
    for verdict in verdicts:
        commit = digests.get(verdict.site)
        if commit is None or verdict.judge not in judges:
            continue
        if (verdict.job, verdict.round) != (commit.job, commit.round):
            continue
        accepts = verdict.accept and verdict.digest == commit.digest
        said.setdefault((verdict.judge, verdict.site), set()).add(accepts)
    return tuple(
        commit
        for commit in counted
        if majority([judge for judge in judges if said.get((judge, commit.site)) == {True}], judges)
    )


def verdicts_digest(verdicts: Iterable[Verdict]) -> str:
    """Return `sha256:` of the canonical JSON of the verdicts without signatures, duplicates dropped, sorted.

    Signatures are left out so that the digest names what was said, whoever relayed it.
    """
    said = {replace(verdict, signature="") for verdict in verdicts}
    return digest_json(sorted(said, key=_verdict_key))


def first_standing(rule: ScreenRule, fragments: int) -> Standing | None:
    """Return the standing before a fragment's first round; None where the job neither clips nor quarantines."""
    if not rule.clip and not rule.quarantine:
        return None
    return Standing(clip=rule.clip.hex(), window=rule.clip_window, quarantine=rule.quarantine, fragments=fragments)


def screening_of(params: Mapping[str, Any]) -> tuple[ScreenRule, int]:
    """Return the rule of a job with these params, as stored, and its number of fragments."""
    outer = params.get("outer")
    outer = outer if isinstance(outer, Mapping) else {}
    return from_json(ScreenRule, outer.get("screen") or {}, where="outer.screen"), int(outer.get("fragments") or 1)


def standing_before(
    rule: ScreenRule, fragments: int, number: int, earlier: Callable[[int], Round | None]
) -> tuple[Standing | None, bool]:
    """Return the standing before a round, and whether it is known.

    It follows from the last round of the same fragment; `earlier` returns a round by its number. Where that is not at
    hand, or has no certificate, the standing is not known: that before the first round is returned.
    """
    first = first_standing(rule, fragments)
    if first is None or number <= fragments:
        return first, True
    before = earlier(number - fragments)
    return (first, False) if before is None or before.certificate is None else (standing_after(before), True)


def standing_after(round_: Round) -> Standing | None:
    """Return the standing that a certified round leaves to the next one.

    Norms are kept as they were applied, so that nobody raises the median by more than the clip factor a round, and one
    of each partner, so that more sites are no more say.
    """
    given = round_.certificate
    if given is None or given.standing is None:
        return None
    before = given.standing
    counted = _counted(round_.job, round_.number, round_.commits, round_.rulings, before)
    norms = {commit.site: stated_norm(commit) for commit in counted}
    applied: dict[str, list[float]] = {}
    for part in given.contributions:
        if norms.get(part.site):
            whose = partner_of(part.site) if before.fragments else part.site
            applied.setdefault(whose, []).append(norms[part.site] * float.fromhex(part.clip))
    refused = dict(_forgiven(before, round_.rulings, round_.number))
    condemned = _condemned(counted, round_.verdicts)
    for commit in counted:
        if commit.site in condemned:
            refused[commit.site] = refused.get(commit.site, 0) + 1
        elif any(part.site == commit.site for part in given.contributions):
            refused.pop(commit.site, None)
    return replace(
        before,
        norms=(*before.norms, *(median(found).hex() for found in applied.values()))[-before.window :],
        refused=tuple(sorted(refused.items())),
    )


def left_out(number: int, rulings: Iterable[Ruling], standing: Standing | None) -> frozenset[str]:
    """Return the sites whose commits do not count in round `number`: rejected by an admin, or in quarantine."""
    given = tuple(rulings)
    last: dict[str, tuple[int, bool]] = {}
    for ruling in given:
        if ruling.round <= number:
            # Of two rulings for one round the one that leaves out holds.
            said = (ruling.round, ruling.action != "readmit")
            last[ruling.site] = max(said, last.get(ruling.site, said))
    out = {site for site, (_, rejected) in last.items() if rejected}
    if standing is not None and standing.quarantine:
        out |= {site for site, times in _forgiven(standing, given, number) if times >= standing.quarantine}
    return frozenset(out)


def withdrawn(number: int, rulings: Iterable[Ruling]) -> frozenset[str]:
    """Return the sites that have left the job for good in round `number`."""
    return frozenset(one.site for one in rulings if one.action == "withdraw" and one.round <= number)


def certify(
    job: str,
    number: int,
    previous_outer: str,
    commits: Iterable[Commit],
    verdicts: Iterable[Verdict],
    *,
    rulings: Iterable[Ruling] = (),
    standing: Standing | None = None,
) -> Certificate:
    """Return the one certificate, unsigned, that these imply for round `number` of `job`.

    `previous_outer` is the digest of the outer state before the round, `standing` what the round before left
    (`standing_after`). The rule stands at the head of this module.
    """
    spoken = tuple(verdicts)
    accepted = accepted_commits(_counted(job, number, commits, rulings, standing), spoken)
    total = sum(commit.tokens for commit in accepted)
    return Certificate(
        job=job,
        round=number,
        previous_outer=previous_outer,
        contributions=tuple(
            Contribution(
                site=commit.site,
                digest=commit.digest,
                tokens=commit.tokens,
                weight=(commit.tokens / total).hex(),
                clip=_clip_scale(commit, standing),
            )
            for commit in accepted
        ),
        verdicts_digest=verdicts_digest(spoken),
        standing=standing,
    )


def check_certificate(round_: Round, previous_outer: str) -> Certificate:
    """Return the round's certificate if it is the one that its commits, verdicts, rulings and own standing imply.

    Whether that standing is right shows only from the round before: `check_standing`. Raises VerificationError where
    the certificate is missing or differs, naming the first field that does.
    """
    where = f"job {round_.job}, round {round_.number}"
    given = round_.certificate
    if given is None:
        raise VerificationError("the round has no certificate", where=where)
    implied = certify(
        round_.job,
        round_.number,
        previous_outer,
        round_.commits,
        round_.verdicts,
        rulings=round_.rulings,
        standing=given.standing,
    )
    for name in ("job", "round", "previous_outer", "verdicts_digest", "contributions"):
        if getattr(given, name) != getattr(implied, name):
            raise VerificationError(
                f"the certificate does not follow from the verdicts: {name} is {getattr(given, name)!r}, "
                f"the rule gives {getattr(implied, name)!r}",
                where=where,
                fix="stop the job and open a dispute with this certificate and the round's verdicts",
            )
    return given


def check_standing(certificate: Certificate, expected: Standing | None, *, past: bool = False) -> None:
    """Raise VerificationError unless the certificate carries the standing that the round before left.

    With `past` a training may have begun by the rule of certificates that do not name their fragments.
    """
    begins = past and expected is not None and not expected.norms and not expected.refused
    if begins and expected is not None and certificate.standing == replace(expected, fragments=0):
        return
    if certificate.standing != expected:
        raise VerificationError(
            f"the certificate carries {certificate.standing!r}, the round before left {expected!r}",
            where=f"job {certificate.job}, round {certificate.round}",
            fix="stop the job and open a dispute with the certificates of both rounds",
        )


def _counted(
    job: str, number: int, commits: Iterable[Commit], rulings: Iterable[Ruling], standing: Standing | None
) -> tuple[Commit, ...]:
    mine = (ruling for ruling in rulings if ruling.job == job)
    out = left_out(number, mine, standing)
    return tuple(commit for commit in counted_commits(job, number, commits) if commit.site not in out)


def _forgiven(standing: Standing, rulings: Iterable[Ruling], number: int) -> tuple[tuple[str, int], ...]:
    """The refusals that still count in a round: an admin's readmission since the round before wipes a site's out."""
    before = number - max(1, standing.fragments)
    back = {ruling.site for ruling in rulings if before < ruling.round <= number and ruling.action == "readmit"}
    return tuple((site, times) for site, times in standing.refused if site not in back)


def _condemned(counted: tuple[Commit, ...], verdicts: Iterable[Verdict]) -> set[str]:
    """The sites that a majority of the judges refuses for what they sent."""
    digests = {commit.site: commit for commit in counted}
    judges: dict[str, set[str]] = {}
    for verdict in verdicts:
        commit = digests.get(verdict.site)
        if commit is None or verdict.judge not in digests or verdict.accept or verdict.digest != commit.digest:
            continue
        if (verdict.job, verdict.round) == (commit.job, commit.round) and verdict.reason not in NOT_ITS_FAULT:
            judges.setdefault(verdict.site, set()).add(verdict.judge)
    return {site for site, said in judges.items() if majority(said, digests)}


def stated_norm(commit: Commit) -> float:
    """Return the norm a commit states; 0 where it states none that could be."""
    try:
        norm = float.fromhex(commit.norm)
    except (ValueError, OverflowError):
        return 0.0
    return norm if math.isfinite(norm) and norm > 0 else 0.0


def _clip_scale(commit: Commit, standing: Standing | None) -> str:
    if standing is None or not float.fromhex(standing.clip) or not standing.norms:
        return NO_CLIP
    norm = stated_norm(commit)
    limit = float.fromhex(standing.clip) * median(float.fromhex(known) for known in standing.norms)
    return min(1.0, limit / norm).hex() if norm else float(0).hex()


def _verdict_key(verdict: Verdict) -> tuple[str, str, str, bool, str, str, str, int]:
    return (
        verdict.judge,
        verdict.site,
        verdict.digest,
        verdict.accept,
        verdict.reason,
        verdict.norm,
        verdict.job,
        verdict.round,
    )
