"""What training needs of a model, and how a site's own model takes the place of the package's decoder.

A job names a model (`model.plugin: NAME`) and never carries code: NAME is looked up among the entry points of the group
`consortium.models` that the site's own Python environment installed. Such a package declares, in its pyproject.toml,

    [project.entry-points."consortium.models"]
    my-model = "my_package.models:MyModel"

with `MyModel` a subclass of `LanguageModel`. Every site of the job installs it, because all build the same parameters:
names and shapes must agree, or the sites' vectors do not fit each other. What a model needs to know besides its
`ModelConfig` and the vocabulary's size is the package's own; several sizes are several entry points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from consortium.domain.pretraining import ModelConfig
from consortium.errors import NotFoundError, UsageError

GROUP = "consortium.models"


class LanguageModel(nn.Module, ABC):
    """A model that training can train: tokens in, whatever `losses` understands out.

    Shapes: B sequences, T tokens, V words of the vocabulary. A subclass takes `(config, vocab_size)` and hands both to
    `super().__init__`; it defines `initialise` and `forward`, while `losses` and `hidden` have defaults.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size

    @abstractmethod
    def initialise(self, seed: int) -> None:
        """Draw all parameters anew from `seed`. One site does this and publishes the result."""

    @abstractmethod
    def forward(self, tokens_BT: Tensor) -> Any:
        """Return what `losses` takes for int64 tokens; the package's decoder returns logits of shape (B, T, V)."""

    def separate(self, end: int) -> None:
        """Keep documents apart from now on: token `end` ends one and begins the next, which sees nothing before it.

        Raises UsageError where the model does not know how.
        """
        raise UsageError(
            f"{type(self).__name__} does not keep the documents of a sequence apart",
            where="data.boundaries",
            fix="leave it at join, or define separate() in the model",
        )

    def units(self) -> Sequence[nn.Module]:
        """Return the modules whose parameters are brought together one after another where each worker holds a part.

        Empty: all at once. Each must be called as a module, since that is when it is brought together.
        """
        return ()

    def losses(self, output: Any, rows_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return what to minimise, a scalar, and the mean loss in nats per token, which is reported and compared.

        `output` is what `forward(rows_BT[:, :-1])` returned; rows have T + 1 tokens.
        """
        return token_losses(output, rows_BT, self.config.z_loss)

    def hidden(self) -> Mapping[str, tuple[int, ...]]:
        """Return the matrices between hidden layers, by parameter name, which Muon orthogonalises; all else is AdamW's.

        The value says how many rows each part has where several matrices lie in one parameter. Empty: all are AdamW's.
        """
        return {}


def token_losses(logits_BTV: Tensor, rows_BT: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return what to minimise and the mean cross-entropy in nats of predicting `rows_BT[:, 1:]`.

    With `z_loss` above 0 the first is larger by `z_loss` times the mean of log(Z)^2, Z the softmax's normaliser: it
    keeps logits from drifting (PaLM, https://arxiv.org/abs/2204.02311, section 5, with 1e-4).
    """
    logits_NV, words_N = logits_BTV.float().flatten(0, 1), rows_BT[:, 1:].flatten()
    if not z_loss:
        loss = F.cross_entropy(logits_NV, words_N)
        return loss, loss.detach()
    log_z_N = logits_NV.logsumexp(-1)
    loss = (log_z_N - logits_NV.gather(1, words_N[:, None])[:, 0]).mean()
    return loss + z_loss * log_z_N.square().mean(), loss.detach()


def build(config: ModelConfig, vocab_size: int) -> LanguageModel:
    """Return the model of `config`, parameters not drawn yet. Raises NotFoundError for a plugin not installed here."""
    if not config.plugin:
        from consortium.train.model import Decoder

        return Decoder(config, vocab_size)
    entry = installed(config.plugin)
    made = entry.load()
    if not (isinstance(made, type) and issubclass(made, LanguageModel)):
        raise UsageError(
            f"{entry.value} is no subclass of consortium.train.plugin.LanguageModel",
            where=f"model.plugin {config.plugin}",
            fix="correct the entry point of the package that the site installed",
        )
    return made(config, vocab_size)


def installed(name: str) -> EntryPoint:
    """Return the one installed model of this name. Raises NotFoundError, or UsageError where two packages claim it."""
    found = {(entry.value, entry.dist and entry.dist.name): entry for entry in entry_points(group=GROUP, name=name)}
    if not found:
        known = ", ".join(sorted({entry.name for entry in entry_points(group=GROUP)})) or "none"
        raise NotFoundError(
            f"no model {name!r} is installed at this site (installed: {known})",
            where="model.plugin",
            fix=f"install the package that declares it in the entry points of {GROUP}, at every site of the job",
        )
    if len(found) > 1:
        raise UsageError(
            f"several packages declare a model {name!r}: {', '.join(sorted(str(dist) for _, dist in found))}",
            where="model.plugin",
            fix="uninstall all but one",
        )
    return next(iter(found.values()))
