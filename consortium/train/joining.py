"""A site that is added in mid-training takes the newest outer state and momentum from the others, and goes on from it.

It asks by publishing, under `joining/<k>`, the digest of the outer state after round k, the newest that is closed. Who
holds that state publishes its momentum's digest under `momentum/<k>`, and the first of them sends both (class
`outer_state`, in parts where they are large); another does where that one does not. The joining site takes the state
that closed the round and the momentum that a majority of the round's sites signed, but for those that were withdrawn
since. It recomputes every earlier certificate first and keeps the rounds, as who was there keeps them: what may count
next follows from them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from consortium.domain.data import ArtifactClass
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.training import Round, RoundPhase
from consortium.errors import ConflictError, ConsortiumError, NotFoundError, UnreachableError, VerificationError
from consortium.train.book import RoundBook
from consortium.train.disputes import holding, parties
from consortium.train.exchange import Exchange
from consortium.train.keep import OuterState
from consortium.train.outer import Vector, finite, from_bytes, to_bytes, vector_digest
from consortium.train.parcels import fetch, send
from consortium.train.peers import PASS_ON_S, Peers, commit_of
from consortium.train.rounds import check_certificate, check_standing, standing_before, withdrawn
from consortium.train.votes import chosen

MOST_GIVEN = 3
"""How many rounds' states one leg gives to a site that joins: it begins with one, and may not get as far at once."""


