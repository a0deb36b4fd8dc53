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
from consortium.train.matrices import Matrices, matrices_of, no_gradient
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
        split = [(name, parameter, muons[name]) for name, parameter in named if name in muons]
        self._matrices = matrices_of(split, group)
        self._decay = config.weight_decay
        self._adamw = _adamw(self._plain, config) if self._plain else None
        self._muon = _muon(self._matrices, config) if self._matrices.parameters else None

    @property
    def covered(self) -> dict[str, tuple[str, ...]]:
        """By vector of the state the parameters that it is of, in order."""
        plain = tuple(name for name, _ in self._plain)
        split = self._matrices.names
        return (dict.fromkeys(_ADAMW, plain) if plain else {}) | ({_MUON: split} if split else {})

    @property
    def sizes(self) -> dict[str, int]:
        """Elements of each vector of the state, by name."""
        plain = sum(parameter.numel() for _, parameter in self._plain)
        split = self._matrices.size
        return (dict.fromkeys(_ADAMW, plain) if plain else {}) | ({_MUON: split} if split else {})

    def step(self, rate: float) -> None:
        """Take one step at this rate from the gradients of the parameters, and drop them."""
        if self._matrices.size:
            self._matrices.lend()
        for optimizer in (self._adamw, self._muon):
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        if self._matrices.size:
            self._matrices.take_back(1 - rate * self._decay)
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
            vectors |= {key: self._group.take(_of(self._adamw, plain, key)) for key in _ADAMW}
        if self._matrices.size:
            vectors[_MUON] = self._matrices.state(_of(self._muon, self._matrices.parameters, _MUON))
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
            for one in plain:
                self._adamw.state[one] = {"step": torch.tensor(float(steps))}
            for key in _ADAMW:
                self._group.put(_zeros(self._adamw, plain, key), None if vectors is None else vectors[key])
        if self._matrices.size:
            found = _zeros(self._muon, self._matrices.parameters, _MUON)
            self._matrices.set_state(found, None if vectors is None else vectors[_MUON])


def _of(optimizer: torch.optim.Optimizer | None, parameters: Sequence[nn.Parameter], key: str) -> list[Tensor]:
    """Return one kind of an optimiser's state, by parameter."""
    states = [optimizer.state.get(one, {}) for one in parameters] if optimizer is not None else []
    if any(key not in state for state in states):
        raise no_gradient()
    return [state[key] for state in states]


def _zeros(optimizer: torch.optim.Optimizer | None, parameters: Sequence[nn.Parameter], key: str) -> list[Tensor]:
    """Make one kind of an optimiser's state anew, and return it by parameter."""
    found = [torch.zeros_like(one) for one in parameters]
    if optimizer is not None:
        for one, zeros in zip(parameters, found, strict=True):
            optimizer.state[one][key] = zeros
    return found


def _muon(matrices: Matrices, config: OptimConfig) -> torch.optim.Muon:
    return torch.optim.Muon(
        matrices.parameters,
        lr=config.lr,
        weight_decay=config.weight_decay if matrices.decays else 0.0,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",
    )


def _adamw(named: Sequence[tuple[str, nn.Parameter]], config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW (https://arxiv.org/abs/1711.05101) that decays matrices only."""
    groups = [
        {"params": [p for _, p in named if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, foreach=True)
