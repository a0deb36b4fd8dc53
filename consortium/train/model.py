"""A small modern decoder: RoPE (https://arxiv.org/abs/2104.09864), RMSNorm (https://arxiv.org/abs/1910.07467), SwiGLU
(https://arxiv.org/abs/2002.05202), attention by torch's scaled_dot_product_attention, embeddings tied or not.

Shapes: B batch, T tokens, D model width, H heads, K width of a head, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from consortium.train.settings import ModelParams

ROPE_BASE = 10_000.0
INIT_STD = 0.02
"""GPT-2's (Radford et al. 2019), with residual projections scaled by 1/sqrt(2 * layers)."""


def rope_tables(config: ModelParams) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of shape (T, K/2) for all positions of a context."""
    half = config.dim // config.heads // 2
    frequencies = ROPE_BASE ** (-torch.arange(half, dtype=torch.float32) / half)
    angles_TK = torch.outer(torch.arange(config.context, dtype=torch.float32), frequencies)
    return angles_TK.cos(), angles_TK.sin()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Turn each pair (first half, second half) of a head by its position's angle."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return torch.cat((first * cos_TK - second * sin_TK, first * sin_TK + second * cos_TK), dim=-1)


class Block(nn.Module):
    """Attention and a gated feed-forward layer, each behind a norm and added to the stream."""

    def __init__(self, config: ModelParams) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.attention_norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.attention_out = nn.Linear(config.dim, config.dim, bias=False)
        self.feed_norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.gate_up = nn.Linear(config.dim, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
        """Return the stream after this block."""
        batch, tokens, width = x_BTD.shape
        heads_BTD = self.qkv(self.attention_norm(x_BTD)).view(batch, tokens, 3, self.heads, width // self.heads)
        q_BHTK, k_BHTK, v_BHTK = heads_BTD.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHTK = F.scaled_dot_product_attention(
            rotate(q_BHTK, cos_TK, sin_TK), rotate(k_BHTK, cos_TK, sin_TK), v_BHTK, is_causal=True
        )
        attended_BTD = self.attention_out(mixed_BHTK.transpose(1, 2).reshape(batch, tokens, width))
        x_BTD = x_BTD + F.dropout(attended_BTD, self.dropout, self.training)
        gate, up = self.gate_up(self.feed_norm(x_BTD)).chunk(2, dim=-1)
        result: Tensor = x_BTD + F.dropout(self.down(F.silu(gate) * up), self.dropout, self.training)
        return result


class Decoder(nn.Module):
    """The language model: tokens in, logits out."""

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, config: ModelParams, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.head = None if config.tie_embeddings else nn.Linear(config.dim, vocab_size, bias=False)
        cos_TK, sin_TK = rope_tables(config)
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)

    def initialise(self, seed: int) -> None:
        """Draw all parameters anew. One site does this and publishes the result; the bits depend on the machine."""
        generator = torch.Generator().manual_seed(seed)
        residual_std = INIT_STD / (2 * self.config.layers) ** 0.5
        for name, parameter in sorted(self.named_parameters()):
            if parameter.dim() < 2:
                nn.init.ones_(parameter)
            else:
                std = residual_std if name.endswith(("attention_out.weight", "down.weight")) else INIT_STD
                nn.init.normal_(parameter, std=std, generator=generator)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return logits of shape (B, T, V) for tokens of shape (B, T), T at most the context."""
        length = tokens_BT.shape[1]
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cos_TK[:length], self.sin_TK[:length])
        output_VD = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(self.final_norm(x_BTD), output_VD)


def next_token_loss(logits_BTV: Tensor, rows_BT: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of predicting `rows_BT[:, 1:]`; rows have T + 1 tokens."""
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), rows_BT[:, 1:].flatten())
