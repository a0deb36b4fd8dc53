"""What a leg begins with: the state before round 1, drawn, received or resumed, or that of a round where it joins late.

The first site in order of ids draws the parameters, or reads what the job goes on from, and sends them; nobody else
draws, because the same seed gives different bits on different processors. Where it was withdrawn before all had them,
those who do send them on, and whoever is the first then draws only where nobody has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from consortium.domain.data import ArtifactClass
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.training import RoundPhase
from consortium.errors import ConsortiumError
from consortium.train import parcels
from consortium.train.disputes import beginning
from consortium.train.exchange import Exchange
from consortium.train.keep import Keep, Origin, OuterState
from consortium.train.outer import Vector, to_bytes, vector_digest, zeros_like
from consortium.train.peers import INITIAL
from consortium.train.screen import Work
from consortium.train.sharded import placed
from consortium.train.start import resumed, starting_point
from consortium.train.talk import Talk
from consortium.train.votes import majority


class Beginning:
    """How a leg that keeps no state of the job comes to one."""

    def __init__(self, exchange: Exchange, keep: Keep, talk: Talk, params: PretrainConfig, origin: Origin) -> None:
        self._exchange = exchange
        self._keep = keep
        self._joining = talk.joining
        self._peers = talk.peers
        self._params = params
        self._start = params.start
        self._origin = origin
        self._site = exchange.context.site

    def kept(self, size: int) -> OuterState | None:
        """Return the newest state that this site keeps of the job and that counts; None where there is none.

        One before round 1 that it did not publish may be of an attempt that nobody who is left began with.
        """
        state = self._keep.newest(size)
        if state is None or state.round > 0 or self._start.resume or self._site == self._peers.sites[0]:
            return state
        if self._site in self._exchange.agreements("outer/0") or (word := self._peers.initial()) == state.digest:
            return state
        sys.stderr.write(f"{state.digest} is let go of: training begins with {word}\n")
        self._keep.drop_outer(0)
        return None

    def state(self, draw: Callable[[], Vector]) -> OuterState:
        """Return the state to begin with, and keep it. `draw` returns fresh parameters."""
        late = self._joining.late()
        if late:
            state = self._keep.placed(self._joining.join())
        elif self._start.resume:
            step_tokens = Work.of(self._params, self._exchange.context, 1).tokens_per_step
            state = resumed(self._exchange.store(), self._params, self._origin, step_tokens, self._keep.holders)
        else:
            state = self._drawn(draw)
        self._keep.save_outer(state, self._origin)
        if late:
            self._exchange.agree(f"outer/{state.round}", state.digest)
        return state

    def _drawn(self, draw: Callable[[], Vector]) -> OuterState:
        """Return the state before round 1: drawn here by the first peer, received by the others."""
        begun, sites = self._peers.look(1), self._peers.sites
        first = self._site == sites[0] and (begun is None or begun.phase is RoundPhase.OPEN)
        if not first or beginning(sites, self._exchange.agreements("outer/0"), resumed=False):
            outer = self._peers.receive_initial()
        elif self._start.given:
            outer = starting_point(self._exchange.store(), self._start, self._origin)
        else:
            outer = draw()
        digest, outer = vector_digest(outer), placed(outer, self._keep.holders)
        return OuterState(
            round=0,
            digest=digest,
            outer=outer,
            momentum=zeros_like(outer),
            position=0,
            tokens=0,
            moments=None,
        )

    def publish(self, state: OuterState) -> None:
        """Publish and agree on the state before round 1, unless this site has done so already."""
        if state.round > 0:
            return
        first, again = self._peers.sites[0], self._start.resume
        known = self._exchange.agreements("outer/0")
        if self._site in known:
            if not again:
                self._pass_on(state, known)
            return
        if self._site == first and len(self._peers.sites) > 1 and not again:
            parcels.send(self._exchange, ArtifactClass.OUTER_STATE, INITIAL, to_bytes(state.outer))
        differ = {site: known[site] for site in sorted(known) if known[site] != state.digest}
        if again and majority(differ, self._peers.sites):
            self._peers.compare("outer/0", state.digest, differ)
        for site in differ:
            sys.stderr.write(f"{site} begins with another state, {differ[site]}; most sites, or the first, decide\n")
        self._exchange.agree("outer/0", state.digest)

    def _pass_on(self, state: OuterState, known: Mapping[str, str]) -> None:
        """Send the state to who may have none, where who drew it takes no part any more and this site is the first
        that has it."""
        sites = self._peers.sites
        silent = [site for site in sites if site not in known]
        if min(known) in sites or not silent or self._site != min(known.keys() & set(sites)):
            return
        try:
            data = to_bytes(state.outer)
            parcels.send(self._exchange, ArtifactClass.OUTER_STATE, INITIAL, data, recipients=silent)
        except ConsortiumError as fault:
            sys.stderr.write(f"{INITIAL} was not sent to {', '.join(silent)}, who may have none: {fault.what}\n")
