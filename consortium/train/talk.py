"""One round as a leg talks about it: what it sends and commits, its verdicts, the certificate, the digests compared.

`Talk.exchange` is a chain of calls that may each be repeated after a crash. It may run beside the inner steps, in a
thread of its own (`consortium.train.beside`); then `probe` is what asks the thread that trains, and nothing else here
touches the model.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from consortium.domain.pretraining import PretrainConfig
from consortium.domain.training import Certificate, Commit, Round, RoundPhase, Standing
from consortium.errors import ConflictError, VerificationError
from consortium.train import parcels
from consortium.train.book import RoundBook
from consortium.train.codes import Code
from consortium.train.disputes import holding, published
from consortium.train.exchange import Exchange
from consortium.train.fragments import Plan
from consortium.train.joining import Joining
from consortium.train.keep import Contribution, Origin, OuterState
from consortium.train.outer import Vector, difference
from consortium.train.peers import JUDGED, Peers, commit_of
from consortium.train.rounds import (
    check_certificate,
    check_standing,
    left_out,
    standing_before,
    withdrawn,
)
from consortium.train.screen import Gates, Work
from consortium.train.settle import Again, Settling
from consortium.train.sharded import Holding
from consortium.train.within import Stopped

Probe = Callable[[Vector, int, int], float]
"""Mean loss of parameters, on so many sequences (the third) from a position (the second) on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What this site has for a round, and whether the server knows of it."""

    contribution: Contribution
    committed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """What an exchange came to."""

    round: Round
    """Certified, the certificate checked."""
    certificate: Certificate
    vectors: dict[str, Vector]
    """The accepted pseudo-gradients of the round's fragment, by site."""
    counted: Contribution | None
    """This site's, where its commit was taken; whether it was accepted, the certificate says."""

    def applied(self, site: str) -> bool:
        """Whether the certificate counts what this site made."""
        return self.counted is not None and any(
            (part.site, part.digest) == (site, self.counted.digest) for part in self.certificate.contributions
        )


