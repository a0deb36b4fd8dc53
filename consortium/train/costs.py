"""What a training would cost, from its params and the sites' files alone, before anything starts. No torch here.

Hours follow from the model's FLOPs and the TFLOP/s that partners measured of their flavors, times the share of them
that training comes to: `UTILISATION`, a range. All else is counted: the same functions that size the codes, the model
and the optimisers at work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import product

from consortium.domain.partner import Site
from consortium.domain.pretraining import MOST_PACE, ModelConfig, PretrainConfig
from consortium.domain.units import data_size
from consortium.errors import UsageError
from consortium.train.book import cost_bytes
from consortium.train.codes import Code
from consortium.train.fragments import fragments_of
from consortium.train.outer import Layout
from consortium.train.schedule import Rounds
from consortium.train.sizes import Memory, flops_per_token, hidden_count, memory, parameter_count

UTILISATION = (0.3, 0.6)
"""Share of a flavor's measured BF16 TFLOP/s that training reaches, least and most. The most is what torchtitan reports
of 8B on H100 (33 to 39% of the peak, https://arxiv.org/abs/2410.06511) over what matrix products alone reach there;
the least is for small models and short batches."""
RECOMPUTED = Fraction(4, 3)
"""How much more work a step is where the forward pass is done twice (`model.recompute`)."""
SPARE_BYTES = 2 * 10**9
"""What driver and allocator hold of a GPU besides what `sizes.memory` counts."""
LONGEST_S = 366 * 86_400
"""The most that `walltime_s` takes."""
CROWDED = 0.9
"""Above this share of a GPU's memory, fragments of it may be missing."""

Range = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A site that would take part."""

    site: Site
    data_tokens: int = 0
    """Tokens of the job's inputs there."""
    gbit_per_s: Mapping[str, str] = field(default_factory=dict)
    """To other sites, as its partner states it; where only the other one does, that holds for both directions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCosts:
    """What it would take at one site."""

    site: str
    flavor: str
    simulated: bool
    """Whether its GPUs are a Ray resource only: memory and hours are then those of the flavor it declares."""
    memory: Memory
    needed_bytes: int
    """On one GPU, with what driver and allocator hold."""
    gpu_bytes: int
    steps: int
    tokens: int
    passes: float
    """How often its data is read; 0 where it has none."""
    hours: Range
    """Of its own inner steps alone, least and most."""
    reference_gpu_hours: Range
    """While it is held, that is until the slowest site is done as well."""
    sent_bytes: int
    """To all peers, over all rounds and before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BorderCosts:
    """What would cross one border, in one direction, as plaintext; an envelope adds a few hundred bytes."""

    sender: str
    recipient: str
    round_bytes: int
    """Of several fragments, which are not alike, the mean."""
    first_bytes: int
    """The initial state, once."""
    total_bytes: int
    round_s: float | None
    """Seconds for `round_bytes` over the stated link; None where none is stated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a training would cost."""

    parameters: int
    vocab_size: int
    flops_per_token: int
    rounds: int
    inner_steps: int
    """Of a round as set; `shortest` and `longest` are the fewest and the most of one that the job has."""
    shortest: int
    longest: int
    tokens: int
    """Over all sites, like `flops`."""
    flops: int
    utilisation: Range
    hours: Range
    """Until the slowest site is done, with the time of the slowest border as far as `outer.delay` does not hide it, and
    with that of the initial state."""
    computing: Range
    """Share of that time in which the slowest site computes."""
    reference_gpu_hours: Range
    kept_round_bytes: int
    """What each site's private store takes per round: states and contribution, with optimiser and residual."""
    kept_bytes: int
    """All of it, over all rounds."""
    received_bytes: int
    """Of peers' contributions, what each site keeps for audits in the end (`outer.keep_received`)."""
    sites: tuple[SiteCosts, ...]
    borders: tuple[BorderCosts, ...]
    warnings: tuple[str, ...]


def costs(
    params: PretrainConfig,
    vocab_size: int,
    places: Sequence[Place],
    *,
    gpus: int,
    gpus_per_worker: int,
    walltime_s: int,
) -> Costs:
    """Return what training with `params` at `places` would cost, each with `gpus` GPUs.

    Raises UsageError for a plugin's model, of which nothing is known before it is built.
    """
    if params.model.plugin:
        raise UsageError(
            f"what the model {params.model.plugin!r} costs is not known before it is built", where="model.plugin"
        )
    count, workers = parameter_count(params.model, vocab_size), gpus // gpus_per_worker
    rule, per_token = params.outer, flops_per_token(params.model, vocab_size)
    rounds, payloads = Rounds.of(params), _payloads(params, vocab_size)
    steps = rounds.before(rule.rounds + 1) - rounds.before(1)
    step_tokens = workers * params.data.batch_size * params.model.context
    own = {place.site.id: _hours(params, place.site, steps * step_tokens * per_token, gpus) for place in places}
    slowest: Range = (max(low for low, _ in own.values()), max(high for _, high in own.values()))
    paced = {name: _pace(params, slowest[1] / high) for name, (_, high) in own.items()}
    done = {name: steps * most // rule.inner_steps for name, most in paced.items()}
    borders = _borders(params, places, count, payloads)
    hours = _with_crossings(params, rounds, slowest, borders, payloads)
    needed = memory(params, vocab_size, workers=workers)
    sites = tuple(
        SiteCosts(
            site=name,
            flavor=place.site.flavor.id,
            simulated=place.site.gpu_resource != "GPU",
            memory=needed,
            needed_bytes=needed.total + SPARE_BYTES,
            gpu_bytes=place.site.flavor.memory_bytes,
            steps=done[name],
            tokens=done[name] * step_tokens,
            passes=done[name] * step_tokens / place.data_tokens if place.data_tokens else 0.0,
            hours=_times(own[name], paced[name] / rule.inner_steps),
            reference_gpu_hours=_times(hours, gpus * float(Fraction(place.site.flavor.reference_factor))),
            sent_bytes=sum(border.total_bytes for border in borders if border.sender == name),
        )
        for name, place in ((place.site.id, place) for place in places)
    )
    tokens = sum(site.tokens for site in sites)
    payload = sum(payloads) // len(payloads)
    kept = _kept(params, vocab_size, count, payload)
    shortest, longest = rounds.span
    newest = rule.keep_whole + (rule.keep_whole <= rule.fragments)  # with the state that it would be resumed from
    whole = rule.rounds if rule.keep_whole < 0 else min(rule.rounds, newest)
    return Costs(
        parameters=count,
        vocab_size=vocab_size,
        flops_per_token=per_token,
        rounds=rule.rounds,
        inner_steps=rule.inner_steps,
        shortest=shortest,
        longest=longest,
        tokens=tokens,
        flops=tokens * per_token,
        utilisation=UTILISATION,
        hours=hours,
        computing=(slowest[0] / hours[0], slowest[1] / hours[1]),
        reference_gpu_hours=(
            sum(site.reference_gpu_hours[0] for site in sites),
            sum(site.reference_gpu_hours[1] for site in sites),
        ),
        kept_round_bytes=kept,
        kept_bytes=kept * whole + (8 * count + payload) * (rule.rounds - whole),
        received_bytes=cost_bytes(rule.rounds, rule.keep_received, len(sites), payload),
        sites=sites,
        borders=borders,
        warnings=_warnings(params, vocab_size, workers, sites, hours, walltime_s),
    )


def fragment_counts(model: ModelConfig, vocab_size: int, count: int) -> tuple[int, ...]:
    """Return how many parameters each of `count` fragments has (`fragments.fragments_of`); of one, all of them."""
    if count == 1:
        return (parameter_count(model, vocab_size),)
    block = hidden_count(model) // model.layers + 2 * model.dim
    shapes = {f"blocks.{at}.all": (block,) for at in range(model.layers)} | {"final_norm.weight": (model.dim,)}
    tables = ("embedding.weight",) if model.tie_embeddings else ("embedding.weight", "head.weight")
    layout = Layout.of(shapes | {name: (vocab_size * model.dim,) for name in tables})
    return tuple(fragment.size for fragment in fragments_of(layout, count))


def _payloads(params: PretrainConfig, vocab_size: int) -> list[int]:
    """Return the bytes of a contribution, by fragment in their turn; one where rounds exchange the whole model."""
    code = Code.of(params.outer, memory(params, vocab_size).optimizer // 4)
    return [code.bytes_for(size) for size in fragment_counts(params.model, vocab_size, params.outer.fragments)]


def _pace(params: PretrainConfig, faster: float) -> int:
    """Return a site's inner steps in a round where it is so much faster than the slowest."""
    usual = params.outer.inner_steps
    return usual if params.outer.pace == "fixed" else int(usual * min(faster, MOST_PACE))


def _with_crossings(
    params: PretrainConfig, rounds: Rounds, slowest: Range, borders: Sequence[BorderCosts], payloads: Sequence[int]
) -> Range:
    """Return the hours until the slowest site is done, with what of the slowest border no late application hides.

    A round hides as much as its delay takes in the next one; nothing hides the last one and the initial state.
    """
    rule = params.outer
    slow = max(borders, key=lambda border: border.round_s or 0.0, default=None)
    if slow is None or not slow.round_s:
        return slowest
    byte_h = slow.round_s / slow.round_bytes / 3600
    first_h = max(border.first_bytes * (border.round_s or 0.0) / border.round_bytes for border in borders) / 3600
    steps = rounds.before(rule.rounds + 1) - rounds.before(1)

    def shown(computing_h: float) -> float:
        step_h, total_h = computing_h / steps, first_h
        for number in range(1, rule.rounds + 1):
            late = rule.delay * rounds.steps(number + 1) // rule.inner_steps if number < rule.rounds else 0
            total_h += max(0.0, payloads[(number - 1) % len(payloads)] * byte_h - late * step_h)
        return total_h

    return slowest[0] + shown(slowest[0]), slowest[1] + shown(slowest[1])


def _hours(params: PretrainConfig, site: Site, flops: int, gpus: int) -> Range:
    """Return the hours that a site computes, least and most."""
    work = flops * (RECOMPUTED if params.model.recompute else 1)
    alone = float(work / (Fraction(site.flavor.measured_tflops) * 10**12 * gpus * 3600))
    return alone / UTILISATION[1], alone / UTILISATION[0]


def _borders(
    params: PretrainConfig, places: Sequence[Place], count: int, payloads: Sequence[int]
) -> tuple[BorderCosts, ...]:
    """Return all borders in order. The first site in order of ids sends the initial state, unless it is resumed."""
    first, payload = min(place.site.id for place in places), sum(payloads) // len(payloads)
    found = []
    for place in places:
        for other in places:
            if other is place:
                continue
            once = 4 * count if place.site.id == first and not params.start.resume else 0
            link = place.gbit_per_s.get(other.site.id) or other.gbit_per_s.get(place.site.id)
            found.append(
                BorderCosts(
                    sender=place.site.id,
                    recipient=other.site.id,
                    round_bytes=payload,
                    first_bytes=once,
                    total_bytes=once + sum(payloads) * (params.outer.rounds // len(payloads)),
                    round_s=None if link is None else float(8 * payload / (Fraction(link) * 10**9)),
                )
            )
    return tuple(found)


def _kept(params: PretrainConfig, vocab_size: int, count: int, payload: int) -> int:
    """Return the bytes that `keep.py` writes per round.

    In the outer state parameters, momentum and residual, in the contribution its payload and its fragment's residual;
    in both the optimiser's vectors and, where sites go on from their own, their parameters. With `delay` alone those
    are the outer state's once it is applied, and kept once.
    """
    rule, optimizer = params.outer, memory(params, vocab_size).optimizer
    own = 2 if rule.fragments > 1 or rule.mix else 1 if rule.delay else 0
    residual = 0 if rule.code == "fp32" else 4 * count
    return 8 * count + payload + residual + residual // rule.fragments + 2 * optimizer + own * 4 * count


def _warnings(
    params: PretrainConfig, vocab_size: int, workers: int, sites: Sequence[SiteCosts], hours: Range, walltime_s: int
) -> tuple[str, ...]:
    found = []
    for site in sites:
        if site.needed_bytes > site.gpu_bytes * CROWDED:
            much = "more than it has" if site.needed_bytes > site.gpu_bytes else "nearly all it has"
            smaller = _smaller(params, vocab_size, workers, site.gpu_bytes * CROWDED)
            found.append(
                f"{site.site}: {data_size(site.needed_bytes)} on a {site.flavor} of {data_size(site.gpu_bytes)}, "
                f"{much}; {smaller}"
            )
        if site.passes > 4:
            # Repeated text is worth as much as new text for about four passes (https://arxiv.org/abs/2305.16264).
            found.append(f"{site.site}: its data is read {site.passes:,.1f} times; beyond 4 it teaches ever less")
    found += _of_rate(params)
    if walltime_s < hours[1] * 3600:
        stopped = "is stopped" if walltime_s < hours[0] * 3600 else "may be stopped"
        enough = _up(hours[1] * 3600)
        said = (
            f"walltime_s={enough} is enough"
            if enough <= LONGEST_S
            else "no walltime_s is enough: take more GPUs, or fewer steps"
        )
        found.append(f"it {stopped} after {walltime_s / 3600:,.4g} h, before its last round; {said}")
    return tuple(found)


def _of_rate(params: PretrainConfig) -> list[str]:
    """Say that the warm-up lasts into the steps over which the rate comes down, or as long as the training."""
    total, optim = params.all_rounds * params.outer.inner_steps, params.optim
    down = total - (round(optim.decay_share * total) if optim.schedule == "wsd" else 1)
    if optim.warmup_steps <= down or optim.final_lr_share == 1:
        return []
    warmup = f"optim.warmup_steps is {optim.warmup_steps:,} of {total:,} steps"
    return [f"the rate still goes up when it is to come down: {warmup}"]


def _smaller(params: PretrainConfig, vocab_size: int, workers: int, room: float) -> str:
    """Say what makes a step fit into `room` bytes, the cheapest first: it fits then, by the same count."""
    parts = [part for part in range(1, params.data.batch_size + 1) if params.data.batch_size % part == 0]
    shared = ["fsdp"] if workers > 1 else []
    for parallel, recompute, part in product(
        dict.fromkeys([params.parallel, *shared]), dict.fromkeys([params.model.recompute, True]), parts
    ):
        if part < params.data.accumulate:
            continue
        tried = replace(
            params,
            parallel=parallel,
            model=replace(params.model, recompute=recompute),
            data=replace(params.data, accumulate=part),
        )
        if memory(tried, vocab_size, workers=workers).total + SPARE_BYTES <= room:
            asked = [f"data.accumulate={part}"] if part != params.data.accumulate else []
            asked += ["model.recompute=true"] if recompute != params.model.recompute else []
            asked += [f"parallel={parallel}"] if parallel != params.parallel else []
            return f"it fits with {' and '.join(asked)}"
    return "no batch is small enough: choose a smaller model or context, or GPUs with more memory"


def _up(seconds: float) -> int:
    """Return the seconds rounded up to whole hours."""
    return int(-(-seconds // 3600)) * 3600


def _times(pair: Range, factor: float) -> Range:
    return pair[0] * factor, pair[1] * factor
