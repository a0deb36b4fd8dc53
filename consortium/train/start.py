"""Training that goes on from a trained model: an outer state of an earlier job at this site, or a safetensors file.

Only parameters are taken over. Optimisers, data order and rounds begin anew, so the new job's rate begins with its own
warm-up. One site reads the model and publishes it as round 0; no other site needs to have it.

A training that is *resumed* takes everything over: each site reads its own state of the earlier job, with the momenta,
the optimiser's vectors, the position in its data, what encoding dropped and what it had begun of the next round.
Nothing is sent; round 0 is agreed on by digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from consortium.domain.codec import from_json
from consortium.domain.pretraining import ModelConfig, PretrainConfig, StartConfig
from consortium.errors import ConsortiumError, NotFoundError, UsageError, VerificationError
from consortium.train.fragments import Plan
from consortium.train.keep import Begun, Keep, Origin, OuterState
from consortium.train.outer import Vector, finite
from consortium.train.sharded import Holding

if TYPE_CHECKING:
    from consortium.storage.objects import ObjectStore

_MEANING = ("plugin", "layers", "dim", "heads", "groups", "hidden", "tie_embeddings", "rope_base")
"""What must be the same for parameters to mean the same; context, dropout, losses and recomputation may change."""


def starting_point(store: ObjectStore, start: StartConfig, wanted: Origin) -> Vector:
    """Return the parameters that `start` names, in the layout of `wanted`, the job's own model.

    Raises NotFoundError where this site does not have them, VerificationError where they are damaged or not finite, and
    UsageError, with the first difference, where model or tokenizer is another than the job's.
    """
    vector = _of_job(store, start, wanted) if start.job else _of_file(store, start, wanted)
    if not finite(vector):
        raise VerificationError("the model to go on from holds values that are not finite", where=_where(start))
    return vector


def resumed(
    store: ObjectStore, params: PretrainConfig, wanted: Origin, step_tokens: int, holders: Holding | None = None
) -> OuterState:
    """Return this site's state after the round that a training goes on from, as the state before round 1.

    Its vectors lie in slices where there are `holders`. Steps of the next round that were done already are kept where
    they read `step_tokens` each, as the job's will; where the site had other workers they are done again.

    Raises NotFoundError where this site does not keep it, and what `starting_point` raises.
    """
    start = params.start
    keep = Keep(store, start.job, holders)
    kept = keep.rounds()
    if start.round not in kept:
        raise NotFoundError(
            f"this site keeps {f'rounds {kept[0]} to {kept[-1]}' if kept else 'no outer state'} of {start.job}, "
            f"not its state after round {start.round}",
            where=_where(start),
            fix=_resumable(keep, kept, params),
        )
    check_same(keep.origin(start.round), wanted, _where(start))
    state = keep.outer(start.round, wanted.layout.size)
    if state.ahead is not None and state.ahead.tokens != state.ahead.steps * step_tokens:
        state = _with_steps_undone(keep, state, params, wanted)
    ahead = None if state.ahead is None else replace(state.ahead, round=1)
    return replace(state, round=0, tokens=0, ahead=ahead)


def _resumable(keep: Keep, kept: list[int], params: PretrainConfig) -> str:
    """Say which command resumes a training from the last state that this site keeps whole at the end of a cycle.

    A round is closed once its digests are published, and kept after that: no site has it where all legs died between.
    """
    start, ends = params.start, params.outer.fragments
    whole = (one for one in reversed(kept) if 0 < one < start.round and not one % ends and not keep.thinned(one))
    if not (newest := next(whole, 0)):
        return "leave the site out of `sites`, or submit it as a new job; start.job alone goes on from the model"
    command = f"consortium submit pretrain --resume {start.job} start.round={newest}"
    return f"{command}; or leave the site out of `sites`, where the others keep round {start.round}"


def _with_steps_undone(keep: Keep, state: OuterState, params: PretrainConfig, wanted: Origin) -> OuterState:
    """Return a state as it would be had its round been applied before any step of the next one was done.

    A commit states the tokens of just its steps, which are those of as many workers in each.
    """
    size, plan = wanted.layout.size, Plan.of(wanted.layout, params.outer)
    made = keep.contribution(state.round, size, plan.fragment(state.round).size)
    if made is None or made.local is None or made.position != state.position:
        raise NotFoundError(
            f"this site does not keep what it contributed to round {state.round} of {params.start.job}, and did steps "
            "of the next round with other workers than the job gives it",
            where=_where(params.start),
            fix="resume with as many workers as before: the same gpus and gpus_per_worker",
        )
    ahead = Begun(
        round=state.round + 1,
        previous_outer=state.digest,
        local=plan.mix(state.round, made.local, state.outer),
        steps=0,
        loss_sum=0.0,
        tokens=0,
        position=made.position,
        moments=made.moments,
    )
    return replace(state, moments=made.moments, ahead=ahead)


def _of_job(store: ObjectStore, start: StartConfig, wanted: Origin) -> Vector:
    keep = Keep(store, start.job)
    kept = keep.rounds()
    if not kept or start.round > kept[-1]:
        raise NotFoundError(
            f"this site keeps {f'rounds {kept[0]} to {kept[-1]}' if kept else 'no outer state'} of {start.job}",
            where=_where(start),
            fix="the job's first site in order of ids reads the model: name a job that it took part in",
        )
    origin, vector = keep.measured(kept[-1] if start.round == -1 else start.round)
    check_same(origin, wanted, _where(start))
    return vector


def _of_file(store: ObjectStore, start: StartConfig, wanted: Origin) -> Vector:
    from safetensors.torch import load

    from consortium.train.export import from_llama

    where = _where(start)
    data = store.get(start.weights, digest=start.digest)
    metadata = _metadata(data, where)
    try:
        model = json.loads(metadata["model"])
        vocab_size = int(metadata["vocab_size"])
        tokenizer = metadata["tokenizer_digest"]
        tensors = load(data)
    except Exception as fault:
        raise UsageError(
            f"not a safetensors file that says what it is: {type(fault).__name__}: {fault}",
            where=where,
            fix="its metadata must name model, vocab_size and tokenizer_digest, as `consortium export` writes them",
        ) from fault
    origin = Origin(
        model=model, vocab_size=vocab_size, tokenizer_digest=tokenizer, names=wanted.names, shapes=wanted.shapes
    )
    check_same(origin, wanted, where)
    if set(tensors) != set(wanted.names):
        tensors = from_llama(from_json(ModelConfig, wanted.model), tensors)
    for name, shape in zip(wanted.names, wanted.shapes, strict=True):
        if tuple(tensors[name].shape) != shape:
            raise UsageError(f"{name} has shape {tuple(tensors[name].shape)}, the job's model {shape}", where=where)
    return wanted.layout.join({name: tensors[name].float().numpy() for name in wanted.names})


def check_same(found: Origin, wanted: Origin, where: str) -> None:
    """Raise UsageError unless parameters of `found` mean the same in `wanted`: model, tokenizer, names and shapes."""
    theirs, ours = _meaning(found.model, where), _meaning(wanted.model, where)
    different = [f"{key} is {theirs[key]}, the job's {ours[key]}" for key in _MEANING if theirs[key] != ours[key]]
    if (found.vocab_size, found.tokenizer_digest) != (wanted.vocab_size, wanted.tokenizer_digest):
        different.append(
            f"its tokenizer is {found.tokenizer_digest} with {found.vocab_size} words, "
            f"the inputs' {wanted.tokenizer_digest} with {wanted.vocab_size}"
        )
    if not different and (found.names, found.shapes) != (wanted.names, wanted.shapes):
        different.append("parameters have other names or shapes")
    if different:
        raise UsageError(
            f"the model to go on from is another than the job's: {'; '.join(different)}",
            where=where,
            fix="choose the same shape under model, and inputs of the same tokenize job",
        )


def _meaning(model: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        params = from_json(ModelConfig, dict(model))
    except ConsortiumError as fault:
        raise UsageError(f"the model to go on from is not described as one: {fault.what}", where=where) from fault
    return {key: getattr(params, key) for key in _MEANING}


def _metadata(data: bytes, where: str) -> dict[str, str]:
    """Return a safetensors file's metadata: eight bytes of length, then JSON (the format's specification)."""
    length = int.from_bytes(data[:8], "little")
    try:
        if length > len(data) - 8:
            raise ValueError("its header is longer than the file")
        found = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        return {str(key): str(value) for key, value in found.items()}
    except (ValueError, AttributeError) as fault:
        raise VerificationError(f"not a safetensors file: {fault}", where=where) from fault


def _where(start: StartConfig) -> str:
    return f"start.job {start.job}" if start.job else f"start.weights {start.weights}"
