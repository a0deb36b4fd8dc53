"""The workers of a training group that share a machine: a file that one of them has, all of them read.

The file has no name meanwhile: tokens are texts, and a worker that is killed must not leave them on a disk of the
cluster. The others open it where the system shows the first one's open files (`/proc/PID/fd`), as one user may.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist

from consortium.errors import JobFailedError


@dataclass(frozen=True, slots=True)
class Node:
    """One worker's place: `number` is its machine's, `worker` its own there, from 0 on; `world` is the whole group's.

    More than one worker need a process group, whose tensors are on `device`.
    """

    number: int = 0
    worker: int = 0
    world: int = 1
    device: torch.device | None = None

    @contextmanager
    def shared(self, fetched: AbstractContextManager[IO[bytes]]) -> Iterator[Path]:
        """Yield a path to the file that this machine's first worker fetches, good until all workers are done with it.

        All workers of the group call it, in the same order; the others' `fetched` is not entered. Raises JobFailedError
        where this worker may not open the first one's file.
        """
        with ExitStack() as open_meanwhile:
            descriptor = -1 if self.worker else open_meanwhile.enter_context(fetched).fileno()
            path = self._opened(descriptor)
            if not os.access(path, os.R_OK):
                raise JobFailedError(
                    "a worker cannot read what another on its machine fetched for both",
                    where=str(path),
                    fix="let a site's workers run as one user who sees its own processes in /proc",
                )
            yield path
            self._meet()

    def _opened(self, descriptor: int) -> Path:
        """Return where the file stands that this machine's first worker opened."""
        for number, process, opened in self._all(self.number, os.getpid(), descriptor):
            if number == self.number and opened >= 0:
                return Path(f"/proc/{process}/fd/{opened}")
        raise JobFailedError(f"no worker of machine {self.number} is its first", where="the training group")

    def _meet(self) -> None:
        """Return once every worker is here."""
        self._all(0)

    def _all(self, *numbers: int) -> list[list[int]]:
        """Return what each worker gives, by rank."""
        if self.world == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        every = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(every, mine)
        return [one.tolist() for one in every]


ALONE = Node()
