"""Held-out loss of outer states, per language, at the site that holds the text and the states.

One Ray task reserves the leg's GPUs and runs torch; there is nothing to synchronise, so Ray Train is not needed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from consortium.domain.codec import from_json
from consortium.domain.data import Dataset
from consortium.domain.pretraining import EvaluateConfig, ModelConfig
from consortium.domain.protocol import LegContext
from consortium.errors import ConsortiumError, NotFoundError, UsageError
from consortium.train.exchange import Exchange
from consortium.train.keep import Keep, Origin
from consortium.train.order import Sequences
from consortium.train.outer import Vector
from consortium.train.tokens import open_sequences, vocabulary

if TYPE_CHECKING:
    import torch

_METRIC = re.compile(r"[A-Za-z0-9_.+-]{1,60}")
"""Languages that may stand in the name of a metric as they are."""


def check(context: LegContext) -> EvaluateConfig:
    """Return the leg's params after checking what can be checked before any process starts. Raises UsageError."""
    params = EvaluateConfig.of(context.params)
    vocabulary(context.inputs, held_out=True)
    if not context.model:
        raise UsageError("the job names no model", fix="set model to the id of a pretrain job")
    return params


def run(open_exchange: Callable[[], Exchange], context: LegContext) -> None:
    """Measure on the cluster that this driver belongs to. Raises the ConsortiumError that ended the task."""
    check(context)
    import ray

    from consortium.train.cluster import connected

    gpus = context.gpus if context.gpu_resource == "GPU" else 0
    resources = {} if gpus else {context.gpu_resource: context.gpus}
    task = ray.remote(num_cpus=0, num_gpus=gpus, resources=resources, max_retries=0)(_task)
    with connected():
        try:
            ray.get(task.remote(open_exchange))
        except ray.exceptions.RayTaskError as fault:
            if isinstance(fault.cause, ConsortiumError):
                raise fault.cause from fault
            raise


def _task(open_exchange: Callable[[], Exchange]) -> None:
    measure(open_exchange())


def measure(exchange: Exchange) -> dict[str, Any]:
    """Measure every outer state asked for on every language of the inputs; leave and return the metrics."""
    import torch

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    context = exchange.context
    params = EvaluateConfig.of(context.params)
    words = vocabulary(context.inputs, held_out=True)
    keep = Keep(exchange.store(), context.model)
    numbers = rounds_asked(params.rounds, keep.rounds(), context)
    device = torch.device("cuda") if context.gpu_resource == "GPU" else torch.device("cpu")
    by_round: dict[str, dict[str, float]] = {}
    tokens: dict[str, int] = {}
    texts: dict[str, Sequences] = {}
    for number in dict.fromkeys(numbers):
        origin, outer = keep.measured(number)
        if (origin.vocab_size, origin.tokenizer_digest) != (words.size, words.tokenizer_digest):
            raise UsageError(f"{context.model} was trained with another tokenizer than the inputs were made with")
        exchange.progress(phase="evaluate", round=number)
        for language, datasets in by_language(context.inputs).items():
            if language not in texts:  # every state of a job has the same context
                length = from_json(ModelConfig, origin.model).context
                texts[language] = open_sequences(exchange.store(), datasets, length, words.size)
            loss, seen = held_out_loss(origin, outer, texts[language], params, device)
            by_round.setdefault(language, {})[str(number)] = loss
            tokens[language] = seen
    before_after = {
        language: {"before": losses[str(numbers[0])], "after": losses[str(numbers[-1])]}
        for language, losses in sorted(by_round.items())
    }
    metrics: dict[str, Any] = {"loss": before_after, "by_round": by_round, "tokens": tokens, "rounds": list(numbers)}
    _track(exchange, by_round)
    exchange.result(metrics=metrics)
    return metrics


def rounds_asked(asked: Sequence[int], kept: Sequence[int], context: LegContext) -> list[int]:
    """Return the rounds asked for, -1 as the newest kept. Raises NotFoundError naming what this site does not keep."""
    if not kept:
        raise NotFoundError(
            f"{context.site} keeps no outer state of {context.model}", fix="name a pretrain job that ran at this site"
        )
    numbers = [kept[-1] if number == -1 else number for number in asked]
    absent = sorted(set(numbers) - set(kept))
    if absent:
        raise NotFoundError(f"{context.site} keeps rounds {kept[0]} to {kept[-1]} of {context.model}, not {absent}")
    return numbers


def by_language(datasets: Sequence[Dataset]) -> dict[str, list[Dataset]]:
    """Group datasets by language; one that mixes languages is a group of its own, `de+fr`.

    Languages that are no names of a metric, or too many for one, go by a digest of theirs: `24-languages-1f09d30c`.
    """
    groups: dict[str, list[Dataset]] = {}
    for dataset in sorted(datasets, key=lambda dataset: dataset.id):
        name = "+".join(sorted(dataset.languages)) or "unknown"
        if not _METRIC.fullmatch(name):
            name = f"{len(dataset.languages)}-languages-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        groups.setdefault(name, []).append(dataset)
    return dict(sorted(groups.items()))


def held_out_loss(
    origin: Origin, outer: Vector, text: Sequences, params: EvaluateConfig, device: torch.device
) -> tuple[float, int]:
    """Return the mean loss in nats per token over at most `batches` batches spread evenly over `text`, and the tokens.

    Raises UsageError where the held-out text has not one whole sequence.
    """
    import torch

    from consortium.train.plugin import build

    if len(text) < 1:
        raise UsageError("the held-out dataset has not one whole sequence", fix="hold out more, or shorten the context")
    config = from_json(ModelConfig, origin.model)
    model = build(config, origin.vocab_size).to(device).eval()
    if origin.document_end is not None:
        model.separate(origin.document_end)
    for name, array in origin.layout.split(outer).items():
        model.get_parameter(name).data.copy_(torch.from_numpy(array.copy()))
    count = min(len(text), params.batches * params.batch_size)
    numbers = np.arange(count, dtype=np.uint64) * np.uint64(len(text)) // np.uint64(count)
    total = 0.0
    with torch.inference_mode():
        for start in range(0, count, params.batch_size):
            rows_BT = torch.from_numpy(text.read(numbers[start : start + params.batch_size])).to(device)
            total += float(model.losses(model(rows_BT[:, :-1]), rows_BT)[1]) * len(rows_BT)
    return total / count, count * config.context


def _track(exchange: Exchange, by_round: dict[str, dict[str, float]]) -> None:
    """Log the losses where the leg has a run; a tracking server that is away does not undo the measurement."""
    import sys

    from consortium.train.track import RunMetrics

    metrics = RunMetrics(exchange.tracking_uri, exchange.token, exchange.context.tracking_run)
    try:
        for language, losses in by_round.items():
            for number, loss in losses.items():
                metrics.log({f"held_out_loss.{language}": loss}, int(number))
    except ConsortiumError as fault:
        sys.stderr.write(f"the losses were not tracked: {fault.render()}\n")
