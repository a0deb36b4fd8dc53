"""Inner steps inside one site, on one worker or, data-parallel, on several.

Rank 0 leads (`InnerWorker.run`); the other ranks follow its orders (`InnerWorker.follow`), which travel as integers and
fp32 tensors over the process group. How the ranks hold the model is `parallel`'s to know.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from consortium.domain.pretraining import PretrainConfig
from consortium.errors import UsageError
from consortium.train.holders import Holders
from consortium.train.optim import InnerOptimizer
from consortium.train.order import Sequences
from consortium.train.outer import Layout, Moments, Vector
from consortium.train.parallel import Group
from consortium.train.plugin import build
from consortium.train.schedule import Pace, learning_rate
from consortium.train.within import InnerResult

_STOP, _RUN, _RESTORE, _GO_ON, _PROBE, _MOMENTS, _PACE, _TAKE = range(8)


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
        self._vocab_size = vocab_size
        self._group = Group(rank, world, device, sharded=params.parallel == "fsdp")
        self._sequences = sequences
        if params.data.mixture and not sequences.sources:
            raise UsageError("the sequences were opened without the job's mixture", where="data.mixture")
        self.order = sequences.order(params.seed, site, shuffle=params.data.shuffle)
        self._model = build(params.model, vocab_size)
        self.document_end = sequences.end if params.data.boundaries == "mask" else None
        """The token at which attention stops; None: it goes on over the end of documents."""
        if self.document_end is not None:
            self._model.separate(self.document_end)
        elif params.data.boundaries == "mask":
            raise UsageError("nothing says which token ends a document", where="data.boundaries")
        hidden = self._model.hidden()
        self._forward = self._group.place(self._model, compiled=params.model.compile)
        self._named = sorted(self._model.named_parameters())
        self.layout = Layout.of({name: tuple(parameter.shape) for name, parameter in self._named})
        self._optimizer = InnerOptimizer(self._named, params.optim, hidden, self._group)
        self._losses = torch.zeros(1, dtype=torch.float64, device=self._group.device)
        """The sum over this rank's steps since they were begun, of which there were `_steps`."""
        self._steps = 0
        self._pace: Pace | None = None
        """Of this site in the round at hand; None: it does the round's own steps."""

    # -- orders, given by rank 0 ----------------------------------------------------------------------------------

    def initial(self) -> Vector:
        """Return freshly drawn parameters: drawn on the CPU, whatever the device and number of workers."""
        whole = build(self.params.model, self._vocab_size)
        whole.initialise(self.params.seed)
        return self.layout.join({name: parameter.detach().numpy() for name, parameter in whole.named_parameters()})

    def run(
        self, start: Vector | None, *, position: int, step: int, count: int, pace: Pace | None = None, take: bool = True
    ) -> InnerResult:
        """Train `count` steps, reading on from `position`; `step` numbers the first over the whole training.

        With a `pace` of its own the rate comes down over rounds all the same.
        From `start`, or, where that is None, from where the last call ended: loss and tokens then count from where that
        one began. Without `take` the result holds no parameters: bringing them together and to main memory takes long
        where a model is large. Rank 0 only; the other ranks must be in `follow`.
        """
        if pace != self._pace:
            self._pace = pace
            self._group.order(_PACE, *((pace.begin, pace.usual, pace.own) if pace is not None else (0, 0, 0)))
        self._group.order(_GO_ON if start is None else _RUN, position, step, count)
        done = self._train(start, position, step, count, begin=start is not None)
        return replace(done, local=self.parameters()) if take else done

    def parameters(self) -> Vector:
        """Return the parameters as they are. Rank 0 only."""
        self._group.order(_TAKE, 0, 0, 0)
        return self._parameters()

    def restore(self, moments: Moments) -> None:
        """Set the optimiser's state on all ranks. Rank 0 only. Raises VerificationError where it does not fit."""
        self._optimizer.check(moments)
        self._group.order(_RESTORE, moments.steps, 0, 0)
        self._optimizer.restore(moments.vectors, moments.steps)

    def probe(self, outer: Vector, *, position: int, count: int) -> float:
        """Return the mean loss, nats per token, of `outer` on the `count` sequences from `position` on, in eval mode.

        The parameters are left at `outer`; the optimiser's state stays. Rank 0 only.
        """
        self._group.order(_PROBE, position, count, 0)
        return self._probe(outer, position, count)

    def moments(self) -> Moments | None:
        """Return the optimiser's state; None before the first step. Rank 0 only."""
        if self._group.sharded:
            self._group.order(_MOMENTS, 0, 0, 0)
        return self._optimizer.moments()

    @property
    def covered(self) -> dict[str, tuple[str, ...]]:
        """By vector of the optimiser's state the parameters that it is of, in order."""
        return self._optimizer.covered

    @property
    def holders(self) -> Holders | None:
        """Who has the vectors of this model in slices; None where rank 0 has them whole."""
        return self._group.holders

    def stop(self) -> None:
        """Let the other ranks return from `follow`. Rank 0 only."""
        self._group.order(_STOP, 0, 0, 0)
        if self.holders is not None:
            self.holders.stop()

    def follow(self) -> None:
        """Do what rank 0 orders until it says stop. All ranks but 0."""
        if self.holders is not None:
            beside = threading.Thread(target=self.holders.serve, name="holders", daemon=True)
            beside.start()
        while True:
            order, first, second, third = self._group.order(_STOP, 0, 0, 0)
            if order == _STOP:
                break
            if order == _PROBE:
                self._probe(None, first, second)
            elif order == _RESTORE:
                self._optimizer.restore(None, first)
            elif order == _PACE:
                self._pace = Pace(first, second, third) if third else None
            elif order == _TAKE:
                self._parameters()
            elif order == _MOMENTS:
                self._optimizer.moments()
            else:
                self._train(None, first, second, third, begin=order == _RUN)
        if self.holders is not None:
            beside.join()

    # -- the steps ------------------------------------------------------------------------------------------------

    def _train(self, start: Vector | None, position: int, step: int, count: int, *, begin: bool) -> InnerResult:
        """Take the steps on all ranks; what is returned holds no parameters."""
        group = self._group
        if begin:
            self._set_parameters(start)
            self._losses.zero_()
            self._steps = 0
        batch = self.params.data.batch_size * group.world
        total, pace = self.params.all_rounds * self.params.outer.inner_steps, self._pace
        self._model.train()
        for at in range(step, step + count):
            numbers = self.order.at(position, batch)[group.rank :: group.world]
            rows_BT = torch.from_numpy(self._sequences.read(numbers)).to(group.device)
            rate = learning_rate(pace.at(at) if pace is not None else at, total, self.params.optim)
            self._losses += self._step(rows_BT, pace.drawn(at) if pace is not None else at, rate)
            position += batch
        self._steps += count
        return InnerResult(
            local=np.empty(0, dtype=np.float32),
            loss=float(group.total(self._losses)) / (self._steps * group.world),
            tokens=self._steps * batch * self.params.model.context,
            position=position,
        )

    def _parameters(self) -> Vector:
        """Return the parameters on rank 0. All ranks."""
        return self._group.take([parameter for _, parameter in self._named])

    def _step(self, rows_BT: Tensor, step: int, rate: float) -> Tensor:
        """Take one step on this rank's rows; return its mean loss.

        Parts of a batch have equally many tokens, so the mean of their gradients is the batch's.
        """
        if self.params.model.dropout:
            # Dropout draws from the global generator: seeded by what is trained, so that a repeated round is the same.
            torch.manual_seed(self.order.seed_at(step, self._group.rank))
        count = self.params.data.accumulate
        loss = torch.zeros((), dtype=torch.float64, device=self._group.device)
        for at, part_BT in enumerate(rows_BT.chunk(count)):
            with self._group.averaging(self._forward, at == count - 1):
                with self._precision():
                    output = self._forward(part_BT[:, :-1])
                minimised, nats = self._model.losses(output, part_BT)
                (minimised / count).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            loss += nats.detach().double() / count
        nn.utils.clip_grad_norm_(self._model.parameters(), self.params.optim.grad_clip)
        self._optimizer.step(rate)
        return loss

    def _probe(self, outer: Vector | None, position: int, count: int) -> float:
        group, part = self._group, self.params.data.part
        self._set_parameters(outer)
        self._model.eval()
        numbers = self.order.at(position, count)
        mine = numbers[group.rank :: group.world]
        total = torch.zeros(1, dtype=torch.float64, device=group.device)
        with torch.no_grad(), self._precision():
            # Ranks compute equally often, because sharded parameters are brought together each time: a rank without
            # sequences of its own reads one for nothing.
            for start in range(0, -(-count // group.world), part):
                own = mine[start : start + part]
                rows_BT = torch.from_numpy(self._sequences.read(own if len(own) else numbers[:1])).to(group.device)
                total += self._model.losses(self._model(rows_BT[:, :-1]), rows_BT)[1].double() * len(own)
        self._model.train()
        group.settle(self._forward)
        return float(group.total(total)) / count

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """bf16 where there is CUDA, fp32 on the CPU."""
        kind = self._group.device.type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda"):
            yield

    def _set_parameters(self, vector: Vector | None) -> None:
        """Set all ranks' parameters to rank 0's vector."""
        self._group.put([parameter for _, parameter in self._named], vector)
