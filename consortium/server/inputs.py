"""What a job's inputs must be like for its kind: what its legs would find wrong only once they hold GPUs."""

from __future__ import annotations

from sqlalchemy import Connection

from consortium.config import nearest
from consortium.domain.cleaning import CleanConfig
from consortium.domain.codec import from_json
from consortium.domain.data import CLEAN_SUFFIX, HELD_OUT_SUFFIX, TOKENS_SUFFIX, Dataset, base_name
from consortium.domain.ids import is_name
from consortium.domain.job import READ, JobKind, JobSpec
from consortium.domain.partner import Site
from consortium.domain.pretraining import PretrainConfig
from consortium.errors import UsageError
from consortium.server import ancestry
from consortium.state import data
from consortium.train.tokens import check_described

_SUFFIX = {
    JobKind.TOKENIZE: CLEAN_SUFFIX,
    JobKind.PRETRAIN: TOKENS_SUFFIX,
    JobKind.EVALUATE: HELD_OUT_SUFFIX,
}
"""What the names of datasets that a kind reads end with, where jobs made them."""


def check_clean(spec: JobSpec, inputs: tuple[Dataset, ...]) -> None:
    """Check what a clean job says of its inputs, which its legs would find wrong only once they run."""
    config = from_json(CleanConfig, spec.params, where="params of the job")
    against, order = config.decontaminate.against, config.across.order
    known = {name: item for item in inputs for name in item.names}
    for name in against:
        if name not in known:
            raise UsageError(
                f"{name!r} is none of the job's inputs, and an evaluation set is one of them",
                where="decontaminate.against",
                fix=f"add it to inputs, or {nearest(name, (n for item in inputs for n in item.names[:2]))}",
            )
    sets = [item for item in inputs if not set(against).isdisjoint(item.names)]
    cleaned = [item for item in inputs if item not in sets]
    if not cleaned:
        raise UsageError(
            "all inputs are evaluation sets: there is nothing to clean",
            where="decontaminate.against",
            fix="add the datasets to clean to inputs",
        )
    bare = sorted({item.site for item in cleaned} - {item.site for item in sets})
    if against and bare:
        raise UsageError(
            f"no evaluation set lives at {', '.join(bare)}, where {_first_at(cleaned, bare[0])} is to be cleaned",
            where="decontaminate.against",
            fix=f"register one at {', '.join(bare)} and name it in inputs and in decontaminate.against",
        )
    idle = sorted({item.site for item in sets} - {item.site for item in cleaned})
    if idle:
        raise UsageError(
            f"{_first_at(sets, idle[0])} is an evaluation set at {idle[0]}, where nothing is to be cleaned",
            where="decontaminate.against",
            fix="leave it out of inputs and decontaminate.against",
        )
    missing = sorted({item.partner for item in cleaned} - set(order))
    if order and missing:
        raise UsageError(
            f"across.order does not name {', '.join(missing)}, whose datasets are to be cleaned",
            where="across.order",
            fix=f"across.order=[{','.join((*order, *missing))}], or another order: those first whose copies stay",
        )


def check_output_names(connection: Connection, spec: JobSpec, inputs: tuple[Dataset, ...]) -> None:
    """Check the names of what a clean or tokenize job will write: its legs would fail with them once all is done."""
    if spec.kind is JobKind.CLEAN:
        against = from_json(CleanConfig, spec.params, where="params of the job").decontaminate.against
        inputs = tuple(item for item in inputs if set(against).isdisjoint(item.names))
        suffixes: tuple[str, ...] = (CLEAN_SUFFIX,)
    elif spec.kind is JobKind.TOKENIZE:
        suffixes = (TOKENS_SUFFIX, HELD_OUT_SUFFIX) if spec.params.get("held_out_percent") else (TOKENS_SUFFIX,)
    else:
        return
    for item in inputs:
        for suffix in suffixes:
            name = base_name(item.name) + suffix
            if not is_name(name):
                raise UsageError(
                    f"the job would write {name}, and a dataset's name has 63 characters at most, not {len(name)}",
                    where=item.name,
                    fix=f"register it under a name of {63 - len(suffix)} characters at most",
                )
            data.check_name(connection, name, item.partner, where=f"what the job makes of {item.name}")


def _first_at(items: list[Dataset], site: str) -> str:
    return next(item.name for item in items if item.site == site)


def check_kind(connection: Connection, spec: JobSpec, inputs: tuple[Dataset, ...]) -> None:
    """Raise UsageError where there are no inputs, or some that the kind cannot read: class, tokenizer, mixture."""
    if not inputs:
        fix = f"name datasets, such as inputs=[laws-fr{_SUFFIX.get(spec.kind, '')}]; `consortium data ls` lists them"
        raise UsageError(f"a job of kind {spec.kind.value} needs inputs", fix=fix)
    if unlike := next((item for item in inputs if item.artifact_class not in READ[spec.kind]), None):
        classes = " or ".join(kind.value for kind in READ[spec.kind])
        raise UsageError(
            f"{unlike.name} is {unlike.artifact_class.value}, and a job of kind {spec.kind.value} reads {classes}",
            where="inputs",
            fix=f"name {classes} datasets; `consortium data ls` shows the class of each",
        )
    if spec.kind is JobKind.PRETRAIN:
        held_out = [item.name for item in inputs if item.held_out]
        if held_out:
            raise UsageError(f"{held_out[0]} is held out: no training job may read it")
        _check_tokens(inputs)
        params = PretrainConfig.of(spec.params)
        for site in sorted({item.site for item in inputs}):
            check_described([item for item in inputs if item.site == site], params, site)
    if spec.kind is JobKind.EVALUATE:
        seen = [item.name for item in inputs if not item.held_out]
        if seen:
            raise UsageError(
                f"{seen[0]} is not held out: a model is measured on what it was not trained on",
                where="inputs",
                fix="name held-out datasets, such as laws-fr-tokens-heldout",
            )
        ancestry.check_evaluated(connection, spec)


def check_workers(spec: JobSpec, sites: tuple[Site, ...]) -> None:
    """Raise UsageError where a worker of a training was to drive several real GPUs: it drives one."""
    count = spec.resources.gpus_per_worker
    real = [site.id for site in sites if site.gpu_resource == "GPU"]
    if spec.kind is JobKind.PRETRAIN and count != 1 and real:
        raise UsageError(
            f"a training worker drives one GPU, not {count}, as it was to at {real[0]}",
            where="gpus_per_worker",
            fix="set gpus_per_worker to 1",
        )


def _check_tokens(inputs: tuple[Dataset, ...]) -> None:
    """Raise UsageError where token datasets do not mean the same by a token: their sites could train no one model."""
    first = inputs[0]
    for item in inputs[1:]:
        if any(item.attributes.get(name) != first.attributes.get(name) for name in ("tokenizer_digest", "vocab_size")):
            raise UsageError(
                f"{first.name} and {item.name} were made with different tokenizers",
                where="inputs",
                fix="name outputs of one tokenize job; `consortium data trace NAME` shows which one made a dataset",
            )
