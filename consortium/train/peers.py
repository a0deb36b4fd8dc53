"""What a leg asks of its peers and of the server: the initial state, contributions, verdicts, comparisons."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from consortium.domain.data import ArtifactClass
from consortium.domain.training import Certificate, Commit, Round, RoundPhase
from consortium.errors import ConflictError, ConsortiumError, NotFoundError, UnreachableError, VerificationError
from consortium.train import parcels
from consortium.train.codes import FP32, Code
from consortium.train.exchange import Exchange
from consortium.train.keep import Contribution
from consortium.train.outer import Vector, from_bytes
from consortium.train.screen import Gates, Screened, screen
from consortium.train.within import Stopped

INITIAL = "outer-0"
JUDGED = (RoundPhase.CERTIFIED, RoundPhase.CLOSED, RoundPhase.DISPUTED)
SMALLEST_BYTES = 1024
"""What may be fetched whatever the code: a header that says that a vector is not finite."""
WITHHELD = frozenset({"missing", "unreachable", "digest"})
"""Reasons of a judge that could not have what others had."""
PASS_ON_S = 30.0
"""How long each holder of a contribution leaves it to those before it to pass it on."""
_SHORT_S, _LONG_S, _GROWTH = 0.2, 2.0, 1.1


class Peers:
    """The other sites of a job, through the leg's gateway. `size` is the model's number of parameters."""

    def __init__(
        self,
        exchange: Exchange,
        size: int,
        *,
        code: Code = FP32,
        sleep: Callable[[float], None] = time.sleep,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exchange = exchange
        self._size = size
        self._code = code
        self._sleep = sleep
        self._now_s = now_s
        self.job = exchange.context.job
        self.site = exchange.context.site
        self.sites = tuple(sorted({*exchange.context.peers, self.site}))
        self._received: dict[str, bytes] = {}
        """Contributions to the round at hand, by digest: judged first, applied later."""
        self._owed: dict[tuple[str, str], tuple[float, bytes]] = {}
        """What judges of the round could not have, by judge and digest, and since when it is known."""

    def forget(self) -> None:
        """Let go of the contributions of a round that is over."""
        self._received.clear()

    def receive_initial(self) -> Vector:
        """Return the initial state that the first peer published: nobody else's word counts for it."""
        publisher = self.sites[0]
        self._exchange.progress(phase="waiting for the initial state", site=publisher)
        for _ in self.patiently():
            agreed = self._exchange.agreements("outer/0").get(publisher)
            if agreed is None:
                continue
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
            if not bool(np.isfinite(initial).all()):
                raise VerificationError(f"{INITIAL} of {publisher} holds values that are not finite")
            return initial
        raise AssertionError("waiting ends only with a result")

    def judge(self, current: Round, made: Contribution, gates: Gates, size: int) -> None:
        """Fetch, check and judge every commit of the round, unless this site's verdicts are known already.

        `size` is that of the part of the model that the round exchanges.
        """
        if {verdict.site for verdict in current.verdicts if verdict.judge == self.site} >= {
            commit.site for commit in current.commits
        }:
            return
        received, faults = {self.site: made.data}, dict[str, str]()
        for commit in current.commits:
            if commit.site != self.site:
                self._try_fetch(current.number, commit, size, received, faults)
        judged = screen(current.commits, received, faults, size, gates, code=self._code)
        for one in judged:
            if one.reason:
                sys.stderr.write(f"round {current.number}: {one.commit.site} refused: {one.reason}\n")
        try:
            self._exchange.verdicts(current.number, [one.as_verdict() for one in judged])
        except ConflictError as fault:
            self._tolerate_late(current.number, judged, fault)

    def _tolerate_late(self, number: int, judged: tuple[Screened, ...], fault: ConflictError) -> None:
        """Verdicts may come too late, or differ from those given before a restart; neither is this leg's to hide."""
        current = self.look(number)
        if current is None or current.phase not in JUDGED:
            known = {verdict.site for verdict in current.verdicts if verdict.judge == self.site} if current else set()
            if not known >= {one.commit.site for one in judged}:
                raise fault
        sys.stderr.write(f"verdicts on round {number} were not taken: {fault.what}\n")

    def _try_fetch(
        self, number: int, commit: Commit, size: int, received: dict[str, bytes], faults: dict[str, str]
    ) -> None:
        try:
            received[commit.site] = self._fetch(number, commit.site, commit.digest, size)
        except NotFoundError:
            faults[commit.site] = "missing"
        except VerificationError:
            faults[commit.site] = "digest"
        except UnreachableError:
            faults[commit.site] = "unreachable"

    def _fetch(self, number: int, site: str, digest: str, size: int) -> bytes:
        """Return a peer's contribution, from itself or from who passes it on; raises what `parcels.fetch` raises."""
        if digest not in self._received:
            most_bytes = max(self._code.bytes_for(size), SMALLEST_BYTES)
            self._received[digest] = parcels.fetch(
                self._exchange,
                ArtifactClass.PSEUDO_GRADIENT,
                digest,
                round=number,
                first=site,
                most_bytes=most_bytes,
            )
        return self._received[digest]

    def gather(self, certificate: Certificate, made: Contribution | None, size: int) -> dict[str, Vector]:
        """Return the accepted pseudo-gradients, waiting for those that cannot be had yet: the outer step needs all.

        `size` is that of the part of the model that the round exchanges.
        """
        vectors: dict[str, Vector] = {}
        for part in certificate.contributions:
            data = made.data if made is not None and part.digest == made.digest else None
            for _ in self.patiently() if data is None else ():
                try:
                    data = self._fetch(certificate.round, part.site, part.digest, size)
                    break
                # Most judges had it, so it can be had: what its sender does to this site alone must not end the leg.
                except (UnreachableError, NotFoundError, VerificationError) as fault:
                    self._exchange.progress(phase="fetching", round=certificate.round, site=part.site)
                    sys.stderr.write(f"still waiting for the contribution of {part.site}: {fault.what}\n")
            if data is not None:
                vectors[part.site] = self._code.decode(data, size)
        return vectors

    def owe(self, current: Round, certificate: Certificate) -> None:
        """Note what the certificate counts and some judge could not have: without it that site comes no further."""
        counted = {part.site: part.digest for part in certificate.contributions}
        self._owed = {
            (verdict.judge, digest): (self._now_s(), self._received[digest])
            for verdict in current.verdicts
            if verdict.reason in WITHHELD
            and verdict.judge not in (self.site, verdict.site)
            and (digest := counted.get(verdict.site, "")) in self._received
        }

    def pass_on(self, current: Round) -> None:
        """Send what is owed to judges that still have not the round's new state: a sender may have left them out.

        Holders take turns, in order of sites, so that usually one of them sends.
        """
        turn = 1 + sum(commit.site < self.site for commit in current.commits)
        for (judge, digest), (since_s, data) in sorted(self._owed.items()):
            if judge not in (current.outer_digests or {}):
                if self._now_s() - since_s < turn * PASS_ON_S:
                    continue
                self._pass_on(current.number, judge, data)
            del self._owed[judge, digest]

    def _pass_on(self, number: int, judge: str, data: bytes) -> None:
        sys.stderr.write(f"round {number}: {judge} is passed on a contribution that it could not have\n")
        try:
            name = f"pseudo-gradient-{number}"
            parcels.send(self._exchange, ArtifactClass.PSEUDO_GRADIENT, name, data, round=number, recipients=[judge])
        except ConsortiumError as fault:
            sys.stderr.write(f"round {number}: it was not taken: {fault.what}\n")

    def wire(self, certificate: Certificate) -> Iterator[bytes]:
        """Yield the accepted contributions of peers as they were committed; `gather` has fetched them."""
        for part in certificate.contributions:
            if part.site != self.site and part.digest in self._received:
                yield self._received[part.digest]

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
