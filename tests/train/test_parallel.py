"""Two gloo processes against one: data parallel, and FSDP2 against data parallel.

Stated tolerances: after 9 steps of AdamW at a rate of 0.01 no parameter is off by more than 2e-4 (they move by up to
0.05), losses by 1e-4 of themselves. Muon's products are in bf16, where the order of sums counts for more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from consortium.domain.pretraining import PretrainConfig
from consortium.train import redistribute
from consortium.train.inner import InnerWorker
from consortium.train.sharded import whole
from tests.train.conftest import PARAMS, VOCAB
from tests.train.ranks import start
from tests.train.test_model import text

WORDS = VOCAB + 1
"""An odd number: its rows are not shared out evenly."""
MODEL = PARAMS["model"] | {"recompute": True, "tie_embeddings": False}
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {"data": {"batch_size": 2}},
    "ddp in parts": {"data": {"batch_size": 2, "accumulate": 2}},
    "ddp with muon": {"data": {"batch_size": 2}, "optim": {"name": "muon", "lr": 0.003, "weight_decay": 0.1}},
    "fsdp": {"data": {"batch_size": 2}, "parallel": "fsdp"},
    "fsdp with muon": {
        "data": {"batch_size": 2},
        "parallel": "fsdp",
        "optim": {"name": "muon", "lr": 0.003, "weight_decay": 0.1},
    },
    "fsdp in parts": {"data": {"batch_size": 2, "accumulate": 2}, "parallel": "fsdp"},
    "fsdp, documents apart": {"data": {"batch_size": 2, "boundaries": "mask"}, "parallel": "fsdp", "model": MODEL},
}
"""Changes to `PARAMS` at each of two workers. One worker reads as much as both."""


def worker(changes: dict[str, Any], *, rank: int = 0, world: int = 1) -> InnerWorker:
    """A worker of these params; one alone computes a batch of two at once."""
    alone = {"data": changes["data"] | {"batch_size": 4, "accumulate": 1}} if world == 1 else {}
    return InnerWorker(PretrainConfig.of(PARAMS | changes | alone), WORDS, text(), "fr-1", rank=rank, world=world)


def trained(one: InnerWorker) -> dict[str, Any]:
    """Two rounds of four steps, the optimiser's state set anew between them; a loss measured; a step from elsewhere."""
    first = one.run(one.initial(), position=0, step=0, count=4)
    moments = one.moments()
    assert moments is not None
    one.restore(moments)
    second = one.run(first.local, position=first.position, step=4, count=4)
    probed = one.probe(second.local, position=second.position, count=3)
    third = one.run(first.local, position=second.position, step=8, count=1)
    after = one.moments()
    assert after is not None
    return {
        "local": np.stack([whole(second.local), whole(third.local)]),
        "moments": np.concatenate([whole(after.vectors[name]) for name in sorted(after.vectors)]),
        "losses": [first.loss, second.loss, probed, third.loss],
        "counts": [second.tokens, third.position, after.steps],
    }


def rank_main(rank: int, path: str) -> None:
    """What one of two processes does: all runs, one after another."""
    redistribute.MOST = 3000  # several turns for a model as small as this
    found = {}
    for name, changes in RUNS.items():
        one = worker(changes, rank=rank, world=2)
        if rank:
            one.follow()
            continue
        found |= {f"{name}/{key}": value for key, value in trained(one).items()}
        one.stop()
        held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in one._model.parameters())
        found[f"{name}/held"] = held / one.layout.size
    if not rank:
        np.savez(path, **found)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes came to, by run and what."""
    path = tmp_path_factory.mktemp("ranks") / "found.npz"
    ranks = start("tests.train.test_parallel:rank_main", str(path))
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    return dict(np.load(path))


pytestmark = pytest.mark.integration


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_like_one(two, name):
    one = trained(worker(RUNS[name]))
    tolerance = 1e-3 if "muon" in name else 2e-4
    np.testing.assert_allclose(two[f"{name}/local"], one["local"], atol=tolerance)
    np.testing.assert_allclose(two[f"{name}/moments"], one["moments"], atol=tolerance)
    assert two[f"{name}/losses"].tolist() == pytest.approx(one["losses"], rel=1e-4)
    assert two[f"{name}/counts"].tolist() == one["counts"]


def test_sharded_parameters_are_trained_as_whole_ones_are_and_lie_in_halves(two):
    for name in ("", " in parts"):
        np.testing.assert_allclose(two[f"fsdp{name}/local"], two[f"ddp{name}/local"], atol=2e-4)
        np.testing.assert_allclose(two[f"fsdp{name}/moments"], two[f"ddp{name}/moments"], atol=2e-4)
        assert two[f"fsdp{name}/losses"].tolist() == pytest.approx(two[f"ddp{name}/losses"].tolist(), rel=1e-5)
    assert two["ddp/held"] == 1
    assert 0.5 <= two["fsdp/held"] < 0.52


def test_each_matrix_is_orthogonalised_by_one_worker(two):
    np.testing.assert_allclose(two["fsdp with muon/local"], two["ddp with muon/local"], atol=1e-3)
    np.testing.assert_allclose(two["fsdp with muon/moments"], two["ddp with muon/moments"], atol=1e-3)
