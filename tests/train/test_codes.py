"""Codes for pseudo-gradients: bounds, the same bytes everywhere, error feedback conserved, nothing hostile taken."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.errors import VerificationError
from consortium.keys.canonical import digest as digest_of
from consortium.train.codes import Code
from consortium.train.outer import to_bytes
from consortium.train.sparse import CHUNK, COUNTS

BF16, INT8, INT4 = Code(name="bf16"), Code(name="int8"), Code(name="int4")
TOPK = tuple(Code(name="topk", topk=k) for k in COUNTS)
LOSSY = (BF16, INT8, INT4, *TOPK)
SIZES = (1, 2, 15, 127, 256, 300, CHUNK - 1, CHUNK, CHUNK + 5, 3 * CHUNK + 77, (1 << 18) + 3)
HEADER = 16
DIGESTS = """
import sys, numpy as np
from consortium.train.codes import Code
from consortium.keys.canonical import digest as digest_of
from consortium.train.outer import to_bytes
random = np.random.default_rng(5)
vectors = [(random.standard_t(3, 300_001) * 1e-3).astype(np.float32) for _ in range(2)]
for name, k in [("bf16", 64), ("int8", 64), ("int4", 64), *(("topk", k) for k in (16, 32, 64, 128, 256))]:
    code, residual, seen = Code(name=name, topk=k, feedback=0.95), None, b""
    for vector in vectors:
        made = code.encode(vector, residual)
        residual = made.residual
        seen += made.data + to_bytes(residual) + to_bytes(code.decode(made.data, len(vector)))
    print(name, k, digest_of(seen))
