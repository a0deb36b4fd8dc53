"""What a leg keeps in its site's private store, so that any crash costs at most the round it happened in.

    jobs/<job>/outer/<k>/<sha256>.f32          an outer state, momentum or optimiser's vector: fp32 little-endian
    jobs/<job>/outer/<k>/state.json            names them; written last, so that what it names is there
    jobs/<job>/rounds/<k>/inner.json           names parameters and the optimiser's state in mid-round
    jobs/<job>/rounds/<k>/<sha256>.f32         this site's contribution and its optimiser's state after the steps
    jobs/<job>/rounds/<k>/<sha256>.code        the contribution in place of the .f32 where it is encoded
    jobs/<job>/rounds/<k>/contribution.json    names them; written before the commit
    jobs/<job>/rounds/<k>/certificate.json     the certificate this site took, written before it is applied

Vectors lie under keys that hold their SHA-256 and are checked against it when read. Where several ranks hold one in
slices each writes its own, as an object, and whoever reads it puts them together, however many ranks read.

What encoding drops of a contribution (the residual) belongs to the outer state from which it is carried on, the new one
to the contribution. It moves into the next outer state if that round applied the contribution, and only then. A crash
before that reads the contribution back, or encodes again from the old residual, and gets the same bytes.

Where sites go on training while a round is judged, or keep parameters of their own (`fragments.Plan.carries`), those
stand beside the contribution as they were when it was sent, and beside the outer state as they were once it was
applied. Inner steps done in between are kept as the next round's, under the outer state before this one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from consortium.domain.codec import from_json
from consortium.domain.training import Certificate
from consortium.errors import ConflictError, NotFoundError, VerificationError
from consortium.train.outer import Moments, Vector
from consortium.train.sharded import placed
from consortium.train.shelf import Origin as Origin
from consortium.train.shelf import Pointer, Shelf, blobs, leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """This site's inner steps in a round, as far as they are done."""

    round: int
    previous_outer: str
    """Digest of the outer state that was applied last."""
    local: Vector
    """Parameters after the steps."""
    steps: int
    loss_sum: float
    tokens: int
    position: int
    moments: Moments | None
    train_ms: int = 0
    """Milliseconds the steps took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterState:
    """The state of a job at this site after round `round` (0: before the first)."""

    round: int
    digest: str
    outer: Vector
    momentum: Vector
    position: int
    """Sequences of this site's order that went into its contributions so far."""
    tokens: int
    """Tokens this site trained on so far."""
    moments: Moments | None
    residual: Vector | None = None
    """What encoding dropped of this site's contributions so far; None where nothing was."""
    ahead: Begun | None = None
    """What this site did of the next round already; None where it begins it from `outer`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """This site's part in a round, before it is committed."""

    round: int
    previous_outer: str
    data: bytes
    """As it is sent."""
    digest: str
    norm: str
    loss: str
    tokens: int
    steps: int
    position: int
    moments: Moments | None
    residual: Vector | None = None
    """What is left, of its fragment, once this contribution is applied; None where its code drops nothing."""
    local: Vector | None = None
    """This site's parameters, whole, when it was made; None where the next round begins from the outer state."""
    train_ms: int = 0
    thinned: bool = False
    """Whether only what was sent is kept: nothing says then what it left to the next round."""


