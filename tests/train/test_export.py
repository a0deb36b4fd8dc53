"""What a trained model becomes: files for transformers, text, the beginning of another training; and back."""

from __future__ import annotations

import json
import resource
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import functional as F

from consortium.data import bpe
from consortium.domain.codec import to_json
from consortium.domain.pretraining import ModelConfig, StartConfig
from consortium.errors import NotFoundError, UsageError, VerificationError
from consortium.keys.canonical import digest
from consortium.local.model_home import pieces
from consortium.storage.objects import ObjectStore
from consortium.train.dcp import write_dcp
from consortium.train.export import export_model
from consortium.train.generate import Sampling, draw, generate, load_decoder
from consortium.train.keep import Keep, Origin, OuterState
from consortium.train.model import Decoder
from consortium.train.outer import Layout, Moments, Vector, to_bytes, vector_digest
from consortium.train.start import starting_point
from tests.train.hub import JOB

MODEL = ModelConfig(dim=32, layers=2, heads=4, kv_heads=2, context=16, mlp_dim=40, rope_base=50_000.0)


@pytest.fixture(scope="module")
def tokenizer() -> bytes:
    return bpe.train({"loi": 40, "droit": 30, "Gesetz": 30, "été": 20, "ley": 20}, 280)


def made(tokenizer: bytes, model: ModelConfig = MODEL, seed: int = 0) -> tuple[Origin, Vector]:
    """An outer state's origin and parameters, norms moved off 1 so that they count."""
    size = bpe.load(tokenizer).get_vocab_size()
    decoder = Decoder(model, size)
    decoder.initialise(seed)
    layout = Layout.of({name: tuple(one.shape) for name, one in decoder.named_parameters()})
    vector = layout.join({name: one.detach().numpy() for name, one in decoder.named_parameters()})
    vector = vector * 5 + np.random.default_rng(seed).normal(0, 0.05, layout.size).astype(np.float32)
    origin = Origin(
        model=to_json(model),
        vocab_size=size,
        tokenizer_digest=bpe.tokenizer_digest(tokenizer),
        names=layout.names,
        shapes=layout.shapes,
    )
    return origin, vector


