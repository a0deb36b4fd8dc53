"""A trained model as files that other programs read: the layout of Hugging Face's transformers, and back.

The decoder is a `LlamaForCausalLM` by another name: RMSNorm, rotary halves, SwiGLU, grouped queries, no biases. Only
`qkv` and `gate_up` are several of its matrices, one below the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from consortium.domain.codec import from_json
from consortium.domain.pretraining import ModelConfig
from consortium.errors import UsageError
from consortium.train.keep import Origin
from consortium.train.model import NORM_EPS, qkv_rows
from consortium.train.outer import Vector

Precision = Literal["bfloat16", "float32"]
SHARD_BYTES = 5_000_000_000
"""Files larger than this are cut, as transformers does."""
_BLOCK = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention_out.weight": ("self_attn.o_proj.weight",),
    "feed_norm.weight": ("post_attention_layernorm.weight",),
    "gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "down.weight": ("mlp.down_proj.weight",),
}


def llama_names(model: ModelConfig) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """Yield each parameter's name, the names that transformers has for its parts, and the rows of each part.

    Rows are empty where there is one part. Raises UsageError for a model that is not the package's decoder.
    """
    if model.plugin:
        raise UsageError(
            f"the model {model.plugin!r} is an installed one, whose layout only its makers know",
            fix="read the outer state with consortium.train.keep and write it with the package that defines the model",
        )
    rows = {"qkv.weight": qkv_rows(model), "gate_up.weight": (model.hidden, model.hidden)}
    yield "embedding.weight", ("model.embed_tokens.weight",), ()
    for at in range(model.layers):
        for own, parts in _BLOCK.items():
            yield f"blocks.{at}.{own}", tuple(f"model.layers.{at}.{part}" for part in parts), rows.get(own, ())
    yield "final_norm.weight", ("model.norm.weight",), ()
    if not model.tie_embeddings:
        yield "head.weight", ("lm_head.weight",), ()


def to_llama(model: ModelConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters under transformers' names."""
    found: dict[str, Tensor] = {}
    for own, names, rows in llama_names(model):
        parts = torch.split(parameters[own], list(rows)) if rows else (parameters[own],)
        found |= dict(zip(names, parts, strict=True))
    return found


def from_llama(model: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with transformers' names under the decoder's. Raises UsageError naming those that are missing."""
    wanted = [name for _, names, _ in llama_names(model) for name in names]
    if missing := sorted(set(wanted) - set(tensors)):
        raise UsageError(f"the file lacks {len(missing)} of {len(wanted)} parameters, such as {missing[0]}")
    return {own: torch.cat([tensors[name] for name in names]) for own, names, _ in llama_names(model)}


def llama_config(model: ModelConfig, vocab_size: int, *, precision: Precision, eos: int) -> dict[str, Any]:
    """Return `config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": eos,
        "eos_token_id": eos,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "hidden_size": model.dim,
        "initializer_range": 0.02,
        "intermediate_size": model.hidden,
        "max_position_embeddings": model.context,
        "mlp_bias": False,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.groups,
        "rms_norm_eps": NORM_EPS,
        "rope_scaling": None,
        "rope_theta": model.rope_base,
        "tie_word_embeddings": model.tie_embeddings,
        "torch_dtype": precision,
        "use_cache": True,
        "vocab_size": vocab_size,
    }


def export_model(
    origin: Origin,
    vector: Vector,
    tokenizer: bytes,
    directory: Path,
    *,
    precision: Precision = "bfloat16",
    eos: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write an outer state's model into `directory` and return the files.

    `model.safetensors` (or several with an index), `config.json`, `generation_config.json`, `tokenizer.json`,
    `tokenizer_config.json`. The safetensors' metadata names model and tokenizer, so that training can go on from it.
    Raises UsageError for a model that transformers has no class for, and for a directory that is not empty.
    """
    from safetensors.torch import save_file

    model = from_json(ModelConfig, origin.model)
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    arrays = {name: torch.from_numpy(array.copy()) for name, array in origin.layout.split(vector).items()}
    tensors = {name: part.to(kind).contiguous() for name, part in to_llama(model, arrays).items()}
    new_folder(directory)
    metadata = {
        "format": "pt",
        "model": json.dumps(origin.model, sort_keys=True),
        "vocab_size": str(origin.vocab_size),
        "tokenizer_digest": origin.tokenizer_digest,
    }
    shards = _shards(tensors, shard_bytes)
    files: list[Path] = []
    for number, names in enumerate(shards, start=1):
        cut = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        files.append(directory / f"model{cut}.safetensors")
        save_file({name: tensors[name] for name in names}, files[-1], metadata=metadata)
    end = json.loads(tokenizer)["added_tokens"][eos]["content"]
    texts: dict[str, Any] = {
        "config.json": llama_config(model, origin.vocab_size, precision=precision, eos=eos),
        "generation_config.json": {"bos_token_id": eos, "eos_token_id": eos},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": True,
            "bos_token": end,
            "eos_token": end,
            "model_max_length": model.context,
            "clean_up_tokenization_spaces": False,
        },
    }
    if len(shards) > 1:
        where = {name: file.name for file, names in zip(files, shards, strict=True) for name in names}
        total = sum(tensor.nbytes for tensor in tensors.values())
        texts["model.safetensors.index.json"] = {"metadata": {"total_size": total}, "weight_map": where}
    for name, text in texts.items():
        files.append(directory / name)
        files[-1].write_text(json.dumps(text, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    files.append(directory / "tokenizer.json")
    files[-1].write_bytes(_beginning(tokenizer, end, eos))
    return files


def _beginning(tokenizer: bytes, end: str, eos: int) -> bytes:
    """Return the tokenizer with a rule that puts the end token before a text: every document was trained behind one.

    So it is with Llama's own. Tokens are what they were.
    """
    held = json.loads(tokenizer)
    if held.get("post_processor") is None:
        special = {"SpecialToken": {"id": end, "type_id": 0}}
        first, second = ({"Sequence": {"id": name, "type_id": at}} for at, name in enumerate("AB"))
        held["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [special, first],
            "pair": [special, first, {"SpecialToken": {"id": end, "type_id": 1}}, second],
            "special_tokens": {end: {"id": end, "ids": [eos], "tokens": [end]}},
        }
    return json.dumps(held, ensure_ascii=False, indent=2).encode()


def new_folder(directory: Path) -> None:
    """Make a folder. Raises UsageError where it cannot be made or is not empty."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UsageError("the folder is not empty", where=str(directory), fix="name a new one")
    except OSError as fault:
        raise UsageError(f"cannot write there: {fault.strerror}", where=str(directory)) from fault


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    """Return names in order, cut where a file would grow over `limit` bytes."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.nbytes > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += tensor.nbytes
    return shards
