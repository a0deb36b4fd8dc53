"""The params of pretrain and evaluate jobs as training reads them. No torch here.

The keys are those of `configs/job/pretrain.yaml` and its groups; `consortium.config` checks bounds at submission. Here
only what would break training is checked again, because a leg trusts nobody's word for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from consortium.domain.codec import from_json

_STRICT: dict[str, str] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParams:
    """The shape of a decoder. The vocabulary's size comes from the tokenizer, not from here."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    name: str = ""
    dim: int
    layers: int
    heads: int
    context: int
    """Tokens a sequence predicts."""
    mlp_ratio: int = 4
    dropout: float = 0.0
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        if min(self.dim, self.layers, self.heads, self.mlp_ratio) < 1 or self.context < 2:
            raise ValueError("dim, layers, heads and mlp_ratio must be at least 1, context at least 2")
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ValueError(f"dim ({self.dim}) must be a multiple of twice the heads ({self.heads})")

    @property
    def hidden(self) -> int:
        """Width of the gated feed-forward layer: two thirds of `mlp_ratio * dim`, as it has three matrices, not two."""
        return -(-2 * self.mlp_ratio * self.dim // 3 // 8) * 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParams:
    """How token shards become batches."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    batch_size: int
    """Sequences per inner step and worker."""
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimParams:
    """AdamW inside a site, with linear warm-up and a cosine over all rounds."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    name: Literal["adamw"] = "adamw"
    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup_steps: int = 0
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        if not self.lr > 0 or not self.grad_clip > 0:
            raise ValueError("lr and grad_clip must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterParams:
    """Outer rounds between sites: Nesterov SGD (DiLoCo, https://arxiv.org/abs/2311.08105, section 2)."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    name: Literal["nesterov"] = "nesterov"
    rounds: int
    inner_steps: int
    lr: float = 0.7
    momentum: float = 0.9
    quorum: int = 0
    """Commits that suffice once the grace time is over; 0 means all. The server keeps it."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.inner_steps < 1:
            raise ValueError("rounds and inner_steps must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainParams:
    """`params` of a pretrain job."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    model: ModelParams
    data: DataParams
    optim: OptimParams
    outer: OuterParams
    seed: int = 0

    @classmethod
    def of(cls, params: dict[str, Any], *, where: str = "params") -> PretrainParams:
        """Return `params` checked; raises UsageError naming each offending key."""
        return from_json(cls, params, where=where)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateParams:
    """`params` of an evaluate job: which outer states to measure (-1 is the newest) and on how many batches each."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    rounds: tuple[int, ...] = (0, -1)
    batches: int = 20
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not self.rounds or min(self.rounds) < -1 or self.batches < 1 or self.batch_size < 1:
            raise ValueError("rounds must name outer states (0 and up, -1 for the last); the rest at least 1")

    @classmethod
    def of(cls, params: dict[str, Any], *, where: str = "params") -> EvaluateParams:
        """Return `params` checked; raises UsageError naming each offending key."""
        return from_json(cls, params, where=where)