def llama(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Logits of a LlamaForCausalLM as its documentation and config fields define it, from the files alone."""
    c = json.loads((folder / "config.json").read_text())
    w = {name: one.double() for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}
    heads, groups, width = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + c["rms_norm_eps"]).sqrt() * w[name]

    places = torch.arange(len(tokens), dtype=torch.float64)
    angles = torch.outer(places, c["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width))
    cos, sin = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]

    def turned(x: torch.Tensor) -> torch.Tensor:
        half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], dim=-1)
        return x * cos + half * sin

    x = w["model.embed_tokens.weight"][tokens]
    future = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)
    for at in range(c["num_hidden_layers"]):
        p = f"model.layers.{at}."
        h = norm(x, p + "input_layernorm.weight")
        q, k, v = (
            (h @ w[f"{p}self_attn.{one}_proj.weight"].T).view(len(tokens), n, width)
            for one, n in (("q", heads), ("k", groups), ("v", groups))
        )
        q, k = turned(q), turned(k)
        mixed = []
        for head in range(heads):
            shared = head // (heads // groups)
            scores = (q[:, head] @ k[:, shared].T / width**0.5).masked_fill(future, -torch.inf)
            mixed.append(scores.softmax(-1) @ v[:, shared])
        x = x + torch.cat(mixed, dim=-1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, p + "post_attention_layernorm.weight")
        gated = F.silu(h @ w[p + "mlp.gate_proj.weight"].T) * (h @ w[p + "mlp.up_proj.weight"].T)
        x = x + gated @ w[p + "mlp.down_proj.weight"].T
    output = "model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"
    return norm(x, "model.norm.weight") @ w[output].T


@pytest.mark.parametrize("change", [{}, {"tie_embeddings": False}, {"kv_heads": 0, "mlp_dim": 0}])
def test_a_llama_model_reads_the_files_and_says_the_same(tmp_path, tokenizer, change):
    origin, vector = made(tokenizer, replace(MODEL, **change))
    export_model(origin, vector, tokenizer, tmp_path / "out", precision="float32", shard_bytes=20_000)
    tokens = [3, 70, 200, 5, 70, 9, 150, 31]
    with torch.inference_mode():
        ours = load_decoder(origin, vector)(torch.tensor([tokens]))[0]
    theirs = llama(tmp_path / "out", tokens)
    assert float(theirs.std()) > 0.3
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)


def test_the_files_are_those_that_transformers_looks_for(tmp_path, tokenizer):
    origin, vector = made(tokenizer)
    small = export_model(origin, vector, tokenizer, tmp_path / "one")
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(file.name for file in small) == names
    assert {one.dtype for one in load_file(tmp_path / "one" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "one" / "tokenizer_config.json").read_text())["eos_token"] == bpe.EOS
    written = json.loads((tmp_path / "one" / "tokenizer.json").read_text())
    assert written | {"post_processor": None} == json.loads(tokenizer)

    export_model(origin, vector, tokenizer, tmp_path / "many", precision="float32", shard_bytes=20_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = sorted(file.name for file in (tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 1
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == 4 * origin.layout.size
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "many" / file)
    with pytest.raises(UsageError, match="not empty"):
        export_model(origin, vector, tokenizer, tmp_path / "many")


def test_a_text_begins_with_the_end_token_as_every_document_that_was_trained_on_does(tmp_path, tokenizer):
    origin, vector = made(tokenizer)
    export_model(origin, vector, tokenizer, tmp_path / "out")
    ours, theirs = bpe.load(tokenizer), Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    said = theirs.encode("loi été")
    assert said.ids == [bpe.EOS_ID, *ours.encode("loi été").ids]
    assert theirs.decode(said.ids) == "loi été"
    assert theirs.encode("loi été", add_special_tokens=False).ids == said.ids[1:]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["bos_token_id"] == said.ids[0]


# -- text ---------------------------------------------------------------------------------------------------------


def test_text_is_the_same_for_a_seed_and_goes_on_beyond_the_context(tokenizer):
    model = load_decoder(*made(tokenizer))
    first, again, other = (list(generate(model, [7, 8, 9], Sampling(tokens=40, seed=s), eos=9)) for s in (1, 1, 2))
    assert first == again != other
    assert len(first) == 40 > MODEL.context


def test_the_likeliest_tokens_are_those_of_the_whole_model_read_anew(tokenizer):
    model = load_decoder(*made(tokenizer))
    found = list(generate(model, [7, 8, 9], Sampling(tokens=8, temperature=0), eos=0))
    read = [0, 7, 8, 9]
    for token in found:
        with torch.inference_mode():
            assert token == int(model(torch.tensor([read]))[0, -1].argmax())
        read.append(token)


def test_tokens_are_drawn_as_often_as_they_are_likely_and_none_beyond_top_p():
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    generator = torch.Generator().manual_seed(3)
    drawn = [draw(logits, Sampling(temperature=1, top_p=1), generator) for _ in range(4000)]
    assert np.bincount(drawn) / 4000 == pytest.approx([0.1, 0.5, 0.3, 0.1], abs=0.03)
    assert {draw(logits, Sampling(temperature=1, top_p=0.75), generator) for _ in range(200)} == {1, 2}
    assert {draw(logits, Sampling(temperature=1, top_p=0.5), generator) for _ in range(50)} == {1}
    sharp = [draw(logits, Sampling(temperature=0.25, top_p=1), generator) for _ in range(1000)]
    assert sharp.count(1) > 820


def test_a_torch_checkpoint_goes_on_in_a_plain_training_loop(tmp_path, tokenizer):
    origin, vector = made(tokenizer)
    origin = replace(origin, optimizer={"exp_avg": origin.names, "exp_avg_sq": origin.names})
    random = np.random.default_rng(1)
    moments = {name: random.random(origin.layout.size, dtype=np.float32) for name in ("exp_avg", "exp_avg_sq")}
    state = OuterState(
        round=3,
        digest=vector_digest(vector),
        outer=vector,
        momentum=vector * np.float32(0.5),
        position=96,
        tokens=1536,
        moments=Moments(moments, 12),
    )
    with pytest.raises(VerificationError, match="not those of its parameters"):
        write_dcp(origin, replace(state, moments=Moments({"exp_avg": vector[1:]}, 1)), tmp_path / "dcp")
    assert not (tmp_path / "dcp").exists()
    write_dcp(replace(origin, optimizer={}), state, tmp_path / "older")
    write_dcp(origin, state, tmp_path / "dcp")
    with pytest.raises(UsageError, match="not empty"):
        write_dcp(origin, state, tmp_path / "dcp")

    decoder = Decoder(MODEL, origin.vocab_size)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.1)
    sum(one.sum() for one in decoder.parameters()).backward()
    optimizer.step()
    asked = {
        "model": get_model_state_dict(decoder),
        "optimizer": {"state": get_optimizer_state_dict(decoder, optimizer)["state"]},
        "outer": {
            "momentum": {name: torch.zeros(shape) for name, shape in zip(origin.names, origin.shapes, strict=True)}
        },
        "progress": {"round": 0, "tokens": 0, "sequences": 0},
    }
    dcp.load(asked, checkpoint_id=tmp_path / "dcp", no_dist=True)
    groups = get_optimizer_state_dict(decoder, optimizer)["param_groups"]
    set_optimizer_state_dict(decoder, optimizer, asked["optimizer"] | {"param_groups": groups})
    assert asked["progress"] == {"round": 3, "tokens": 1536, "sequences": 96}
    own, first = origin.layout.split(vector), origin.layout.split(moments["exp_avg"])
    for name, parameter in decoder.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), own[name])
        np.testing.assert_array_equal(optimizer.state[parameter]["exp_avg"].numpy(), first[name])
        np.testing.assert_array_equal(asked["outer"]["momentum"][name].numpy(), own[name] / 2)
        assert optimizer.state[parameter]["step"] == 12


def test_a_disk_that_is_full_is_said_and_nothing_is_left_half_written(tmp_path, tokenizer):
    origin, vector = made(tokenizer)
    state = OuterState(
        round=1, digest="", outer=vector, momentum=vector, position=0, tokens=0, moments=None
    )  # fmt: skip
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, allowed[1]))
    try:
        with pytest.raises(UsageError, match="cannot write there"):
            write_dcp(origin, state, tmp_path / "dcp")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not (tmp_path / "dcp").exists()


# -- training that goes on from it --------------------------------------------------------------------------------


def kept(store: ObjectStore, origin: Origin, vector: Vector) -> None:
    for number, scale in ((0, 1.0), (1, 2.0)):
        outer = vector * np.float32(scale)
        state = OuterState(
            round=number,
            digest=vector_digest(outer),
            outer=outer,
            momentum=np.zeros_like(outer),
            position=0,
            tokens=0,
            moments=None,
        )
        Keep(store, JOB).save_outer(state, origin)


@pytest.mark.integration
def test_an_earlier_jobs_outer_state_is_where_another_begins(store, tokenizer):
    origin, vector = made(tokenizer)
    kept(store, origin, vector)
    np.testing.assert_array_equal(starting_point(store, StartConfig(job=JOB), origin), vector * 2)
    longer = replace(origin, model=origin.model | {"context": 32, "recompute": True})
    np.testing.assert_array_equal(starting_point(store, StartConfig(job=JOB, round=0), longer), vector)
    with pytest.raises(NotFoundError, match="rounds 0 to 1"):
        starting_point(store, StartConfig(job=JOB, round=2), origin)
    with pytest.raises(NotFoundError, match="no outer state"):
        starting_point(store, StartConfig(job=JOB[:-1] + "b"), origin)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"heads": 8}}, "heads is 4, the job's 8"),
        ({"model": {"rope_base": 1e4}}, "rope_base is 50000.0"),
        ({"tokenizer_digest": "sha256:11"}, "the inputs' sha256:11"),
        ({"shapes": ((1, 1),)}, "other names or shapes"),
    ],
)
def test_another_model_or_tokenizer_is_refused_with_the_difference(store, tokenizer, change, message):
    origin, vector = made(tokenizer)
    kept(store, origin, vector)
    wanted = replace(origin, **(change | ({"model": origin.model | change["model"]} if "model" in change else {})))
    with pytest.raises(UsageError, match=message):
        starting_point(store, StartConfig(job=JOB), wanted)


@pytest.mark.integration
def test_an_exported_file_is_where_another_training_begins(store, tokenizer, tmp_path):
    origin, vector = made(tokenizer)
    export_model(origin, vector, tokenizer, tmp_path / "out", precision="float32")
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    store.put("models/base.safetensors", data)
    start = StartConfig(weights="models/base.safetensors", digest=digest(data))
    np.testing.assert_array_equal(starting_point(store, start, origin), vector)
    with pytest.raises(UsageError, match="layers is 2, the job's 3"):
        starting_point(store, start, replace(origin, model=origin.model | {"layers": 3}))
    with pytest.raises(VerificationError):
        starting_point(store, replace(start, digest=digest(b"else")), origin)
    for bad, fault in ((b"\xff" * 64, VerificationError), (b"\x02" + bytes(7) + b"{}", UsageError)):
        store.put("models/bad.safetensors", bad)
        with pytest.raises(fault, match="safetensors file"):
            starting_point(store, StartConfig(weights="models/bad.safetensors", digest=digest(bad)), origin)
    spoilt = vector.copy()
    spoilt[5] = np.nan
    kept(store, origin, spoilt)
    with pytest.raises(VerificationError, match="not finite"):
        starting_point(store, StartConfig(job=JOB), origin)


# -- what older versions kept ---------------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_state_of_an_optimiser_kept_by_an_older_version_is_read(store, tokenizer):
    origin, vector = made(tokenizer)
    first, second = np.full_like(vector, 0.5), np.full_like(vector, 0.25)
    blobs = {}
    for name, one in {"vector": vector, "momentum": vector * 0, "first": first, "second": second}.items():
        key, found = store.put_addressed(f"jobs/{JOB}/outer/3", to_bytes(one), ".f32")
        blobs[name] = {"key": key, "digest": found}
    old = {"round": 3, "position": 7, "tokens": 9, "adam_steps": 12, "origin": to_json(origin), **blobs}
    store.put(f"jobs/{JOB}/outer/3/state.json", json.dumps(old).encode())
    moments = Keep(store, JOB).outer(3, vector.size).moments
    assert moments.steps == 12
    np.testing.assert_array_equal(moments.vectors["exp_avg"], first)
    np.testing.assert_array_equal(moments.vectors["exp_avg_sq"], second)


def test_text_is_told_by_whole_characters_and_none_of_it_is_lost_at_the_end(tokenizer):
    read = bpe.load(tokenizer)
    tokens = read.encode("été").ids
    assert "".join(pieces(tokens, read.decode)) == "été"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces(tokens, read.decode))

    def decode(tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    cut = list("Loi é".encode())[:-1]
    assert list(pieces([*cut[:2]], decode)) == ["L", "o"]
    assert list(pieces([0], lambda _: "i \N{REPLACEMENT CHARACTER}")) == ["i "]
    assert "".join(pieces(cut, decode)) == "Loi "
