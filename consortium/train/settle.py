"""A leg's part where peers published another outer state than its own: compute again, say so, take what holds.

`consortium.train.disputes` has the rule. A leg whose memory was wrong finds so by itself and goes on with what its
store gives. One whose store was wrong takes state and momentum from a peer, whose digests most sites signed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from consortium.domain.data import ArtifactClass
from consortium.domain.training import Round, Settlement
from consortium.errors import ConflictError, ConsortiumError, NotFoundError, UnreachableError, VerificationError
from consortium.train.disputes import certificate_digest, check_settlement, published, recomputations, topics
from consortium.train.exchange import Exchange
from consortium.train.keep import OuterState
from consortium.train.outer import Vector, from_bytes, to_bytes, vector_digest
from consortium.train.parcels import fetch, send
from consortium.train.peers import Peers

Again = Callable[[int], tuple[Vector, Vector]]
"""Computes a round's outer state and momentum anew, from the private store and what peers sent."""


class Settling:
    """One leg's disputes. `size` is the model's number of parameters."""

    def __init__(self, exchange: Exchange, peers: Peers, size: int) -> None:
        self._exchange = exchange
        self._peers = peers
        self._size = size
        self._again: dict[int, tuple[Vector, Vector] | None] = {}

    def recompute(self, current: Round, mine: OuterState, again: Again) -> None:
        """Where a site published another state than `mine`, compute the round again and publish what it comes to, once.

        What cannot be computed again is said on stderr and not published: the others settle it.
        """
        number, certificate = current.number, current.certificate
        said = published(current)
        if number in self._again or certificate is None or set(said.values()) <= {mine.digest}:
            return
        others = ", ".join(f"{site} {digest}" for site, digest in sorted(said.items()) if digest != mine.digest)
        sys.stderr.write(f"round {number}: the outer state here is {mine.digest}, but {others}; computing it again\n")
        self._again[number] = None
        try:
            outer, momentum = self._again[number] = again(number)
        except (VerificationError, NotFoundError) as fault:
            sys.stderr.write(f"round {number} cannot be computed again here: {fault.render()}\n")
            return
        parts = {
            "certificate": certificate_digest(certificate),
            "momentum": vector_digest(momentum),
            "outer": vector_digest(outer),
        }
        try:
            for part, topic in topics(number).items():
                self._exchange.agree(topic, parts[part])
        except ConflictError as fault:
            sys.stderr.write(f"round {number} came to something else when it was computed again before: {fault.what}\n")

    def alone(self, current: Round, holds: str, mine: OuterState, again: Again) -> OuterState:
        """Return the state that `holds` after a round that was closed without this site, whose own is another one.

        It is computed again: a fault that passes does not come twice. Raises VerificationError where it does.
        """
        number = current.number
        sys.stderr.write(f"round {number} was closed with {holds}, not {mine.digest} as here; computing it again\n")
        try:
            outer, momentum = again(number)
        except (VerificationError, NotFoundError) as fault:
            sys.stderr.write(f"round {number} cannot be computed again here: {fault.render()}\n")
            outer, momentum = mine.outer, mine.momentum
        if vector_digest(outer) != holds:
            self._peers.compare(f"outer/{number}", mine.digest, published(current))
        return replace(mine, digest=holds, outer=outer, momentum=momentum)

    def settled(self, current: Round, mine: OuterState) -> OuterState:
        """Return the state that holds after a settled round; where it is this site's to do, send it to who lacks it.

        Raises VerificationError where the settlement does not follow from what sites signed.
        """
        said = {part: self._exchange.agreements(topic) for part, topic in topics(current.number).items()}
        settlement = check_settlement(current, recomputations(said))
        state = self._held(current.number, settlement, mine)
        self._hand_over(current.number, settlement, state)
        self._again.pop(current.number, None)
        return state

    def _held(self, number: int, settlement: Settlement, mine: OuterState) -> OuterState:
        wanted = (settlement.outer, settlement.momentum)
        if _digests(mine.outer, mine.momentum) == wanted:
            return mine
        again = self._again.get(number)
        if again is not None and _digests(*again) == wanted:
            sys.stderr.write(f"round {number}: computed again here, the outer state is that of the others\n")
        else:
            sys.stderr.write(f"round {number}: {', '.join(settlement.agree)} hold another state; taking it from them\n")
            names, sender = ("outer", "momentum"), settlement.agree[0]
            outer, momentum = (self._receive(n, number, d, sender) for n, d in zip(names, wanted, strict=True))
            again = (outer, momentum)
        return replace(mine, digest=settlement.outer, outer=again[0], momentum=again[1])

    def _hand_over(self, number: int, settlement: Settlement, state: OuterState) -> None:
        behind = [site for site in settlement.parties if site not in settlement.agree and site in self._peers.sites]
        if not behind or settlement.agree[0] != self._peers.site:
            return
        for name, vector in (("outer", state.outer), ("momentum", state.momentum)):
            try:
                send(
                    self._exchange,
                    ArtifactClass.OUTER_STATE,
                    f"{name}-{number}",
                    to_bytes(vector),
                    round=number,
                    recipients=behind,
                )
            except ConsortiumError as fault:
                sys.stderr.write(f"the {name} after round {number} was not sent to {', '.join(behind)}: {fault.what}\n")

    def _receive(self, name: str, number: int, digest: str, sender: str) -> Vector:
        """Return what a peer hands over, whoever it is: its digest is the one that most sites signed."""
        self._exchange.progress(phase=f"waiting for the {name} that holds", round=number)
        most_bytes = 4 * self._size
        for _ in self._peers.patiently():
            try:
                data = fetch(
                    self._exchange, ArtifactClass.OUTER_STATE, digest, round=number, first=sender, most_bytes=most_bytes
                )
            except (NotFoundError, UnreachableError, VerificationError):
                continue  # not sent yet, or not to be had now: another may hand it over
            return from_bytes(data, self._size, what=f"the {name} after round {number}")
        raise AssertionError("waiting ends only with a result")


def _digests(outer: Vector, momentum: Vector) -> tuple[str, str]:
    return vector_digest(outer), vector_digest(momentum)
