"""What `training_gpu` times, on the CPU, where its steps are the same but for bf16 and compilation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from consortium.domain.pretraining import ModelConfig
from consortium.train.sizes import memory
from tests.benchmarks.training_gpu import ACCUMULATE, VOCAB, filled, gpu, steps

SMALL = ModelConfig(dim=32, layers=2, heads=2, context=16)


def test_batches_fill_a_gpu_as_far_as_the_estimate_lets_them() -> None:
    model = ModelConfig(dim=2048, layers=16, heads=32, kv_heads=8, mlp_dim=8192, context=4096, tie_embeddings=True)
    parts = [filled(model, size * 10**9).data.part for size in (80, 141)]
    assert 1 < parts[0] < parts[1]
    params = filled(model, 80 * 10**9)
    assert memory(params, VOCAB).total < 0.85 * 80e9 - 2e9
    more = replace(params, data=replace(params.data, batch_size=(params.data.part + 1) * ACCUMULATE))
    assert memory(more, VOCAB).total > 0.85 * 80e9 - 2e9


def test_steps_are_timed_over_all_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    params, clock = filled(SMALL, 0), iter((100.0, 102.0))
    monkeypatch.setattr("tests.benchmarks.training_gpu.time.perf_counter", lambda: next(clock))
    found = steps(params, 256, torch.device("cpu"), 1, 3)
    assert found.tokens_per_s == 3 * ACCUMULATE * SMALL.context / 2
    assert found.peak_bytes == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_rows_are_left_out_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(gpu(quick=True)) == []
    assert "no CUDA device" in capsys.readouterr().err
