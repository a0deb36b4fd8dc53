"""The outer step: the same bits everywhere, the same numbers as torch's."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from consortium.domain.training import Contribution
from consortium.errors import VerificationError
from consortium.keys.canonical import digest as digest_of
from consortium.train.outer import Layout, aggregate, from_bytes, nesterov, norm_of, to_bytes

STEP = """
import importlib, sys, numpy as np
if sys.argv[1] != "-":
    importlib.import_module(sys.argv[1])
from consortium.domain.training import Contribution
from consortium.keys.canonical import digest as digest_of
from consortium.train.outer import aggregate, nesterov, to_bytes
random = np.random.default_rng(3)
n = 100_003
vectors = {site: (random.standard_normal(n) * 1e-3).astype(np.float32) for site in ("de-1", "fr-1", "uy-1")}
weights = {"de-1": 1 / 3, "fr-1": 0.123456789, "uy-1": 0.5432}
parts = [Contribution(site=s, digest="", tokens=1, weight=weights[s].hex(), clip=float(1).hex()) for s in sys.argv[2:]]
outer, momentum = random.standard_normal(n).astype(np.float32), np.zeros(n, np.float32)
for _ in range(3):
    outer, momentum = nesterov(outer, momentum, aggregate(parts, vectors, n), lr=0.7, momentum_decay=0.9)
print(digest_of(to_bytes(outer) + to_bytes(momentum)))
"""


def part(site: str, weight: float = 1.0, clip: float = 1.0) -> Contribution:
    return Contribution(site=site, digest="", tokens=1, weight=weight.hex(), clip=clip.hex())


def test_bits_do_not_depend_on_simd_or_on_the_order_of_arrival():
    from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatched  # numpy's groups, not single features

    runs = {
        (capability, numpy_off, order): subprocess.run(
            [sys.executable, "-c", STEP, library, *order.split()],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability, "NPY_DISABLE_CPU_FEATURES": numpy_off},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()[-1]
        for library, capability, numpy_off, order in (
            ("-", "default", " ".join(dispatched), "fr-1 uy-1 de-1"),
            ("torch", "avx2", "", "uy-1 de-1 fr-1"),
        )
    }
    assert len(set(runs.values())) == 1, runs


def test_the_outer_step_is_torchs_nesterov_within_rounding():
    import torch

    random = np.random.default_rng(0)
    start = random.standard_normal(1000).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    outer, momentum = start, np.zeros(1000, np.float32)
    for _ in range(10):
        gradient = random.standard_normal(1000).astype(np.float32)
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        outer, momentum = nesterov(outer, momentum, gradient, lr=0.7, momentum_decay=0.9)
    np.testing.assert_allclose(outer, parameter.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_aggregation_weighs_clips_and_starts_from_zero():
    vectors = {"aa-1": np.float32([1, 2]), "bb-1": np.float32([10, 20])}
    np.testing.assert_array_equal(aggregate([part("aa-1", 0.25), part("bb-1", 0.5, 0.5)], vectors, 2), [2.75, 5.5])
    np.testing.assert_array_equal(aggregate([], vectors, 2), [0, 0])


def test_the_flat_vector_is_in_name_order_and_little_endian():
    layout = Layout.of({"b": (2,), "a": (1, 2)})
    vector = layout.join({"a": np.float32([[1, 2]]), "b": np.float32([3, 4])})
    assert to_bytes(vector) == np.array([1, 2, 3, 4], dtype="<f4").tobytes()
    assert {name: array.shape for name, array in layout.split(vector).items()} == {"a": (1, 2), "b": (2,)}
    np.testing.assert_array_equal(from_bytes(to_bytes(vector), 4, what="x"), vector)
    assert digest_of(b"").startswith("sha256:e3b0c442")
    with pytest.raises(VerificationError, match="has 8 bytes"):
        from_bytes(b"\0" * 8, 4, what="x")


def test_sums_and_steps_take_the_memory_of_a_tile_beside_what_they_return_and_change_no_bit(monkeypatch):
    from consortium.train import outer

    size = 200_000
    one, other = (np.random.default_rng(seed).standard_normal(size).astype(np.float32) for seed in (1, 2))
    vectors, parts = {"aa-1": one, "bb-1": other}, [part("aa-1", 0.3), part("bb-1", 0.7, 0.5)]

    def work() -> dict[str, object]:
        after, speed = nesterov(one, other, one, lr=0.7, momentum_decay=0.9)
        return {"norm": norm_of(one), "sum": aggregate(parts, vectors, size), "outer": after, "momentum": speed}

    whole = work()
    monkeypatch.setattr(outer, "_TILE", 1000)
    tracemalloc.start()
    try:
        tiled = work()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 4 * size + 100_000
    assert tiled.pop("norm") == pytest.approx(whole.pop("norm"), rel=1e-12)
    for name, vector in tiled.items():
        np.testing.assert_array_equal(vector, whole[name])


def test_norm_does_not_overflow_where_fp32_would():
    assert norm_of(np.float32([3e30, 4e30])) == pytest.approx(5e30)
