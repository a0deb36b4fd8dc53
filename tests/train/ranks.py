"""Several processes as the ranks of one site, without Ray: a gloo group on loopback."""

from __future__ import annotations

import multiprocessing
import socket
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch
import torch.distributed as dist


class Rank:
    """One of the processes. Those that a test does not wait for it must kill."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    def wait(self, timeout: float) -> int:
        """Return its exit status, below zero where a signal ended it."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, "the process does not end"
        return self._process.exitcode

    def kill(self) -> None:
        """End it as a lost host does."""
        self._process.kill()


def start(main: str, given: Any, world: int = 2) -> list[Rank]:
    """Start so many processes that call the function `main` of a test module, as `module:function`, with `given`.

    They are forked from a process that has imported what takes long and done nothing.
    """
    ways = multiprocessing.get_context("forkserver")
    ways.set_forkserver_preload(
        ["torch.distributed.fsdp", "consortium.train.launch", "consortium.train.inner", "boto3"]
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [ways.Process(target=begin, args=(main, rank, world, port, given)) for rank in range(world)]
    for process in processes:
        process.start()
    return [Rank(process) for process in processes]


def begin(main: str, rank: int, world: int, port: int, given: Any) -> None:
    """What each process does."""
    from importlib import import_module

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    module, _, name = main.partition(":")
    getattr(import_module(module), name)(rank, given)
    dist.destroy_process_group()
