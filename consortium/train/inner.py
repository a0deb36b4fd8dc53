"""Inner steps inside one site, on one worker or, data-parallel, on several.

Rank 0 leads (`InnerWorker.run`); the other ranks follow its orders (`InnerWorker.follow`), which travel as integers and
fp32 vectors over the process group, never as pickled objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from consortium.domain.pretraining import PretrainConfig
from consortium.errors import UsageError
from consortium.train.optim import InnerOptimizer, learning_rate
from consortium.train.order import Sequences
from consortium.train.outer import Layout, Moments, Vector
from consortium.train.plugin import build
from consortium.train.within import InnerResult

_STOP, _RUN, _RESTORE, _GO_ON, _PROBE = range(5)


class InnerWorker:
    """One rank of a site's training group."""

    def __init__(
        self,
        params: PretrainConfig,
        vocab_size: int,
        sequences: Sequences,
        site: str,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.params = params
        self.rank = rank
        self.world = world
        self.device = device or torch.device("cpu")
        self._sequences = sequences
        if params.data.mixture and not sequences.sources:
            raise UsageError("the sequences were opened without the job's mixture", where="data.mixture")
        self.order = sequences.order(params.seed, site, shuffle=params.data.shuffle)
        self._model = build(params.model, vocab_size).to(self.device)
        self.document_end = sequences.end if params.data.boundaries == "mask" else None
        """The token at which attention stops; None: it goes on over the end of documents."""
        if self.document_end is not None:
            self._model.separate(self.document_end)
        elif params.data.boundaries == "mask":
            raise UsageError("nothing says which token ends a document", where="data.boundaries")
        self._named = sorted(self._model.named_parameters())
        self.layout = Layout.of({name: tuple(parameter.shape) for name, parameter in self._named})
        self._optimizer = InnerOptimizer(self._named, params.optim, self._model.hidden())
        self._losses = torch.zeros(1, dtype=torch.float64, device=self.device)
        """The sum over this rank's steps since they were begun, of which there were `_steps`."""
        self._steps = 0
        if params.model.compile:
            self._model.compile()
        self._forward: nn.Module = nn.parallel.DistributedDataParallel(self._model) if world > 1 else self._model

    # -- orders, given by rank 0 ----------------------------------------------------------------------------------

    def initial(self) -> Vector:
        """Return freshly drawn parameters."""
        self._model.initialise(self.params.seed)
        return self._parameters()

    def run(self, start: Vector | None, *, position: int, step: int, count: int) -> InnerResult:
        """Train `count` steps, reading on from `position`; `step` numbers the first for the rate.

        From `start`, or, where that is None, from where the last call ended: loss and tokens then count from where that
        one began. Rank 0 only; the other ranks must be in `follow`.
        """
        self._order_all(_GO_ON if start is None else _RUN, position, step, count)
        return self._train(None if start is None else self._shared(start), position, step, count)

    def restore(self, moments: Moments) -> None:
        """Set the optimiser's state on all ranks. Rank 0 only."""
        self._optimizer.restore(moments)
        self._order_all(_RESTORE, moments.steps, 0, 0)
        for name in sorted(self._optimizer.sizes):
            self._shared(moments.vectors[name])

    def probe(self, outer: Vector, *, position: int, count: int) -> float:
        """Return the mean loss, nats per token, of `outer` on the `count` sequences from `position` on, in eval mode.

        The parameters are left at `outer`; the optimiser's state stays. Rank 0 only.
        """
        self._order_all(_PROBE, position, count, 0)
        return self._probe(self._shared(outer), position, count)

    def stop(self) -> None:
        """Let the other ranks return from `follow`. Rank 0 only."""
        self._order_all(_STOP, 0, 0, 0)

    def follow(self) -> None:
        """Do what rank 0 orders until it says stop. All ranks but 0."""
        empty = np.empty(self.layout.size, dtype=np.float32)
        while True:
            order, first, second, third = self._order_all(_STOP, 0, 0, 0)
            if order == _STOP:
                return
            if order == _PROBE:
                self._probe(self._shared(empty), first, second)
            elif order == _RESTORE:
                sizes = sorted(self._optimizer.sizes.items())
                vectors = {name: self._shared(np.empty(size, dtype=np.float32)) for name, size in sizes}
                self._optimizer.restore(Moments(vectors, first))
            else:
                self._train(None if order == _GO_ON else self._shared(empty), first, second, third)

    def moments(self) -> Moments | None:
        """Return the optimiser's state, the same on every rank; None before the first step."""
        return self._optimizer.moments()

    # -- the steps ------------------------------------------------------------------------------------------------

    def _train(self, start: Vector | None, position: int, step: int, count: int) -> InnerResult:
        if start is not None:
            self._set_parameters(start)
            self._losses.zero_()
            self._steps = 0
        batch = self.params.data.batch_size * self.world
        total = self.params.outer.rounds * self.params.outer.inner_steps
        self._model.train()
        for at in range(step, step + count):
            numbers = self.order.at(position, batch)[self.rank :: self.world]
            rows_BT = torch.from_numpy(self._sequences.read(numbers)).to(self.device)
            self._losses += self._step(rows_BT, at, learning_rate(at, total, self.params.optim))
            position += batch
        self._steps += count
        losses = self._losses.clone()
        if self.world > 1:
            dist.all_reduce(losses)
        return InnerResult(
            local=self._parameters(),
            loss=float(losses) / (self._steps * self.world),
            tokens=self._steps * batch * self.params.model.context,
            position=position,
        )

    def _step(self, rows_BT: Tensor, step: int, rate: float) -> Tensor:
        """Take one step on this rank's rows; return its mean loss.

        Parts of a batch have equally many tokens, so the mean of their gradients is the batch's.
        """
        if self.params.model.dropout:
            # Dropout draws from the global generator: seeded by what is trained, so that a repeated round is the same.
            torch.manual_seed(self.order.seed_at(step, self.rank))
        count = self.params.data.accumulate
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for at, part_BT in enumerate(rows_BT.chunk(count)):
            with self._between_ranks(at == count - 1):
                with self._precision():
                    output = self._forward(part_BT[:, :-1])
                minimised, nats = self._model.losses(output, part_BT)
                (minimised / count).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            loss += nats.detach().double() / count
        nn.utils.clip_grad_norm_(self._model.parameters(), self.params.optim.grad_clip)
        self._optimizer.step(rate)
        return loss

    def _between_ranks(self, last: bool) -> AbstractContextManager[None]:
        """Average gradients over ranks in the last part of a batch only."""
        if last or not isinstance(self._forward, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self._forward.no_sync()

    def _probe(self, outer: Vector, position: int, count: int) -> float:
        self._set_parameters(outer)
        self._model.eval()
        mine = self.order.at(position, count)[self.rank :: self.world]
        total = torch.zeros(1, dtype=torch.float64, device=self.device)
        part = self.params.data.part
        with torch.inference_mode(), self._precision():
            for start in range(0, len(mine), part):
                rows_BT = torch.from_numpy(self._sequences.read(mine[start : start + part])).to(self.device)
                total += self._model.losses(self._model(rows_BT[:, :-1]), rows_BT)[1].double() * len(rows_BT)
        self._model.train()
        if self.world > 1:
            dist.all_reduce(total)
        return float(total) / count

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """bf16 where there is CUDA, fp32 on the CPU."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            yield

    # -- between ranks --------------------------------------------------------------------------------------------

    def _order_all(self, *order: int) -> tuple[int, ...]:
        if self.world == 1:
            return order
        numbers = torch.tensor(order, dtype=torch.int64, device=self.device)
        dist.broadcast(numbers, src=0)
        return tuple(int(number) for number in numbers)

    def _shared(self, vector: Vector) -> Vector:
        if self.world == 1:
            return vector
        tensor = torch.from_numpy(vector.copy()).to(self.device)
        dist.broadcast(tensor, src=0)
        result: Vector = tensor.cpu().numpy()
        return result

    def _parameters(self) -> Vector:
        return np.concatenate([parameter.detach().cpu().numpy().reshape(-1) for _, parameter in self._named])

    def _set_parameters(self, vector: Vector) -> None:
        with torch.no_grad():
            for name, array in self.layout.split(vector).items():
                self._model.get_parameter(name).copy_(torch.from_numpy(array.copy()))
