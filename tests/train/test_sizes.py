"""What a model costs from its shape: parameters, FLOPs, memory, against published counts and the built module."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from consortium.config.compose import compose_job
from consortium.domain.pretraining import ModelConfig, OuterConfig, PretrainConfig
from consortium.train.costs import fragment_counts
from consortium.train.fragments import Plan
from consortium.train.model import Decoder
from consortium.train.outer import Layout
from consortium.train.sizes import flops_per_token, hidden_count, memory, parameter_count
from tests.train.conftest import PARAMS

PUBLISHED = {
    "15m": (32_000, 15_191_712),
    "135m": (49_152, 134_515_008),
    "360m": (49_152, 361_821_120),
    "1b": (128_256, 1_235_814_400),
    "3b": (128_256, 3_212_749_824),
    "7b": (32_000, 7_241_732_096),
}
"""Parameters of the models whose shapes these are, at the vocabularies they have."""
OURS = {"tiny": 1_024, "1m": 1_024, "small": 32_768, "base": 50_304}


def configured(size: str, *more: str) -> PretrainConfig:
    return PretrainConfig.of(compose_job("pretrain", [f"model={size}", *more]).params)


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_published_shape_has_the_published_number_of_parameters(size):
    vocab_size, count = PUBLISHED[size]
    assert parameter_count(configured(size).model, vocab_size) == count


@pytest.mark.parametrize(("size", "vocab_size"), [*OURS.items(), *((size, PUBLISHED[size][0]) for size in PUBLISHED)])
def test_every_size_builds_with_the_parameters_that_are_computed(size, vocab_size):
    config = configured(size).model
    with torch.device("meta"):
        built = Decoder(config, vocab_size)
    shapes = {name: parameter.numel() for name, parameter in built.named_parameters()}
    assert sum(shapes.values()) == parameter_count(config, vocab_size)
    assert sum(shapes[name] for name in built.hidden()) == hidden_count(config)


@pytest.mark.parametrize("size", [*OURS, *PUBLISHED])
@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_fragments_are_those_that_the_built_model_is_cut_into(size, count):
    config = configured(size).model
    count = min(count, config.layers)
    with torch.device("meta"):
        built = Decoder(config, 32_000)
    layout = Layout.of({name: tuple(parameter.shape) for name, parameter in built.named_parameters()})
    rule = OuterConfig(rounds=12, inner_steps=10, fragments=count)
    assert fragment_counts(config, 32_000, count) == tuple(one.size for one in Plan.of(layout, rule).fragments)


@pytest.mark.parametrize("change", [{}, {"kv_heads": 2, "tie_embeddings": False}, {"mlp_dim": 200, "layers": 3}])
def test_flops_are_those_of_the_products_that_torch_counts(change):
    config = ModelConfig(**{"dim": 64, "layers": 2, "heads": 4, "context": 32, **change})
    with torch.device("meta"):
        model = Decoder(config, 96)
        tokens = torch.zeros(2, 32, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        model(tokens).sum().backward()
    # FlashAttention computes the scores once more in its backward pass; that is no work of the model.
    again = 2 * config.layers * config.dim * config.context
    flops = counted.get_total_flops() / tokens.numel()
    assert flops == pytest.approx(flops_per_token(config, 96), abs=again)


def kept_bytes(config: ModelConfig, batch: int, vocab_size: int, *, bf16: bool, masked: bool = False) -> int:
    """Bytes that a forward pass and its loss keep for the backward pass, parameters left out."""
    model = Decoder(config, vocab_size)
    model.initialise(0)
    if masked:
        model.separate(0)
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in own:
            kept[address] = tensor
        return tensor

    rows = torch.zeros(batch, config.context + 1, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = model(rows[:, :-1])
        model.losses(output, rows)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("change", [{}, {"kv_heads": 2, "mlp_dim": 704, "tie_embeddings": False}])
def test_memory_of_activations_is_what_is_kept(bf16, change):
    config = ModelConfig(**{"dim": 128, "layers": 4, "heads": 4, "context": 64, **change})
    params = PretrainConfig.of(PARAMS | {"model": {"dim": 128, "layers": 4, "heads": 4, "context": 64, **change}})
    estimate = memory(params, 96, bf16=bf16)
    copies = estimate.parameters - 4 * parameter_count(config, 96)
    log_softmax = 4 * 4 * 64 * 96
    assert kept_bytes(config, 4, 96, bf16=bf16) == pytest.approx(estimate.activations + copies + log_softmax, rel=0.01)


@pytest.mark.parametrize("bf16", [False, True])
def test_memory_of_dropout_is_what_its_masks_take(bf16, monkeypatch):
    model = {"dim": 128, "layers": 4, "heads": 4, "context": 64}
    if bf16:  # the kernel of CUDA; that of a CPU keeps a number where this one keeps a byte
        monkeypatch.setattr(F, "dropout", lambda x, p, training: torch.native_dropout(x, p, training)[0] if p else x)
    kept = [kept_bytes(ModelConfig(**model, dropout=share), 4, 96, bf16=bf16) for share in (0.0, 0.1)]
    stated = [
        memory(PretrainConfig.of(PARAMS | {"model": model | {"dropout": share}}), 96, bf16=bf16).total
        for share in (0.0, 0.1)
    ]
    assert kept[1] - kept[0] == stated[1] - stated[0] == 2 * 4 * 4 * 64 * 128 * (1 if bf16 else 4)


def test_memory_of_a_mask_is_kept_once_for_all_blocks():
    model = {"dim": 128, "layers": 4, "heads": 4, "context": 64}
    kept = [kept_bytes(ModelConfig(**model), 4, 96, bf16=True, masked=masked) for masked in (False, True)]
    stated = [
        memory(PretrainConfig.of(PARAMS | {"model": model, "data": {"batch_size": 4, "boundaries": how}}), 96).total
        for how in ("join", "mask")
    ]
    assert kept[1] - kept[0] == stated[1] - stated[0] == 2 * 4 * 64 * 64


def test_recomputing_and_muon_need_less_and_more_workers_more():
    plain = memory(configured("1b"), 128_256)
    thrifty = memory(configured("1b", "model.recompute=true", "optim=muon"), 128_256)
    assert thrifty.activations < plain.activations / 5
    assert plain.optimizer == 8 * 1_235_814_400
    assert plain.optimizer - thrifty.optimizer == 4 * hidden_count(configured("1b").model)
    assert memory(configured("1b"), 128_256, workers=8).gradients == 2 * plain.gradients
    sharded = memory(configured("7b", "parallel=fsdp"), 32_000, workers=8)
    whole = memory(configured("7b"), 32_000, workers=8)
    assert sharded.optimizer == whole.optimizer / 8 == 7_241_732_096
    assert sharded.parameters + sharded.gradients < (whole.parameters + whole.gradients) / 6
    assert sharded.activations == whole.activations
    assert plain.total == sum((plain.parameters, plain.gradients, plain.optimizer, plain.activations, plain.logits))
