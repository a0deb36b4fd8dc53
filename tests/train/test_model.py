"""The decoder and its inner steps: shapes, causality, exact resume."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from consortium.domain.pretraining import EvaluateConfig, ModelConfig, OptimConfig, PretrainConfig
from consortium.errors import UsageError, VerificationError
from consortium.train.evaluate import by_language, held_out_loss
from consortium.train.inner import InnerWorker
from consortium.train.keep import Origin
from consortium.train.model import Decoder, Past, rope_tables, rotate
from consortium.train.order import Sequences
from consortium.train.plugin import token_losses
from consortium.train.schedule import learning_rate
from tests.builders import dataset
from tests.train.conftest import PARAMS, VOCAB, documents

MODEL = ModelConfig(dim=32, layers=2, heads=2, context=16)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def text(seed: int = 1) -> Sequences:
    return Sequences([np.concatenate([np.array([*d, 0], dtype=np.uint16) for d in documents(seed)])], 16, end=0)


def worker(**changes) -> InnerWorker:
    return InnerWorker(PretrainConfig.of(PARAMS | changes), VOCAB, text(), "fr-1")


@pytest.mark.parametrize("tied", [True, False])
def test_logits_have_a_row_per_token_and_a_column_per_word(tied):
    model = Decoder(ModelConfig(dim=32, layers=2, heads=2, context=16, tie_embeddings=tied), VOCAB)
    model.initialise(0)
    assert model(torch.zeros(3, 16, dtype=torch.int64)).shape == (3, 16, VOCAB)
    assert ("head.weight" in dict(model.named_parameters())) is not tied


def test_a_fresh_model_guesses_evenly():
    model = Decoder(MODEL, VOCAB)
    model.initialise(0)
    rows = torch.randint(0, VOCAB, (8, 17), generator=torch.Generator().manual_seed(0))
    assert float(token_losses(model(rows[:, :-1]), rows)[0].detach()) == pytest.approx(math.log(VOCAB), abs=0.1)


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


def test_shared_keys_and_values_are_those_of_a_model_that_repeats_them():
    shared = Decoder(replace(MODEL, heads=4, kv_heads=2), VOCAB).eval()
    whole = Decoder(replace(MODEL, heads=4), VOCAB).eval()
    shared.initialise(3)
    state = shared.state_dict()
    for name in [name for name in state if name.endswith("qkv.weight")]:
        queries, keys, values = state[name].split([32, 16, 16])
        repeated = [part.view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32) for part in (keys, values)]
        state[name] = torch.cat([queries, *repeated])
    whole.load_state_dict(state)
    tokens = torch.randint(0, VOCAB, (2, 16), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(shared(tokens), whole(tokens), rtol=1e-5, atol=1e-6)


def test_reading_token_by_token_gives_the_logits_of_reading_all():
    model = Decoder(replace(MODEL, heads=4, kv_heads=2), VOCAB).eval()
    model.initialise(4)
    tokens = torch.randint(0, VOCAB, (1, 12), generator=torch.Generator().manual_seed(4))
    pasts = [Past() for _ in range(MODEL.layers)]
    with torch.no_grad():
        parts = [model(tokens[:, :5], pasts), *(model(tokens[:, at : at + 1], pasts) for at in range(5, 12))]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_document_in_a_packed_row_is_read_as_if_alone(recompute):
    model = Decoder(replace(MODEL, heads=4, kv_heads=2, recompute=recompute), VOCAB)
    model.initialise(4)
    model.separate(0)
    row = torch.randint(1, VOCAB, (2, 16), generator=torch.Generator().manual_seed(5))
    row[0, [3, 9]] = row[1, 12] = 0  # each ends a document and begins the next
    packed = model(row)
    for at, start, end in ((0, 0, 3), (0, 3, 9), (0, 9, 16), (1, 0, 12), (1, 12, 16)):
        alone = model(row[at : at + 1, start:end])
        torch.testing.assert_close(packed[at : at + 1, start:end], alone, rtol=1e-4, atol=1e-5)
    joined = Decoder(model.config, VOCAB)
    joined.load_state_dict(model.state_dict())
    torch.testing.assert_close(packed[:, :3], joined(row)[:, :3], rtol=1e-4, atol=1e-5)
    assert float((packed - joined(row)).detach()[0, 3:].abs().amax(-1).min()) > 1e-3


def test_a_worker_keeps_documents_apart_and_so_does_evaluate():
    apart, joined = (worker(data={"batch_size": 4, "shuffle": False, "boundaries": how}) for how in ("mask", "join"))
    start = joined.initial()
    for one in (apart, joined):
        origin = Origin(
            model=PARAMS["model"],
            vocab_size=VOCAB,
            tokenizer_digest="",
            names=one.layout.names,
            shapes=one.layout.shapes,
            document_end=one.document_end,
        )
        asked = EvaluateConfig(batches=len(text()), batch_size=1)
        loss, _ = held_out_loss(origin, start, text(), asked, torch.device("cpu"))
        assert loss == pytest.approx(one.probe(start, position=0, count=len(text())), rel=1e-5)
    assert apart.probe(start, position=0, count=8) != joined.probe(start, position=0, count=8)
    unknown = Sequences([np.zeros(40, dtype=np.uint16)], 16)
    with pytest.raises(UsageError, match="nothing says which token"):
        InnerWorker(apart.params, VOCAB, unknown, "fr-1")
    with pytest.raises(UsageError, match="without the job's mixture"):
        worker(data={"batch_size": 4, "mixture": ["fr:1"]})


def test_the_rotary_base_changes_what_far_positions_see():
    near, far = rope_tables(MODEL), rope_tables(replace(MODEL, rope_base=500_000.0))
    torch.testing.assert_close(near[0][:, 0], far[0][:, 0])
    assert float((near[0] - far[0]).abs().max()) > 0.01


@pytest.mark.parametrize("init", ["gpt2", "small"])
def test_fresh_matrices_have_the_spread_of_their_literature(init):
    config = ModelConfig(dim=128, layers=4, heads=4, context=16, init=init)
    model = Decoder(config, 512)
    model.initialise(5)
    matrix, residual = {"gpt2": (0.02, 0.02 / 8**0.5), "small": ((2 / 640) ** 0.5, 2 / (4 * 128**0.5))}[init]
    assert float(model.embedding.weight.detach().std()) == pytest.approx(matrix, rel=0.02)
    assert float(model.blocks[1].down.weight.detach().std()) == pytest.approx(residual, rel=0.02)
    assert torch.equal(model.final_norm.weight.detach(), torch.ones(128))


def test_the_z_loss_adds_the_squared_normaliser_and_reports_nats():
    logits = torch.randn(2, 4, VOCAB, generator=torch.Generator().manual_seed(6), requires_grad=True)
    rows = torch.randint(0, VOCAB, (2, 5), generator=torch.Generator().manual_seed(7))
    plain, nats = token_losses(logits, rows)
    minimised, same = token_losses(logits, rows, 0.1)
    z = logits.detach().exp().sum(-1).log().square().mean()
    assert float(nats) == pytest.approx(float(same), rel=1e-5)
    assert float(minimised.detach()) == pytest.approx(float(plain.detach() + 0.1 * z), rel=1e-5)
    # Its gradient adds 2 * z_loss * log(Z) times the softmax.
    drift = torch.autograd.grad(minimised - plain, logits)[0]
    log_z = logits.detach().logsumexp(-1, keepdim=True)
    torch.testing.assert_close(drift, 0.2 * log_z * logits.detach().softmax(-1) / 8, rtol=1e-3, atol=1e-6)


def test_recomputing_blocks_changes_no_bit():
    start = worker().initial()
    model = PARAMS["model"] | {"dropout": 0.2}
    runs = [
        worker(model=model | {"recompute": recompute}).run(start, position=0, step=0, count=3)
        for recompute in (False, True)
    ]
    np.testing.assert_array_equal(runs[0].local, runs[1].local)


def test_a_batch_in_parts_is_the_same_step():
    start = worker().initial()
    whole, parts = (
        worker(data={"batch_size": 4, "accumulate": count}).run(start, position=0, step=0, count=3) for count in (1, 4)
    )
    np.testing.assert_allclose(whole.local, parts.local, atol=2e-4)
    assert whole.loss == pytest.approx(parts.loss, rel=1e-5)
    assert (whole.tokens, whole.position) == (parts.tokens, parts.position)


@pytest.mark.long
def test_a_compiled_model_trains_like_an_eager_one(monkeypatch):
    from torch._dynamo.utils import counters

    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    counters.clear()
    model = PARAMS["model"] | {"layers": 1}
    start = worker(model=model).initial()
    eager, compiled = (
        worker(model=model | {"compile": c}).run(start, position=0, step=0, count=3) for c in (False, True)
    )
    assert counters["stats"]["unique_graphs"] == 1
    np.testing.assert_allclose(eager.local, compiled.local, atol=2e-4)
    assert eager.loss == pytest.approx(compiled.loss, rel=1e-4)


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


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_resumed_worker_goes_on_bit_for_bit(name):
    one, other = (worker(optim=PARAMS["optim"] | {"name": name}) for _ in range(2))
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


def test_the_rate_warms_up_and_comes_down_to_a_tenth():
    config = OptimConfig(lr=1.0, warmup_steps=4)
    rates = [learning_rate(step, 20, config) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(0, 1, OptimConfig(lr=1.0)) == 1.0


def test_a_wsd_rate_is_stable_until_the_last_fifth_and_ends_at_its_floor():
    config = OptimConfig(lr=1.0, warmup_steps=4, schedule="wsd", final_lr_share=0.0)
    rates = [learning_rate(step, 50, config) for step in range(50)]
    assert rates[3:40] == [1.0] * 37
    assert rates[40] == pytest.approx(1 - 0.1**0.5)
    assert all(later < earlier for earlier, later in pairwise(rates[39:]))
    assert rates[-1] == pytest.approx(0.0)
    assert learning_rate(9, 10, replace(config, decay_share=0.0, warmup_steps=0)) == 1.0


def test_muons_steps_have_singular_values_near_one_times_rate_and_scale():
    inner = worker(optim={"name": "muon", "lr": 0.01, "weight_decay": 0.0})
    start = inner.initial()
    end = inner.run(start, position=0, step=0, count=1).local
    moved = inner.layout.split(start - end)
    rows = {"attention_out.weight": [32], "qkv.weight": [32, 32, 32], "gate_up.weight": [48, 48]}
    for name, sizes in rows.items():
        at = 0
        for size in sizes:
            part = moved[f"blocks.1.{name}"][at : at + size]
            singular = np.linalg.svd(part, compute_uv=False) / (0.01 * 0.2 * max(part.shape) ** 0.5)
            assert singular.max() < 1.3, name
            assert np.median(singular) > 0.5, name
            at += size
    np.testing.assert_allclose(np.abs(moved["final_norm.weight"]), 0.01, rtol=1e-3)  # AdamW's first step


def test_muon_learns_and_keeps_half_the_state_for_its_matrices():
    inner = worker(optim={"name": "muon", "lr": 0.01})
    first = inner.run(inner.initial(), position=0, step=0, count=6)
    assert inner.run(None, position=first.position, step=6, count=6).loss < first.loss
    sizes = {name: vector.size for name, vector in inner.moments().vectors.items()}
    plain = 64 * 32 + 5 * 32
    assert sizes == {"exp_avg": plain, "exp_avg_sq": plain, "momentum_buffer": inner.layout.size - plain}


def test_another_optimisers_state_is_refused():
    one, other = worker(), worker(optim={"name": "muon", "lr": 0.01})
    one.run(one.initial(), position=0, step=0, count=1)
    with pytest.raises(VerificationError, match="does not fit"):
        other.restore(one.moments())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": PARAMS["model"] | {"kv_heads": 3}}, "multiple of kv_heads"),
        ({"model": PARAMS["model"] | {"plugin": "os:system"}}, "not a path to code"),
        ({"model": PARAMS["model"] | {"heads": 3}}, "multiple of twice the heads"),
        ({"data": {"batch_size": 4, "accumulate": 3}}, "multiple of accumulate"),
        ({"outer": PARAMS["outer"] | {"rounds": 0}}, "rounds must be 1 to"),
        ({"surprise": 1}, "surprise"),
        ({"optim": PARAMS["optim"] | {"name": "sgd"}}, "optim.name"),
    ],
)
def test_params_that_would_break_training_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        PretrainConfig.of(PARAMS | change)


def test_evaluate_asks_for_rounds_that_can_exist():
    assert EvaluateConfig.of({"rounds": [0, -1]}).rounds == (0, -1)
    with pytest.raises(UsageError):
        EvaluateConfig.of({"rounds": [-2]})


def test_the_composed_config_is_what_training_reads():
    from consortium.config.compose import compose_job

    params = PretrainConfig.of(compose_job("pretrain", []).params)
    assert params.outer.rounds >= 4
    EvaluateConfig.of(compose_job("evaluate", []).params)


def test_losses_go_by_names_that_a_result_may_hold():
    said = {"fr-1": ("fr",), "de-1": ("de", "fr"), "uy-1": ("norsk bokmål",), "at-1": ("中文",)}
    held = [dataset(site, site, number=at, languages=names) for at, (site, names) in enumerate(said.items(), start=1)]
    groups = by_language(held)
    assert list(groups)[2:] == ["de+fr", "fr"]
    assert all(re.fullmatch(r"1-languages-[0-9a-f]{8}", name) for name in list(groups)[:2])
