"""Recomputing a training run from what a site kept: every certificate and every outer step.

`replay` needs no server, no other site and no torch: rounds, outer states and contributions lie in the private store.
What it finds of a round is one of

- `verified`: signatures hold, the certificate follows from its commits, verdicts, rulings and the round before, every
  contribution hashes to what was committed, and the outer step gives the digest that all sites published, or that
  holds since a dispute was settled (who published another is named);
- `cannot`: something needed is not kept, or an admin's ruling can be checked no longer, and it is named; what could be
  checked did hold;
- `differs`: something does not hold; `who` names whose word it is that the recomputation contradicts.

Contributions that the site did not keep may be read where another did: they are what their digests say.
States are recomputed one from the other as far as contributions are kept; where the chain breaks it is taken up from
this site's own kept state, whose parameters all sites published the digest of. Its momentum nobody else vouches for,
so a round replayed from it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from consortium.domain.codec import from_json
from consortium.domain.pretraining import OuterConfig
from consortium.domain.training import Certificate, Contribution, Round
from consortium.errors import NotFoundError, VerificationError
from consortium.keys.roster import Rosters
from consortium.train.book import RoundBook
from consortium.train.codes import Code
from consortium.train.combine import combine
from consortium.train.evidence import check_parts, check_rulings, check_signatures, new_rulings
from consortium.train.fragments import Plan
from consortium.train.keep import Keep
from consortium.train.outer import Layout, Vector, vector_digest
from consortium.train.rounds import check_certificate, check_standing, standing_before

if TYPE_CHECKING:
    from consortium.keys.trust import Trust
    from consortium.storage.objects import ObjectStore

Decode = Callable[[bytes, int], Vector]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What recomputing a round came to."""

    round: int
    result: str
    """`verified`, `cannot` or `differs`."""
    what: tuple[str, ...] = ()
    """What is missing or differs, each in words."""
    who: tuple[str, ...] = ()
    """Whose word differs: sites, `server`, or `kept` for this site's own store."""
    outer_digest: str = ""
    """Digest of the outer state as recomputed, empty where it could not be."""


@dataclass(slots=True)
class _Chain:
    """The state before the round at hand: recomputed, or read back from this site's store."""

    outer: Vector
    momentum: Vector
    own: bool = False
    """Whether the momentum is this site's word."""


