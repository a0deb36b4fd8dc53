"""What training needs of a model, and how a site's own model takes the place of the package's decoder.

A job names a model (`model.plugin: NAME`) and never carries code: NAME is looked up among the entry points of the group
`consortium.models` that the site's own Python environment installed. Such a package declares, in its pyproject.toml,

    [project.entry-points."consortium.models"]
    my-model = "my_package.models:MyModel"

with `MyModel` a subclass of `LanguageModel`. Every site of the job installs it, because all build the same parameters:
names and shapes must agree, or the sites' vectors do not fit each other. And all install the same: before a job's first
round the sites compare the digests of what they have (`same_everywhere`). What a model needs to know besides its
`ModelConfig` and the vocabulary's size is the package's own; several sizes are several entry points.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from consortium.domain.pretraining import ModelConfig
from consortium.errors import ConflictError, NotFoundError, UsageError, VerificationError

if TYPE_CHECKING:
    from consortium.train.exchange import Exchange

GROUP = "consortium.models"
TOPIC = "model"
"""What sites agree under on the code of an installed model."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What computes an installed model: the package that declares it, and the code of its top-level module."""

    package: str
    version: str
    digest: str
    """Over the sorted paths and contents of its Python files, not of what it imports besides."""

    def __str__(self) -> str:
        return f"{self.package} {self.version} {self.digest}"


def source_of(name: str) -> Source:
    """Return what an installed model comes from. Raises what `installed` raises."""
    entry = installed(name)
    top = entry.module.partition(".")[0]
    spec = find_spec(top)
    if spec is None:
        raise NotFoundError(
            f"there is no module {top!r} to load it from", where=f"model.plugin {name}", fix="install its package again"
        )
    roots = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if roots:
        files = [(path.relative_to(root).as_posix(), path) for root in roots for path in root.rglob("*.py")]
    else:
        files = [(Path(str(spec.origin)).name, Path(str(spec.origin)))]
    whole = hashlib.sha256()
    for label, path in sorted(files):
        whole.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {label}\n".encode())
    dist = entry.dist
    return Source(
        package=dist.name if dist else top, version=dist.version if dist else "", digest=f"sha256:{whole.hexdigest()}"
    )


def same_everywhere(exchange: Exchange, name: str) -> str:
    """Publish what this site's installed model comes from, compare with the job's other sites, and return it in words.

    Each publishes first and compares then, so of two sites that differ one at least sees it. Raises VerificationError
    naming who differs, and where this site installed something else in mid-training.
    """
    own, site = source_of(name), exchange.context.site
    try:
        exchange.agree(TOPIC, own.digest)
    except ConflictError as fault:
        raise VerificationError(
            f"{site} has {own} now, and began this job with another model {name!r}",
            where="model.plugin",
            fix="install again what it began with, or start the job anew at all sites",
        ) from fault
    others = {peer: digest for peer, digest in exchange.agreements(TOPIC).items() if digest != own.digest}
    if others:
        said = ", ".join(f"{peer} {digest[:19]}…" for peer, digest in sorted(others.items()))
        raise VerificationError(
            f"the sites' models {name!r} differ: {site} has {own}, {said}",
            where="model.plugin",
            fix="install the same version of its package at every site of the job",
        )
    return str(own)
