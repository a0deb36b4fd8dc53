"""Whether a round's parts are of that round, and signed by whom they name.

The rule that makes a certificate out of commits and verdicts leaves this out; who receives a round checks it first: a
site's gateway, the reader of a report, and who computes a training again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from consortium.domain.training import Round, Ruling
from consortium.errors import VerificationError
from consortium.keys.canonical import digest_json
from consortium.keys.roster import Rosters, verify_ruling
from consortium.keys.signing import verify_value
from consortium.keys.trust import Trust


def check_parts(found: Round, where: str) -> None:
    """Raise VerificationError where a commit, verdict, certificate or ruling is of another job or round."""
    parts = {(commit.job, commit.round) for commit in found.commits}
    parts |= {(verdict.job, verdict.round) for verdict in found.verdicts}
    if found.certificate is not None:
        parts.add((found.certificate.job, found.certificate.round))
    for job, number in sorted(parts - {(found.job, found.number)}):
        raise VerificationError(f"it holds parts of another round: {number} of {job!r}", where=where)
    for ruling in found.rulings:
        if ruling.job != found.job or ruling.round > found.number:
            raise VerificationError(
                f"it holds rulings of another job or a later round: {ruling.round} of {ruling.job!r}", where=where
            )


def check_signatures(found: Round, trust: Trust, where: str) -> None:
    """Raise VerificationError unless sites signed the commits and verdicts, and the server the certificate.

    Any trusted site's word on the job counts, as it signs none but for a leg of its own: of the sites that took part
    in earlier rounds some have left since.
    """
    for commit in found.commits:
        verify_value(trust.site_key(commit.site), commit, what=f"{commit.site}'s commit to {where}")
    for verdict in found.verdicts:
        verify_value(trust.site_key(verdict.judge), verdict, what=f"{verdict.judge}'s verdict in {where}")
    if found.certificate is not None:
        verify_value(trust.server_key, found.certificate, what=f"the certificate of {where}")


def check_agreed(trust: Trust, job: str, topic: str, signed: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the digests that sites published for a topic of a job; `signed` holds digest and signature by site.

    Any trusted site's word counts, as for a round's parts. Raises VerificationError where a signature does not hold.
    """
    for site, said in signed.items():
        if said.keys() != {"digest", "signature"}:
            raise VerificationError(f"of {topic} by {site} it holds {sorted(said)}, not a digest and its signature")
        statement = {"job": job, "topic": topic, "site": site, **said}
        verify_value(trust.site_key(site), statement, what=f"the digest of {topic} by {site}")
    return {site: said["digest"] for site, said in signed.items()}


def new_rulings(found: Round, verified: Collection[str]) -> dict[str, Ruling]:
    """Return a round's rulings by digest, signature included, but for those `verified` before."""
    by_digest = {digest_json(ruling): ruling for ruling in found.rulings}
    return {digest: ruling for digest, ruling in by_digest.items() if digest not in verified}


def check_rulings(rulings: Iterable[Ruling], people: Rosters, account: str = "") -> None:
    """Raise VerificationError unless each ruling was signed by an admin among `people` who may rule so.

    `account` is whose job it is; empty where that is not known.
    """
    for ruling in rulings:
        verify_ruling(ruling, people, account)
