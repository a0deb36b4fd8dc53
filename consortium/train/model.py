"""A modern decoder: RoPE (https://arxiv.org/abs/2104.09864), RMSNorm (https://arxiv.org/abs/1910.07467), SwiGLU
(https://arxiv.org/abs/2002.05202), grouped-query attention (https://arxiv.org/abs/2305.13245) by torch's
scaled_dot_product_attention (FlashAttention where the processor has it), embeddings tied or not.

It computes what a Llama model of Hugging Face's transformers computes; `consortium.train.export` maps the names.
Shapes: B batch, T tokens, D model width, H heads, G heads of keys and values, K width of a head, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from consortium.domain.pretraining import ModelConfig
from consortium.train.plugin import LanguageModel

NORM_EPS = 1e-5
INIT_STD = 0.02
"""GPT-2's (Radford et al. 2019), with residual projections scaled by 1/sqrt(2 * layers)."""


def init_stds(config: ModelConfig) -> tuple[float, float]:
    """Return the standard deviations of a fresh model's matrices and of those that write to the residual stream.

    `gpt2`: 0.02, and 0.02 / sqrt(2 * layers). `small`: sqrt(2 / (5 * dim)) (https://arxiv.org/abs/1910.05895) and
    2 / (layers * sqrt(dim)), as GPT-NeoX-20B has them (https://arxiv.org/abs/2204.06745, section 2.1).
    """
    if config.init == "small":
        return math.sqrt(2 / (5 * config.dim)), 2 / (config.layers * math.sqrt(config.dim))
    return INIT_STD, INIT_STD / (2 * config.layers) ** 0.5


def rope_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of shape (T, K/2) for all positions of a context."""
    half = config.head_dim // 2
    frequencies = config.rope_base ** (-torch.arange(half, dtype=torch.float32) / half)
    angles_TK = torch.outer(torch.arange(config.context, dtype=torch.float32), frequencies)
    return angles_TK.cos(), angles_TK.sin()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Turn each pair (first half, second half) of a head by its position's angle."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.cat((first * cos_TK - second * sin_TK, first * sin_TK + second * cos_TK), dim=-1)


def document_mask(tokens_BT: Tensor, end: int, dtype: torch.dtype) -> Tensor:
    """Return what to add to scores, shape (B, 1, T, T), so that a token sees its own document up to itself: 0 or -inf.

    `end` belongs to the document that it begins.
    """
    number_BT = (tokens_BT == end).cumsum(1)
    seen_BTT = (number_BT[:, :, None] == number_BT[:, None, :]).tril()
    return torch.zeros(seen_BTT.shape, dtype=dtype, device=tokens_BT.device).masked_fill_(~seen_BTT, -math.inf)[:, None]


def _width(x: Tensor) -> torch.dtype:
    """What attention computes in: made once in it, a mask is not kept anew by every block."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def normed(norm: nn.RMSNorm, x_BTD: Tensor) -> Tensor:
    """Return `x_BTD` through a norm, in its own precision: FSDP2 may have gathered the weight in bf16."""
    return F.rms_norm(x_BTD, list(norm.normalized_shape), norm.weight.to(x_BTD.dtype), norm.eps)


class Past:
    """Keys and values of one block for the tokens read so far, for generating text: one more token at a time."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None

    @property
    def tokens(self) -> int:
        """Tokens read so far."""
        return 0 if self._kept is None else self._kept[0].shape[2]

    def extend(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of the next tokens and return all."""
        if self._kept is not None:
            k_BGTK = torch.cat((self._kept[0], k_BGTK), dim=2)
            v_BGTK = torch.cat((self._kept[1], v_BGTK), dim=2)
        self._kept = k_BGTK, v_BGTK
        return self._kept


