"""The params of pretrain and evaluate jobs as training reads them. No torch here.

The keys are those of `configs/job/pretrain.yaml` and its groups; `consortium.config` checks bounds at submission. Here
only what would break training is checked again, because a leg trusts nobody's word for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from consortium.domain import ids
from consortium.domain.codec import from_json
from consortium.domain.screening import ScreenRule
from consortium.train.codes import Code, CodeName

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
    kv_heads: int = 0
    """Heads of keys and values, shared by groups of query heads (GQA, https://arxiv.org/abs/2305.13245); 0: `heads`."""
    mlp_dim: int = 0
    """Width of the gated feed-forward layer; 0: from `mlp_ratio`."""
    rope_base: float = 10_000.0
    init: Literal["gpt2", "small"] = "gpt2"
    z_loss: float = 0.0
    recompute: bool = False
    """Keep only the stream between blocks and compute the rest anew in the backward pass: slower, far less memory."""
    compile: bool = False
    plugin: str = ""
    """Name of a model that the site installed (`consortium.train.plugin`); empty: the decoder of this package."""

    def __post_init__(self) -> None:
        if min(self.dim, self.layers, self.heads, self.mlp_ratio) < 1 or self.context < 2:
            raise ValueError("dim, layers, heads and mlp_ratio must be at least 1, context at least 2")
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ValueError(f"dim ({self.dim}) must be a multiple of twice the heads ({self.heads})")
        if self.kv_heads < 0 or self.heads % self.groups:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.mlp_dim < 0 or not self.rope_base > 1 or not self.z_loss >= 0:
            raise ValueError("mlp_dim and z_loss must be at least 0, rope_base above 1")
        if self.plugin and not ids.is_name(self.plugin):
            raise ValueError(f"plugin {self.plugin!r}: the name of an installed model, not a path to code")

    @property
    def hidden(self) -> int:
        """Width of the gated feed-forward layer: two thirds of `mlp_ratio * dim`, as it has three matrices, not two."""
        return self.mlp_dim or -(-2 * self.mlp_ratio * self.dim // 3 // 8) * 8

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.heads

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads


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
    """The optimiser inside a site and its rate over all rounds; what they do is said in `consortium.train.optim`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    name: Literal["adamw", "muon"] = "adamw"
    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup_steps: int = 0
    grad_clip: float = 1.0
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_share: float = 0.2
    """Share of all steps over which a `wsd` rate comes down."""
    final_lr_share: float = 0.1
    """Rate at the last step over `lr`."""
    momentum: float = 0.95
    """Muon's."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or not self.grad_clip > 0:
            raise ValueError("lr and grad_clip must be above 0")
        if not (0 <= self.decay_share <= 1 and 0 <= self.final_lr_share <= 1 and 0 <= self.momentum < 1):
            raise ValueError("decay_share and final_lr_share must be 0 to 1, momentum 0 to below 1")


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
    code: CodeName = "fp32"
    """How pseudo-gradients cross borders (`consortium.train.codes`)."""
    topk: int = 64
    """Of 4,096 elements, how many cross where the code is `topk`."""
    feedback: float = 1.0
    """Share of what a code dropped that is carried into the next round."""
    screen: ScreenRule = field(default_factory=ScreenRule)
    keep_received: int = 0
    """Rounds whose contributions from peers stay in the private store for an audit; -1: all."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.inner_steps < 1:
            raise ValueError("rounds and inner_steps must be at least 1")
        if self.codec.name == "topk" and self.screen.aggregate != "mean":
            raise ValueError(f"code topk sends few coordinates: aggregate must be mean, got {self.screen.aggregate}")

    @property
    def codec(self) -> Code:
        """The code with its parameters."""
        return Code(name=self.code, topk=self.topk, feedback=self.feedback)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartParams:
    """The model that training goes on from: of an earlier job, or of a file; both empty: freshly drawn."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    job: str = ""
    """A pretrain job of which the first site keeps outer states."""
    round: int = -1
    """Which of them; -1 is the newest."""
    weights: str = ""
    """Key of a safetensors file in the first site's private store."""
    digest: str = ""
    """`sha256:...` of that file."""

    def __post_init__(self) -> None:
        if self.job and self.weights:
            raise ValueError("start.job and start.weights exclude each other")
        if self.round < -1:
            raise ValueError("start.round must be an outer state's number, or -1 for the newest")
        if bool(self.weights) != bool(self.digest):
            raise ValueError("start.weights and start.digest (sha256:...) belong together")

    @property
    def given(self) -> bool:
        """Whether training goes on from something."""
        return bool(self.job or self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainParams:
    """`params` of a pretrain job."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    model: ModelParams
    data: DataParams
    optim: OptimParams
    outer: OuterParams
    start: StartParams = StartParams()
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