class Talk:
    """This leg's side of the protocol between sites."""

    def __init__(
        self,
        exchange: Exchange,
        book: RoundBook,
        params: PretrainConfig,
        plan: Plan,
        origin: Origin,
        code: Code,
        *,
        holders: Holding | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._exchange = exchange
        self._book = book
        self._params = params
        self._plan = plan
        self._sleep = sleep
        self._job = exchange.context.job
        self._site = exchange.context.site
        self.halt = threading.Event()
        """Set where the leg ends while it talks in a thread of its own."""
        size = origin.layout.size
        self._sharing = origin.sharing if code.state else None
        self.peers = Peers(exchange, size, code=code, holders=holders, sleep=self._pause)
        self._settling = Settling(exchange, self.peers, size)
        self.joining = Joining(exchange, self.peers, book, params, size)

    def _pause(self, seconds: float) -> None:
        if self.halt.is_set():
            raise Stopped
        self._sleep(seconds)

    def exchange(self, state: OuterState, made: Made | None, probe: Probe, *, aside: bool = False) -> Met:
        """Take part in the round after `state` until it is certified and all that it counts is here.

        `aside` says that this site trains meanwhile, so that it does not tell people that it waits. Raises
        VerificationError where the certificate does not hold.
        """
        number = state.round + 1
        self.joining.welcome(state)
        mine = made.contribution if made is not None and (made.committed or self._commit(made.contribution)) else None
        current = self._await_certificate(state, number, mine, probe, aside=aside)
        certificate = check_certificate(current, state.digest)
        known = commit_of(current, self._site)
        if known is not None and (mine is None or known.digest != mine.digest):
            raise VerificationError(
                f"the round counts a commit {known.digest} that {self._site} did not make", where=f"job {self._job}"
            )
        check_standing(certificate, self._standing(number))
        vectors = self.peers.gather(certificate, mine, self._plan.fragment(number).size)
        self.peers.owe(current, certificate)
        return Met(
            round=current,
            certificate=certificate,
            vectors=vectors,
            counted=mine if known is not None else None,
        )

    def known(self, made: Contribution | None, committed: Commit) -> Contribution:
        """Return the contribution this site committed before; it is in the private store, or something is wrong."""
        if made is None or made.digest != committed.digest:
            raise VerificationError(
                f"the server shows a commit {committed.digest} of {self._site}, which this site's store does not hold",
                where=f"job {self._job}, round {committed.round}",
                fix="restore the site's private store, or start the job anew",
            )
        return made

    def agree(self, number: int, digest: str) -> None:
        """Publish the digest of the state after a round.

        Where this site published another before, recomputation has to settle it.
        """
        try:
            self._exchange.agree(f"outer/{number}", digest)
        except ConflictError as fault:
            sys.stderr.write(f"the outer state after round {number} is another one now: {fault.what}\n")

    def closed(self, after: OuterState, again: Again) -> tuple[Round, OuterState]:
        """Return the round once the server closed it, and the state that holds: `after`, or what was settled.

        Where sites published different states the round is computed `again` (`consortium.train.settle`), and so it is
        where it was closed with another than this site's. Raises VerificationError where that left it undecided.
        """
        last = after.round == self._params.outer.rounds
        for current in self.peers.follow(after.round):
            self.peers.pass_on(current, last=last)
            if current.phase is RoundPhase.CLOSED:
                if current.settlement is not None:
                    return current, self._settling.settled(current, after)
                if (holds := holding(current)) != after.digest:
                    after = self._settling.alone(current, holds, after, again)
                return current, after
            if current.phase is RoundPhase.DISPUTED:
                self.peers.compare(f"outer/{after.round}", after.digest, published(current))
                raise VerificationError(f"round {after.round} is disputed", where=f"job {self._job}")
            self._settling.recompute(current, after, again)
        raise AssertionError("following ends only with a result")

    def paced_by(self, number: int) -> Round | None:
        """Return the round whose speeds say how many steps a site has in this one; None: no speed does."""
        rule = self._params.outer
        earlier = number - 2 if rule.delay else number - 1
        return self._book.round(earlier) if rule.pace == "measured" and earlier > 0 else None

    # -- commit and verdicts --------------------------------------------------------------------------------------

    def _commit(self, made: Contribution) -> bool:
        """Commit; False where the round stopped taking commits meanwhile."""
        timed = {"train_ms": made.train_ms} if self._params.outer.pace == "measured" else {}
        try:
            self._exchange.commit(
                made.round,
                tokens=made.tokens,
                steps=made.steps,
                digest=made.digest,
                norm=made.norm,
                loss=made.loss,
                **timed,
            )
        except ConflictError as fault:
            current = self.peers.look(made.round)
            if current is None or current.phase is RoundPhase.OPEN:
                raise
            if commit_of(current, self._site) is None:
                sys.stderr.write(f"round {made.round} goes on without this site: {fault.what}\n")
                return False
        return True

    def _send(self, made: Contribution, current: Round) -> None:
        """Send a contribution to the peers, but for who was withdrawn from the job."""
        gone = withdrawn(made.round, current.rulings)
        if to := [site for site in self.peers.sites if site != self._site and site not in gone]:
            name = f"pseudo-gradient-{made.round}"
            parcels.send(self._exchange, self.peers.kind, name, made.data, round=made.round, recipients=to)

    def _await_certificate(
        self,
        state: OuterState,
        number: int,
        made: Contribution | None,
        probe: Probe,
        *,
        aside: bool,
    ) -> Round:
        """Follow the round until it is certified, judging its commits and letting sites join on the way.

        What this site made it sends once the set of commits is fixed: nobody can commit to a copy of it. After a crash
        it may have been sent before, which does no harm.
        """
        sent = judged = False
        kept = f"{number - 1}.{made.steps}" if made is not None else f"{number - 1}"
        if not aside:
            self._exchange.progress(phase="waiting", round=number, rounds=self._params.outer.rounds, kept=kept)
        for current in self.peers.follow(number):
            self.peers.pass_on(current)
            if current.phase is RoundPhase.OPEN:
                self.joining.welcome(state)
                continue
            mine = commit_of(current, self._site)
            taking = current.phase in (RoundPhase.JUDGING, RoundPhase.CERTIFIED)
            if taking and made is not None and mine is not None and mine.digest == made.digest and not sent:
                sent = True
                self._send(made, current)
            if current.phase in JUDGED:
                return current
            if made is not None and mine is not None and not judged:
                judged = True
                gates = self._gates(state, made, probe)
                out = left_out(number, current.rulings, gates.standing)
                counting = replace(current, commits=tuple(one for one in current.commits if one.site not in out))
                self.peers.judge(counting, made, gates, self._plan.fragment(number).size)
        raise AssertionError("following ends only with a result")

    def _gates(self, state: OuterState, made: Contribution, probe: Probe) -> Gates:
        """Return what this leg screens the round after `state` with."""
        rule, part = self._params.outer.screen, self._plan.fragment(made.round)

        def loss_of(gradient: Vector) -> float:
            outer = part.put(state.outer, difference(part.take(state.outer), gradient))
            return probe(outer, made.position, rule.loss_sequences)

        return Gates(
            rule=rule,
            work=Work.of(self._params, self._exchange.context, made.round, self.paced_by(made.round)),
            standing=self._standing(made.round),
            momentum=part.take(state.momentum),
            probe=loss_of,
            sharing=self._sharing,
        )

    def _standing(self, number: int) -> Standing | None:
        """Return what the last round of the same fragment left. Raises VerificationError where the store lost it."""
        rule = self._params.outer
        standing, known = standing_before(rule.screen, rule.fragments, number, self._book.round)
        if not known:
            raise VerificationError(
                f"{self._site} does not keep round {number - rule.fragments}, which says what may count in {number}",
                where=f"job {self._job}",
                fix="restore the site's private store, or start the job anew",
            )
        return standing
