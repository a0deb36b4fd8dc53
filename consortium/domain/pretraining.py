"""The params of `pretrain` and `evaluate`, as configs and legs both read them. No torch here.

The keys are those of `configs/job/pretrain.yaml` and its groups. A leg checks them again, because it trusts nobody's
word for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from consortium.domain import ids
from consortium.domain.bounds import FieldError, within
from consortium.domain.codec import from_json, to_json
from consortium.domain.screening import ScreenRule

CodeName = Literal["fp32", "bf16", "int8", "int4", "topk"]

MOST_PACE = 4
"""Times `outer.inner_steps` that a site does in a round at the most, where its pace is measured."""

_STRICT: dict[str, str] = {"extra": "forbid"}


def _weight(text: str) -> tuple[str, float]:
    name, _, weight = text.rpartition(":")
    if not re.fullmatch(r"[a-z0-9._+-]+", name) or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", weight):
        raise FieldError(
            f"mixture: {text[:100]!r} must be NAME:WEIGHT such as fr:0.5, a dataset's name or a language", "mixture"
        )
    return name, float(weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
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
        within(self, dim=(1, 65_536), layers=(1, 1_000), heads=(1, 1_024), context=(2, 1_048_576))
        within(self, mlp_ratio=(1, 16), dropout=(0, 0.9), kv_heads=(0, 1_024), mlp_dim=(0, 1_048_576))
        within(self, rope_base=(10, 1_000_000_000), z_loss=(0, 1))
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise FieldError(f"dim ({self.dim}) must be a multiple of twice the heads ({self.heads})", "dim", "heads")
        if self.heads % self.groups:
            raise FieldError(
                f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})", "kv_heads", "heads"
            )
        if self.plugin and not ids.is_name(self.plugin):
            raise FieldError(f"plugin {self.plugin!r}: the name of an installed model, not a path to code", "plugin")

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
class DataConfig:
    """How token shards become batches."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    batch_size: int
    """Sequences per inner step and worker."""
    accumulate: int = 1
    """Parts a worker's batch is computed in, one after another: the same step with the memory of one part."""
    shuffle: bool = True
    boundaries: Literal["join", "mask"] = "join"
    """Whether attention goes on over the end of a document in a sequence or stops there."""
    mixture: tuple[str, ...] = ()
    """`NAME:WEIGHT` for each dataset or language; empty: every token of a site is read equally often."""

    def __post_init__(self) -> None:
        within(self, batch_size=(1, 65_536), accumulate=(1, 65_536))
        if self.batch_size % self.accumulate:
            raise FieldError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulate ({self.accumulate})",
                "accumulate", "batch_size",
            )  # fmt: skip
        if len(self.weights) < len(self.mixture):
            raise FieldError("mixture names a dataset or language twice", "mixture", fix="name each once")
        if self.mixture and not any(self.weights.values()):
            raise FieldError("mixture: one weight at least must be above 0", "mixture")

    @property
    def weights(self) -> dict[str, float]:
        """The mixture's weights by name of dataset or language."""
        return dict(_weight(text) for text in self.mixture)

    @property
    def part(self) -> int:
        """Sequences that a worker computes at once."""
        return self.batch_size // self.accumulate


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
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
        within(self, lr=(1e-9, 10), weight_decay=(0, 10), warmup_steps=(0, 10_000_000), grad_clip=(1e-6, 1_000_000))
        within(self, decay_share=(0, 1), final_lr_share=(0, 1), momentum=(0, 0.9999))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise FieldError(f"betas must be at least 0 and below 1, got {list(self.betas)}", "betas")


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterConfig:
    """Outer rounds between sites: Nesterov SGD (DiLoCo, https://arxiv.org/abs/2311.08105, section 2)."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    name: Literal["nesterov"] = "nesterov"
    rounds: int
    inner_steps: int
    lr: float = 0.7
    momentum: float = 0.9
    fragments: int = 1
    """Parts of the model that rounds exchange in turn (`consortium.train.fragments`); 1: all of it in every round."""
    delay: int = 0
    """Inner steps that sites go on training between sending a round's part and applying what came of it."""
    mix: float = 0.0
    """Share of its own parameters that a site keeps when it applies a round; the rest is the outer state's."""
    taper: float = 0.0
    """Rounds as long as the learning rate to this power, equally many (`consortium.train.schedule`); 0: all alike."""
    share: Literal["none", "optimizer"] = "none"
    """`optimizer`: sites go on from the mean of their inner optimisers' states after each round (`train.shared`)."""
    pace: Literal["fixed", "measured"] = "fixed"
    """`measured`: sites that are faster do more steps in a round, so that all finish together (`train.pace`)."""
    quorum: int = 0
    """Commits that close a round once its grace is over; 0: every site. The server keeps it."""
    code: CodeName = "fp32"
    """How pseudo-gradients cross borders (`consortium.train.codes`)."""
    topk: Literal[16, 32, 64, 128, 256] = 64
    """Of 4,096 elements, how many cross where the code is `topk`."""
    feedback: float = 1.0
    """Share of what a code dropped that is carried into the next round."""
    screen: ScreenRule = field(default_factory=ScreenRule)
    keep_received: int = 0
    """Rounds whose contributions from peers stay in the private store for an audit; -1: all."""
    keep_whole: int = -1
    """Newest states that stay with the optimiser's vectors, residuals and a site's own parameters; -1: all."""

    def __post_init__(self) -> None:
        within(self, rounds=(1, 100_000), inner_steps=(1, 1_000_000), lr=(1e-6, 10), momentum=(0, 0.9999))
        within(self, taper=(0, 1), feedback=(0, 1), quorum=(0, 1_000), keep_received=(-1, 100_000))
        within(self, fragments=(1, 1_000), delay=(0, 1_000_000), mix=(0, 1), keep_whole=(-1, 100_000))
        if self.keep_whole in (0, 1):
            what = f"keep_whole must be -1 or at least 2, as a state may not hold, got {self.keep_whole}"
            raise FieldError(what, "keep_whole")
        if self.rounds % self.fragments:
            what = f"rounds ({self.rounds}) must be a multiple of fragments ({self.fragments})"
            raise FieldError(what, "fragments", "rounds")
        if self.delay > self.inner_steps:
            what = f"delay ({self.delay:,}) must be at most inner_steps ({self.inner_steps:,})"
            raise FieldError(what, "delay", "inner_steps")
        if self.share != "none":
            self._check_share()
        if self.code == "topk" and self.screen.aggregate != "mean":
            raise FieldError(
                f"code topk sends few coordinates: screen.aggregate must be mean, got {self.screen.aggregate}",
                "screen.aggregate", "code",
                fix="set screen.aggregate to mean, or choose another code",
            )  # fmt: skip

    def _check_share(self) -> None:
        whole = {"fragments": 1, "delay": 0, "mix": 0}
        for name, right in whole.items():
            value = getattr(self, name)
            if value != right:
                raise FieldError(
                    f"share goes with whole rounds that are waited for: {name} must be {right}, got {value:,}",
                    name, "share",
                    fix=f"set {name} to {right}, or share to none",
                )  # fmt: skip
        if self.screen.aggregate != "mean":
            raise FieldError(
                f"share goes with screen.aggregate mean, got {self.screen.aggregate}",
                "screen.aggregate", "share",
                fix="set screen.aggregate to mean, or share to none",
            )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StartConfig:
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
    resume: bool = False
    """Go on with all of that job's state after `round`, at each of its sites, and not with the model alone."""
    done: int = 0
    """Of a resumed training: the rounds behind it, over all jobs. The learning rate goes on from there."""

    def __post_init__(self) -> None:
        within(self, round=(-1, 100_000), done=(0, 100_000))
        if self.resume and not (self.job and 1 <= self.round <= self.done):
            raise FieldError(
                f"resume needs job, and a round from 1 to done, got round {self.round} and done {self.done}",
                "resume", "job", "round", "done",
                fix="`consortium submit pretrain --resume JOB` sets them",
            )  # fmt: skip
        if self.done and not self.resume:
            raise FieldError(
                f"done is set where a training is resumed, and there alone, got {self.done}",
                "done", "resume",
                fix="leave it out; `consortium submit pretrain --resume JOB` sets it",
            )  # fmt: skip
        if self.job and not ids.is_id(self.job, "job"):
            raise FieldError(f"job: {self.job!r} is no job id such as job-…", "job", fix="`consortium jobs` lists them")
        if self.job and self.weights:
            raise FieldError(
                f"job and weights exclude each other, got {self.job} and {self.weights!r}",
                "weights", "job",
                fix="leave one of them out",
            )  # fmt: skip
        if bool(self.weights) != bool(re.fullmatch("sha256:[0-9a-f]{64}", self.digest)):
            raise FieldError(
                f"weights and digest belong together, got {self.weights!r} and {self.digest!r}",
                "digest", "weights",
                fix="weights is the file's key in the private store, digest is sha256: and 64 hex digits",
            )  # fmt: skip

    @property
    def given(self) -> bool:
        """Whether training goes on from something."""
        return bool(self.job or self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Params of `pretrain`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    outer: OuterConfig
    start: StartConfig = StartConfig()
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How a site's workers hold the model: each all of it, or each a part (`consortium.train.parallel`)."""
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, seed=(0, 2**53 - 1))
        first, second = self.optim.betas
        if self.outer.share == "optimizer" and first * first >= second:
            raise FieldError(
                f"outer.share needs optim.betas[0] squared below optim.betas[1], got {[first, second]}",
                "optim.betas", "outer.share",
                fix="a smaller first or a larger second, or outer.share=none",
            )  # fmt: skip
        if not self.model.plugin and self.outer.fragments > self.model.layers:
            raise FieldError(
                f"outer.fragments must be at most the model's layers ({self.model.layers}), got {self.outer.fragments}",
                "outer.fragments", "model.layers",
                fix=f"outer.fragments={self.model.layers} or less, or a model of more layers",
            )  # fmt: skip

    @property
    def all_rounds(self) -> int:
        """Rounds of the whole training, with those before it was resumed."""
        return self.start.done + self.outer.rounds

    @classmethod
    def of(cls, params: dict[str, Any], *, where: str = "params") -> PretrainConfig:
        """Return `params` checked; raises UsageError naming each offending key."""
        return from_json(cls, params, where=where)


