"""The optimiser inside a site: AdamW, or Muon with AdamW beside it; its state, kept and set again.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; `torch.optim.Muon`) orthogonalises the momentum of
hidden matrices by five Newton-Schulz steps. Updates are scaled by 0.2 * sqrt(max(rows, columns)), which gives them the
size of AdamW's (https://arxiv.org/abs/2502.16982, section 2.2), so that both take the same rate and weight decay.
Embeddings, output head and vectors are AdamW's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from consortium.domain.pretraining import OptimConfig
from consortium.errors import UsageError, VerificationError
from consortium.train.outer import Moments, Vector
from consortium.train.parallel import Group

_ADAMW = ("exp_avg", "exp_avg_sq")
_MUON = "momentum_buffer"


class InnerOptimizer:
    """Optimises parameters in place. `hidden` names the matrices that are Muon's, as `LanguageModel.hidden` does."""

    def __init__(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        config: OptimConfig,
        hidden: Mapping[str, tuple[int, ...]],
        group: Group,
    ) -> None:
        self._group = group
        muons = hidden if config.name == "muon" else {}
        if absent := sorted(set(muons) - {name for name, _ in named}):
            raise UsageError(f"the model has no parameters {absent} that its hidden() names", where="model.plugin")
        self._steps = 0
        self._plain = [(name, parameter) for name, parameter in named if name not in muons]
        self._split = [
            (name, parameter, _parts(name, parameter, muons[name])) for name, parameter in named if name in muons
        ]
        self._adamw = _adamw(self._plain, config) if self._plain else None
        self._muon = self._of_parts(config) if self._split else None

    @property
    def covered(self) -> dict[str, tuple[str, ...]]:
        """By vector of the state the parameters that it is of, in order."""
        plain = tuple(name for name, _ in self._plain)
        split = tuple(name for name, _, _ in self._split)
        return (dict.fromkeys(_ADAMW, plain) if plain else {}) | ({_MUON: split} if split else {})

    @property
    def sizes(self) -> dict[str, int]:
        """Elements of each vector of the state, by name."""
        plain = sum(parameter.numel() for _, parameter in self._plain)
        split = sum(parameter.numel() for _, parameter, _ in self._split)
        return (dict.fromkeys(_ADAMW, plain) if self._adamw else {}) | ({_MUON: split} if self._muon else {})

    def step(self, rate: float) -> None:
        """Take one step at this rate from the gradients of the parameters, and drop them."""
        for _, parameter, parts in self._split:
            if parameter.grad is not None:
                rows = [len(part) for part in parts]
                for part, gradient in zip(parts, torch.split(parameter.grad, rows), strict=True):
                    part.grad = gradient
        for optimizer in (self._adamw, self._muon):
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        for _, parameter, _ in self._split:
            parameter.grad = None
        self._steps += 1

    # -- its state ------------------------------------------------------------------------------------------------

    def moments(self) -> Moments | None:
        """Return the state on rank 0; None before the first step.

        Where parameters are sharded all ranks call this, and each keeps a slice of every vector.

        Raises UsageError where a parameter had no gradient in any step: its state would not be whole.
        """
        if not self._steps:
            return None
        vectors: dict[str, Vector] = {}
        if self._adamw is not None:
            plain = [parameter for _, parameter in self._plain]
            vectors |= {key: self._flat(self._adamw, plain, key) for key in _ADAMW}
        if self._muon is not None:
            vectors[_MUON] = self._flat(self._muon, [part for _, _, parts in self._split for part in parts], _MUON)
        return Moments(vectors, self._steps)

    def check(self, moments: Moments) -> None:
        """Raise VerificationError where the state is not this optimiser's or the model had other shapes."""
        found = {name: len(vector) for name, vector in moments.vectors.items()}
        if found != self.sizes:
            raise VerificationError(
                f"the kept state of the optimiser does not fit: it holds {found}, this job's has {self.sizes}",
                fix="go on with the model and optimiser that the state was kept with",
            )

    def restore(self, vectors: Mapping[str, Vector] | None, steps: int) -> None:
        """Set the state on all ranks, which all call this: rank 0 with the vectors, the others with None."""
        self._steps = steps
        if self._adamw is not None:
            plain = [parameter for _, parameter in self._plain]
            self._set(self._adamw, plain, _ADAMW, vectors, {"step": float(steps)})
        if self._muon is not None:
            self._set(self._muon, [part for _, _, parts in self._split for part in parts], (_MUON,), vectors, {})

    def _flat(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], key: str) -> Vector:
        if any(key not in optimizer.state.get(parameter, {}) for parameter in parameters):
            raise UsageError(
                "a parameter of the model had no gradient",
                where="model.plugin",
                fix="every parameter must take part in what losses() minimises",
            )
        return self._group.take([optimizer.state[one][key] for one in parameters])

    def _set(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[Tensor],
        keys: Sequence[str],
        vectors: Mapping[str, Vector] | None,
        numbers: Mapping[str, float],
    ) -> None:
        for one in parameters:
            optimizer.state[one] = {name: torch.tensor(number) for name, number in numbers.items()}
        for key in keys:
            for one in parameters:
                optimizer.state[one][key] = torch.zeros_like(one)
            found = [optimizer.state[one][key] for one in parameters]
            self._group.put(found, None if vectors is None else vectors[key])

    def _of_parts(self, config: OptimConfig) -> torch.optim.Muon:
        return torch.optim.Muon(
            [part for _, _, parts in self._split for part in parts],
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            adjust_lr_fn="match_rms_adamw",
        )


def _parts(name: str, parameter: nn.Parameter, rows: tuple[int, ...]) -> tuple[nn.Parameter, ...]:
    """Return the matrices in a parameter as parameters of their own that share its memory."""
    if parameter.dim() != 2 or sum(rows) != len(parameter):
        raise UsageError(f"hidden() splits {name} of shape {tuple(parameter.shape)} into {rows} rows")
    return tuple(nn.Parameter(part) for part in torch.split(parameter.detach(), list(rows)))


def _adamw(named: Sequence[tuple[str, nn.Parameter]], config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW (https://arxiv.org/abs/1711.05101) that decays matrices only."""
    groups = [
        {"params": [p for _, p in named if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, foreach=True)
