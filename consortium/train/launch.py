"""Start the inner training of one leg on its site's Ray cluster: one Ray Train run for all rounds.

Process starts dominate short runs, so there is one, and of Ray Train only placement, process group and failure handling
are used: rounds, checkpoints and metrics go through the leg's own channel and the private store.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from consortium.domain.pretraining import PretrainConfig
from consortium.domain.protocol import LegContext
from consortium.errors import ConsortiumError, JobFailedError, UnreachableError, UsageError
from consortium.train.exchange import Exchange
from consortium.train.keep import Keep, Origin
from consortium.train.tokens import open_sequences, vocabulary

OpenExchange = Callable[[], Exchange]
RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    # The consortium's server preempts legs, by stopping them; Ray's own watcher would be one more process.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""How Ray Train is set up, unless the environment says otherwise."""


def check(context: LegContext) -> PretrainConfig:
    """Return the leg's params after checking what can be checked before any process starts. Raises UsageError."""
    params = PretrainConfig.of(context.params)
    vocabulary(context.inputs, held_out=False)
    if context.gpu_resource == "GPU" and context.gpus_per_worker != 1:
        raise UsageError(
            f"a training worker drives one GPU, not {context.gpus_per_worker}", fix="set gpus_per_worker to 1"
        )
    return params


def run(open_exchange: OpenExchange, context: LegContext) -> None:
    """Train on the cluster that this driver belongs to; return when the last round is closed.

    `open_exchange` is called in the workers. Raises the ConsortiumError that ended a worker, or JobFailedError.
    """
    check(context)
    for name, value in RAY_TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from consortium.train.cluster import connected

    workers = context.gpus // context.gpus_per_worker
    with connected(), tempfile.TemporaryDirectory(prefix="consortium-train-") as directory:
        make = _trainer(workers, context.gpu_resource)
        trainer = make(
            _worker,
            train_loop_config={"open_exchange": open_exchange},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=context.gpu_resource == "GPU",
                # No CPUs are asked for: the scheduler counts GPUs, and a busy CPU slows a leg but must not stop it.
                resources_per_worker={context.gpu_resource: context.gpus_per_worker, "CPU": 0},
            ),
            run_config=RunConfig(
                name=f"{context.leg}-{context.epoch}",
                storage_path=directory,
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as fault:
            raise _cause(fault) from fault


def _trainer(workers: int, gpu_resource: str) -> Callable[..., Any]:
    """Return the Ray Train trainer to make.

    Several workers get a torch process group. One needs none, and the plain trainer spares driver and controller the
    import of torch, which on a small machine takes longer than a short run's steps.
    """
    if workers == 1:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        plain: Callable[..., Any] = DataParallelTrainer
        return plain
    from ray.train.torch import TorchConfig, TorchTrainer

    from consortium.train.parallel import WAIT_S

    backend = "nccl" if gpu_resource == "GPU" else "gloo"
    return partial(TorchTrainer, torch_config=TorchConfig(backend=backend, timeout_s=WAIT_S))


def _cause(fault: Exception) -> ConsortiumError:
    """Return the package's own error behind a failed run, if there is one.

    A worker whose process or node was lost takes its peers with it: that is no fault of the program. Nor is what the
    controller says: it runs none of the program, and fails where workers do not start.
    """
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import ControllerError

    if isinstance(fault, ControllerError):
        said = (str(fault.controller_failure).strip().splitlines() or [type(fault.controller_failure).__name__])[0]
        return UnreachableError(f"training could not be run: {said[:300]}", fix="see the Ray cluster's logs")

    failures = dict(getattr(fault, "worker_failures", {}))
    for failure in [failures[rank] for rank in sorted(failures)]:
        for error in (failure, getattr(failure, "cause", None), failure.__cause__):
            if isinstance(error, ConsortiumError):
                return error
    for rank in sorted(failures):
        lost = getattr(failures[rank], "health_check_failure", failures[rank])
        if isinstance(lost, RayActorError):
            said = (str(lost).strip().splitlines() or ["no reason given"])[0]
            return UnreachableError(f"training worker {rank} was lost: {said[:300]}", fix="see the Ray cluster's logs")
    first = str(next(iter(failures.values()), fault)).strip().splitlines()
    return JobFailedError(f"training failed: {first[-1] if first else type(fault).__name__}")


def _worker(config: Mapping[str, Any]) -> None:
    """Run one rank. Rank 0 leads and talks to the gateway; the others follow it."""
    import ray.train
    import torch

    from consortium.train.inner import InnerWorker
    from consortium.train.node import Node

    logging.getLogger("httpx").setLevel(logging.WARNING)
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    place = ray.train.get_context()
    rank, world = place.get_world_rank(), place.get_world_size()
    exchange: Exchange = config["open_exchange"]()
    context = exchange.context
    params = PretrainConfig.of(context.params)
    words = vocabulary(context.inputs, held_out=False)
    device = torch.device("cuda", torch.cuda.current_device()) if context.gpu_resource == "GPU" else torch.device("cpu")
    node = Node(place.get_node_rank(), place.get_local_rank(), world, device)
    store, length = exchange.store(), params.model.context
    sequences = open_sequences(store, context.inputs, length, words.size, params.data.weights, node)
    worker = InnerWorker(params, words.size, sequences, context.site, rank=rank, world=world, device=device)
    if rank == 0:
        lead(exchange, worker, params, words.size, words.tokenizer_digest)
    else:
        worker.follow()


def lead(exchange: Exchange, worker: Any, params: PretrainConfig, vocab_size: int, tokenizer_digest: str) -> None:
    """Take part in all rounds as rank 0 and leave the result with the site. `worker` is an `InnerWorker`."""
    from consortium.domain.codec import to_json
    from consortium.train.leg import FederatedLeg
    from consortium.train.meter import Meter
    from consortium.train.plugin import same_everywhere
    from consortium.train.sizes import flops_per_token
    from consortium.train.track import RunMetrics

    context = exchange.context
    origin = Origin(
        model=to_json(params.model),
        vocab_size=vocab_size,
        tokenizer_digest=tokenizer_digest,
        names=worker.layout.names,
        shapes=worker.layout.shapes,
        document_end=worker.document_end,
        optimizer=worker.covered,
        source=same_everywhere(exchange, params.model.plugin) if params.model.plugin else "",
    )
    keep = Keep(exchange.store(), context.job, worker.holders)
    meter = Meter(exchange)
    metrics = meter.metrics(
        RunMetrics(exchange.tracking_uri, exchange.token, context.tracking_run),
        flops_per_token=None if params.model.plugin else flops_per_token(params.model, vocab_size),
    )
    leg = FederatedLeg(meter.exchange, keep, worker, params, origin, metrics)
    final = leg.run()
    worker.stop()
    if final is None:
        sys.stderr.write("this leg's GPUs are taken back; what it has is kept\n")
        return
    mixture = {"mixture": worker.order.read(final.position)} if params.data.mixture else {}
    exchange.result(
        metrics={
            **mixture,
            **({"model_source": origin.source} if origin.source else {}),
            "rounds": final.round,
            "tokens": final.tokens,
            "parameters": worker.layout.size,
            "outer_digest": final.digest,
            "outer_digests": leg.digests,
            "loss": leg.losses,
        }
    )