class Replay:
    """A job's rounds as one site kept them."""

    def __init__(
        self,
        store: ObjectStore,
        job: str,
        params: OuterConfig,
        *,
        trust: Trust | None = None,
        rosters: Rosters | None = None,
        verified: Collection[str] = (),
        beside: Mapping[str, ObjectStore] | None = None,
        decode: Decode | None = None,
    ) -> None:
        self._keep = Keep(store, job)
        self._beside = {name: RoundBook(other, job) for name, other in (beside or {}).items()}
        self._book = RoundBook(store, job)
        self._params = params
        self._trust = trust
        self._rosters = rosters
        self._verified = verified
        self._decode = decode
        self._size = 0
        self._plan = Plan.of(Layout((), ()), replace(params, fragments=1))

    def run(self) -> tuple[Replayed, ...]:
        """Replay every round up to the newest that is kept. Raises NotFoundError where no round is."""
        numbers = sorted({*self._book.numbers(), *(number for number in self._keep.rounds() if number)})
        if not numbers:
            raise NotFoundError("no round of this job is kept here", fix="run it at a site that took part in the job")
        states = self._keep.rounds()
        if states:
            origin = self._keep.measured(states[0])[0]
            self._size, self._plan = origin.layout.size, Plan.of(origin.layout, self._params)
            self._decode = self._decode or Code.of(self._params, origin.sharing.size).decode
        chain = self._kept_state(0)
        found = []
        past: dict[int, Round | None] = {}
        for number in range(1, numbers[-1] + 1):
            before = past.get(number - self._params.fragments)
            one, chain, past[number] = self._round(number, chain, before)
            found.append(one)
        return tuple(found)

    def _round(
        self, number: int, chain: _Chain | None, before: Round | None
    ) -> tuple[Replayed, _Chain | None, Round | None]:
        try:
            current = self._book.round(number)
        except VerificationError as fault:
            return _differs(number, [fault.what], ["kept"]), self._kept_state(number), None
        if current is None:
            missing = "the round's commits and verdicts"
            return Replayed(round=number, result="cannot", what=(missing,)), self._kept_state(number), None
        unchecked = self._unchecked(current)
        chain = chain or self._kept_state(number - 1)
        given = current.certificate
        previous = vector_digest(chain.outer) if chain else given.previous_outer if given else ""
        try:
            self._signatures(current)
        except VerificationError as fault:  # its gateway let no such word in, so it was changed here, or keys differ
            return _differs(number, [fault.what], ["kept"]), self._kept_state(number), current
        try:
            certificate = check_certificate(current, previous)
            rule = self._params
            expected, known = standing_before(rule.screen, rule.fragments, number, lambda _: before)
            if known:
                check_standing(certificate, expected, past=True)
        except VerificationError as fault:
            return _differs(number, [fault.what], ["server"]), self._kept_state(number), current
        vectors, missing_parts, damaged = self._vectors(certificate)
        if damaged:
            return _differs(number, damaged, ["kept"]), self._kept_state(number), current
        if chain is None or missing_parts:
            what = [*unchecked, *missing_parts, *([] if chain else [f"the outer state after round {number - 1}"])]
            return Replayed(round=number, result="cannot", what=tuple(what)), self._kept_state(number), current
        after = self._step(chain, certificate, vectors)
        one = self._compared(number, current, after)
        if one.result == "verified" and not known:
            note = "what it may clip by is its own word: the round that says so is not kept"
            one = replace(one, what=(*one.what, note))
        if one.result == "verified" and unchecked:
            one = replace(one, result="cannot", what=(*unchecked, *one.what))
        return one, after, current

    def _signatures(self, current: Round) -> None:
        if self._trust is None:
            return
        where = f"round {current.number}"
        check_parts(current, where)
        check_signatures(current, self._trust, where)

    def _unchecked(self, current: Round) -> list[str]:
        """Return in words the rulings that neither the site's gateway verified nor today's rosters bear out.

        That accuses nobody: an admin may have left since, or have another key or role.
        """
        if self._trust is None or self._rosters is None:
            return []
        found = []
        for ruling in new_rulings(current, self._verified).values():
            try:
                check_rulings([ruling], self._rosters)
            except VerificationError as fault:
                what = f"{ruling.by}'s ruling to {ruling.action} {ruling.site} from round {ruling.round} on"
                found.append(f"{what} can be checked no longer: {fault.what}")
        return found

    def _vectors(self, certificate: Certificate) -> tuple[dict[str, Vector], list[str], list[str]]:
        """Return the accepted contributions, in words those that are missing, and those that are not what they were."""
        vectors: dict[str, Vector] = {}
        missing, damaged = [], []
        for part in certificate.contributions:
            named = f"the contribution of {part.site}, {part.digest}"
            try:
                data = self._book.contribution(certificate.round, part.digest)
                data = data or self._elsewhere(certificate.round, part)
                if data is None:
                    missing.append(named)
                else:
                    decode = self._decode or Code.of(self._params).decode
                    vectors[part.site] = decode(data, self._plan.fragment(certificate.round).size)
            except VerificationError as fault:
                damaged.append(f"{named}: {fault.what}")
        return vectors, missing, damaged

    def _elsewhere(self, number: int, part: Contribution) -> bytes | None:
        """Return a contribution as another site kept it, whose it is first; None where none has it undamaged."""
        for name in sorted(self._beside, key=lambda name: (name != part.site, name)):
            with suppress(VerificationError):
                data = self._beside[name].contribution(number, part.digest)
                if data is not None:
                    return data
        return None

    def _step(self, chain: _Chain, certificate: Certificate, vectors: dict[str, Vector]) -> _Chain:
        if not certificate.contributions:
            return chain
        number, rule = certificate.round, self._params
        mean = combine(certificate.contributions, vectors, self._plan.fragment(number).size, rule.screen)
        outer, momentum = self._plan.step(
            number, chain.outer, chain.momentum, mean, lr=rule.lr, momentum_decay=rule.momentum
        )
        return _Chain(outer, momentum, chain.own)

    def _compared(self, number: int, current: Round, after: _Chain) -> Replayed:
        digest = vector_digest(after.outer)
        said = dict(current.outer_digests or {})
        who = sorted(site for site, told in said.items() if told != digest)
        what = [f"{site} published {said[site]}, recomputed {digest}" for site in who]
        kept = self._kept_digest(number)
        if kept not in ("", digest):
            who.append("kept")
            what.append(f"the outer state kept here is {kept}, recomputed {digest}")
        settled = current.settlement is not None and current.settlement.outer == digest
        if who and not (settled and "kept" not in who):
            return _differs(number, what, who, digest)
        if settled:
            return Replayed(round=number, result="verified", what=(*what, "settled so then"), outer_digest=digest)
        note = ["the momentum it starts from is this site's own word"] if after.own else []
        if not said:
            note.append("no digest that a site published is kept, so nothing says that others came to it")
        return Replayed(round=number, result="verified", what=tuple(note), outer_digest=digest)

    def _kept_digest(self, number: int) -> str:
        """The digest of the outer state kept of a round; empty where none is, in words where it does not read back."""
        try:
            return vector_digest(self._keep.stepped(number, self._size)[0])
        except NotFoundError:
            return ""
        except VerificationError as fault:
            return f"damaged ({fault.what})"

    def _kept_state(self, number: int) -> _Chain | None:
        try:
            outer, momentum = self._keep.stepped(number, self._size)
            # Before the first round it is zero, but for a training that was resumed: that of the job before.
            return _Chain(outer, momentum, own=number > 0 or bool(momentum.any()))
        except (NotFoundError, VerificationError):
            return None


def replay(
    store: ObjectStore,
    job: str,
    params: OuterConfig,
    *,
    trust: Trust | None = None,
    rosters: Rosters | None = None,
    verified: Collection[str] = (),
    beside: Mapping[str, ObjectStore] | None = None,
    decode: Decode | None = None,
) -> tuple[Replayed, ...]:
    """Recompute all rounds of `job` from a site's private store, in order.

    `params` are the job's; with `trust` signatures are checked too, and with `rosters` admins', unless their rulings'
    digests are among those that the site's gateway `verified`; `beside` are other sites' private stores, by name, in
    which to look for contributions that this site did not keep; `decode` turns a contribution as it was committed into
    a vector of the model's size, by default with the job's code. Raises NotFoundError where nothing of the job is kept.
    """
    made = Replay(store, job, params, trust=trust, rosters=rosters, verified=verified, beside=beside, decode=decode)
    return made.run()


def kept_params(store: ObjectStore, job: str) -> OuterConfig:
    """Return the outer loop's settings as this site's leg noted them. Raises NotFoundError where it noted none."""
    return from_json(OuterConfig, RoundBook(store, job).settings(), where=f"jobs/{job}")


def _differs(number: int, what: list[str], who: list[str], digest: str = "") -> Replayed:
    return Replayed(round=number, result="differs", what=tuple(what), who=tuple(who), outer_digest=digest)
