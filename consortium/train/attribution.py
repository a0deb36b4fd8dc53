"""Who brought what to a model: tokens, FLOPs, accepted weight, bytes and loss, per partner and round.

Everything follows from records that others can check: rounds (commits, verdicts, certificate) and crossings. Two
figures are not what was measured but how it is shared out, and their names say so. Tokens and steps are the site's own
word until its inner steps are done again (`consortium.train.replay`); weights, bytes and acceptance are cross-checked.

FLOPs are tokens times the model's FLOPs per token (`consortium.train.sizes.flops_per_token`: 6 N + 12 L H K T, PaLM,
https://arxiv.org/abs/2204.02311, appendix B); of a model that a site plugged in they are unknown, None. Work that was
refused is counted: it was computed. The law counts what went into a model, over all its trainings: `lineage`.

The fall of the held-out loss is what `evaluate` jobs measured on outer states, text that no training read; the legs'
own probes are of text they are about to train on, and are not used. Where a series of measurements skips rounds, its
fall from one measured state to the next is shared out over all rounds between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import fsum

from consortium.domain.data import CONTRIBUTIONS, Crossing, CrossingSide
from consortium.domain.training import Commit, Round
from consortium.errors import UsageError
from consortium.train.rounds import left_out

GENERAL_PURPOSE_FLOPS = 10**23
"""Above this a model that generates language counts as general-purpose (European Commission, guidelines on the scope
of obligations for general-purpose AI models, C(2025) 5045, paragraph 17)."""
SYSTEMIC_RISK_FLOPS = 10**25
"""Above this a general-purpose model is presumed to carry systemic risk (Regulation (EU) 2024/1689, article 51(2))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One site's part in one round."""

    job: str
    round: int
    site: str
    partner: str
    accepted: bool
    reasons: tuple[str, ...]
    """Why judges refused it, each code once, in order; `left out` where an admin's ruling or quarantine did."""
    tokens: int
    steps: int
    flops: int | None
    """None where the model's FLOPs per token are not known."""
    weight: float
    """As applied: certified weight times clip scale; 0 where it was refused."""
    bytes_sent: int | None
    """What its pseudo-gradient took across borders, each recipient counted; None where no crossing of that digest was
    recorded, as of one that crossed in parts, unless the crossings name the whole (`parcels.wholes`)."""
    bytes_received: int | None
    """What others' pseudo-gradients of the round took coming in; None where no crossing was recorded."""
    loss_share: float | None
    """The round's fall of the mean held-out loss, nats per token, shared out by weight; None where not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """A partner's part over rounds."""

    partner: str
    rounds: int
    """In how many rounds at least one of its contributions was accepted."""
    refused: int
    tokens: int
    accepted_tokens: int
    flops: int | None
    weight: float
    """Sum over rounds; over all partners it comes to the number of rounds that accepted anything, less what was
    clipped."""
    bytes_sent: int | None
    bytes_received: int | None
    loss_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The FLOPs behind a model, over the trainings it goes back to."""

    jobs: tuple[str, ...]
    """From the first training to this one."""
    flops: int | None
    """None where those of one of the trainings are not known."""
    general_purpose: bool | None
    """Whether it is above the threshold; None where what is known is not and something is unknown."""
    systemic_risk: bool | None


def shares(
    rounds: Iterable[Round],
    *,
    flops_per_token: int | None,
    crossings: Iterable[Crossing] = (),
    held_out: Mapping[int, Mapping[str, float]] | None = None,
) -> tuple[Share, ...]:
    """Return every site's part in every certified round, by job, round and site.

    `held_out` are the losses of the outer states, nats per token: round (0: before training) to language, or whatever
    names a series of measurements that can be compared, to loss; give the rounds of one job with it.
    """
    sent, received = _bytes(crossings)
    certified = [one for one in sorted(rounds, key=lambda one: (one.job, one.number)) if one.certificate is not None]
    falls = _falls(held_out or {}, {one.number: fsum(_weights(one).values()) for one in certified})
    found = []
    for current in certified:
        accepted = {part.site: part for part in current.certificate.contributions} if current.certificate else {}
        weights = _weights(current)
        fall, whole = falls.get(current.number), fsum(weights.values())
        for commit in sorted(current.commits, key=lambda commit: commit.site):
            # A commit that contradicts the accepted one of its site is not the one that counted.
            counts = commit.site in accepted and accepted[commit.site].digest == commit.digest
            weight = weights[commit.site] if counts else 0.0
            others = [one.digest for one in current.commits if one.site != commit.site]
            found.append(
                Share(
                    job=current.job,
                    round=current.number,
                    site=commit.site,
                    partner=commit.site[:2],
                    accepted=counts,
                    reasons=() if counts else _reasons(current, commit),
                    tokens=commit.tokens,
                    steps=commit.steps,
                    flops=None if flops_per_token is None else commit.tokens * flops_per_token,
                    weight=weight,
                    bytes_sent=sent.get((current.job, commit.site, commit.digest)),
                    bytes_received=_sum([received.get((current.job, commit.site, digest)) for digest in others]),
                    loss_share=None if fall is None or not whole else fall * weight / whole,
                )
            )
    return tuple(found)


def totals(found: Iterable[Share]) -> tuple[Total, ...]:
    """Return the sums per partner, in order of partners. Unknown bytes and losses are left out of a sum, not zero."""
    by_partner: dict[str, list[Share]] = {}
    for one in found:
        by_partner.setdefault(one.partner, []).append(one)
    return tuple(
        Total(
            partner=partner,
            rounds=len({(one.job, one.round) for one in own if one.accepted}),
            refused=sum(not one.accepted for one in own),
            tokens=sum(one.tokens for one in own),
            accepted_tokens=sum(one.tokens for one in own if one.accepted),
            flops=None if any(one.flops is None for one in own) else sum(one.flops or 0 for one in own),
            weight=fsum(one.weight for one in own),
            bytes_sent=_sum([one.bytes_sent for one in own]),
            bytes_received=_sum([one.bytes_received for one in own]),
            loss_share=_fsum([one.loss_share for one in own]),
        )
        for partner, own in sorted(by_partner.items())
    )


def lineage(job: str, parents: Mapping[str, str], flops: Mapping[str, int | None]) -> Lineage:
    """Return the FLOPs behind the model of `job`; `parents` names the job each training went on from, if any.

    `flops` is None for a training of which they are not known. Raises UsageError where one is not named at all, or
    trainings go back to themselves.
    """
    chain: list[str] = []
    at = job
    while at:
        if at in chain:
            raise UsageError(f"the trainings go back to themselves: {' from '.join([*chain, at])}")
        if at not in flops:
            raise UsageError(f"the FLOPs of {at} are not known", fix="recompute them from its rounds first")
        chain.append(at)
        at = parents.get(at, "")
    least, known = sum(flops[one] or 0 for one in chain), all(flops[one] is not None for one in chain)
    return Lineage(
        jobs=tuple(reversed(chain)),
        flops=least if known else None,
        general_purpose=True if least > GENERAL_PURPOSE_FLOPS else False if known else None,
        systemic_risk=True if least > SYSTEMIC_RISK_FLOPS else False if known else None,
    )


def _bytes(
    crossings: Iterable[Crossing],
) -> tuple[dict[tuple[str, str, str], int], dict[tuple[str, str, str], int]]:
    """Return the bytes of pseudo-gradients released and received, by job, site and digest."""
    sent: dict[tuple[str, str, str], int] = {}
    received: dict[tuple[str, str, str], int] = {}
    for one in crossings:
        if one.artifact_class not in CONTRIBUTIONS:
            continue
        out = one.side is CrossingSide.RELEASE
        key = (one.job, one.sender if out else one.recipient, one.digest)
        side = sent if out else received
        side[key] = side.get(key, 0) + one.size_bytes
    return sent, received


def _weights(current: Round) -> dict[str, float]:
    """Return the weights as applied, by site."""
    parts = current.certificate.contributions if current.certificate is not None else ()
    return {part.site: float.fromhex(part.weight) * float.fromhex(part.clip) for part in parts}


def _falls(held_out: Mapping[int, Mapping[str, float]], weights: Mapping[int, float]) -> dict[int, float]:
    """Return by how much each round lowered the loss: the mean over the series that measured before and after it.

    `weights` are the rounds' sums. What a series saw fall over several rounds each of them gets a part of by weight; a
    round that is missing leaves the whole of it unsaid.
    """
    found: dict[int, list[float]] = {}
    for name in sorted({name for losses in held_out.values() for name in losses}):
        measured = sorted(number for number, losses in held_out.items() if name in losses)
        for before, after in pairwise(measured):
            between = range(before + 1, after + 1)
            whole = fsum(weights.get(number, 0.0) for number in between)
            if not whole or not weights.keys() >= set(between):
                continue
            fall = held_out[before][name] - held_out[after][name]
            for number in between:
                found.setdefault(number, []).append(fall * weights[number] / whole)
    return {number: fsum(parts) / len(parts) for number, parts in sorted(found.items())}


def _reasons(current: Round, commit: Commit) -> tuple[str, ...]:
    standing = current.certificate.standing if current.certificate is not None else None
    if commit.site in left_out(current.number, current.rulings, standing):
        return ("left out",)
    said = {one.reason for one in current.verdicts if one.site == commit.site and not one.accept and one.reason}
    return tuple(sorted(said)) or ("no majority",)


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _fsum(values: Iterable[float | None]) -> float | None:
    """Return the sum, correctly rounded: the same on every version of Python."""
    known = [value for value in values if value is not None]
    return fsum(known) if known else None
