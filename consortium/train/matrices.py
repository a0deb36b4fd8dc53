"""Hidden matrices as Muon takes them: whole, also where workers hold the model in parts.

A parameter may be several matrices, one below the other (queries, keys and values, say). Where each worker has all of
the model, they are optimised in the parameters' own memory. Under FSDP2 each matrix is whole with one rank, its owner:
in every step owners are handed the gradients of theirs, add them to their momentum, orthogonalise it and hand the
updates back, so that a site computes each matrix once ("distributed Muon", https://arxiv.org/abs/2502.16982).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from consortium.errors import UsageError
from consortium.train.outer import Vector
from consortium.train.parallel import Group, flat_parts
from consortium.train.sharded import Ranges

Split = Sequence[tuple[str, nn.Parameter, tuple[int, ...]]]
"""Parameters by name, and the rows of each matrix in them."""


def matrices_of(split: Split, group: Group) -> Matrices:
    """Return the matrices in parameters. Raises UsageError where the rows are not those of a parameter."""
    for name, parameter, rows in split:
        if parameter.dim() != 2 or sum(rows) != len(parameter) or min(rows) < 1:
            raise UsageError(f"hidden() splits {name} of shape {tuple(parameter.shape)} into {rows} rows")
    return OwnedMatrices(split, group) if group.sharded else Matrices(split, group)


def no_gradient() -> UsageError:
    """Return the error of a model of which a parameter had no gradient."""
    return UsageError(
        "a parameter of the model had no gradient",
        where="model.plugin",
        fix="every parameter must take part in what losses() minimises",
    )


class Matrices:
    """The matrices of parameters that each worker has whole; `parameters` are what to optimise."""

    def __init__(self, split: Split, group: Group) -> None:
        self._split = split
        self._group = group
        self.parameters = self._made()

    @property
    def decays(self) -> bool:
        """Whether weight decay is the optimiser's to apply, which then has the parameters themselves."""
        return True

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that they are in."""
        return tuple(name for name, _, _ in self._split)

    @property
    def size(self) -> int:
        """Elements of all of them."""
        return sum(parameter.numel() for _, parameter, _ in self._split)

    def lend(self) -> None:
        """Give the matrices the gradients of their parameters."""
        mine = iter(self.parameters)
        for _, parameter, rows in self._split:
            parts = [next(mine) for _ in rows]
            if parameter.grad is not None:
                for part, gradient in zip(parts, torch.split(parameter.grad, list(rows)), strict=True):
                    part.grad = gradient

    def take_back(self, keep: float) -> None:
        """Apply the step to the parameters, of which a share `keep` stays, and drop their gradients."""
        for _, parameter, _ in self._split:
            parameter.grad = None

    def state(self, of_each: Sequence[Tensor]) -> Vector:
        """Return a state's tensors of these matrices as one vector, as `Group.take` does."""
        return self._group.take(of_each)

    def set_state(self, of_each: Sequence[Tensor], vector: Vector | None) -> None:
        """Set a state's tensors of these matrices, as `Group.put` does."""
        self._group.put(of_each, vector)

    def _made(self) -> list[nn.Parameter]:
        return [
            nn.Parameter(part)
            for _, parameter, rows in self._split
            for part in torch.split(parameter.detach(), list(rows))
        ]


class OwnedMatrices(Matrices):
    """The matrices of parameters in parts: `parameters` are those that this rank owns. What they hold is an update."""

    def __init__(self, split: Split, group: Group) -> None:
        self._parts = group.parts([parameter for _, parameter, _ in split])
        self._owned, self._shapes = _owned(split, group.world)
        super().__init__(split, group)

    @property
    def decays(self) -> bool:
        """Whether weight decay is the optimiser's to apply: it has no parameters here."""
        return False

    @torch.no_grad()
    def lend(self) -> None:
        """Hand all gradients to the owners."""
        gradients = [parameter.grad for _, parameter, _ in self._split if parameter.grad is not None]
        if len(gradients) < len(self._split):
            raise no_gradient()
        targets = []
        for part in self.parameters:
            part.zero_()
            part.grad = torch.empty_like(part)
            targets.append(part.grad.view(-1))
        self._group.exchange(flat_parts(gradients), self._parts, targets, self._owned)
        for _, parameter, _ in self._split:
            parameter.grad = None

    @torch.no_grad()
    def take_back(self, keep: float) -> None:
        """Hand the updates back to those who have the parameters, and add them there."""
        parts = flat_parts([parameter for _, parameter, _ in self._split])
        updates = [torch.empty_like(part) for part in parts]
        self._group.exchange([part.view(-1) for part in self.parameters], self._owned, updates, self._parts)
        for part, update in zip(parts, updates, strict=True):
            part.mul_(keep).add_(update)

    def state(self, of_each: Sequence[Tensor]) -> Vector:
        """Return a state's tensors as one vector in slices."""
        return self._group.taken([tensor.view(-1) for tensor in of_each], self._owned)

    def set_state(self, of_each: Sequence[Tensor], vector: Vector | None) -> None:
        """Set a state's tensors of the matrices that this rank owns."""
        self._group.given(vector, [tensor.view(-1) for tensor in of_each], self._owned)

    def _made(self) -> list[nn.Parameter]:
        shapes = self._shapes[self._group.rank]
        return [nn.Parameter(torch.zeros(shape, device=self._group.device)) for shape in shapes]


def _owned(split: Split, world: int) -> tuple[tuple[Ranges, ...], list[list[tuple[int, int]]]]:
    """Return by rank which elements of all parameters, one behind the other, it owns, and the matrices' shapes.

    In order, so that each rank has about as many elements as the others.
    """
    total = sum(parameter.numel() for _, parameter, _ in split)
    ranges: list[list[tuple[int, int]]] = [[] for _ in range(world)]
    shapes: list[list[tuple[int, int]]] = [[] for _ in range(world)]
    start = 0
    for _, parameter, rows in split:
        for count in rows:
            stop = start + count * parameter.shape[1]
            owner = (start + stop) * world // (2 * total)
            ranges[owner].append((start, stop))
            shapes[owner].append((count, parameter.shape[1]))
            start = stop
    return tuple(tuple(one) for one in ranges), shapes
