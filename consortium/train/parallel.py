"""How the workers of a site hold one model: whole on each (DDP), or each a part of every parameter (FSDP2).

Rank 0 alone speaks with the leg, in flat fp32 vectors on hosts: whole in its own process under DDP, in slices, one with
each rank, under FSDP2 (`consortium.train.sharded`). `put` sets parameters, or vectors of the optimiser's state that
belong to them, from such a vector on all ranks, `take` brings them back. Under FSDP2 each rank sends the others what
their slices have of its parts, so that no rank and no host ever holds more than its share, and each moves its own
through its own bus. Both are called on all ranks in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from consortium.train.holders import Holders
from consortium.train.outer import Vector
from consortium.train.plugin import LanguageModel
from consortium.train.redistribute import redistribute, views
from consortium.train.sharded import Ranges, Sharded, as_vector, cut, lengths, placed

WAIT_S = 7 * 86_400
"""Ranks wait in a broadcast while rank 0 waits for a round; the server decides how long that may take, not gloo."""
_NOTHING: Vector = np.empty(0, dtype=np.float32)


class Group:
    """The ranks that train one model, as one of them sees it. More than one need a process group."""

    def __init__(
        self, rank: int = 0, world: int = 1, device: torch.device | None = None, *, sharded: bool = False
    ) -> None:
        self.rank = rank
        self.world = world
        self.device = device or torch.device("cpu")
        self.sharded = sharded and world > 1
        """Whether each rank holds a part of every parameter; what one rank holds alone is whole."""
        self.holders = Holders(rank, world, timeout_s=WAIT_S) if self.sharded else None
        """The ranks as those who have vectors in slices; None where rank 0 has them whole."""

    def place(self, model: LanguageModel, *, compiled: bool = False) -> nn.Module:
        """Bring a model to the device, or this rank's parts of it, and return what computes its forward pass.

        Parts are gathered for one of the model's `units` at a time, which FSDP2 (`fully_shard`, in place) shards.
        """
        if not self.sharded:
            model.to(self.device)
            if compiled:
                model.compile()
            return nn.parallel.DistributedDataParallel(model) if self.world > 1 else model
        mesh = init_device_mesh(self.device.type, (self.world,))
        half = torch.bfloat16 if self.device.type == "cuda" else None
        # Products are in bf16 by autocast as under DDP. Gathered in bf16, units cost half the bytes; the stream between
        # them stays in fp32, and gradients are added up in it.
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for unit in model.units():
            if compiled:
                unit.compile()
            fully_shard(unit, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh)
        return model.to(self.device)

    def averaging(self, forward: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Within, a backward pass averages gradients between ranks only if it is the `last` of a step.

        Sharded gradients are averaged in each: to wait, every rank would have to hold all of them.
        """
        if last or not isinstance(forward, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return forward.no_sync()

    def settle(self, forward: nn.Module) -> None:
        """Leave parameters as a step does, after forward passes that no backward pass followed.

        FSDP2 keeps the outermost ones together until then, and would go on with them after they were set anew.
        """
        if isinstance(forward, FSDPModule):
            forward.reshard()

    def order(self, *numbers: int) -> tuple[int, ...]:
        """Return rank 0's numbers on every rank, which gives as many."""
        if self.world == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, src=0)
        return tuple(int(number) for number in tensor)

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over ranks."""
        result = value.clone()
        if self.world > 1:
            dist.all_reduce(result)
        return result

    @torch.no_grad()
    def put(self, targets: Sequence[Tensor], vector: Vector | None) -> None:
        """Set `targets`, one after another, to rank 0's vector; the other ranks give None."""
        if self.sharded:
            self.given(vector, flat_parts(targets), self.parts(targets))
            return
        start = 0
        for target in targets:
            if vector is not None:
                target.copy_(_tensor(vector[start : start + target.numel()]).reshape(target.shape))
                start += target.numel()
            if self.world > 1:
                dist.broadcast(target, src=0)

    @torch.no_grad()
    def take(self, sources: Sequence[Tensor]) -> Vector:
        """Return all of `sources`, flat, one after another, on rank 0, and nothing (length 0) on the others."""
        if self.sharded:
            return self.taken(flat_parts(sources), self.parts(sources))
        if self.rank:
            return _NOTHING
        found, start = torch.empty(sum(source.numel() for source in sources)), 0
        for source in sources:
            found[start : start + source.numel()].copy_(source.reshape(-1))
            start += source.numel()
        return found.numpy()

    # -- tensors in parts -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def taken(self, sources: Sequence[Tensor], held: tuple[Ranges, ...]) -> Vector:
        """Return on rank 0 the handle of a vector of which each rank has the ranges `held`, this one `sources`."""
        assert self.holders is not None
        wanted = cut(sum(lengths(held)), self.world)
        slice_ = np.empty(lengths(wanted)[self.rank], dtype=np.float32)
        self.exchange(sources, held, views(torch.from_numpy(slice_), wanted[self.rank]), wanted)
        (slot,) = self.order(0 if self.rank else self.holders.reserve())
        self.holders.keep(slot, slice_)
        self._meet()
        return _NOTHING if self.rank else as_vector(Sharded(self.holders, slot, lengths(wanted)))

    @torch.no_grad()
    def given(self, vector: Vector | None, targets: Sequence[Tensor], wanted: tuple[Ranges, ...]) -> None:
        """Set `targets` to what this rank wants of rank 0's vector; the other ranks give None."""
        assert self.holders is not None
        held = placed(vector, self.holders) if vector is not None else None
        (slot,) = self.order(held.slot if isinstance(held, Sharded) else 0)
        ranges = cut(sum(lengths(wanted)), self.world)
        self.exchange(views(_tensor(self.holders.of(slot)), ranges[self.rank]), ranges, targets, wanted)
        self._meet()

    def exchange(
        self,
        sources: Sequence[Tensor],
        held: tuple[Ranges, ...],
        targets: Sequence[Tensor],
        wanted: tuple[Ranges, ...],
    ) -> None:
        """Fill `targets` with what this rank wants of a vector of which each has some (`redistribute`)."""
        redistribute(sources, held, targets, wanted, self.rank, device=self.device)

    def _meet(self) -> None:
        """Return once every rank is here: a slice is asked for, or let go of, by what all of them kept or took."""
        int(self.total(torch.zeros(1, dtype=torch.int64, device=self.device)))

    def parts(self, tensors: Sequence[Tensor]) -> tuple[Ranges, ...]:
        """Return which elements of tensors, one after another, each rank holds: of each an equal number of rows."""
        held: list[list[tuple[int, int]]] = [[] for _ in range(self.world)]
        start = 0
        for tensor in tensors:
            rows, width = len(tensor), tensor.numel() // len(tensor)
            each = -(-rows // self.world)
            for rank, ranges in enumerate(held):
                first, last = min(rows, rank * each), min(rows, (rank + 1) * each)
                if first < last:
                    ranges.append((start + first * width, start + last * width))
            start += tensor.numel()
        return tuple(tuple(ranges) for ranges in held)


def part_of(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def flat_parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return this rank's parts of tensors that have some here, flat and in their own memory."""
    return [part.view(-1) for tensor in tensors if (part := part_of(tensor)).numel()]


def _tensor(vector: Vector) -> Tensor:
    """Return the memory of a vector, or of a copy where it may not be written to: torch has no other tensors."""
    return torch.from_numpy(np.require(vector, requirements="W"))
