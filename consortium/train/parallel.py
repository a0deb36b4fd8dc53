"""How the workers of a site hold one model: whole on each (DDP), or each a part of every parameter (FSDP2).

Rank 0 alone speaks with the leg, in whole fp32 vectors on its CPU. `put` hands a parameter, or a vector of the
optimiser's state that belongs to one, from there to all ranks, `take` brings it back: one at a time, so that no worker
ever holds more than one whole parameter besides what it computes with. Both are called on all ranks in the same order.
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
from torch.distributed.tensor import DTensor, distribute_tensor

from consortium.train.outer import Vector
from consortium.train.plugin import LanguageModel


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
        """Return rank 0's numbers on every rank."""
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
    def put(self, target: Tensor, whole: Vector | None) -> None:
        """Set `target`, or this rank's part of it, to rank 0's `whole`, which may be flat; the others give None."""
        if isinstance(target, DTensor):
            full = torch.empty(target.shape, dtype=target.dtype, device=self.device)
            if whole is not None:
                full.copy_(_tensor(whole, target))
            part = distribute_tensor(full, target.device_mesh, target.placements)
            target.to_local().copy_(part.to_local())
            return
        if whole is not None:
            target.copy_(_tensor(whole, target))
        if self.world > 1:
            dist.broadcast(target, src=0)

    @torch.no_grad()
    def take(self, sources: Sequence[Tensor]) -> Vector:
        """Return all of `sources`, flat, one after another, on rank 0, and nothing (length 0) on the others."""
        found = torch.empty(0 if self.rank else sum(source.numel() for source in sources))
        start = 0
        for source in sources:
            full = source.full_tensor() if isinstance(source, DTensor) else source
            if not self.rank:
                found[start : start + full.numel()].copy_(full.reshape(-1))
                start += full.numel()
        return found.numpy()


def _tensor(whole: Vector, like: Tensor) -> Tensor:
    """Return the memory of `whole`, or of a copy where it may not be written to: torch has no other tensors."""
    return torch.from_numpy(np.require(whole, requirements="W")).reshape(like.shape)
