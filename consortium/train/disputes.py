"""Where sites publish different outer states after a round: every site computes it again, and most of them are right.

The state after a round follows from the state before it, the certificate and the contributions. So who differs is
settled by recomputation, each leg's from what its private store holds and what peers' contributions hash to, not from
memory. What it comes to is published like any digest, signed by the site's gateway, under three topics:

    recomputed/<k>/certificate    the certificate it follows
    recomputed/<k>/momentum       the outer momentum after the round
    recomputed/<k>                the outer state after the round, last

The rule, in full: the parties are the sites whose commits the round counts; who is left out has no say. A
recomputation counts if it follows the round's certificate. A state and momentum that parties with strictly more than
half of the votes recomputed (`consortium.train.votes`), and at least two of them, are those that hold; otherwise it is
undecided. A party that published or recomputed another state differs.

A party is named by what it signed. The rule finds faults of memory, disks and programs, and a lone liar; where most
parties lie, the honest site is the one that differs, and what it kept shows it (`consortium.train.replay`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from consortium.domain.training import Certificate, Recomputed, Round, Settlement
from consortium.errors import VerificationError
from consortium.keys.canonical import digest_json
from consortium.train.rounds import counted_commits, left_out
from consortium.train.votes import chosen


def topics(number: int) -> dict[str, str]:
    """Return the topics of a recomputation's parts, in the order in which they are published."""
    whole = f"recomputed/{number}"
    return {"certificate": f"{whole}/certificate", "momentum": f"{whole}/momentum", "outer": whole}


def certificate_digest(certificate: Certificate) -> str:
    """Return the digest of a certificate without its signature."""
    return digest_json(replace(certificate, signature=""))


def recomputations(said: Mapping[str, Mapping[str, str]]) -> dict[str, Recomputed]:
    """Return the whole recomputations by site; `said` holds the digests by part and site."""
    sites = set.intersection(*(set(part) for part in said.values()))
    return {site: Recomputed(**{part: said[part][site] for part in said}) for site in sorted(sites)}


def parties(current: Round) -> tuple[str, ...]:
    """Return the sites that have a say in what a certified round's outer state is, in order.

    Where all are left out, and the state stays as it was: all that committed.
    """
    standing = current.certificate.standing if current.certificate else None
    out = left_out(current.number, current.rulings, standing)
    counted = (commit.site for commit in counted_commits(current.job, current.number, current.commits))
    heard = tuple(site for site in counted if site not in out)
    return heard or tuple(sorted({commit.site for commit in current.commits}))


def published(current: Round) -> dict[str, str]:
    """Return what the parties published as the digest of a round's outer state."""
    said = current.outer_digests or {}
    return {site: said[site] for site in parties(current) if site in said}


def holding(current: Round) -> str:
    """Return the digest of the outer state after a closed round: as settled, or what most parties published.

    Empty where there is none; who publishes late changes nothing.
    """
    if current.settlement is not None:
        return current.settlement.outer
    said = published(current)
    return chosen(said, said) or ""


def beginning(sites: Iterable[str], said: Mapping[str, str], *, resumed: bool) -> str:
    """Return the digest of the state before round 1; empty where there is none.

    The first of the attempt's sites draws it and sends it to the others, so its word alone counts. While it said
    nothing, what a site before it had drawn that was withdrawn since counts where one of the attempt's says that it has
    that. Where each site brought its own of an earlier job it is what most of those hold that say so.
    """
    here = sorted(sites)
    counted = {site: said[site] for site in here if site in said}
    if resumed:
        return chosen(counted, counted) or ""
    earlier = min(said, default="")
    if here and here[0] not in said and earlier < here[0]:
        return said[earlier] if said.get(earlier, "") in counted.values() else ""
    return said.get(here[0], "") if here else ""


def settle(current: Round, recomputed: Mapping[str, Recomputed]) -> Settlement:
    """Return what the rule at the head of this module gives for a certified round."""
    asked, said = parties(current), published(current)
    follows = "" if current.certificate is None else certificate_digest(current.certificate)
    votes = {site: recomputed[site] for site in asked if site in recomputed and recomputed[site].certificate == follows}
    states = {site: (one.outer, one.momentum) for site, one in votes.items()}
    holds = chosen(states, asked)
    agree = tuple(site for site, state in states.items() if state == holds)
    if holds is None or len(agree) < 2:
        return Settlement(parties=asked, outer="")
    outer, momentum = holds
    differ = [s for s in asked if said.get(s, outer) != outer or (s in recomputed and s not in agree)]
    return Settlement(parties=asked, outer=outer, momentum=momentum, agree=agree, differ=tuple(differ))


def check_settlement(current: Round, recomputed: Mapping[str, Recomputed]) -> Settlement:
    """Return a round's settlement if what the parties recomputed bears it out.

    Who speaks later changes nothing of it. Raises VerificationError where it does not follow.
    """
    given = current.settlement
    implied = None if given is None else settle(current, recomputed)
    if given is None or implied is None or not given.outer or (given.outer, given.momentum, given.parties) != (
        implied.outer, implied.momentum, implied.parties
    ) or not set(given.agree) <= set(implied.agree) or len(given.agree) < 2:  # fmt: skip
        raise VerificationError(
            f"the settlement does not follow from the recomputations: it is {given!r}, the rule gives {implied!r}",
            where=f"job {current.job}, round {current.number}",
            fix="stop the job and open a dispute with what the sites published",
        )
    return given
