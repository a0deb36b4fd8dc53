"""What a leg asks of its peers and of the server: the initial state, contributions, verdicts, comparisons."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from consortium.domain.data import ArtifactClass
from consortium.domain.training import Certificate, Commit, Round, RoundPhase
from consortium.errors import ConflictError, ConsortiumError, NotFoundError, UnreachableError, VerificationError
from consortium.train import parcels
from consortium.train.codes import FP32, Code
from consortium.train.disputes import beginning
from consortium.train.exchange import Exchange
from consortium.train.keep import Contribution
from consortium.train.outer import Vector, finite, from_bytes
from consortium.train.received import Asked, Received
from consortium.train.rounds import withdrawn
from consortium.train.screen import Gates, Screened, screen
from consortium.train.sharded import Holding
from consortium.train.within import Stopped

INITIAL = "outer-0"
JUDGED = (RoundPhase.CERTIFIED, RoundPhase.CLOSED, RoundPhase.DISPUTED)
WITHHELD = frozenset({"missing", "unreachable", "digest"})
"""Reasons of a judge that could not have what others had."""
PASS_ON_S = 30.0
"""How long each holder of a contribution leaves it to those before it to pass it on."""
ABSENT_S = 30.0
"""How long a contribution may be on its way to be announced where no deadline says so."""
OWED_ROUNDS = 4
"""How many rounds a contribution is held for a judge that could not have it."""
SHORTEST_S = 5.0
"""A deadline that is nearer is not gone by: clocks differ, and a leg may have come late."""
LOOK_S = 2.0
"""How often a judge that waits for contributions looks whether its verdicts are still waited for."""
_SHORT_S, _LONG_S, _GROWTH = 0.2, 2.0, 1.1


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class _Debt:
    """A contribution that a judge could not have, or another site may still need."""

    round: int
    judge: str
    """Or another site that the round counts or waited for."""
    digest: str
    turn: int
    """How many other sites that have it send it before this one."""
    withheld: bool
    """Whether it said that it could not have it."""
    behind: bool
    """Whether it has no commit in the round: its steps may just take longer."""


class Peers:
    """The other sites of a job, through the leg's gateway. `size` is the model's number of parameters.

    Contributions are decoded for the `holders` of slices, where this site has some; states come whole.
    """

    def __init__(
        self,
        exchange: Exchange,
        size: int,
        *,
        code: Code = FP32,
        holders: Holding | None = None,
        sleep: Callable[[float], None] = time.sleep,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._exchange = exchange
        self._size = size
        self._code = code
        self._sleep = sleep
        self._now_s = now_s
        self._wall_s = wall_s
        self.job = exchange.context.job
        self.site = exchange.context.site
        self.sites = tuple(sorted({*exchange.context.peers, self.site}))
        self.kind = code.kind
        """What contributions are, for border rules."""
        self._received = Received(exchange, code, holders)
        """Contributions to the round at hand: judged first, applied later."""
        self._owed: dict[_Debt, float] = {}
        """What is owed, and since when that is known; where nobody asked for it, since the round is closed."""

    def forget(self) -> None:
        """Let go of the contributions of a round that is over, but for those owed to somebody."""
        self._received.clear({debt.digest for debt in self._owed})

    def initial(self) -> str:
        """Return the digest of the initial state once there is one (`disputes.beginning`)."""
        self._exchange.progress(phase="waiting for the initial state", site=self.sites[0])
        for _ in self.patiently():
            if digest := beginning(self.sites, self._exchange.agreements("outer/0"), resumed=False):
                return digest
        raise AssertionError("waiting ends only with a result")

    def receive_initial(self) -> Vector:
        """Return the initial state, whoever sends it."""
        agreed = self.initial()
        known = self._exchange.agreements("outer/0")
        publisher = min(site for site in self.sites if known.get(site) == agreed)
        for _ in self.patiently():
            try:
                data = parcels.fetch(
                    self._exchange,
                    ArtifactClass.OUTER_STATE,
                    agreed,
                    round=0,
                    first=publisher,
                    most_bytes=4 * self._size,
                )
            except UnreachableError as fault:
                sys.stderr.write(f"still waiting for the initial state of {publisher}: {fault.what}\n")
                continue
            except NotFoundError as fault:
                if self.site != publisher:
                    continue
                raise VerificationError(
                    f"the job's initial state was agreed on, but {self.site} neither holds it nor was sent it",
                    where=f"job {self.job}",
                    fix="restore the site's private store, or start the job anew",
                ) from fault
            initial = from_bytes(data, self._size, what=f"{INITIAL} of {publisher}")
            if not finite(initial):
                raise VerificationError(f"{INITIAL} of {publisher} holds values that are not finite")
            return initial
        raise AssertionError("waiting ends only with a result")

    def judge(self, current: Round, made: Contribution, gates: Gates, size: int) -> None:
        """Fetch, check and judge every commit of the round, unless this site's verdicts are known already.

        A contribution is sent once the round's commits are fixed, so it may not be announced yet. Who keeps this site
        waiting does not keep the others waiting for its verdicts on the rest: these go out while there is time, and
        what is not here near its end counts as missing, or, where it was announced, as unreachable.
        `size` is that of the part of the model that the round exchanges.
        """
        told = {verdict.site for verdict in current.verdicts if verdict.judge == self.site}
        if told >= {commit.site for commit in current.commits}:
            return
        possible = [one for one in current.commits if gates.work is None or gates.work.fits(one)]
        asked = self._received.take_all((one for one in possible if one.site != self.site), size)
        now = current
        # Where a verdict rests on what the others hold, one pass, with half of the time left to judge in.
        for last, share in ((True, 0.5),) if gates.together else ((False, 0.5), (True, 0.8)):
            seen = self._wait(asked, now, share)
            if seen is None:
                sys.stderr.write(f"round {current.number} goes on without this site's verdicts on {asked.waiting}\n")
                return
            now = seen
            if last:
                asked.give_up()
            here = [one for one in current.commits if last or one.site not in asked.waiting]
            faults = asked.faults | dict.fromkeys(asked.waiting, "unreachable")
            held = self._received.of(here, {self.site: made.data})
            judged = screen(here, held, faults, size, gates, code=self._received, beside=current.commits)
            self._tell(current.number, tuple(one for one in judged if one.commit.site not in told))
            told |= {one.site for one in here}
            if not asked.waiting:
                return

    def _left_s(self, current: Round) -> float:
        """Return how long there is for verdicts; infinity where the round has no deadline.

        And where it seems to be over, because this site's clock may be fast: the server says when it is.
        """
        left_s = current.deadline_ms / 1000 - self._wall_s()
        return left_s if left_s >= SHORTEST_S else math.inf

    def _wait(self, asked: Asked, seen: Round, share: float) -> Round | None:
        """Wait for what is asked for, for this share of the time left at the most, and return the round as last seen.

        None where it takes no verdicts any more. The server may give more time, as after an absence of its own.
        """
        begun_s = looked_s = self._now_s()
        until_s, asked_s, pause_s = begun_s + share * self._left_s(seen), -math.inf, _SHORT_S
        while asked.waiting:
            over = self._now_s() >= until_s
            if self._now_s() - looked_s >= LOOK_S:
                looked_s, now = self._now_s(), self.look(seen.number)
                if now is not None and now.phase in JUDGED:
                    return None
                if now is not None and now.deadline_ms != seen.deadline_ms:
                    seen, until_s = now, self._now_s() + share * self._left_s(now)
                    over = False
            if over:
                return seen
            self._look_up()
            self._sleep(0.0)
            if self._now_s() - asked_s >= pause_s:
                asked_s, pause_s = self._now_s(), min(_LONG_S, pause_s * _GROWTH)
                asked.look()
            if not math.isfinite(until_s) and self._now_s() - begun_s >= ABSENT_S:
                asked.give_up()
            asked.wait(_SHORT_S)
        return seen

    def _tell(self, number: int, judged: tuple[Screened, ...]) -> None:
        for one in judged:
            if one.reason:
                sys.stderr.write(f"round {number}: {one.commit.site} refused: {one.reason}\n")
        try:
            self._exchange.verdicts(number, [one.as_verdict() for one in judged])
        except ConflictError as fault:
            self._tolerate_late(number, judged, fault)

    def _tolerate_late(self, number: int, judged: tuple[Screened, ...], fault: ConflictError) -> None:
        """Verdicts may come too late, or differ from those given before a restart; neither is this leg's to hide."""
        current = self.look(number)
        if current is None or current.phase not in JUDGED:
            known = {verdict.site for verdict in current.verdicts if verdict.judge == self.site} if current else set()
            if not known >= {one.commit.site for one in judged}:
                raise fault
        sys.stderr.write(f"verdicts on round {number} were not taken: {fault.what}\n")

    def gather(self, certificate: Certificate, made: Contribution | None, size: int) -> dict[str, Vector]:
        """Return the accepted pseudo-gradients, waiting for those that cannot be had yet: the outer step needs all.

        `size` is that of the part of the model that the round exchanges. The vectors lie on disk.
        """
        vectors: dict[str, Vector] = {}
        for part in certificate.contributions:
            data: bytes | memoryview | None = made.data if made is not None and part.digest == made.digest else None
            for _ in self.patiently() if data is None else ():
                try:
                    self._received.take(certificate.round, part.site, part.digest, size)
                    data = self._received[part.digest]
                    break
                # Most judges had it, so it can be had: what its sender does to this site alone must not end the leg.
                except (UnreachableError, NotFoundError, VerificationError) as fault:
                    self._exchange.progress(phase="fetching", round=certificate.round, site=part.site)
                    sys.stderr.write(f"still waiting for the contribution of {part.site}: {fault.what}\n")
            if data is not None:
                vectors[part.site] = self._received.decode(data, size)
        return vectors

    def states(self, certificate: Certificate, made: Contribution | None, size: int) -> dict[str, Vector]:
        """Return the states of the accepted sites' inner optimisers, after `gather`. They lie on disk."""
        own = {made.digest: made.data} if made is not None else {}
        return {
            part.site: self._received.state_in(own.get(part.digest) or self._received[part.digest], size)
            for part in certificate.contributions
        }

    def owe(self, current: Round, certificate: Certificate) -> None:
        """Note what the certificate counts and another site may not have: without it that site comes no further.

        Some judge could not have it, or lost it with its leg, and its sender may have taken it back since. Who has the
        round's new state needs nothing: `pass_on` then forgets it. What was owed before still is, for some rounds.
        """
        self._owed = {debt: s for debt, s in self._owed.items() if current.number - OWED_ROUNDS < debt.round}
        committed = {commit.site for commit in current.commits}
        others = committed.union(current.expected, (verdict.judge for verdict in current.verdicts))
        others = (others & set(self.sites)) - withdrawn(current.number, current.rulings) - {self.site}
        for part in certificate.contributions:
            if part.site == self.site or part.digest not in self._received:
                continue
            reasons = {one.judge: one.reason for one in current.verdicts if one.site == part.site}
            for judge in others - {part.site}:
                had = {site for site, reason in reasons.items() if reason not in WITHHELD} - {part.site, judge}
                debt = _Debt(
                    round=current.number,
                    judge=judge,
                    digest=part.digest,
                    turn=sum(site < self.site for site in had) if self.site in had else len(had),
                    withheld=reasons.get(judge, "") in WITHHELD,
                    behind=judge not in committed,
                )
                self._owed[debt] = self._now_s()

    def pass_on(self, current: Round, *, last: bool = False) -> None:
        """Send what is owed to sites that still have not their round's new state: a sender may have left them out.

        Holders take turns, in order of sites, so that usually one of them sends: the first after a while, or as soon as
        the round is closed, because then nobody waits for the judge any more. Who did not say that it could not have it
        is left a while from then on, or some rounds where it is behind; after the `last` round nobody is left to.
        """
        said: dict[int, Mapping[str, str]] = {current.number: current.outer_digests or {}}
        for debt, since_s in sorted(self._owed.items()):
            if debt.round not in said:
                said[debt.round] = self._exchange.agreements(f"outer/{debt.round}")
            if debt.judge not in said[debt.round]:
                if not self._due(debt, since_s, current, last=last):
                    continue
                self._pass_on(debt.round, debt.judge, bytes(self._received[debt.digest]))
            del self._owed[debt]

    def _due(self, debt: _Debt, since_s: float, current: Round, *, last: bool) -> bool:
        closed = debt.round != current.number or current.phase is RoundPhase.CLOSED
        if debt.turn == 0 and closed and (debt.withheld or last):
            return True
        if not debt.withheld and not closed:
            self._owed[debt] = self._now_s()
            return False
        if debt.behind and not debt.withheld and current.number - debt.round < OWED_ROUNDS - 1:
            return False
        return self._now_s() - since_s >= (debt.turn + 1) * PASS_ON_S

    def _pass_on(self, number: int, judge: str, data: bytes) -> None:
        sys.stderr.write(f"round {number}: {judge} is passed on a contribution that it may not have\n")
        try:
            name = f"pseudo-gradient-{number}"
            parcels.send(self._exchange, self.kind, name, data, round=number, recipients=[judge])
        except ConsortiumError as fault:
            sys.stderr.write(f"round {number}: it was not taken: {fault.what}\n")

    def wire(self, certificate: Certificate) -> Iterator[bytes]:
        """Yield the accepted contributions of peers as they were committed; `gather` has fetched them."""
        for part in certificate.contributions:
            if part.site != self.site and part.digest in self._received:
                yield bytes(self._received[part.digest])

    def compare(self, topic: str, mine: str, known: Mapping[str, str]) -> None:
        """Raise VerificationError naming every site whose digest for `topic` is not `mine`."""
        differ = {site: digest for site, digest in sorted(known.items()) if digest != mine}
        if differ:
            raise VerificationError(
                f"{topic} of {self.site} is {mine}, but " + ", ".join(f"{s} has {d}" for s, d in differ.items()),
                where=f"job {self.job}",
                fix="recompute the round from its certificate and contributions to see who differs",
            )

    def look(self, number: int) -> Round | None:
        """Return a round as the server has it, or None where it is not open yet."""
        try:
            return self._exchange.round(number)
        except NotFoundError:
            return None

    def follow(self, number: int) -> Iterator[Round]:
        """Yield the round again and again: often right after its phase changed, then less and less."""
        phase, pause_s = None, _SHORT_S
        while True:
            self._look_up()
            current = self.look(number)
            if current is not None:
                if current.phase is not phase:
                    phase, pause_s = current.phase, _SHORT_S
                yield current
            self._sleep(pause_s)
            pause_s = min(_LONG_S, pause_s * _GROWTH)

    def _look_up(self) -> None:
        """Raise Stopped where the leg is to end: what it waits with is kept."""
        if self._exchange.stopping():
            raise Stopped

    def patiently(self) -> Iterator[None]:
        """Yield again and again, at intervals that grow."""
        pause_s = _SHORT_S
        while True:
            self._look_up()
            yield
            self._sleep(pause_s)
            pause_s = min(_LONG_S, pause_s * _GROWTH)


def commit_of(current: Round | None, site: str) -> Commit | None:
    """Return a site's commit to a round, if there is one."""
    return next((commit for commit in current.commits if commit.site == site), None) if current else None