class Joining:
    """One leg's part where sites are added: as the one that joins, or as one that lets others in."""

    def __init__(
        self,
        exchange: Exchange,
        peers: Peers,
        book: RoundBook,
        params: PretrainConfig,
        size: int,
    ) -> None:
        self._exchange = exchange
        self._peers = peers
        self._book = book
        self._outer = params.outer
        self._resumes = params.start.resume
        self._size = size
        self._strangers: frozenset[str] | None = None
        self._seen: dict[int, float] = {}
        self._given: set[tuple[str, int, str]] = set()
        self._looked_through = 0
        """The newest kept round whose commits were looked through for who is no stranger any more."""

    # -- the site that joins --------------------------------------------------------------------------------------

    def late(self) -> bool:
        """Whether this site, which keeps no state, was added to a training that went on before.

        It published no state that it began with. What it was sent says nothing: anybody can send anything.
        """
        first = None if self._resumes else self._peers.look(1)
        if first is None or first.phase is not RoundPhase.CLOSED:
            return False
        return self._peers.site not in self._exchange.agreements("outer/0")

    def join(self) -> OuterState:
        """Return the newest outer state that the others agree on, once one of them sent it.

        Raises VerificationError where a certificate does not follow from its round and those before it.
        """
        past: list[Round] = []
        for _ in self._peers.patiently():
            self._catch_up(past)
            number, digest = past[-1].number, holding(past[-1])
            self._exchange.progress(phase="waiting for the state to join with", round=number)
            if not digest:
                continue
            self._exchange.agree(_asked(number), digest)
            momentum = self._momentum(past[-1])
            outer = self._received("outer", digest, number) if momentum is not None else None
            if outer is None or momentum is None:
                continue
            sys.stderr.write(f"joining with the outer state after round {number}, {digest}\n")
            return OuterState(
                round=number, digest=digest, outer=outer, momentum=momentum, position=0, tokens=0, moments=None
            )
        raise AssertionError("waiting ends only with a result")

    def _catch_up(self, past: list[Round]) -> None:
        """Check and keep the closed rounds after those of `past`, and add them to it.

        Raises VerificationError where this site took part in one: to who did the others send no state to join with.
        """
        while len(past) < self._outer.rounds:
            current = self._peers.look(len(past) + 1)
            if current is None or current.phase is not RoundPhase.CLOSED:
                return
            self._check(current, past)
            if commit_of(current, self._peers.site) is not None:
                raise VerificationError(
                    f"{self._peers.site} committed to round {current.number}, but keeps no state of the job",
                    where=f"job {self._peers.job}",
                    fix="restore the site's private store, or start the job anew",
                )
            self._book.save(current)
            past.append(current)

    def _check(self, current: Round, past: list[Round]) -> None:
        if past:
            previous = holding(past[-1])
        else:  # what somebody publishes who came later says nothing
            committed = {commit.site for commit in current.commits}
            began = {site: said for site, said in self._exchange.agreements("outer/0").items() if site in committed}
            previous = began.get(min(began, default=""), "")
        certificate = check_certificate(current, previous)
        rule, number = self._outer, len(past) + 1
        expected, _ = standing_before(rule.screen, rule.fragments, number, lambda earlier: past[earlier - 1])
        check_standing(certificate, expected, past=True)

    def _momentum(self, closed: Round) -> Vector | None:
        """Return the momentum that a majority of a round's sites signed, once they did and it is here.

        Who was withdrawn since is not waited for.
        """
        following = self._peers.look(closed.number + 1)
        gone = withdrawn(closed.number + 1, following.rulings) if following is not None else frozenset()
        asked = [site for site in parties(closed) if site not in gone]
        said = self._exchange.agreements(f"momentum/{closed.number}")
        digest = chosen({site: said[site] for site in asked if site in said}, asked)
        return None if digest is None else self._received("momentum", digest, closed.number)

    def _received(self, name: str, digest: str, number: int) -> Vector | None:
        try:
            data = fetch(
                self._exchange, ArtifactClass.OUTER_STATE, digest, round=number, first="", most_bytes=4 * self._size
            )
        except (NotFoundError, UnreachableError, VerificationError):
            return None  # not sent yet, or not to be had now
        vector = from_bytes(data, self._size, what=f"the {name} after round {number}")
        if not finite(vector):
            raise VerificationError(f"the {name} after round {number} holds values that are not finite")
        return vector

    # -- the sites that let it in ---------------------------------------------------------------------------------

    def welcome(self, state: OuterState) -> None:
        """Send a state to sites that asked for it in order to join.

        Sites take turns, in order, so that usually one of them sends the state. What is not taken is said on stderr.
        """
        number = state.round
        asking = self._asking(state) if number and self._newcomers(number) else set[str]()
        if not asking:
            return
        since_s = self._seen.get(number)
        if since_s is None:
            since_s = self._seen[number] = time.monotonic()
            self._sign_momentum(state)
        held = self._exchange.agreements(f"outer/{number}")
        turn = sum(site < self._peers.site for site in held if site in self._peers.sites and site not in asking)
        if time.monotonic() - since_s >= turn * PASS_ON_S:
            for name, vector in (("outer", state.outer), ("momentum", state.momentum)):
                self._give(name, number, asking, partial(to_bytes, vector))

    def _sign_momentum(self, state: OuterState) -> None:
        try:
            self._exchange.agree(f"momentum/{state.round}", vector_digest(state.momentum))
        except ConflictError as fault:
            sys.stderr.write(f"the momentum after round {state.round} is another one now: {fault.what}\n")

    def _newcomers(self, number: int) -> frozenset[str]:
        """The peers that did not begin this training, nor committed to a kept round up to `number`: mostly none."""
        if self._strangers is None:
            began = self._exchange.agreements("outer/0")
            self._strangers = frozenset(self._peers.sites) - began.keys() - {self._peers.site}
        while self._strangers and self._looked_through < number:
            self._looked_through += 1
            with suppress(VerificationError):  # a damaged round says nothing
                kept = self._book.round(self._looked_through)
                self._strangers -= {commit.site for commit in kept.commits} if kept is not None else set()
        return self._strangers

    def _asking(self, state: OuterState) -> set[str]:
        said = self._exchange.agreements(_asked(state.round))
        asking = {
            site for site, digest in said.items() if digest == state.digest and site in self._newcomers(state.round)
        }
        if not asking:
            return asking
        return asking - self._exchange.agreements(f"outer/{state.round}").keys()

    def _give(self, name: str, number: int, asking: set[str], data: Callable[[], bytes]) -> None:
        to = sorted(site for site in asking if (name, number, site) not in self._given and self._may_have(site, number))
        if not to:
            return
        self._given |= {(name, number, site) for site in to}
        try:
            send(self._exchange, ArtifactClass.OUTER_STATE, f"{name}-{number}", data(), round=number, recipients=to)
        except ConsortiumError as fault:
            sys.stderr.write(f"{name}-{number} was not sent to {', '.join(to)}, which join: {fault.what}\n")

    def _may_have(self, site: str, number: int) -> bool:
        """Whether a site was not given the states of too many other rounds: who joins goes on from one."""
        return len({given for _, given, to in self._given if to == site} - {number}) < MOST_GIVEN


def _asked(number: int) -> str:
    return f"joining/{number}"
