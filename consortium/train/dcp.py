"""A training checkpoint in the format of `torch.distributed.checkpoint`, for programs that go on from such.

What a leg keeps is kept otherwise (`consortium.train.keep`): as what sites agree on to the last bit, under its digest,
with nothing pickled. This writes a state once more, whole, for another trainer; its `.metadata` is torch's own pickle.
"""

from __future__ import annotations

import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consortium.errors import UsageError, VerificationError
from consortium.train.export import new_folder
from consortium.train.keep import Origin, OuterState
from consortium.train.outer import Vector


def write_dcp(origin: Origin, state: OuterState, directory: Path) -> list[Path]:
    """Write a state as a checkpoint into `directory`, a new folder, and return its files.

    Its state dict: `model` has the parameters after the round by name, `optimizer` the inner optimiser's state as
    `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict` names it (`state.NAME.exp_avg` and so on),
    `outer.momentum` the outer optimiser's by parameter, `progress` round, tokens and sequences read. All are fp32. Left
    out is what only going on with the other sites takes: what encoding dropped, and parameters of the site's own; where
    it has some (`outer.delay`, `fragments`, `mix`), the optimiser's state is that after its own steps.

    Raises UsageError where the folder cannot be written to or is not empty, VerificationError where the optimiser's
    state does not fit the model.
    """
    optimizer = _optimizer(origin, state)
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    new_folder(directory)
    found: dict[str, Any] = {
        "model": _tensors(origin, state.outer),
        "outer": {"momentum": _tensors(origin, state.momentum)},
        "optimizer": {"state": optimizer},
        "progress": {"round": state.round, "tokens": state.tokens, "sequences": state.position},
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
        try:
            save(found, storage_writer=FileSystemWriter(directory), no_dist=True)
        except CheckpointException as fault:
            shutil.rmtree(directory, ignore_errors=True)
            first = next(iter(fault.failures.values()), (fault,))[0]
            raise UsageError(f"cannot write there: {first}", where=str(directory)) from fault
    return sorted(path for path in directory.iterdir() if path.is_file())


def _tensors(origin: Origin, vector: Vector) -> dict[str, torch.Tensor]:
    return {name: _tensor(array) for name, array in origin.layout.split(vector).items()}


def _tensor(array: Vector) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements="W"))


def _optimizer(origin: Origin, state: OuterState) -> dict[str, dict[str, torch.Tensor]]:
    """Return the inner optimiser's state by parameter; empty where no step was taken or it is no longer kept."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    shapes = dict(zip(origin.names, origin.shapes, strict=True))
    for key, vector in state.moments.vectors.items() if state.moments is not None else ():
        names, at = origin.optimizer.get(key, origin.names), 0
        if len(vector) != sum(math.prod(shapes[name]) for name in names):
            raise VerificationError(f"the optimiser's {key} has {len(vector)} elements, not those of its parameters")
        for name in names:
            size = math.prod(shapes[name])
            found.setdefault(name, {})[key] = _tensor(vector[at : at + size]).reshape(shapes[name])
            at += size
    if state.moments is not None:
        for of_one in found.values():
            of_one["step"] = torch.tensor(float(state.moments.steps))
    return found
