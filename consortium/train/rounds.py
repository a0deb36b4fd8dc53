"""The certificate of a round follows from its commits and verdicts by a pure rule that anyone can recompute.

The rule, in full:

1. A commit counts if it is of this job and round, its token count is above zero, and its site made no second, different
   commit (a site that contradicts itself is left out).
2. The judges are the sites whose commits count. A judge accepts a commit if its verdict names the commit's digest and
   accepts. Silence, another digest, or two verdicts that differ are no acceptance.
3. A commit is accepted if strictly more than half of the judges accept it.
4. The weight of an accepted commit is its tokens over the tokens of all accepted ones, correctly rounded to a double;
   its clip scale is 1. Both travel as hex floats. Contributions are in site order.

A certificate without contributions is valid and leaves the outer state as it is. Signatures are not part of the rule:
who receives commits and verdicts checks them first. The order in which messages arrived changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from consortium.domain.training import Certificate, Commit, Contribution, Round, Verdict
from consortium.errors import VerificationError
from consortium.keys.canonical import digest_json

NO_CLIP = float(1).hex()


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


def accepted_commits(counted: tuple[Commit, ...], verdicts: Iterable[Verdict]) -> tuple[Commit, ...]:
    """Return those of the `counted` commits that strictly more than half of their sites accept, in site order."""
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
        if 2 * sum(said.get((judge, commit.site)) == {True} for judge in judges) > len(judges)
    )


def verdicts_digest(verdicts: Iterable[Verdict]) -> str:
    """Return `sha256:` of the canonical JSON of the verdicts without signatures, duplicates dropped, sorted.

    Signatures are left out so that the digest names what was said, whoever relayed it.
    """
    said = {replace(verdict, signature="") for verdict in verdicts}
    return digest_json(sorted(said, key=_verdict_key))


def certify(
    job: str, number: int, previous_outer: str, commits: Iterable[Commit], verdicts: Iterable[Verdict]
) -> Certificate:
    """Return the one certificate, unsigned, that `commits` and `verdicts` imply for round `number` of `job`.

    `previous_outer` is the digest of the outer state before the round. The rule stands at the head of this module.
    """
    spoken = tuple(verdicts)
    accepted = accepted_commits(counted_commits(job, number, commits), spoken)
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
                clip=NO_CLIP,
            )
            for commit in accepted
        ),
        verdicts_digest=verdicts_digest(spoken),
    )


def check_certificate(round_: Round, previous_outer: str) -> Certificate:
    """Return the round's certificate if it is the one that its commits and verdicts imply.

    Raises VerificationError where it is missing or differs, naming the first field that does.
    """
    where = f"job {round_.job}, round {round_.number}"
    given = round_.certificate
    if given is None:
        raise VerificationError("the round has no certificate", where=where)
    implied = certify(round_.job, round_.number, previous_outer, round_.commits, round_.verdicts)
    for name in ("job", "round", "previous_outer", "verdicts_digest", "contributions"):
        if getattr(given, name) != getattr(implied, name):
            raise VerificationError(
                f"the certificate does not follow from the verdicts: {name} is {getattr(given, name)!r}, "
                f"the rule gives {getattr(implied, name)!r}",
                where=where,
                fix="stop the job and open a dispute with this certificate and the round's verdicts",
            )
    return given


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
