"""One leg's part in federated training: rounds of inner steps, commit, verdicts, certificate, outer step.

`FederatedLeg.run` is a loop over `advance`, and every step of it may be repeated after a crash: what was made is in the
private store before it is announced, and what was announced is read back from the server before anything is made anew.
How long to wait is the server's to say: the leg follows the round's phase and has no deadline of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from consortium.domain.data import ArtifactClass
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.training import Certificate, Commit, Round, RoundPhase, Standing
from consortium.errors import ConflictError, ConsortiumError, VerificationError
from consortium.train.book import RoundBook
from consortium.train.codes import Code
from consortium.train.combine import combine
from consortium.train.exchange import Exchange
from consortium.train.keep import Contribution, Keep, Origin, OuterState
from consortium.train.outer import Vector, digest_of, nesterov, norm_of, to_bytes
from consortium.train.peers import INITIAL, JUDGED, Peers, commit_of
from consortium.train.rounds import check_certificate, check_standing, first_standing, standing_after
from consortium.train.screen import Gates
from consortium.train.start import starting_point
from consortium.train.within import Inner, RoundTrainer, Stopped


class Metrics(Protocol):
    """Where the numbers of a round go."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep the numbers of round `step`."""


class FederatedLeg:
    """Rank 0 of one leg."""

    def __init__(
        self,
        exchange: Exchange,
        keep: Keep,
        inner: Inner,
        params: PretrainConfig,
        origin: Origin,
        metrics: Metrics,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._exchange = exchange
        self._keep = keep
        self._book = RoundBook(exchange.store(), exchange.context.job)
        self._inner = inner
        self._params = params
        self._origin = origin
        self._size = origin.layout.size
        self._metrics = metrics
        self._code = Code.of(params.outer)
        self._peers = Peers(exchange, self._size, code=self._code, sleep=sleep)
        self._trainer = RoundTrainer(exchange, keep, inner, params, self._size)
        self._job = exchange.context.job
        self._site = exchange.context.site
        self.digests: dict[str, str] = {}
        """Digest of the outer state after each round this leg saw, by round."""
        self.losses: dict[str, float] = {}
        """Mean training loss of each round this leg contributed to, by round."""

    def run(self) -> OuterState | None:
        """Take part until the last round is closed; return the final outer state, None where the leg is to stop before.

        Raises VerificationError where a certificate, a digest or a peer's outer state does not hold.
        """
        try:
            return self._run()
        except Stopped:
            return None

    def _run(self) -> OuterState:
        self._book.note(self._params.outer)
        state = self._keep.newest(self._size)
        if state is None:
            state = self._begin()
        elif state.moments is not None:
            self._inner.restore(state.moments)
        self._publish(state)
        self.digests[str(state.round)] = state.digest
        while state.round < self._params.outer.rounds:
            state = self.advance(state)
        return state

    # -- round 0 --------------------------------------------------------------------------------------------------

    def _begin(self) -> OuterState:
        """Return the state before round 1: drawn here by the first peer, received by the others."""
        known = self._exchange.agreements("outer/0")
        first = self._site == self._peers.sites[0] and not known
        outer = self._first() if first else self._peers.receive_initial()
        state = OuterState(
            round=0,
            digest=digest_of(to_bytes(outer)),
            outer=outer,
            momentum=np.zeros(self._size, dtype=np.float32),
            position=0,
            tokens=0,
            moments=None,
        )
        self._keep.save_outer(state, self._origin)
        return state

    def _first(self) -> Vector:
        """Return freshly drawn parameters, or those that the job goes on from."""
        if not self._params.start.given:
            return self._inner.initial()
        return starting_point(self._exchange.store(), self._params.start, self._origin)

    def _publish(self, state: OuterState) -> None:
        """Publish and agree on the state before round 1, unless this site has done so already."""
        if state.round > 0 or self._site in (known := self._exchange.agreements("outer/0")):
            return
        if self._site == self._peers.sites[0] and len(self._peers.sites) > 1:
            self._exchange.send(ArtifactClass.OUTER_STATE, INITIAL, to_bytes(state.outer))
        self._peers.compare("outer/0", state.digest, known)
        self._exchange.agree("outer/0", state.digest)

    # -- one round ------------------------------------------------------------------------------------------------

    def advance(self, state: OuterState) -> OuterState:
        """Take part in the round after `state` and return the state after it."""
        number = state.round + 1
        started = time.monotonic()
        made = self._contribute(state, number)
        trained = time.monotonic()
        current = self._await_certificate(state, number, made)
        after = self._apply(state, current, made)
        self._agree(after)
        self._keep.save_outer(after, self._origin)
        self._peers.forget()
        self._report(after, current, made, trained - started, time.monotonic() - trained)
        return after

    def _contribute(self, state: OuterState, number: int) -> Contribution | None:
        """Make, keep, send and commit this site's contribution; None where the round goes on without it."""
        seen = self._peers.look(number)
        committed = commit_of(seen, self._site)
        made = self._keep.contribution(number, self._size)
        if made is not None and made.previous_outer != state.digest:
            made = None
        if committed is not None:
            return self._known(made, committed)
        if seen is not None and seen.phase is not RoundPhase.OPEN:
            return None
        if made is None:
            made = self._make(state, number)
            self._keep.save_contribution(made)
            self._keep.drop_begun(number)
        elif made.moments is not None:
            self._inner.restore(made.moments)
        return made if self._commit(made) else None

    def _make(self, state: OuterState, number: int) -> Contribution:
        done = self._trainer.train(state, number)
        made = self._code.encode(np.subtract(state.outer, done.local), state.residual)
        return Contribution(
            round=number,
            previous_outer=state.digest,
            data=made.data,
            digest=digest_of(made.data),
            norm=norm_of(self._code.decode(made.data, self._size)).hex(),
            loss=(done.loss_sum / done.steps).hex(),
            tokens=done.tokens,
            steps=done.steps,
            position=done.position,
            moments=done.moments,
            residual=made.residual,
        )

    def _commit(self, made: Contribution) -> bool:
        """Send and commit; False where the round stopped taking commits meanwhile."""
        if len(self._peers.sites) > 1:
            self._exchange.send(ArtifactClass.PSEUDO_GRADIENT, _name(made.round), made.data, round=made.round)
        try:
            self._exchange.commit(
                made.round, tokens=made.tokens, steps=made.steps, digest=made.digest, norm=made.norm, loss=made.loss
            )
        except ConflictError as fault:
            current = self._peers.look(made.round)
            if current is None or current.phase is RoundPhase.OPEN:
                raise
            if commit_of(current, self._site) is None:
                sys.stderr.write(f"round {made.round} goes on without this site: {fault.what}\n")
                return False
        return True

    def _known(self, made: Contribution | None, committed: Commit) -> Contribution:
        """Return the contribution this site committed before; it is in the private store, or something is wrong."""
        if made is None or made.digest != committed.digest:
            raise VerificationError(
                f"the server shows a commit {committed.digest} of {self._site}, which this site's store does not hold",
                where=f"job {self._job}, round {committed.round}",
                fix="restore the site's private store, or start the job anew",
            )
        if made.moments is not None:
            self._inner.restore(made.moments)
        return made

    # -- verdicts and certificate ---------------------------------------------------------------------------------

    def _await_certificate(self, state: OuterState, number: int, made: Contribution | None) -> Round:
        """Follow the round until it is certified, judging its commits on the way."""
        judged = False
        kept = f"{number - 1}.{self._params.outer.inner_steps}" if made is not None else f"{number - 1}"
        self._exchange.progress(phase="waiting", round=number, rounds=self._params.outer.rounds, kept=kept)
        for current in self._peers.follow(number):
            if current.phase in JUDGED:
                return current
            if current.phase is RoundPhase.JUDGING and not judged and made is not None:
                judged = True
                if commit_of(current, self._site) is not None:
                    self._peers.judge(current, made, self._gates(state, made))
        raise AssertionError("following ends only with a result")

    def _gates(self, state: OuterState, made: Contribution) -> Gates:
        """Return what this leg screens the round after `state` with."""
        rule = self._params.outer.screen

        def loss_of(gradient: Vector) -> float:
            return self._inner.probe(
                np.subtract(state.outer, gradient), position=made.position, count=rule.loss_sequences
            )

        return Gates(rule=rule, standing=self._standing(made.round), momentum=state.momentum, probe=loss_of)

    def _standing(self, number: int) -> Standing | None:
        """Return what the round before `number` left. Raises VerificationError where the store lost it."""
        first = first_standing(self._params.outer.screen)
        if number == 1 or first is None:
            return first
        before = self._book.round(number - 1)
        if before is None or before.certificate is None:
            raise VerificationError(
                f"{self._site} does not keep round {number - 1}, which says what may count in round {number}",
                where=f"job {self._job}",
                fix="restore the site's private store, or start the job anew",
            )
        return standing_after(before)

    # -- the outer step -------------------------------------------------------------------------------------------

    def _apply(self, state: OuterState, current: Round, made: Contribution | None) -> OuterState:
        """Return the state after a certified round. Raises VerificationError where the certificate does not hold."""
        certificate = check_certificate(current, state.digest)
        mine = commit_of(current, self._site)
        if mine is not None and (made is None or mine.digest != made.digest):
            raise VerificationError(
                f"the round counts a commit {mine.digest} that {self._site} did not make", where=f"job {self._job}"
            )
        check_standing(certificate, self._standing(current.number))
        self._keep.pin_certificate(certificate)
        self._book.save(current)
        outer, momentum = state.outer, state.momentum
        if certificate.contributions:
            vectors = self._peers.gather(certificate, made)
            self._retain(certificate)
            mean = combine(certificate.contributions, vectors, self._size, self._params.outer.screen)
            outer, momentum = nesterov(
                outer, momentum, mean, lr=self._params.outer.lr, momentum_decay=self._params.outer.momentum
            )
        counted = made if mine is not None else None
        applied = made is not None and any(
            (part.site, part.digest) == (self._site, made.digest) for part in certificate.contributions
        )
        return OuterState(
            round=current.number,
            digest=digest_of(to_bytes(outer)),
            outer=outer,
            momentum=momentum,
            position=counted.position if counted else state.position,
            tokens=state.tokens + (counted.tokens if counted else 0),
            moments=self._inner.moments(),
            residual=made.residual if made is not None and applied else state.residual,
        )

    def _retain(self, certificate: Certificate) -> None:
        """Keep what peers contributed for an audit, as far back as the job says."""
        rounds = self._params.outer.keep_received
        if rounds:
            for data in self._peers.wire(certificate):
                self._book.save_received(certificate.round, data)
            self._book.retain(certificate.round, rounds)

    def _agree(self, after: OuterState) -> None:
        """Publish the new state's digest, compare it with the peers', and wait until the server closes the round."""
        topic = f"outer/{after.round}"
        self._exchange.agree(topic, after.digest)
        self._peers.compare(topic, after.digest, self._exchange.agreements(topic))
        for current in self._peers.follow(after.round):
            self._peers.compare(topic, after.digest, current.outer_digests or {})
            if current.phase is RoundPhase.CLOSED:
                self._book.save(current)
                return
            if current.phase is RoundPhase.DISPUTED:
                raise VerificationError(f"round {after.round} is disputed", where=f"job {self._job}")

    # -- small things ---------------------------------------------------------------------------------------------

    def _report(
        self, after: OuterState, current: Round, made: Contribution | None, training_s: float, waiting_s: float
    ) -> None:
        self.digests[str(after.round)] = after.digest
        values = {
            "tokens": float(after.tokens),
            "sites": float(len(current.certificate.contributions) if current.certificate else 0),
            "training_s": training_s,
            "waiting_s": waiting_s,
        }
        if made is not None:
            self.losses[str(after.round)] = float.fromhex(made.loss)
            values |= {"loss": float.fromhex(made.loss), "pseudo_gradient_norm": float.fromhex(made.norm)}
        sys.stdout.write(f"round {after.round}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()) + "\n")
        sys.stdout.flush()
        self._exchange.progress(
            phase="round closed",
            round=after.round,
            rounds=self._params.outer.rounds,
            tokens=after.tokens,
            kept=f"{after.round}.0",
        )
        try:
            self._metrics.log(values, after.round)
        except ConsortiumError as fault:
            sys.stderr.write(f"the numbers of round {after.round} were not tracked: {fault.render()}\n")


def _name(number: int) -> str:
    return f"pseudo-gradient-{number}"