RESUMED_WITH = frozenset(
    {"outer.rounds", "outer.quorum", "outer.keep_received", "outer.keep_whole", "data.accumulate", "model.name"}
    | {"model.recompute", "model.compile", "parallel"}
)
"""What a resumed training may change: nothing else leaves the steps what they would have been."""


def unlike(before: PretrainConfig, after: PretrainConfig) -> tuple[str, ...]:
    """Return, in words, what keeps `after` from resuming `before`; nothing where it may."""
    ours, theirs = _leaves(to_json(after)), _leaves(to_json(before))
    found = [
        f"{key} is {ours.get(key)}, and was {theirs.get(key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if not key.startswith("start.") and key not in RESUMED_WITH and ours.get(key) != theirs.get(key)
    ]
    if after.start.done != before.start.done + after.start.round:
        found.append(f"start.done is {after.start.done}, and {before.start.done + after.start.round} rounds are done")
    if after.start.round % after.outer.fragments:
        found.append(f"round {after.start.round} is in the middle of a cycle of {after.outer.fragments} fragments")
    if after.outer.taper and after.all_rounds != before.all_rounds:
        found.append(f"rounds that shorten are cut for {before.all_rounds} in all, not {after.all_rounds}")
    if after.optim.schedule == "cosine" and after.all_rounds != before.all_rounds:
        over = f"{before.all_rounds} rounds, not {after.all_rounds}"
        found.append(f"a cosine rate comes down over {over}: only wsd can be prolonged")
    return tuple(found)


def _leaves(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _leaves(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Params of `evaluate`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    rounds: tuple[int, ...] = (0, -1)
    """Outer states to measure: 0 is before training, -1 the last."""
    batches: int = 20
    batch_size: int = 16

    def __post_init__(self) -> None:
        within(self, batches=(1, 1_000_000), batch_size=(1, 65_536))
        if not self.rounds or any(not -1 <= number <= 100_000 for number in self.rounds):
            what = f"rounds must name outer states (0 and up, or -1 for the last), got {list(self.rounds)}"
            raise FieldError(what, "rounds")

    @classmethod
    def of(cls, params: dict[str, Any], *, where: str = "params") -> EvaluateConfig:
        """Return `params` checked; raises UsageError naming each offending key."""
        return from_json(cls, params, where=where)
