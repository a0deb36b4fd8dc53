"""What peers signed, as the server relays it: nothing reaches a leg whose signature does not hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consortium.domain.codec import from_json
from consortium.domain.protocol import LegOffer
from consortium.domain.training import Round
from consortium.errors import VerificationError
from consortium.keys.roster import Rosters
from consortium.keys.trust import Trust
from consortium.site.rulings import VerifiedRulings
from consortium.train.evidence import check_agreed, check_parts, check_rulings, check_signatures, new_rulings


def check_round(
    trust: Trust,
    offer: LegOffer,
    number: int,
    answer: Any,
    rosters: Callable[[], Rosters] | None = None,
    verified: VerifiedRulings | None = None,
) -> Round:
    """Return a round as the server gave it. Raises VerificationError unless every part was signed by whom it names.

    `rosters` gives the people whom partners vouch for; it is asked only where somebody ruled, and not again for what
    was `verified` before: who ruled may have left since.
    """
    where = f"{offer.job} round {number}"
    found = from_json(Round, answer, where=where)
    if (found.job, found.number) != (offer.job, number):
        raise VerificationError(f"the server answered with round {found.number} of {found.job!r}", where=where)
    check_parts(found, where)
    if found.rulings and rosters is not None:
        fresh = new_rulings(found, verified.of(offer.job) if verified is not None else ())
        if fresh:
            check_rulings(fresh.values(), rosters(), offer.spec.spec.account)
            if verified is not None:
                verified.pin(offer.job, *fresh)
    check_signatures(found, trust, where)
    return found


def check_agreements(trust: Trust, offer: LegOffer, topic: str, answer: Any) -> dict[str, str]:
    """Return the digests published for a topic, by site; `answer` holds digest and signature of each."""
    signed = from_json(dict[str, dict[str, str]], answer, where=f"agreements on {topic}")
    return check_agreed(trust, offer.job, topic, signed)
