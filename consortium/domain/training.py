"""Rounds of federated training: commits, verdicts, certificates. Floats that must agree travel as hex strings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

MAX_LOSS = 1e6
"""Nats per token, in either direction: far beyond any training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What a leg contributes to a round: `digest` of the bytes sent, `norm` (L2, hex float) of what they stand for.

    Both are of the plaintext; the job's code (`consortium.train.codes`) leads from the one to the other.
    """

    __left_out__ = frozenset({"train_ms"})

    job: str
    round: int
    site: str
    tokens: int
    steps: int
    digest: str
    norm: str
    loss: str
    """Mean training loss over the round, hex float."""
    train_ms: int = 0
    """Milliseconds the steps took; stated where the pace is measured."""
    signature: str = ""

    @property
    def mean_loss(self) -> float | None:
        """`loss` as a number; None where it is none that a training has. Nobody can check it, but that."""
        try:
            loss = float.fromhex(self.loss)
        except (ValueError, OverflowError):
            return None
        return loss if abs(loss) <= MAX_LOSS else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One leg's judgement of one contribution, signed. `reason` is a code, empty when accepted."""

    job: str
    round: int
    judge: str
    site: str
    digest: str
    accept: bool
    reason: str = ""
    norm: str = ""
    signature: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """An accepted commit in a certificate: its weight and clip scale as hex floats, in site order."""

    site: str
    digest: str
    tokens: int
    weight: str
    clip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """An admin's word on a site's part in a job, signed: from round `round` on it is left out, or let in again.

    A site that is withdrawn is left out too, and its leg ends with the round before.
    """

    job: str
    round: int
    site: str
    action: Literal["reject", "readmit", "withdraw"]
    reason: str
    by: str
    """Who ruled, such as `fr/anna`."""
    signature: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What certificates hand on from round to round, as it stood before the round; floats as hex."""

    __left_out__ = frozenset({"fragments"})

    clip: str
    """Contributions above this many times the median of `norms` are scaled down to it; zero: never."""
    window: int
    """How many norms are kept."""
    quarantine: int
    """Sites refused this many rounds in a row are left out; 0: never."""
    norms: tuple[str, ...] = ()
    """Norms of contributions as they were applied, oldest first."""
    refused: tuple[tuple[str, int], ...] = ()
    """Sites refused for what they sent, and how many rounds in a row, in site order."""
    fragments: int = 0
    """How many rounds before this one the last of the same fragment was. 0: by the rule of certificates that do not say
    so, which kept a norm of every site, and where a readmission held in just its round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What every leg applies in a round. Follows from the verdicts by a rule anyone can recompute."""

    __left_out__ = frozenset({"standing"})

    job: str
    round: int
    previous_outer: str
    """Digest of the outer state before the round."""
    contributions: tuple[Contribution, ...]
    verdicts_digest: str
    standing: Standing | None = None
    """None where the job neither clips nor quarantines."""
    signature: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """What a leg's second computation of a round from its store came to; each digest is signed as an agreement is."""

    certificate: str
    """Digest of the certificate it follows, without its signature."""
    momentum: str
    """Digest of the outer momentum after the round."""
    outer: str
    """Digest of the outer state after the round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How a dispute over the outer state after a round ended: what most recomputations give, and who differs.

    Follows from the recomputations by the rule in `consortium.train.disputes`.
    """

    parties: tuple[str, ...]
    """Sites whose word was asked for, in order; a majority of them agrees (`consortium.train.votes`)."""
    outer: str
    """Digest of the outer state that holds; empty where it could not be decided."""
    momentum: str = ""
    agree: tuple[str, ...] = ()
    """Sites whose recomputation gives it."""
    differ: tuple[str, ...] = ()
    """Sites that published or recomputed another state."""


class RoundPhase(StrEnum):
    """Where a round stands."""

    OPEN = "open"
    """Taking commits."""
    JUDGING = "judging"
    """The set of commits is fixed; verdicts are awaited."""
    CERTIFIED = "certified"
    """The certificate is issued; legs aggregate and publish the digest of the new outer state."""
    CLOSED = "closed"
    """The outer digests agree."""
    DISPUTED = "disputed"
    """They do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A round as the server keeps it and legs read it."""

    __left_out__ = frozenset({"rulings", "settlement", "committed"})

    job: str
    number: int
    phase: RoundPhase
    expected: tuple[str, ...]
    """Sites whose commits the round waits for."""
    commits: tuple[Commit, ...] = ()
    """While the round is open everybody is shown its own alone."""
    verdicts: tuple[Verdict, ...] = ()
    certificate: Certificate | None = None
    outer_digests: dict[str, str] | None = None
    """Site to digest of the new outer state."""
    deadline_ms: int = 0
    rulings: tuple[Ruling, ...] = ()
    """What admins ruled for this round or an earlier one."""
    settlement: Settlement | None = None
    """Where sites published different outer states: how that was settled."""
    committed: tuple[str, ...] = ()
    """Sites that have committed, while the round is open; `commits` says it from then on."""
