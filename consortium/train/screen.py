"""Verdicts: what a leg checks of each contribution of a round before it says yes.

Reason codes: `tokens` (steps or tokens that no leg of the job can have done), `missing` (no such artifact was
announced), `unreachable` (its sender's store does not answer), `digest` (the bytes are not the committed ones), `shape`
(malformed or of wrong size), `finite` (a NaN or infinity), `norm` (not the committed norm), `outlier` (norm above ten
times the median: of the norms applied in past rounds where the certificates carry them, else of the round's). Empty
means accepted. Two more where the job's rule asks for them:

`cosine`: the contribution points away from the outer momentum, which every leg holds bit for bit alike. The momentum
is the decayed sum of what was accepted before, so this asks whether a site goes on in the direction in which all
sites went, and needs no majority. Contributions of the same round are not compared with each other: those of sites
with different languages come to have cosines around and below zero, honest as they are (docs/rounds.md has figures).

`loss`: adding the contribution raises the loss on text that this site has not trained on yet by more than the rule
allows. The others' contributions keep their share, so that nobody is refused for making the own site's smaller.
Between languages an honest contribution may cost a little; this gate is against damage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Protocol

import numpy as np

from consortium.domain.pretraining import MOST_PACE, PretrainConfig
from consortium.domain.protocol import LegContext
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Commit, Round, Standing
from consortium.errors import VerificationError
from consortium.keys.canonical import digest as digest_of
from consortium.train.codes import FP32
from consortium.train.outer import Vector, cosine_of, finite, norm_of, tiles
from consortium.train.pace import steps_of
from consortium.train.rounds import NOT_ITS_FAULT, stated_norm
from consortium.train.schedule import Rounds
from consortium.train.sharded import by_slices
from consortium.train.shared import Sharing
from consortium.train.votes import medians

OUTLIER_FACTOR = 10.0
MIN_NORMS = 3
"""Norms of past rounds from which on they are what an outlier is measured against."""
Probe = Callable[[Vector], float]
"""Mean loss, nats per token, on text not trained on yet, of the outer state less the vector given."""
NORM_TOLERANCE = 1e-5
"""Relative; norms are summed in fp64, so honest ones agree far better."""


class Decoder(Protocol):
    """What turns bytes into vectors: `consortium.train.codes.Code`."""

    def decode(self, data: bytes | memoryview, size: int) -> Vector:
        """Return the vector of `size` elements that `data` stands for, or raise VerificationError."""

    def state_in(self, data: bytes | memoryview, size: int) -> Vector:
        """Return the optimiser's state behind it; what `decode` takes has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a contribution can have taken: all legs of a job have as many workers and read as much in a step.

    Tokens are the weight of a contribution and its sender's own word; without this bound a word would be enough.
    """

    tokens_per_step: int
    most_steps: int
    earlier: Round | None = None
    """The round whose speeds say how much more than `most_steps` a site does (`consortium.train.pace`)."""

    @classmethod
    def of(cls, params: PretrainConfig, context: LegContext, number: int, earlier: Round | None = None) -> Work:
        """Return what a leg of this job can do in round `number`, from what it is to do itself.

        Where pace is measured, and the `earlier` round is not kept here, a site can have had the fastest. The first
        rounds have none, but for a training that goes on.
        """
        workers, outer = context.gpus // context.gpus_per_worker, params.outer
        paced = outer.pace == "measured" and (number > (2 if outer.delay else 1) or params.start.resume)
        most = MOST_PACE if paced and earlier is None else 1
        return cls(
            tokens_per_step=params.data.batch_size * params.model.context * workers,
            most_steps=most * Rounds.of(params).steps(number),
            earlier=earlier,
        )

    def fits(self, commit: Commit) -> bool:
        """Whether a commit states steps that its site can have done, and the tokens of just these steps."""
        most_steps = steps_of(commit.site, self.earlier, self.most_steps)
        return 0 < commit.steps <= most_steps and commit.tokens == commit.steps * self.tokens_per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """What a leg screens with besides the basic checks; a gate whose means are not given is left out."""

    rule: ScreenRule = field(default_factory=ScreenRule)
    work: Work | None = None
    standing: Standing | None = None
    """What the round before left."""
    momentum: Vector | None = None
    """The outer optimiser's, before this round."""
    probe: Probe | None = None
    sharing: Sharing | None = None
    """What comes of the inner optimisers' states behind the pseudo-gradients, if it does."""

    @property
    def together(self) -> bool:
        """Whether a verdict rests on what the other contributions hold, and not on what their commits state."""
        return self.sharing is not None or (self.rule.loss_rise > 0 and self.probe is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """One contribution after the checks: its vector where it could be read, and why it is refused where it is."""

    commit: Commit
    reason: str = ""
    norm: float = math.nan
    vector: Vector | None = None

    def as_verdict(self) -> dict[str, str | bool]:
        """Return what this leg tells the gateway, which signs it."""
        return {
            "site": self.commit.site,
            "digest": self.commit.digest,
            "accept": not self.reason,
            "reason": self.reason,
            "norm": "" if math.isnan(self.norm) else self.norm.hex(),
        }


def screen(
    commits: Sequence[Commit],
    received: Mapping[str, bytes | memoryview],
    faults: Mapping[str, str],
    size: int,
    gates: Gates | None = None,
    *,
    code: Decoder = FP32,
    beside: Sequence[Commit] = (),
) -> tuple[Screened, ...]:
    """Judge the commits of a round, in site order.

    `received` holds plaintexts by site, `faults` the reason code of each that could not be had. `size` is the model's,
    `code` the job's, or what decodes with it. `beside` are all commits of the round: of those that are not here the
    norm counts as stated, so that judges who have not the same measure by the same.
    """
    gates = gates or Gates()
    judged = [
        Screened(commit=commit, reason="tokens")
        if gates.work is not None and not gates.work.fits(commit)
        else _check(commit, received.get(commit.site), faults.get(commit.site, "missing"), size, code)
        for commit in sorted(commits, key=lambda commit: commit.site)
    ]
    judged = _outliers(judged, gates.standing, _stated(beside, judged, gates.work))
    if gates.sharing is not None:
        judged = _states(judged, received, size, code, gates.sharing, against=gates.rule.cosine > -1)
    momentum = gates.momentum
    if gates.rule.cosine > -1 and momentum is not None and norm_of(momentum) > 0:
        judged = [
            replace(one, reason="cosine")
            if not one.reason and one.vector is not None and cosine_of(one.vector, momentum) < gates.rule.cosine
            else one
            for one in judged
        ]
    if gates.rule.loss_rise > 0 and gates.probe is not None:
        judged = _damage(judged, gates.rule.loss_rise, gates.probe)
    return tuple(judged)


def _middle(norms: Mapping[str, float]) -> float:
    """Return the median of norms by site, each partner having one vote: more sites are no more say."""
    return sum(medians(norms)) / 2


def _stated(commits: Sequence[Commit], judged: Sequence[Screened], work: Work | None) -> dict[str, float]:
    """Return the norms, by site, that are stated in commits of which the contributions are not here."""
    known = {one.commit.site for one in judged if one.reason not in NOT_ITS_FAULT}
    absent = [one for one in commits if one.site not in known and (work is None or work.fits(one))]
    return {one.site: norm for one in absent if (norm := stated_norm(one)) > 0}


def _outliers(judged: list[Screened], standing: Standing | None, stated: Mapping[str, float]) -> list[Screened]:
    past = [float.fromhex(norm) for norm in standing.norms] if standing is not None else []
    if len(past) >= MIN_NORMS:
        middle = median(past)
    else:
        middle = _middle({**stated, **{one.commit.site: one.norm for one in judged if not one.reason}})
    return [
        replace(one, reason="outlier") if not one.reason and middle > 0 and one.norm > OUTLIER_FACTOR * middle else one
        for one in judged
    ]


def _states(
    judged: list[Screened],
    received: Mapping[str, bytes | memoryview],
    size: int,
    code: Decoder,
    sharing: Sharing,
    *,
    against: bool,
) -> list[Screened]:
    """Refuse what comes with a state that is far larger than the others', or, if asked, points `against` its steps."""
    norms: dict[str, dict[str, float]] = {}
    astray = set[str]()
    for one in judged:
        if one.reason or one.vector is None:
            continue
        site = one.commit.site
        state = code.state_in(received[site], size)
        norms[site] = sharing.norms(state)
        if against and min(sharing.cosines(state, one.vector).values()) < 0:
            astray.add(site)
    names = next(iter(norms.values()), {})
    middle = {name: _middle({site: found[name] for site, found in norms.items()}) for name in names}
    large = {
        site
        for site, found in norms.items()
        if any(math.isinf(found[k]) or found[k] > OUTLIER_FACTOR * middle[k] > 0 for k in found)
    }
    reasons = dict.fromkeys(astray, "cosine") | dict.fromkeys(large, "outlier")
    return [replace(one, reason=one.reason or reasons.get(one.commit.site, "")) for one in judged]


def _damage(judged: list[Screened], allowed: float, probe: Probe) -> list[Screened]:
    """Refuse, worst first, what raises the loss by more than the share allowed beside the rest, until nothing does."""
    while True:
        held = [(one.commit, one.vector) for one in judged if not one.reason and one.vector is not None]
        total = sum(commit.tokens for commit, _ in held)
        parts = {commit.site: (vector, commit.tokens / total) for commit, vector in held if total > 0}
        if not parts:
            return judged
        whole = _sum(list(parts.values()))
        loss = probe(whole)
        rises = {site: _rise(loss, probe(_less(whole, *part))) for site, part in parts.items()}
        worst = max(sorted(rises), key=lambda site: rises[site])
        if rises[worst] <= allowed:
            return judged
        judged = [replace(one, reason="loss") if one.commit.site == worst else one for one in judged]


def _rise(loss: float, without: float) -> float:
    """Return the rise of the loss over what it is `without`; a loss that is no number is one beyond all bounds."""
    if not math.isfinite(loss):
        return math.inf if math.isfinite(without) else 0.0
    return loss / without - 1 if math.isfinite(without) and without > 0 else -math.inf


@by_slices
def _sum(parts: Sequence[tuple[Vector, float]]) -> Vector:
    """Return the sum of vectors, each times its share."""
    total = np.zeros(len(parts[0][0]), dtype=np.float32)
    for vector, share in parts:
        for part in tiles(len(total)):
            np.add(total[part], np.multiply(vector[part], np.float32(share)), out=total[part])
    return total


@by_slices
def _less(whole: Vector, vector: Vector, share: float) -> Vector:
    """Return `whole` without a share of a vector that is in it."""
    rest = whole.copy()
    for part in tiles(len(rest)):
        np.subtract(rest[part], np.multiply(vector[part], np.float32(share)), out=rest[part])
    return rest


def _check(commit: Commit, data: bytes | memoryview | None, fault: str, size: int, code: Decoder) -> Screened:
    if data is None:
        return Screened(commit=commit, reason=fault)
    if digest_of(data) != commit.digest:
        return Screened(commit=commit, reason="digest")
    try:
        vector = code.decode(data, size)
    except VerificationError:
        return Screened(commit=commit, reason="shape")
    if not finite(vector) or commit.mean_loss is None:
        return Screened(commit=commit, reason="finite", vector=vector)
    norm = norm_of(vector)
    try:
        declared = float.fromhex(commit.norm)
    except (ValueError, OverflowError):
        declared = math.nan
    honest = math.isclose(norm, declared, rel_tol=NORM_TOLERANCE, abs_tol=1e-12)
    return Screened(commit=commit, reason="" if honest else "norm", norm=norm, vector=vector)
