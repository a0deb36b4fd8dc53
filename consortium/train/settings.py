"""What a pretrain or evaluate job may be told: parts of `JobSpec.params`, checked as they are made. No torch here.

`configs/job/pretrain.yaml` composes them from the groups `model`, `data`, `optim` and `outer`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from consortium.domain.codec import from_json

_FORBID = {"extra": "forbid"}


def _at_least(owner: str, minimum: float, **values: float) -> None:
    for name, value in values.items():
        if not value >= minimum:
            raise ValueError(f"{owner}.{name} must be at least {minimum:g}, got {value}")


def _below_one(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{owner}.{name} must be 0 or more and below 1, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder. The vocabulary's size comes from the tokenizer, not from here."""

    __pydantic_config__ = _FORBID

    layers: int = 4
    width: int = 96
    heads: int = 4
    context: int = 128
    """Tokens a sequence predicts."""
    hidden: int = 256
    """Width of the feed-forward layer's gate."""
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        _at_least("model", 1, layers=self.layers, width=self.width, heads=self.heads, hidden=self.hidden)
        _at_least("model", 2, context=self.context)
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"model.width ({self.width}) must be an even multiple of model.heads ({self.heads})")
        if not 1 < self.rope_base < 1e12:
            raise ValueError(f"model.rope_base must lie between 1 and 1e12, got {self.rope_base}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """How many sequences make one inner step at a site, over all its workers."""

    __pydantic_config__ = _FORBID

    batch_sequences: int = 16

    def __post_init__(self) -> None:
        _at_least("data", 1, batch_sequences=self.batch_sequences)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """AdamW inside a site, with linear warm-up and a cosine to `final_lr_ratio` over all rounds."""

    __pydantic_config__ = _FORBID

    lr: float = 4e-3
    warmup_steps: int = 10
    final_lr_ratio: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        _at_least("optim", 0, weight_decay=self.weight_decay, warmup_steps=self.warmup_steps)
        _below_one("optim", beta1=self.beta1, beta2=self.beta2)
        if not 0 < self.lr <= 1 or not 0 <= self.final_lr_ratio <= 1 or not self.grad_clip > 0:
            raise ValueError("optim: 0 < lr <= 1, 0 <= final_lr_ratio <= 1 and grad_clip > 0 must hold")


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterConfig:
    """Outer rounds between sites: Nesterov SGD (DiLoCo, https://arxiv.org/abs/2311.08105, section 2)."""

    __pydantic_config__ = _FORBID

    rounds: int = 4
    inner_steps: int = 20
    lr: float = 0.7
    momentum: float = 0.9
    quorum: int = 0
    """Commits that suffice once the grace time is over; 0 means all."""

    def __post_init__(self) -> None:
        _at_least("outer", 1, rounds=self.rounds, inner_steps=self.inner_steps)
        _at_least("outer", 0, quorum=self.quorum)
        _below_one("outer", momentum=self.momentum)
        if not 0 < self.lr <= 2:
            raise ValueError(f"outer.lr must be above 0 and at most 2, got {self.lr}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainParams:
    """`params` of a pretrain job."""

    __pydantic_config__ = _FORBID

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 or more and below 2^63, got {self.seed}")

    @classmethod
    def of(cls, params: dict[str, Any], *, where: str = "params") -> PretrainParams:
        """Return `params` checked; raises UsageError naming each offending key."""
        return from_json(cls, params, where=where)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateParams:
    """`params` of an evaluate job: which outer states to measure (-1 is the newest) and on how much held-out text."""

    __pydantic_config__ = _FORBID

    rounds: tuple[int, ...] = (0, -1)
    batches: int = 16
    """Batches of `batch_sequences` per language, evenly spread over its held-out tokens."""
    batch_sequences: int = 16

    def __post_init__(self) -> None:
        _at_least("evaluate", 1, batches=self.batches, batch_sequences=self.batch_sequences)
        if len(self.rounds) != 2 or any(number < -1 for number in self.rounds):
            raise ValueError(f"evaluate.rounds must name two rounds, before and after, got {list(self.rounds)}")

    @classmethod
    def of(cls, params: dict[str, Any], *, where: str = "params") -> EvaluateParams:
        """Return `params` checked; raises UsageError naming each offending key."""
        return from_json(cls, params, where=where)
