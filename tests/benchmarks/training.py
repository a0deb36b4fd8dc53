"""The figures of training: `python -m tests.benchmarks.training [--json] [--quick] [--only loss,...]`.

- `loss`: held-out loss of three sites, one language each, against one cluster that trains data parallel on exactly the
  same sequences in the same steps, with AdamW and with Muon. Outer steps as by default; then Muon inside and less outer
  momentum; then the inner optimisers' states shared, and rounds as long as the rate (`outer.share`, `outer.taper`).
- `codes`: what each code costs in loss and saves in bytes against sending fp32 gradients once per step.
- `attack`: a fourth site that sends 100 times its pseudo-gradient, or its negative, from round 3 on; or, where inner
  optimisers are shared, an honest pseudo-gradient with its optimiser's state negated, or three times as large.
- `kills`: one of the sites is killed in every second round and does that round's steps again from what was kept.
- `crash`: whole legs with S3 (`training_legs`), all crashed at random calls, against an undisturbed run's digests.
- `overhead`: a round of such legs at 10 million parameters, with inner steps that cost nothing.
- `speed`: a site's tokens per second against a bare PyTorch loop of the same model, in turn; MB/s of encode and decode
  on one core, of fp32 parameters.
- `utilisation`: a simulated clock for 7B parameters on 64 H100 per site at 110 Mb/s; assumptions go to stderr. Rounds
  that wait, and rounds applied late (`outer.delay`), the latter with `parallel: fsdp`, where the outer state lies in
  slices with all ranks of a site, and, for comparison, with one process for all of it.
- `gpu`: steps of 1 billion parameters on the GPU at hand, if there is one: model FLOPs utilisation (`training_gpu`).

The first four train three sites one after another in one process (`training_sites`), as many trainings side by side as
there are cores: no Ray, no gateway, no sealing, no network and no waiting, so they say what is learned and not how long
it takes. `crash` and `overhead` are legs in threads with a real S3 server, without Ray, gateways, sealing and TLS. Loss
is in nats per byte, the mean over the languages. `--quick` prints the same rows from a smaller model and fewer steps:
not to be held against the targets. Without the corpora the rows that train on them are left out, without a GPU those of
`gpu`, and it is said. Not here yet: a round's overhead in the embedded federation, and aggregation with trimmed mean or
median.

References: Streaming DiLoCo (https://arxiv.org/abs/2501.18512), INTELLECT-1 (https://arxiv.org/abs/2412.01152),
SparseLoCo (https://arxiv.org/abs/2508.15706), torchtitan (https://arxiv.org/abs/2410.06511), and the measurements that
came with the targets.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from consortium.domain.pretraining import DataConfig, ModelConfig, OptimConfig, OuterConfig, PretrainConfig
from consortium.domain.screening import ScreenRule
from consortium.train.codes import Code
from consortium.train.inner import InnerWorker
from consortium.train.model import Decoder
from consortium.train.outer import Layout, Vector
from consortium.train.plugin import token_losses
from tests.benchmarks import training_legs
from tests.benchmarks.table import Row, arguments, row, show
from tests.benchmarks.training_clock import on_one_core, utilisation
from tests.benchmarks.training_gpu import gpu
from tests.benchmarks.training_runs import FROM_ROUND, LIAR, Run, Trainings
from tests.benchmarks.training_sites import VOCAB, Corpus, Federation, corpora

PARTS = ("loss", "codes", "attack", "kills", "crash", "overhead", "speed", "utilisation", "gpu")
TRAINED = ("loss", "codes", "attack", "kills")
ON_TEXT = (*TRAINED, "crash", "speed")
OPTIM = OptimConfig(lr=0.003, warmup_steps=30)
MUON = OptimConfig(name="muon", lr=0.003, warmup_steps=30)
MUON_APART = OptimConfig(name="muon", lr=0.002, warmup_steps=30)
"""Outer momentum makes up for the lower rate."""
CODES = (Code(name="bf16"), Code(name="int8"), Code(name="int4"))
LONG = 540
"""Steps of a round that `int4` sends a four-thousandth of a gradient per step for."""
SPARSE = Code(name="topk", topk=64, feedback=0.95)
RULE = ScreenRule(cosine=0.0)
"""What sites screen with where one lies: no contribution that points away from the outer momentum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the runs are."""

    model: ModelConfig
    rounds: int
    short_rounds: int
    """Of the rows that compare runs with each other and need no full length."""
    long_rounds: int
    """Of the rows whose rounds are long."""
    overhead_million: int
    code_million: int

    def params(self, rounds: int = 0, optim: OptimConfig = OPTIM, **outer: Any) -> PretrainConfig:
        """Return the job: four sequences of 128 tokens per site and step, 30 steps a round if nothing else is said."""
        chosen = OuterConfig(**({"rounds": rounds or self.rounds} | OUTER | outer))
        return PretrainConfig(model=self.model, data=DataConfig(batch_size=4), optim=optim, outer=chosen, seed=1)


OUTER: dict[str, Any] = {"inner_steps": 30, "lr": 0.7, "momentum": 0.9}
FULL = Scale(
    model=ModelConfig(dim=128, layers=4, heads=4, context=128),
    rounds=60,
    short_rounds=20,
    long_rounds=4,
    overhead_million=10,
    code_million=64,
)
QUICK = Scale(
    model=ModelConfig(dim=32, layers=2, heads=2, context=128),
    rounds=10,
    short_rounds=5,
    long_rounds=2,
    overhead_million=2,
    code_million=8,
)


def percent(value: float, beside: float) -> float:
    """How much more `value` is than `beside`, in percent."""
    return 100 * (value / beside - 1)


def loss(scale: Scale, trainings: Trainings) -> Iterator[Row]:
    """Three sites against one cluster, which is the better of two: with AdamW and with Muon inside."""
    single = trainings.ask(Run(params=scale.params(), single=True))
    second = trainings.ask(Run(params=scale.params(optim=MUON), single=True))
    muon = scale.params(optim=MUON_APART, lr=1.0, momentum=0.5)
    shared = scale.params(optim=MUON, lr=1.0, momentum=0.3, share="optimizer", taper=1.0)
    apart = {
        "outer 0.7/0.9, AdamW": trainings.ask(Run(params=scale.params())),
        "outer 1.0/0.5, Muon": trainings.ask(Run(params=muon)),
        "outer 1.0/0.3, Muon shared, taper 1": trainings.ask(Run(params=shared)),
    }

    def rows() -> Iterator[Row]:
        adamw, best = single().loss, min(single().loss, second().loss)
        yield row("loss: one cluster, data parallel, AdamW", adamw, "nats", 2.277)
        yield row("loss: one cluster, data parallel, Muon", second().loss, "nats")
        for what, result in apart.items():
            found = result().loss
            yield row(f"loss: three sites, {what}", found, "nats", 2.389 if "0.7" in what else None)
            yield row(f"loss: {what}, above one cluster with AdamW", percent(found, adamw), "%", most=1.5)
            yield row(f"loss: {what}, above the better one cluster", percent(found, best), "%", most=1.5)
        more = apart["outer 1.0/0.3, Muon shared, taper 1"]().sent_bytes / apart["outer 1.0/0.5, Muon"]().sent_bytes
        yield row("loss: bytes sent where the state is shared, of those where it is not", more, "times")

    return rows()


def codes(scale: Scale, trainings: Trainings) -> Iterator[Row]:
    """Bytes and loss of the codes: the sparse one at full length and without outer momentum, as its authors use it."""
    short, whole = scale.params(scale.short_rounds), scale.params(lr=1.0, momentum=0.0)
    bare, bare_whole = trainings.ask(Run(params=short)), trainings.ask(Run(params=whole))
    coded = {code: trainings.ask(Run(params=short, code=code)) for code in CODES}
    sparse = trainings.ask(Run(params=whole, code=SPARSE))
    seldom = scale.params(scale.long_rounds, inner_steps=LONG, lr=1.0, momentum=0.0)
    bare_seldom, int4_seldom = (
        trainings.ask(Run(params=seldom)),
        trainings.ask(Run(params=seldom, code=Code(name="int4"))),
    )

    def rows() -> Iterator[Row]:
        for code, result in coded.items():
            out = result()
            fewer = 4 * out.size * 30 * scale.short_rounds / out.sent_bytes
            yield row(f"codes: {_name(code)} fewer bytes than a gradient per step", fewer, "x")
            yield row(f"codes: {_name(code)} loss above fp32's", percent(out.loss, bare().loss), "%")
        out, name = sparse(), _name(SPARSE)
        fewer = 4 * out.size * 30 * scale.rounds / out.sent_bytes
        yield row(f"codes: {name} fewer bytes than a gradient per step", fewer, "x", least=4000)
        above = percent(out.loss, bare_whole().loss)
        yield row(f"codes: {name}, outer 1.0/0, loss above fp32's", above, "%", most=1)
        out, name = int4_seldom(), f"int4, rounds of {LONG} steps"
        fewer = 4 * out.size * LONG * scale.long_rounds / out.sent_bytes
        yield row(f"codes: {name} fewer bytes than a gradient per step", fewer, "x", least=4000)
        above = percent(out.loss, bare_seldom().loss)
        yield row(f"codes: {name}, outer 1.0/0, loss above fp32's", above, "%", most=1)

    return rows()


def _name(code: Code) -> str:
    return f"topk {code.topk} of 4,096" if code.name == "topk" else code.name


def attack(scale: Scale, trainings: Trainings) -> Iterator[Row]:
    """A fourth site that lies; it holds French text like the first, so that only its lies set it apart."""
    short = scale.params(scale.short_rounds)
    bare = trainings.ask(Run(params=short))
    lies = {
        what: trainings.ask(Run(params=short, rule=RULE, lie=factor))
        for what, factor in (("100 times", 100.0), ("the negative of", -1.0))
    }
    shared = scale.params(scale.short_rounds, MUON, lr=1.0, momentum=0.3, share="optimizer")
    bare_shared = trainings.ask(Run(params=shared))
    lies["the negative of its optimiser's state beside"] = trainings.ask(
        Run(params=shared, rule=RULE, lie=-1.0, of_state=True)
    )
    flat = trainings.ask(Run(params=shared, rule=RULE, lie=3.0, of_state=True))

    def rows() -> Iterator[Row]:
        rounds = range(FROM_ROUND, scale.short_rounds + 1)
        for what, result in lies.items():
            out = result()
            caught = sum(LIAR in out.refused.get(number, {}) for number in rounds)
            honest = sum(len(set(names) - {LIAR}) for names in out.refused.values())
            above = percent(out.loss, (bare_shared if "state" in what else bare)().loss)
            yield row(f"attack: {what} its pseudo-gradient, rounds refused", 100 * caught / len(rounds), "%", least=100)
            yield row(f"attack: {what} its pseudo-gradient, honest sites refused", honest, "times", most=0)
            yield row(f"attack: {what} its pseudo-gradient, loss above that without it", above, "%", most=1)
        above = percent(flat().loss, bare_shared().loss)
        yield row("attack: 3 times its optimiser's state, which passes, loss above that without it", above, "%", most=1)

    return rows()


def kills(scale: Scale, trainings: Trainings) -> Iterator[Row]:
    """One site is killed in every second round; its progress is kept every five steps, as `checkpoint_every_s` says."""
    short, draw = scale.params(scale.short_rounds), random.Random(0)
    bare, rounds = trainings.ask(Run(params=short)), range(2, scale.short_rounds + 1, 2)
    killed = tuple((number, draw.choice(trainings.sites), draw.randint(1, 29)) for number in rounds)
    result = trainings.ask(Run(params=short, killed=killed))

    def rows() -> Iterator[Row]:
        out, steps = result(), scale.short_rounds * 30
        wanted = len(trainings.sites) * steps * 4 * scale.model.context
        goodput = 100 * steps / (steps + out.again)
        yield row("kills: tokens counted of those of an undisturbed run", 100 * out.tokens / wanted, "%", 88, least=90)
        yield row("kills: goodput, all wait for steps done again", goodput, "%", 88, least=90)
        yield row("kills: loss above the undisturbed run's", percent(out.loss, bare().loss), "%", most=2)

    return rows()


def crash(scale: Scale, texts: dict[str, Corpus]) -> Iterator[Row]:
    """Whole legs that all crash."""
    params = QUICK.params(4)
    params = replace(params, outer=replace(params.outer, inner_steps=3))
    sequences = Federation(params, texts).sequences
    times = 10 if scale is FULL else 3
    differing, crashes = training_legs.differing_digests(params, sequences, times, seed=1)
    yield row("crash: crashes of legs at random calls", crashes, "crashes")
    yield row("crash: final outer digests that differ from the undisturbed run's", differing, "legs", most=0)


def overhead(scale: Scale, texts: dict[str, Corpus]) -> Iterator[Row]:
    """A round without its inner steps."""
    params = scale.params(4)
    params = replace(params, outer=replace(params.outer, inner_steps=1))
    layout = Layout(("all",), ((scale.overhead_million * 1_000_000,),))
    seconds = training_legs.round_seconds(params, layout, ("de-1", "fr-1", "uy-1"))
    what = f"overhead: a round at {scale.overhead_million}M parameters, no Ray, gateways or sealing"
    yield row(what, seconds, "s", most=2)


def speed(scale: Scale, texts: dict[str, Corpus]) -> Iterator[Row]:
    """Of encoding; and rounds of a site's steps and of a bare loop's, in turn and compared in pairs, because the
    machine's speed varies. CPU seconds, so that other work counts little.
    """
    size = scale.code_million * 1_000_000
    vector = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    for code, least in ((Code(name="int8"), 500.0), (SPARSE, 200.0)):
        residual = code.encode(vector).residual
        spent_s, _ = on_one_core(partial(_there_and_back, code, vector, residual))
        yield row(f"speed: {_name(code)} encode and decode, one core", 4 * size / 1e6 / spent_s, "MB/s", least=least)
    params = scale.params()
    here = Federation(params, texts)
    name, text = next(iter(here.sequences.items()))
    worker, model = InnerWorker(params, VOCAB, text, name), Decoder(params.model, VOCAB)
    model.initialise(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIM.lr, betas=OPTIM.betas, weight_decay=0.1, foreach=True)
    rows_BT = torch.from_numpy(text.read(np.arange(4, dtype=np.uint64)))

    def bare() -> None:
        for _ in range(30):
            token_losses(model(rows_BT[:, :-1]), rows_BT)[0].backward()  # type: ignore[no-untyped-call]  # torch's
            nn.utils.clip_grad_norm_(model.parameters(), OPTIM.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    spent: dict[str, list[float]] = {"bare": [], "ours": []}
    start = worker.initial()
    for _ in range(10):
        for which, work in (
            ("bare", bare),
            ("ours", lambda: worker.run(start, position=0, step=0, count=30)),
        ):
            begun = time.process_time()
            work()
            spent[which].append(time.process_time() - begun)
    tokens = 30 * 4 * params.model.context
    bare_s, ours_s = (statistics.median(spent[which][1:]) for which in ("bare", "ours"))
    share = statistics.median(one / other for one, other in zip(spent["bare"][1:], spent["ours"][1:], strict=True))
    yield row("speed: tokens per CPU second of one site", tokens / ours_s, "tokens/s", tokens / bare_s)
    yield row("speed: of a bare PyTorch loop of the same model", 100 * share, "%", 100, least=97)


def _there_and_back(code: Code, vector: Vector, residual: Vector | None) -> None:
    code.decode(code.encode(vector, residual).data, len(vector))


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, PARTS)
    parser.add_argument("--quick", action="store_true", help="the same rows, smaller: within 5 minutes")
    choice = parser.parse_args()
    torch.set_num_threads(1)  # as in a leg: threads that wait for each other spend CPU seconds
    scale = QUICK if choice.quick else FULL
    texts = corpora()
    trained: dict[str, Callable[[Scale, Trainings], Iterator[Row]]] = {
        "loss": loss,
        "codes": codes,
        "attack": attack,
        "kills": kills,
    }
    timed: dict[str, Callable[[Scale, dict[str, Corpus]], Iterator[Row]]] = {
        "crash": crash,
        "overhead": overhead,
        "speed": speed,
        "utilisation": lambda scale, _: utilisation(SPARSE, scale.code_million * 1_000_000),
        "gpu": lambda scale, _: gpu(quick=scale is QUICK),
    }
    chosen = [part for part in PARTS if part in choice.only and (texts or part not in ON_TEXT)]
    with Trainings(sorted(texts)) as trainings:
        # All are asked for before the first is waited for; what is timed begins once they are done.
        rows = [trained[part](scale, trainings) for part in chosen if part in trained]
        rows += [timed[part](scale, texts) for part in chosen if part in timed]
        show((one for part in rows for one in part), as_json=choice.json)


if __name__ == "__main__":
    main()
