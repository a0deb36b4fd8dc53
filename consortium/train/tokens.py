"""A leg's token shards, brought to the workers' disks, to each machine's once, and memory-mapped there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consortium.domain.data import ArtifactClass, Dataset, Shard
from consortium.domain.pretraining import PretrainConfig
from consortium.errors import UsageError, VerificationError
from consortium.train.order import DataOrder, MixedOrder, Packing, Sequences, Source, order_of

if TYPE_CHECKING:
    from consortium.storage.objects import ObjectStore
    from consortium.train.node import Node


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a token means: the tokenizer's digest and size."""

    size: int
    tokenizer_digest: str


def vocabulary(datasets: Sequence[Dataset], *, held_out: bool) -> Vocabulary:
    """Return the one vocabulary of the inputs.

    Raises UsageError where an input is not tokens, is (or is not) held out, or was made with another tokenizer.
    """
    if not datasets:
        raise UsageError("there are no token datasets at this site to read", fix="name them in the job's inputs")
    found = set()
    for dataset in datasets:
        if dataset.artifact_class is not ArtifactClass.TOKENS or "vocab_size" not in dataset.attributes:
            raise UsageError(f"{dataset.name} holds no tokens", fix="run `tokenize` first and name what it wrote")
        if dataset.held_out is not held_out:
            wanted = "held-out" if held_out else "training"
            raise UsageError(f"{dataset.name} is not a {wanted} dataset", fix=f"name {wanted} datasets only")
        attributes = dataset.attributes
        found.add(Vocabulary(int(attributes["vocab_size"]), attributes.get("tokenizer_digest", "")))
    if len(found) != 1:
        raise UsageError("the inputs were made with different tokenizers", fix="name outputs of one tokenize job")
    return found.pop()


@dataclass(frozen=True, slots=True)
class Span:
    """Where a sequence's tokens stand: `tokens` of them from `start` on in one shard of one dataset."""

    dataset: str
    shard: str
    """The shard's digest; with a position it leads on to the document (`consortium.data.lineage.locate`)."""
    start: int
    tokens: int


def spans_read(
    datasets: Sequence[Dataset], params: PretrainConfig, site: str, position: int, count: int
) -> tuple[Span, ...]:
    """Return what training at `site` reads at positions [position, position + count) of its data order.

    Needs the datasets' descriptions only. Raises UsageError where they have not one whole sequence.
    """
    shards, packing, order = _described(datasets, params, site)
    length = params.model.context + 1
    places = [packing.place(int(number)) for number in order.at(position, count)]
    return tuple(Span(shards[array][0], shards[array][1].digest, start, length) for array, start in places)


def check_described(datasets: Sequence[Dataset], params: PretrainConfig, site: str) -> None:
    """Raise UsageError where the datasets of a site, as described, are nothing that training there could read.

    That is where `open_sequences` or the order of what it returns would: a mixture that says nothing of a dataset, or
    not one whole sequence. Whether there are any is not asked of descriptions that count no tokens.
    """
    _mixed(datasets, params.data.weights)
    if any(shard.tokens for dataset in datasets for shard in dataset.shards):
        _described(datasets, params, site)


def _described(
    datasets: Sequence[Dataset], params: PretrainConfig, site: str
) -> tuple[list[tuple[str, Shard]], Packing, DataOrder | MixedOrder]:
    """Return the shards that a site reads, each with its dataset's id, where sequences lie in them, and their order."""
    context = params.model.context
    mixed = _mixed(datasets, params.data.weights)
    shards = [(dataset.id, shard) for dataset, shard in _in_order(datasets, mixed)]
    packing = Packing([shard.tokens for _, shard in shards], context)
    sources = _sources(mixed, params.data.weights, context)
    return shards, packing, order_of(params.seed, site, len(packing), sources, shuffle=params.data.shuffle)


def open_sequences(
    store: ObjectStore,
    datasets: Sequence[Dataset],
    context: int,
    vocab_size: int,
    weights: Mapping[str, float] | None = None,
    node: Node | None = None,
) -> Sequences:
    """Fetch the datasets' shards and return their sequences, in order of dataset id and shard.

    Workers of one group call this together, each with its `node`, and have one copy on each machine, in its temporary
    folder. Files have no names: tokens are texts, and a worker that is killed must not leave them on a disk of the
    cluster. Their room is free when the sequences of all are gone.
    With `weights`, those of `DataConfig`, only datasets whose weight is above 0, one source after another.

    Raises VerificationError where a shard's bytes do not hash to its digest or it holds a token outside the vocabulary,
    UsageError where shards end documents with different tokens or the weights do not say what to do with a dataset.
    """
    from consortium.storage.shards import map_tokens
    from consortium.train.node import ALONE

    node = node or ALONE
    arrays, ends = [], set()
    mixed = _mixed(datasets, weights or {})
    for _, shard in _in_order(datasets, mixed):
        with node.shared(store.fetched(shard.key, shard.digest)) as path:
            mapped = map_tokens(path)
        tokens = mapped.tokens
        if not node.worker and len(tokens) and int(tokens.max()) >= vocab_size:
            raise VerificationError(f"a token lies outside the vocabulary of {vocab_size}", where=shard.key)
        arrays.append(tokens)
        ends.add(mapped.eos)
    if len(ends) > 1:
        raise UsageError(f"the inputs end documents with different tokens: {sorted(ends)}", fix="tokenize them alike")
    return Sequences(arrays, context, end=next(iter(ends), None), sources=_sources(mixed, weights or {}, context))


def _mixed(datasets: Sequence[Dataset], weights: Mapping[str, float]) -> dict[str, list[Dataset]]:
    """Return the datasets of each source by its name: a dataset's own where it has a weight, else its language's.

    Empty where nothing is weighted. Raises UsageError where a dataset has no weight, or none of them one above 0.
    """
    mixed: dict[str, list[Dataset]] = {}
    for dataset in datasets if weights else ():
        name = dataset.name if dataset.name in weights else "+".join(sorted(dataset.languages))
        if name not in weights:
            raise UsageError(
                f"the mixture says nothing of {dataset.name}, whose language is {name or 'not stated'}",
                where=f"data.mixture at {dataset.site}",
                fix=f"add {dataset.name}:WEIGHT or {name or 'its language'}:WEIGHT; weight 0 leaves it out",
            )
        if weights[name]:
            mixed.setdefault(name, []).append(dataset)
    if weights and not mixed:
        raise UsageError("the mixture leaves out every dataset of this site", where="data.mixture")
    return dict(sorted(mixed.items()))


def _sources(mixed: Mapping[str, Sequence[Dataset]], weights: Mapping[str, float], context: int) -> tuple[Source, ...]:
    return tuple(
        Source(
            name=name,
            sequences=len(Packing([shard.tokens for one in datasets for shard in one.shards], context)),
            weight=weights[name],
        )
        for name, datasets in mixed.items()
    )


def _in_order(datasets: Sequence[Dataset], mixed: Mapping[str, Sequence[Dataset]]) -> Iterator[tuple[Dataset, Shard]]:
    """Yield all shards in the order in which training numbers them: source by source where they are mixed."""
    for group in mixed.values() if mixed else (datasets,):
        for dataset in sorted(group, key=lambda dataset: dataset.id):
            for shard in dataset.shards:
                yield dataset, shard
