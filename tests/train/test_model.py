"""The decoder and its inner steps: shapes, causality, data parallel against one process, exact resume."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from consortium.errors import UsageError
from consortium.train.inner import InnerWorker, learning_rate
from consortium.train.model import Decoder, next_token_loss, rope_tables, rotate
from consortium.train.order import Sequences
from consortium.train.settings import EvaluateParams, ModelParams, OptimParams, PretrainParams
from tests.train.conftest import PARAMS, VOCAB, documents

MODEL = ModelParams(dim=32, layers=2, heads=2, context=16)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def text(seed: int = 1) -> Sequences:
    return Sequences([np.concatenate([np.array([*d, 0], dtype=np.uint16) for d in documents(seed)])], 16)


def worker(**changes) -> InnerWorker:
    return InnerWorker(PretrainParams.of(PARAMS | changes), VOCAB, text(), "fr-1")


@pytest.mark.parametrize("tied", [True, False])
def test_logits_have_a_row_per_token_and_a_column_per_word(tied):
    model = Decoder(ModelParams(dim=32, layers=2, heads=2, context=16, tie_embeddings=tied), VOCAB)
    model.initialise(0)
    assert model(torch.zeros(3, 16, dtype=torch.int64)).shape == (3, 16, VOCAB)
    assert ("head.weight" in dict(model.named_parameters())) is not tied


def test_a_fresh_model_guesses_evenly():
    model = Decoder(MODEL, VOCAB)
    model.initialise(0)
    rows = torch.randint(0, VOCAB, (8, 17), generator=torch.Generator().manual_seed(0))
    assert float(next_token_loss(model(rows[:, :-1]), rows).detach()) == pytest.approx(math.log(VOCAB), abs=0.1)


def test_no_token_sees_the_future():
    model = Decoder(MODEL, VOCAB).eval()
    model.initialise(1)
    first = torch.randint(0, VOCAB, (1, 16), generator=torch.Generator().manual_seed(1))
    second = first.clone()
    second[0, 9:] = (second[0, 9:] + 1) % VOCAB
    with torch.no_grad():
        a, b = model(first), model(second)
    torch.testing.assert_close(a[:, :9], b[:, :9], rtol=0, atol=1e-6)
    assert (a[:, 9:] - b[:, 9:]).abs().max() > 1e-3


def test_rotary_products_depend_on_distance_alone():
    cos, sin = rope_tables(MODEL)
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(16, generator=generator), torch.randn(16, generator=generator)
    turned_q = rotate(q.expand(16, -1), cos, sin)
    turned_k = rotate(k.expand(16, -1), cos, sin)
    products = [float(turned_q[at + 3] @ turned_k[at]) for at in range(13)]
    assert products == pytest.approx([products[0]] * 13, abs=1e-4)


def test_losses_fall_and_rows_are_read_in_order():
    inner = worker()
    start = inner.initial()
    first = inner.run(start, position=0, step=0, count=6)
    second = inner.run(first.local, position=first.position, step=6, count=6)
    assert second.loss < first.loss
    assert (first.position, second.position, second.tokens) == (24, 48, 6 * 4 * 16)


def test_a_resumed_worker_goes_on_bit_for_bit():
    one, other = worker(), worker()
    first = one.run(one.initial(), position=0, step=0, count=4)
    other.restore(one.moments())
    straight = one.run(first.local, position=first.position, step=4, count=4)
    resumed = other.run(first.local, position=first.position, step=4, count=4)
    np.testing.assert_array_equal(straight.local, resumed.local)
    assert straight.loss == resumed.loss
    assert one.moments().steps == other.moments().steps == 8


def test_steps_done_in_stretches_are_the_same_to_the_last_bit():
    one, other = worker(), worker()
    whole = one.run(one.initial(), position=0, step=0, count=6)
    part = other.run(other.initial(), position=0, step=0, count=1)
    for step, count in ((1, 3), (4, 2)):
        part = other.run(None, position=part.position, step=step, count=count)
    np.testing.assert_array_equal(whole.local, part.local)
    assert (whole.loss, whole.tokens, whole.position) == (part.loss, part.tokens, part.position)


def test_dropout_is_repeatable_from_the_step_number():
    model = PARAMS["model"] | {"dropout": 0.3}
    start = worker().initial()
    runs = [worker(model=model).run(start, position=0, step=3, count=3).local for _ in range(2)]
    np.testing.assert_array_equal(*runs)
    assert not np.array_equal(runs[0], worker().run(start, position=0, step=3, count=3).local)


RANK = """
    import sys, numpy as np, torch, torch.distributed as dist
    torch.set_num_threads(1)
    sys.path.insert(0, {root!r})
    from tests.train.test_model import text
    from tests.train.conftest import PARAMS, VOCAB
    from consortium.train.inner import InnerWorker
    from consortium.train.settings import PretrainParams
    rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    params = PretrainParams.of(PARAMS | {{"data": {{"batch_size": 2, "shuffle": True}}}})
    worker = InnerWorker(params, VOCAB, text(), "fr-1", rank=rank, world=2)
    if rank:
        worker.follow()
    else:
        first = worker.run(np.load(sys.argv[2]), position=0, step=0, count=4)
        worker.restore(worker.moments())
        second = worker.run(first.local, position=first.position, step=4, count=4)
        worker.stop()
        np.savez(sys.argv[3], local=second.local, loss=[first.loss, second.loss], position=second.position)
    dist.destroy_process_group()
"""


@pytest.mark.integration
def test_two_gloo_processes_train_like_one(tmp_path):
    one = worker()
    start = one.initial()
    np.save(tmp_path / "start.npy", start)
    first = one.run(start, position=0, step=0, count=4)
    second = one.run(first.local, position=first.position, step=4, count=4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = textwrap.dedent(RANK.format(root=str(ROOT), port=port))
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, str(r), tmp_path / "start.npy", tmp_path / "end.npz"], cwd=ROOT)
        for r in (0, 1)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    end = np.load(tmp_path / "end.npz")
    np.testing.assert_allclose(end["local"], second.local, atol=2e-4)
    assert end["loss"].tolist() == pytest.approx([first.loss, second.loss], rel=1e-4)
    assert int(end["position"]) == second.position


def test_the_rate_warms_up_and_comes_down_to_a_tenth():
    config = OptimParams(lr=1.0, warmup_steps=4)
    rates = [learning_rate(step, 20, config) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(0, 1, OptimParams(lr=1.0)) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": PARAMS["model"] | {"heads": 3}}, "multiple of twice the heads"),
        ({"outer": PARAMS["outer"] | {"rounds": 0}}, "at least 1"),
        ({"surprise": 1}, "surprise"),
        ({"optim": PARAMS["optim"] | {"name": "sgd"}}, "optim.name"),
    ],
)
def test_params_that_would_break_training_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        PretrainParams.of(PARAMS | change)


def test_evaluate_asks_for_rounds_that_can_exist():
    assert EvaluateParams.of({"rounds": [0, -1]}).rounds == (0, -1)
    with pytest.raises(UsageError):
        EvaluateParams.of({"rounds": [-2]})


def test_the_composed_config_is_what_training_reads():
    from consortium.config.compose import compose_job

    params = PretrainParams.of(compose_job("pretrain", []).params)
    assert params.outer.rounds >= 4
    EvaluateParams.of(compose_job("evaluate", []).params)
