"""One leg's part in federated training: rounds of inner steps, commit, verdicts, certificate, outer step.

`FederatedLeg.run` is a loop over `advance`, and every step of it may be repeated after a crash: what was made is in the
private store before it is announced, and what was announced is read back from the server before anything is made anew.
How long to wait is the server's to say: the leg follows the round's phase and has no deadline of its own.

With `outer.delay` all of a round but its inner steps (encoding, talking, the outer step, digests) is done beside the
next round's first steps (`consortium.train.beside`), and applied after exactly so many of them, so that the parameters
do not depend on how long it took.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from consortium.domain.pretraining import PretrainConfig
from consortium.domain.training import RoundPhase
from consortium.errors import ConsortiumError, UnreachableError, VerificationError
from consortium.keys.canonical import digest as digest_of
from consortium.train.beginning import Beginning
from consortium.train.beside import Behind, Beside
from consortium.train.book import RoundBook
from consortium.train.codes import Code
from consortium.train.combine import combine
from consortium.train.exchange import Exchange
from consortium.train.fragments import Plan
from consortium.train.keep import Begun, Contribution, Keep, Origin, OuterState
from consortium.train.meter import Metrics
from consortium.train.outer import Moments, Vector, difference, finite, norm_of, vector_digest, zeros_like
from consortium.train.outlast import Outlasting
from consortium.train.pace import steps_of
from consortium.train.peers import commit_of
from consortium.train.schedule import Rounds
from consortium.train.talk import Made, Met, Probe, Talk
from consortium.train.within import Inner, RoundTrainer, Stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """This site's part in a round, as far as the model takes part in it."""

    sent: Begun | Contribution
    """The inner steps, all done, or the contribution that was made of them before a crash."""
    committed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """What a round came to."""

    met: Met
    outer: Vector
    momentum: Vector
    digest: str
    """Of `outer`."""
    shared: Moments | None
    """The mean of the inner optimisers that counted, where sites go on from it."""


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
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exchange = exchange = Outlasting(exchange, sleep).exchange
        self._keep = keep
        self._book = RoundBook(exchange.store(), exchange.context.job)
        self._inner = inner
        self._params = params
        self._origin = origin
        self._size = origin.layout.size
        self._metrics = metrics
        self._rounds = Rounds.of(params)
        self._code = Code.of(params.outer, origin.sharing.size)
        self._plan = Plan.of(origin.layout, params.outer)
        self._talk = Talk(
            exchange, self._book, params, self._plan, origin, self._code, holders=keep.holders, sleep=sleep
        )
        self._peers = self._talk.peers
        self._trainer = RoundTrainer(exchange, keep, inner, params, self._size, now_s=now_s)
        self._job = exchange.context.job
        self._site = exchange.context.site
        self._behind = Behind()
        self._whole: set[int] | None = None
        """Rounds whose states are kept whole, once that was looked up."""
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
        finally:
            self._behind.end()

    def _run(self) -> OuterState:
        self._book.note(self._params.outer)
        beginning = Beginning(self._exchange, self._keep, self._talk, self._params, self._origin)
        state = beginning.kept(self._size)
        if state is not None:
            self._talk.joining.welcome(state)
        else:
            state = beginning.state(self._inner.initial)
        if state.moments is not None:
            self._inner.restore(state.moments)
        beginning.publish(state)
        self.digests[str(state.round)] = state.digest
        while state.round < self._params.outer.rounds:
            state = self.advance(state)
        return state

    # -- one round ------------------------------------------------------------------------------------------------

    def advance(self, state: OuterState) -> OuterState:
        """Take part in the round after `state` and return the state after it."""
        number = state.round + 1
        started = time.monotonic()
        done = self._done(state, number)
        delay = self._plan.delay(number)
        ahead: Begun | None = None
        if done is None or delay == 0:
            trained = time.monotonic()
            came = self._take_part(state, done, self._probe)
            ahead = None if done is None or not self._plan.carries else self._trainer.begun_after(done.sent)
        else:
            ahead, came, trained = self._take_part_beside(state, done, delay)
        after = self._closed(self._applied(state, came, ahead))
        self._peers.forget()
        self._report(after, came.met, trained - started, time.monotonic() - trained)
        return after

    def _done(self, state: OuterState, number: int) -> Done | None:
        """Find this site's contribution, or do its inner steps; None where the round goes on without it."""
        seen = self._peers.look(number)
        committed = commit_of(seen, self._site)
        made = self._keep.contribution(number, self._size, self._plan.fragment(number).size)
        if made is not None and made.previous_outer != state.digest:
            made = None
        if committed is not None:
            made = self._talk.known(made, committed)
        elif seen is not None and seen.phase is not RoundPhase.OPEN:
            return None
        if made is None:
            return Done(sent=self._trainer.train(state, number, self._steps(number)), committed=False)
        if made.moments is not None:
            self._inner.restore(made.moments)
        return Done(sent=made, committed=committed is not None)

    def _make(self, state: OuterState, done: Begun) -> Contribution:
        """Encode and keep what inner steps came to. Nothing of it is sent before it is in the store."""
        part = self._plan.fragment(done.round)
        carried = None if state.residual is None else part.take(state.residual)
        shared = self._origin.sharing.packed(done.moments) if self._code.state and done.moments is not None else None
        encoded = self._code.encode(difference(part.take(state.outer), part.take(done.local)), carried, shared)
        made = Contribution(
            round=done.round,
            previous_outer=state.digest,
            data=encoded.data,
            digest=digest_of(encoded.data),
            norm=norm_of(self._code.decode(encoded.data, part.size, self._keep.holders)).hex(),
            loss=(done.loss_sum / done.steps).hex(),
            tokens=done.tokens,
            steps=done.steps,
            position=done.position,
            moments=done.moments,
            residual=encoded.residual,
            local=done.local if self._plan.carries else None,
            train_ms=done.train_ms,
        )
        self._behind.put(partial(self._keep_made, made))
        return made

    def _keep_made(self, made: Contribution) -> None:
        """Keep a contribution, and only then forget the steps that it was made of."""
        self._keep.save_contribution(made)
        self._keep.drop_begun(made.round)

    def _steps(self, number: int) -> int:
        """Return this site's inner steps in a round: from the last one that it held the certificate of as it began."""
        return steps_of(self._site, self._talk.paced_by(number), self._rounds.steps(number))

    def _probe(self, outer: Vector, position: int, count: int) -> float:
        return self._inner.probe(outer, position=position, count=count)

    def _take_part_beside(self, state: OuterState, done: Done, delay: int) -> tuple[Begun, Came, float]:
        """Take part in the round while the next one's first `delay` steps are done; also when these were."""

        def asked(outer: Vector, position: int, count: int) -> float:
            loss: float = beside.ask(lambda: self._probe(outer, position, count))
            return loss

        encoded = threading.Event()
        work = partial(self._take_part, state, done, asked, beside=encoded)
        steps = self._steps(state.round + 2)
        first = delay * steps // self._params.outer.inner_steps
        beside = Beside(work, self._talk.halt)  # named before it begins: the work asks by this name
        with beside:
            try:
                ahead = self._trainer.train_on(done.sent, first, steps, beside)
                trained = time.monotonic()
                try:
                    return ahead, beside.result(), trained
                except Stopped:
                    self._trainer.keep(ahead)
                    raise
            except Stopped:
                encoded.wait()  # what is encoded is given to be written, and `run` writes what was given
                raise

    def _take_part(
        self, state: OuterState, done: Done | None, probe: Probe, *, beside: threading.Event | None = None
    ) -> Came:
        """Do all of a round but its inner steps: send what they came to, agree on what counts, take the outer step.

        Beside training all of it is done in a thread of its own, and `beside` is set once what the steps came to is
        given to be written. Where `state` was gone on from before it was agreed on, that comes first.
        """
        made = None
        try:
            if done is not None:
                sent = done.sent if isinstance(done.sent, Contribution) else self._make(state, done.sent)
                made = Made(contribution=sent, committed=done.committed)
        finally:
            if beside is not None:
                beside.set()
        self._behind.wait()
        if self._plan.carries and state.round > 0:
            self._settle(state)
        met = self._talk.exchange(state, made, probe, aside=beside is not None)
        self._keep.pin_certificate(met.certificate)
        self._book.save(met.round)
        self._retain(met)
        outer, momentum = self._stepped(state, met)
        digest, shared = vector_digest(outer), self._shared(met)
        came = Came(met=met, outer=outer, momentum=momentum, digest=digest, shared=shared)
        self._talk.agree(met.round.number, came.digest)
        return came

    # -- the outer step -------------------------------------------------------------------------------------------

    def _applied(self, state: OuterState, came: Came, ahead: Begun | None) -> OuterState:
        """Return the state after a certified round.

        A site whose contribution is not in it begins the next round from the outer state: what it trained meanwhile
        is not counted.
        """
        number, counted, trained = state.round + 1, came.met.counted, ahead is not None
        if came.shared is not None:
            self._inner.restore(came.shared)
        applied = came.met.applied(self._site)
        if ahead is not None and counted is not None and applied:
            ahead = replace(ahead, previous_outer=came.digest, local=self._plan.mix(number, ahead.local, came.outer))
        else:
            ahead = None
        if self._plan.carries and (ahead is None or came.digest == state.digest):
            # Kept steps that lead on from what does not count, or from before this round was mixed in: where it leaves
            # the digest as it is, nothing else tells them from those that lead on from it.
            self._keep.drop_ahead(number + 1)
        return OuterState(
            round=number,
            digest=came.digest,
            outer=came.outer,
            momentum=came.momentum,
            position=counted.position if counted else state.position,
            tokens=state.tokens + (counted.tokens if counted else 0),
            moments=came.shared or (self._moments(state, counted, trained) if ahead is None else ahead.moments),
            residual=self._residual(state, counted) if applied else state.residual,
            ahead=ahead,
        )

    def _moments(self, state: OuterState, counted: Contribution | None, trained: bool) -> Moments | None:
        """Return the inner optimiser's state from which the next round begins, and leave the inner optimiser at it.

        That after the steps that were committed; that before them where they are to be done again, or came to values
        that are not finite, because those would never leave it. `trained` says that more steps were done since.
        """
        if counted is not None and _finite(counted):
            if trained and counted.moments is not None:
                self._inner.restore(counted.moments)
            return counted.moments
        if counted is not None:
            sys.stderr.write(
                f"round {counted.round}: the steps here came to values that are not finite; the optimiser goes on from "
                "what it was before them, on the text after them\n"
            )
        if state.moments is not None:
            self._inner.restore(state.moments)
        elif (now := self._inner.moments()) is not None:
            self._inner.restore(Moments({name: zeros_like(one) for name, one in now.vectors.items()}, 0))
        return state.moments

    def _shared(self, met: Met) -> Moments | None:
        """Return the mean of the counted sites' inner optimisers; None where it is not shared, or none counts."""
        if not self._code.state or not met.certificate.contributions:
            return None
        states = self._peers.states(met.certificate, met.counted, self._size)
        vectors = self._origin.sharing.mean(met.certificate.contributions, states, self._params.optim.betas)
        return Moments(vectors, self._rounds.before(met.certificate.round + 1))

    def _stepped(self, state: OuterState, met: Met) -> tuple[Vector, Vector]:
        """Return the outer parameters and the momentum after a certified round."""
        number, rule = state.round + 1, self._params.outer
        if not met.certificate.contributions:
            return state.outer, state.momentum
        size = self._plan.fragment(number).size
        mean = combine(met.certificate.contributions, met.vectors, size, rule.screen)
        return self._plan.step(number, state.outer, state.momentum, mean, lr=rule.lr, momentum_decay=rule.momentum)

    def _again(self, number: int) -> tuple[Vector, Vector]:
        """Compute the outer step of a certified round anew, from what the store holds and what peers sent."""
        before = self._keep.outer(number - 1, self._size)
        kept = self._keep.contribution(number, self._size, self._plan.fragment(number).size)
        made = None if kept is None else Made(contribution=kept, committed=True)
        self._peers.forget()
        return self._stepped(before, self._talk.exchange(before, made, self._probe, aside=True))

    def _residual(self, state: OuterState, counted: Contribution | None) -> Vector | None:
        """Return the residual, whole, once a contribution is applied: a round changes its fragment's part."""
        if counted is None or counted.residual is None:
            return None
        before = zeros_like(state.outer) if state.residual is None else state.residual
        return self._plan.fragment(counted.round).put(before, counted.residual)

    def _retain(self, met: Met) -> None:
        """Keep what peers contributed for an audit, as far back as the job says."""
        rounds = self._params.outer.keep_received
        if rounds:
            for data in self._peers.wire(met.certificate):
                self._book.save_received(met.round.number, data)
            self._book.retain(met.round.number, rounds)

    def _closed(self, after: OuterState) -> OuterState:
        """Keep and return the state that holds: once the round is closed, or, where sites carry on meanwhile and it is
        not the last, behind the steps."""
        waits = not self._plan.carries or after.round == self._plan.rounds
        if waits:
            closed, holds = self._talk.closed(after, self._again)
            after = self._keep.placed(holds)
            self._book.save(closed)
        self._behind.put(partial(self._keep_state, after))
        if waits:
            self._behind.wait()
        return after

    def _keep_state(self, state: OuterState) -> None:
        self._keep.save_outer(state, self._origin)
        self._thin(state.round)

    def _thin(self, newest: int) -> None:
        """Keep of all but the newest states what an evaluation or an audit needs, where the job says so.

        One more stays whole: the last that surely holds and ends a cycle of fragments, as a training is resumed there.
        """
        rule = self._params.outer
        if rule.keep_whole < 0:
            return
        spared = (newest - 1) // rule.fragments * rule.fragments
        whole = {newest, *(self._keep.rounds() if self._whole is None else self._whole)}
        older = {number for number in whole if number <= newest - rule.keep_whole and number != spared}
        for number in sorted(older):
            self._keep.thin(number)
        self._whole = whole - older

    def _settle(self, state: OuterState) -> None:
        """Wait until the round that made `state` is closed. A state that is disputed is not kept.

        Raises UnreachableError where another state holds: it is kept, and the leg goes on from it once started anew.
        """
        try:
            self._talk.agree(state.round, state.digest)
            closed, holds = self._talk.closed(state, self._again)
        except VerificationError:
            self._keep.drop_outer(state.round)
            raise
        self._book.save(closed)
        self._peers.forget()
        if holds.digest != state.digest:
            self._keep.save_outer(replace(holds, ahead=None), self._origin)
            raise UnreachableError(
                f"{self._site} went on from an outer state after round {state.round} that does not hold",
                where=f"job {self._job}",
                fix="none is needed: the state that holds is kept, and the leg goes on from it",
            )

    # -- small things ---------------------------------------------------------------------------------------------

    def _report(self, after: OuterState, met: Met, training_s: float, waiting_s: float) -> None:
        self.digests[str(after.round)] = after.digest
        values = {
            "tokens": float(after.tokens),
            "sites": float(len(met.certificate.contributions)),
            "training_s": training_s,
            "waiting_s": waiting_s,
        }
        if met.counted is not None:
            loss, norm = float.fromhex(met.counted.loss), float.fromhex(met.counted.norm)
            self.losses[str(after.round)] = loss
            values |= {"loss": loss, "pseudo_gradient_norm": norm}
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


def _finite(made: Contribution) -> bool:
    """Whether neither a contribution nor its optimiser's state holds a NaN or infinity."""
    vectors = made.moments.vectors.values() if made.moments is not None else ()
    return math.isfinite(float.fromhex(made.norm)) and all(finite(one) for one in vectors)