class Keep(Shelf):
    """The private store as one job of one site sees it."""

    # -- outer states ---------------------------------------------------------------------------------------------

    def placed(self, state: OuterState) -> OuterState:
        """Return a state whose parameters and momentum lie as this site's vectors do."""
        outer, momentum = placed(state.outer, self.holders), placed(state.momentum, self.holders)
        return replace(state, outer=outer, momentum=momentum)

    def save_outer(self, state: OuterState, origin: Origin) -> None:
        """Keep an outer state; its pointer comes last."""
        prefix = f"{self._root}/outer/{state.round}"
        vectors = self._put_moments(prefix, state.moments)
        pointer = Pointer(
            round=state.round,
            position=state.position,
            tokens=state.tokens,
            vector=self._put_vector(prefix, state.outer, state.digest),
            momentum=self._put_vector(prefix, state.momentum),
            residual=self._put_residual(prefix, state.residual),
            optimizer=vectors,
            adam_steps=state.moments.steps if state.moments else 0,
            origin=origin,
        )
        if (ahead := state.ahead) is not None:
            pointer = replace(
                pointer,
                local=self._put_vector(prefix, ahead.local),
                steps=ahead.steps,
                loss=ahead.loss_sum.hex(),
                train_ms=ahead.train_ms,
                ahead_tokens=ahead.tokens,
                ahead_position=ahead.position,
            )
        self._put_json(f"{prefix}/state.json", pointer)

    def drop_outer(self, number: int) -> None:
        """Forget an outer state that does not hold; what it was made from is kept."""
        self._store.delete(f"{self._root}/outer/{number}/state.json")

    def thin(self, number: int) -> None:
        """Let go of what only going on from a round's outer state takes, or doing its inner steps again.

        That is the optimiser's vectors, residuals and parameters of the site's own: most of the bytes. Parameters,
        momentum and contribution stay, by which models are evaluated and rounds replayed. Pinned states stay whole.
        """
        if self._store.exists(f"{self._root}/outer/{number}/pinned"):
            return
        for room, name in (("outer", "state"), ("rounds", "contribution")):
            prefix = f"{self._root}/{room}/{number}/"
            try:
                pointer = self._pointer(f"{prefix}{name}.json")
            except (NotFoundError, VerificationError):
                continue
            if not pointer.thinned:
                pointer = replace(pointer, residual=None, local=None, optimizer={}, first=None, second=None)
                pointer = replace(pointer, thinned=True)
                self._put_json(f"{prefix}{name}.json", pointer)
            # Once the pointer is written; what a crash left lying is found the next time.
            held = {key for key in self._store.list(prefix) if key.endswith((".f32", ".code"))}
            self._delete(held - set(blobs(pointer)))

    def thinned(self, number: int) -> bool:
        """Whether `thin` took something of a kept outer state. Raises NotFoundError, VerificationError as `outer`."""
        return self._pointer(f"{self._root}/outer/{number}/state.json").thinned

    def named(self, number: int, *, inner: bool) -> Pointer:
        """Return what names this site's contribution to a round, or the `inner` steps kept of it.

        Raises NotFoundError, VerificationError.
        """
        return self._pointer(f"{self._root}/rounds/{number}/{'inner' if inner else 'contribution'}.json")

    def read(self, pointer: Pointer) -> None:
        """Read all that a pointer names. Raises NotFoundError, VerificationError where it is not as it was written."""
        for part in leaves(pointer):
            self._store.get(part.key, digest=part.digest)

    def rounds(self) -> list[int]:
        """Return the rounds whose outer state is kept, ascending."""
        keys = [key for key in self._store.list(f"{self._root}/outer/") if key.endswith("/state.json")]
        return sorted(int(key.split("/")[-2]) for key in keys)

    def newest(self, size: int) -> OuterState | None:
        """Return the newest outer state that reads back whole, or None. A damaged one is named on stderr and left."""
        for number in reversed(self.rounds()):
            try:
                return self.outer(number, size)
            except (VerificationError, NotFoundError) as fault:
                sys.stderr.write(f"outer state {number} is damaged, going back one round: {fault.what}\n")
        return None

    def outer(self, number: int, size: int) -> OuterState:
        """Return an outer state. Raises NotFoundError, also where it is thinned; VerificationError where it changed."""
        pointer = self._pointer(f"{self._root}/outer/{number}/state.json")
        if pointer.thinned:
            raise NotFoundError(
                f"of the state after round {number} only parameters and momentum are kept",
                where=f"{self._root}/outer/{number}",
                fix="take a newer one; outer.keep_whole says how many stay whole",
            )
        outer, momentum = self._stepped(pointer, size)
        moments = self._moments(pointer)
        return OuterState(
            round=number,
            digest=pointer.vector.digest,
            outer=outer,
            momentum=momentum,
            residual=self._vector(pointer.residual, size) if pointer.residual else None,
            position=pointer.position,
            tokens=pointer.tokens,
            moments=moments,
            ahead=self._ahead(pointer, size, moments),
        )

    def stepped(self, number: int, size: int) -> tuple[Vector, Vector]:
        """Return parameters and momentum after a round, also of a thinned state. Raises as `outer` does."""
        return self._stepped(self._pointer(f"{self._root}/outer/{number}/state.json"), size)

    def _stepped(self, pointer: Pointer, size: int) -> tuple[Vector, Vector]:
        if pointer.momentum is None:
            raise VerificationError("the outer state names no momentum", where=f"{self._root}/outer/{pointer.round}")
        return self._vector(pointer.vector, size), self._vector(pointer.momentum, size)

    def _ahead(self, pointer: Pointer, size: int, moments: Moments | None) -> Begun | None:
        if pointer.local is None:
            return None
        return Begun(
            round=pointer.round + 1,
            previous_outer=pointer.vector.digest,
            local=self._vector(pointer.local, size),
            steps=pointer.steps,
            loss_sum=float.fromhex(pointer.loss),
            tokens=pointer.ahead_tokens,
            position=pointer.ahead_position,
            moments=moments,
            train_ms=pointer.train_ms,
        )

    def measured(self, number: int) -> tuple[Origin, Vector]:
        """Return what an outer state's model looks like and its parameters, without the optimisers' states."""
        origin = self.origin(number)
        pointer = self._pointer(f"{self._root}/outer/{number}/state.json")
        return origin, self._vector(pointer.vector, origin.layout.size)

    def origin(self, number: int) -> Origin:
        """Return what an outer state's model looks like."""
        origin = self._pointer(f"{self._root}/outer/{number}/state.json").origin
        if origin is None:
            raise VerificationError("the outer state does not name its model", where=f"{self._root}/outer/{number}")
        return origin

    # -- contributions --------------------------------------------------------------------------------------------

    def save_contribution(self, made: Contribution) -> None:
        """Keep this site's contribution to a round, before it is committed."""
        prefix = f"{self._root}/rounds/{made.round}"
        vectors = self._put_moments(prefix, made.moments)
        pointer = Pointer(
            round=made.round,
            position=made.position,
            tokens=made.tokens,
            vector=self._put(prefix, made.data, ".f32" if made.residual is None else ".code", digest=made.digest),
            residual=self._put_residual(prefix, made.residual),
            local=None if made.local is None else self._put_vector(prefix, made.local),
            optimizer=vectors,
            adam_steps=made.moments.steps if made.moments else 0,
            previous_outer=made.previous_outer,
            norm=made.norm,
            loss=made.loss,
            steps=made.steps,
            train_ms=made.train_ms,
        )
        self._put_json(f"{prefix}/contribution.json", pointer)

    def contribution(self, number: int, size: int, part: int | None = None) -> Contribution | None:
        """Return the contribution kept for a round, or None where there is none that reads back whole.

        `size` is the model's, `part` that of the round's fragment where it is not the whole.
        """
        try:
            pointer = self._pointer(f"{self._root}/rounds/{number}/contribution.json")
            data = self._store.get(pointer.vector.key, digest=pointer.vector.digest)
            residual = self._vector(pointer.residual, part or size) if pointer.residual else None
            local = self._vector(pointer.local, size) if pointer.local else None
            moments = self._moments(pointer)
        except NotFoundError:
            return None
        except VerificationError as fault:
            sys.stderr.write(f"the contribution kept for round {number} is damaged: {fault.what}\n")
            return None
        return Contribution(
            round=number,
            previous_outer=pointer.previous_outer,
            data=data,
            digest=pointer.vector.digest,
            norm=pointer.norm,
            loss=pointer.loss,
            tokens=pointer.tokens,
            steps=pointer.steps,
            position=pointer.position,
            moments=moments,
            residual=residual,
            local=local,
            train_ms=pointer.train_ms,
            thinned=pointer.thinned,
        )

    # -- inner steps ----------------------------------------------------------------------------------------------

    def save_begun(self, begun: Begun) -> None:
        """Keep the inner steps done so far, in place of what was kept of the round before."""
        prefix = f"{self._root}/rounds/{begun.round}"
        old = self._begun_pointer(begun.round)
        vectors = self._put_moments(prefix, begun.moments)
        pointer = Pointer(
            round=begun.round,
            position=begun.position,
            tokens=begun.tokens,
            vector=self._put_vector(prefix, begun.local),
            optimizer=vectors,
            adam_steps=begun.moments.steps if begun.moments else 0,
            previous_outer=begun.previous_outer,
            loss=begun.loss_sum.hex(),
            steps=begun.steps,
            train_ms=begun.train_ms,
        )
        self._put_json(f"{prefix}/inner.json", pointer)
        if old is not None:
            self._delete(set(blobs(old)) - set(blobs(pointer)))

    def begun(self, number: int, size: int) -> Begun | None:
        """Return the inner steps kept of a round, or None where there are none that read back whole."""
        pointer = self._begun_pointer(number)
        if pointer is None:
            return None
        try:
            return Begun(
                round=number,
                previous_outer=pointer.previous_outer,
                local=self._vector(pointer.vector, size),
                steps=pointer.steps,
                loss_sum=float.fromhex(pointer.loss),
                tokens=pointer.tokens,
                position=pointer.position,
                moments=self._moments(pointer),
                train_ms=pointer.train_ms,
            )
        except (NotFoundError, VerificationError, ValueError) as fault:
            sys.stderr.write(f"the inner steps kept for round {number} are damaged and done again: {fault}\n")
            return None

    def drop_begun(self, number: int) -> None:
        """Forget the inner steps of a round whose contribution is kept. Raises NotFoundError where it is not."""
        pointer = self._begun_pointer(number)
        if pointer is not None:
            contribution = self._pointer(f"{self._root}/rounds/{number}/contribution.json")
            self._store.delete(f"{self._root}/rounds/{number}/inner.json")
            self._delete(set(blobs(pointer)) - set(blobs(contribution)))

    def drop_ahead(self, number: int) -> None:
        """Forget the inner steps of a round that lead on from what does not count; nothing was made of them yet."""
        pointer = self._begun_pointer(number)
        if pointer is not None:
            self._store.delete(f"{self._root}/rounds/{number}/inner.json")
            self._delete(blobs(pointer))

    def _begun_pointer(self, number: int) -> Pointer | None:
        try:
            return self._pointer(f"{self._root}/rounds/{number}/inner.json")
        except NotFoundError:
            return None
        except VerificationError as fault:
            sys.stderr.write(f"the inner steps kept for round {number} are damaged and done again: {fault.what}\n")
            return None

    # -- certificates ---------------------------------------------------------------------------------------------

    def pin_certificate(self, certificate: Certificate) -> None:
        """Take a round's certificate for good. Raises ConflictError where this site took a different one before."""
        key = f"{self._root}/rounds/{certificate.round}/certificate.json"
        try:
            known = from_json(Certificate, self._json(key), where=key)
        except NotFoundError:
            self._put_json(key, certificate)
            return
        if replace(known, signature="") != replace(certificate, signature=""):
            raise ConflictError(
                f"a second certificate for round {certificate.round}: this site holds another already",
                where=f"job {certificate.job}",
                fix="open a dispute with both certificates; the first is kept in the private store at " + key,
            )