class Block(nn.Module):
    """Attention and a gated feed-forward layer, each behind a norm and added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.groups = config.heads, config.groups
        self.dropout = config.dropout
        self.attention_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.qkv = nn.Linear(config.dim, sum(qkv_rows(config)), bias=False)
        self.attention_out = nn.Linear(config.dim, config.dim, bias=False)
        self.feed_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.gate_up = nn.Linear(config.dim, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.dim, bias=False)

    def forward(
        self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor, past: Past | None = None, mask_B1TT: Tensor | None = None
    ) -> Tensor:
        """Return the stream after this block. With `past`, `x_BTD` is one token, or the first ones.

        `mask_B1TT` is added to the scores; without one a token sees all before it.
        """
        batch, tokens, width = x_BTD.shape
        heads_BTNK = self.qkv(normed(self.attention_norm, x_BTD)).view(batch, tokens, -1, width // self.heads)
        sizes = (self.heads, self.groups, self.groups)
        q_BHTK, k_BGTK, v_BGTK = (part.transpose(1, 2) for part in heads_BTNK.split(sizes, dim=2))
        q_BHTK, k_BGTK = rotate(q_BHTK, cos_TK, sin_TK), rotate(k_BGTK, cos_TK, sin_TK)
        if past is not None:
            k_BGTK, v_BGTK = past.extend(k_BGTK, v_BGTK)
        mixed_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BGTK,
            v_BGTK,
            attn_mask=mask_B1TT,
            is_causal=mask_B1TT is None and k_BGTK.shape[2] == tokens,
            enable_gqa=self.groups != self.heads,
        )
        attended_BTD = self.attention_out(mixed_BHTK.transpose(1, 2).reshape(batch, tokens, width))
        x_BTD = x_BTD + F.dropout(attended_BTD, self.dropout, self.training)
        gate, up = self.gate_up(normed(self.feed_norm, x_BTD)).chunk(2, dim=-1)
        result: Tensor = x_BTD + F.dropout(self.down(F.silu(gate) * up), self.dropout, self.training)
        return result


def qkv_rows(config: ModelConfig) -> tuple[int, int, int]:
    """Return the rows of queries, keys and values in a block's `qkv`, one below the other."""
    return config.dim, config.groups * config.head_dim, config.groups * config.head_dim


class Decoder(LanguageModel):
    """The language model: tokens in, logits out."""

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.head = None if config.tie_embeddings else nn.Linear(config.dim, vocab_size, bias=False)
        cos_TK, sin_TK = rope_tables(config)
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)
        self._end: int | None = None

    def separate(self, end: int) -> None:
        """Keep documents apart from now on. Positions are rotary, distances alone count: they need not begin anew."""
        self._end = end

    def initialise(self, seed: int) -> None:
        """Draw all parameters anew. One site does this and publishes the result; the bits depend on the machine."""
        generator = torch.Generator().manual_seed(seed)
        matrix_std, residual_std = init_stds(self.config)
        for name, parameter in sorted(self.named_parameters()):
            if parameter.dim() < 2:
                nn.init.ones_(parameter)
            else:
                std = residual_std if name.endswith(("attention_out.weight", "down.weight")) else matrix_std
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, tokens_BT: Tensor, pasts: Sequence[Past] = ()) -> Tensor:
        """Return logits of shape (B, T, V) for tokens of shape (B, T), T at most the context.

        With `pasts`, one per block, the tokens go on from those read with them before.
        """
        start = pasts[0].tokens if pasts else 0
        end = start + tokens_BT.shape[1]
        cos_TK, sin_TK = self.cos_TK[start:end], self.sin_TK[start:end]
        x_BTD = self.embedding(tokens_BT)
        mask_B1TT = None if self._end is None or pasts else document_mask(tokens_BT, self._end, _width(x_BTD))
        for at, block in enumerate(self.blocks):
            if self.config.recompute and self.training:
                x_BTD = checkpoint(block, x_BTD, cos_TK, sin_TK, None, mask_B1TT, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, cos_TK, sin_TK, pasts[at] if pasts else None, mask_B1TT)
        output_VD = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(self.final_norm(x_BTD), output_VD)

    def units(self) -> Sequence[nn.Module]:
        """Return the blocks."""
        return list(self.blocks)

    def hidden(self) -> Mapping[str, tuple[int, ...]]:
        """Return the blocks' matrices; queries, keys and values, gate and up are matrices of their own."""
        rows = {
            "qkv": qkv_rows(self.config),
            "attention_out": (self.config.dim,),
            "gate_up": (self.config.hidden, self.config.hidden),
            "down": (self.config.dim,),
        }
        return {f"blocks.{at}.{name}.weight": rows[name] for at in range(self.config.layers) for name in rows}