"""


def drawn(size: int, seed: int = 0) -> np.ndarray:
    """Heavy tails and unlike scales, as pseudo-gradients have them, with exact zeros between."""
    random = np.random.default_rng(seed)
    vector = random.standard_t(3, size) * np.exp(random.standard_normal(size // 1000 + 1)).repeat(1000)[:size] * 1e-3
    vector[random.random(size) < 0.01] = 0
    return vector.astype(np.float32)


def label(code: Code) -> str:
    return code.name if code.name != "topk" else f"topk-{code.topk}"


def test_fp32_is_the_bare_vector_and_keeps_no_residual():
    vector = drawn(1000)
    made = Code().encode(vector, None)
    assert made.data == to_bytes(vector)
    assert made.residual is None
    np.testing.assert_array_equal(Code().decode(made.data, 1000), vector)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("code", LOSSY, ids=label)
def test_what_comes_back_lies_within_the_codes_bound_and_has_the_stated_length(code, size):
    vector = drawn(size, seed=size)
    made = code.encode(vector)
    assert len(made.data) == code.bytes_for(size)
    decoded = code.decode(made.data, size)
    assert decoded.shape == (size,)
    assert decoded.dtype == np.float32
    off = np.abs(vector.astype(np.float64) - decoded)
    if code.name == "bf16":
        assert (off <= np.abs(vector) * 2.0**-8).all()
    elif code.name == "topk":
        check_selection(code, vector, decoded)
    else:
        block, levels = (256, 127) if code.name == "int8" else (128, 7)
        for start in range(0, size, block):
            half = np.abs(vector[start : start + block]).max() / levels / 2
            assert (off[start : start + block] <= half * (1 + 1e-4)).all()


def check_selection(code: Code, vector: np.ndarray, decoded: np.ndarray) -> None:
    for start in range(0, len(vector), CHUNK):
        given, got = vector[start : start + CHUNK], decoded[start : start + CHUNK]
        order = np.lexsort((np.arange(len(given)), -np.abs(given)))
        chosen = np.sort(order[: code.topk])
        left = np.setdiff1d(np.arange(len(given)), chosen)
        assert not got[left].any(), "only the largest cross"
        assert len(np.unique(np.abs(got[chosen]))) <= 2
        assert (np.sign(got[chosen]) * np.sign(given[chosen]) >= 0).all()
        assert np.sum((given - got) ** 2) <= np.sum(given**2) * (1 + 1e-5), "sending is never worse than silence"
        if len(given) >= code.topk:
            assert np.abs(got).sum() == pytest.approx(np.abs(given[chosen]).sum(), rel=2**-8)


@pytest.mark.parametrize("code", LOSSY, ids=label)
def test_error_feedback_is_conserved_over_many_rounds(code):
    size, rounds = 2 * CHUNK + 100, 30
    given, sent, residual, largest = np.zeros(size), np.zeros(size), None, np.zeros(size)
    for number in range(rounds):
        vector = drawn(size, seed=number)
        made = code.encode(vector, residual)
        residual = made.residual
        given += vector
        sent += code.decode(made.data, size)
        largest = np.maximum(largest, np.abs(residual) + np.abs(vector))
    assert residual is not None
    assert (np.abs(sent + residual - given) <= rounds * 2**-23 * (largest + np.abs(sent))).all()


@pytest.mark.parametrize("code", [INT4, TOPK[2]], ids=label)
def test_what_one_round_drops_a_later_one_sends(code):
    vector, residual, sent = drawn(CHUNK), None, np.zeros(CHUNK)
    rounds = 1000
    for _ in range(rounds):
        made = code.encode(vector, residual)
        residual = made.residual
        sent += code.decode(made.data, CHUNK)
    assert np.linalg.norm(sent / rounds - vector) < 0.05 * np.linalg.norm(vector)


def test_the_residual_decays_with_feedback_below_one():
    code = Code(name="topk", feedback=0.5)
    vector = drawn(CHUNK)
    first = code.encode(vector)
    second = code.encode(np.zeros(CHUNK, np.float32), first.residual)
    np.testing.assert_array_equal(code.decode(second.data, CHUNK) + second.residual, first.residual * np.float32(0.5))


@pytest.mark.parametrize("code", [Code(), *LOSSY], ids=label)
def test_the_same_input_gives_the_same_bytes_and_is_left_as_it_was(code):
    vector, residual = drawn(5000), drawn(5000, seed=1)
    before = to_bytes(vector) + to_bytes(residual)
    made = [code.encode(vector, residual) for _ in range(2)]
    assert made[0].data == made[1].data
    assert to_bytes(vector) + to_bytes(residual) == before


def test_bytes_residuals_and_decoded_bits_do_not_depend_on_simd():
    from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatched

    runs = {
        off: subprocess.run(
            [sys.executable, "-c", DIGESTS],
            env={**os.environ, "NPY_DISABLE_CPU_FEATURES": off},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\n")
        for off in ("", " ".join(dispatched))
    }
    plain, bare = runs.values()
    assert plain == bare
    assert (
        digest_of("\n".join(plain).encode())
        == "sha256:290399e6b2ac9877e3762a9453123e99949c70229dff7a63299f05fa7d5f1b8b"
    ), "the wire format changed"


@pytest.mark.parametrize("code", LOSSY, ids=label)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_says_so_and_costs_the_residual_nothing(code, bad):
    vector, residual = drawn(1000), drawn(1000, seed=1)
    vector[7] = bad
    made = code.encode(vector, residual)
    assert len(made.data) == HEADER
    assert made.residual is residual
    assert np.isnan(code.decode(made.data, 1000)).all()


@pytest.mark.parametrize("code", LOSSY, ids=label)
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 3e38])
def test_the_ends_of_fp32_come_back_finite(code, scale):
    vector = np.sign(drawn(5000)) * np.float32(scale)
    made = code.encode(vector)
    decoded = code.decode(made.data, 5000)
    assert np.isfinite(decoded).all()
    assert np.isfinite(made.residual).all()
    assert np.abs(decoded).max() <= np.float32(scale) * (1 + 2**-7)


@pytest.mark.parametrize("code", LOSSY, ids=label)
def test_a_wrong_length_or_header_is_refused_before_anything_is_allocated(code):
    data = code.encode(drawn(5000)).data
    huge = struct.pack("<Q", 2**62)
    for bad in (b"", data[:-1], data + b"\0", data[:HEADER], data[:8] + huge + data[HEADER:], data[:8] + huge):
        with pytest.raises(VerificationError, match="not an encoded pseudo-gradient"):
            code.decode(bad, 5000)
    for place in range(HEADER):
        with pytest.raises(VerificationError):
            code.decode(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], 5000)
    with pytest.raises(VerificationError):
        code.decode(data, 5001)
    for other in LOSSY:
        if other != code:
            with pytest.raises(VerificationError):
                other.decode(data, 5000)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0, 1e-40, 3e38])
@pytest.mark.parametrize("code", [INT8, INT4], ids=label)
def test_a_scale_that_no_encoder_makes_is_refused(code, scale):
    data = bytearray(code.encode(drawn(5000)).data)
    data[HEADER + 4 : HEADER + 8] = struct.pack("<f", scale)
    with pytest.raises(VerificationError, match="scale"):
        code.decode(bytes(data), 5000)


def test_values_that_no_encoder_makes_are_refused():
    for code, size, place, value in (
        (INT8, 300, -1, 0x80), (INT4, 300, -1, 0x10), (INT4, 299, -1, 0x99), (BF16, 300, -1, 0x7F)
    ):  # fmt: skip
        data = bytearray(code.encode(drawn(size)).data)
        data[place] = value
        if code is BF16:
            data[place - 1] = 0x80
        with pytest.raises(VerificationError, match="a value"):
            code.decode(bytes(data), size)


def test_indices_that_do_not_ascend_or_leave_the_vector_are_refused():
    code, size, k = Code(name="topk", topk=16), CHUNK + 100, 16
    vector = np.zeros(size, np.float32)
    vector[[*range(16), *range(CHUNK, CHUNK + 16)]] = 1
    good = code.encode(vector).data
    upper, lower = HEADER + 2 * 4, HEADER + 2 * 4 + 2 * k // 4
    for place, value, reason in (
        (upper, good[upper] ^ 1, "does not have 16 indices"),
        (lower + 1, 0, "ascend"),
        (lower + k + k - 1, 200, "beyond the vector's end"),
        (HEADER + 1, 0x80, "magnitudes"),
        (HEADER + 1, 0x7F, "magnitudes"),
    ):
        bad = bytearray(good)
        bad[place] = value
        if value == 0x7F:
            bad[place - 1] = 0x80
        with pytest.raises(VerificationError, match=reason):
            code.decode(bytes(bad), size)
    beyond = bytearray(good)
    beyond[upper + 2 : upper + 4] = b"\0\x80"
    beyond[upper : upper + 2] = b"\xff\x7f"
    with pytest.raises(VerificationError, match="beyond their chunk"):
        code.decode(bytes(beyond), size)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(LOSSY), st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_damaged_payloads_are_refused_or_decode_to_something_finite(code, seed, flips):
    random = np.random.default_rng(seed)
    data = np.frombuffer(code.encode(drawn(5000)).data, dtype=np.uint8).copy()
    data[random.integers(HEADER, len(data), flips)] = random.integers(0, 256, flips)
    try:
        decoded = code.decode(data.tobytes(), 5000)
    except VerificationError:
        return
    assert decoded.shape == (5000,)
    assert np.isfinite(decoded).all()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TOPK), st.integers(0, 2**32 - 1))
def test_a_list_of_indices_has_one_form(code, seed):
    random = np.random.default_rng(seed)
    vector = np.zeros(2 * CHUNK, np.float32)
    for start in (0, CHUNK):
        vector[start + random.choice(CHUNK, code.topk, replace=False)] = random.choice([-2, -1, 1, 2], code.topk)
    made = code.encode(vector)
    np.testing.assert_array_equal(code.decode(made.data, len(vector)), vector)
    assert not made.residual.any()
    assert code.encode(code.decode(made.data, len(vector))).data == made.data


@pytest.mark.parametrize("wrong", [{"name": "zip"}, {"topk": 48}, {"feedback": 1.5}, {"feedback": math.nan}])
def test_a_code_that_does_not_exist_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Code(**{"name": "topk", **wrong})


def test_bytes_per_parameter_against_data_parallel_steps():
    """Bytes one site hands over once, against gradients of every step: 2 bytes in bf16, H steps a round."""
    size, bf16_gradient = 10**9, 2
    per_parameter = {label(code): code.bytes_for(size) / size for code in LOSSY}
    assert per_parameter["int8"] < 1.016
    assert per_parameter["int4"] < 0.532
    assert 30 * bf16_gradient / per_parameter["topk-32"] > 4000
    assert 60 * bf16_gradient / per_parameter["topk-64"] > 4000
