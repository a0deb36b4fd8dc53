"""A site's inner steps on this machine's GPU: `configs/model/1b.yaml`, AdamW, bf16, compiled, one worker.

Steps are the package's own (`InnerWorker`), with gradient clipping and AdamW, on random tokens: what a step costs does
not depend on them. As many sequences are computed at once as the package's own estimate of memory lets in, and a batch
is four times that. Model FLOPs utilisation is tokens/s times `sizes.flops_per_token`, which counts what the model needs
and not what is recomputed, over the GPU's dense bf16 peak of its data sheet. Beside it: what one large product reaches
here, and the memory that the steps took of what was estimated.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from consortium.config.compose import compose_job
from consortium.domain.pretraining import DataConfig, ModelConfig, OptimConfig, OuterConfig, PretrainConfig
from consortium.train.costs import SPARE_BYTES
from consortium.train.inner import InnerWorker
from consortium.train.order import Sequences
from consortium.train.sizes import flops_per_token, memory, parameter_count
from tests.benchmarks.table import Row, row

CONFIGS = Path(__file__).parents[2] / "configs"
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.4, "H200": 989.4, "GH200": 989.4, "A100": 312.0}
"""Dense bf16 of NVIDIA's data sheets, by a part of the device's name; the first that fits holds."""
VOCAB = 32_768
"""So that `1b` has 1.04 billion parameters."""
ROOM = 0.85
"""Share of a GPU's memory that the estimate may fill."""
ACCUMULATE = 4
WARM, TIMED = 3, 10
"""Steps before the clock starts, which compile, and steps that are timed."""
SIDE = 8192
"""Rows and columns of the product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """What steps came to."""

    tokens_per_s: float
    peak_bytes: int
    """Of the GPU's memory; 0 on the CPU."""


def gpu(*, quick: bool) -> Iterator[Row]:
    """Rows of the GPU at hand; none, and it is said, where there is none."""
    if not torch.cuda.is_available():
        print("no CUDA device: the rows of `gpu` are left out", file=sys.stderr)
        return
    device, name = torch.device("cuda"), torch.cuda.get_device_name()
    named = next((part for part in PEAK_TFLOPS if part in name), "")
    model = PretrainConfig.of(compose_job("pretrain", [f"model={'135m' if quick else '1b'}"], CONFIGS).params).model
    params = filled(model, torch.cuda.get_device_properties(device).total_memory)
    print(f"gpu: {name}, {params.data.batch_size} sequences of {model.context} tokens a step", file=sys.stderr)
    found = steps(params, VOCAB, device, WARM, TIMED)
    size = f"{parameter_count(model, VOCAB) / 1e9:.2f}B parameters, bf16, compiled"
    tflops = found.tokens_per_s * flops_per_token(model, VOCAB) / 1e12
    yield row(f"gpu: {size}, tokens per second", found.tokens_per_s, "tokens/s")
    yield row("gpu: of it the model's work", tflops, "TFLOP/s")
    yield row(f"gpu: one bf16 product of {SIDE:,} rows and columns", product(device), "TFLOP/s")
    estimate = memory(params, VOCAB).total
    yield row("gpu: memory at its peak, of what the estimate says", 100 * found.peak_bytes / estimate, "%", most=100)
    if named:
        share = 100 * tflops / PEAK_TFLOPS[named]
        yield row(f"gpu: model FLOPs utilisation, {PEAK_TFLOPS[named]:g} TFLOP/s at most", share, "%", 39, least=50)
    else:
        print(f"gpu: the peak of {name} is not known here: no utilisation", file=sys.stderr)


def filled(model: ModelConfig, gpu_bytes: int) -> PretrainConfig:
    """Return a job whose steps fill a GPU of this memory as far as the estimate says, and at least one sequence."""
    params = PretrainConfig(
        model=model,
        data=DataConfig(batch_size=ACCUMULATE, accumulate=ACCUMULATE, shuffle=False),
        optim=OptimConfig(lr=3e-4, warmup_steps=WARM),
        outer=OuterConfig(rounds=1, inner_steps=WARM + TIMED),
        seed=1,
    )
    while True:
        part = params.data.part + 1
        more = replace(params, data=replace(params.data, batch_size=part * ACCUMULATE))
        if memory(more, VOCAB).total + SPARE_BYTES > ROOM * gpu_bytes:
            return params
        params = more


def steps(params: PretrainConfig, vocab: int, device: torch.device, warm: int, timed: int) -> Timed:
    """Take `warm` steps, then `timed` of them by the clock."""
    context, batch = params.model.context, params.data.batch_size
    tokens = np.random.default_rng(0).integers(0, vocab, batch * (warm + timed) * (context + 1), dtype=np.uint32)
    worker = InnerWorker(params, vocab, Sequences([tokens], context), "gpu", device=device)
    done = worker.run(worker.initial(), position=0, step=0, count=warm, take=False)
    begun = time.perf_counter()
    done = worker.run(None, position=done.position, step=warm, count=timed, take=False)  # it ends with the GPU's word
    took_s = time.perf_counter() - begun
    if not np.isfinite(done.loss):
        raise ValueError(f"the loss is {done.loss}: these were no steps")
    most = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Timed(tokens_per_s=timed * batch * context / took_s, peak_bytes=most)


def product(device: torch.device, times: int = 50) -> float:
    """Return the TFLOP/s of a large bf16 product, as clusters' `measured_tflops` are meant."""
    one = torch.randn(SIDE, SIDE, dtype=torch.bfloat16, device=device)
    for count in (3, times):
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        for _ in range(count):
            one @ one
        torch.cuda.synchronize(device)
        took_s = time.perf_counter() - begun
    return 2 * SIDE**3 * times / took_s / 1e12
