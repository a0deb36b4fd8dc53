"""`clean` on Ray Data: screen every shard, decide over the whole dataset, write what stays.

What a leg leaves stands under its prefix of the private store; what other runs on the same dataset can use again, under
`shared`, which no manifest names and which may be deleted whenever no job runs:

    <shared>/screened/<shard + rules on one document>.json   what screening a shard made
    <shared>/candidates/<sha256>.parquet                     its candidates, until it is known what others stand for
    <shared>/sides/<sha256>.*                                what is small of them: keys, arrivals, signatures and so on
    <shared>/signed/<candidates + n-gram, bands, rows>.json  where their signatures are
    <shared>/observed/<candidates>.json                      where what the screens for poisoning need of them is
    <prefix>/settled/<candidates + fates>.json             what settling a shard made
    <prefix>/annotations/<sha256>.parquet                  what was removed or edited, and why
    <prefix>/index/<sha256>.parquet                        what became of every document of a shard
    <prefix>/clean/<sha256>.parquet                        clean shards
    <prefix>/profiles/<sha256>.json                        what the dataset is made of, before and after
    <prefix>/manifests/<sha256>.json
    <prefix>/done/<inputs + config + code>.json            the completion marker

Markers carry their own digest and name what they stand for, are written after it, and hold only while it is there
(`markers`). So a run that was killed anywhere goes on where it was and gives the same bytes, and a changed rule repeats
only what depends on it. Of all this the manifest's digest leaves home, and numbers without small cells. A worker holds
one shard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from consortium.data import between, cluster, grouping, manifest, markers, minhash, profile
from consortium.data.clean_tasks import observed_key, screen_task, screened_key, settle_task, sign_task, signed_key
from consortium.data.counts import Counts, total
from consortium.data.grouping import Fates, Part, Reason
from consortium.data.language import code_of, known_languages
from consortium.data.minhash import Signatures
from consortium.data.poisoning import Observed
from consortium.data.profile import Profile
from consortium.data.progress import Progress
from consortium.data.screening import judges
from consortium.data.shingles import I64
from consortium.domain.cleaning import CleanConfig, DecontaminateConfig
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset, Shard
from consortium.errors import NotFoundError, UsageError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table

_TEXTS_HELD = 8


def clean_datasets(
    datasets: Sequence[Dataset],
    config: CleanConfig,
    store: ObjectStore,
    prefix: str,
    *,
    shared: str = "",
    peers: between.Peers | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> dict[str, manifest.Stage]:
    """Clean datasets on the connected Ray cluster; output `clean` of each stage, by dataset id, are the clean shards.

    Datasets that `config.decontaminate.against` names are evaluation sets: read, not cleaned. With an order in
    `config.across`, all datasets together are compared with the `peers'`, and nothing is returned before every site has
    written what it keeps. `progress` says who hears of a dataset.
    `shared` (default: the prefix) is where jobs keep what others can use again.

    Raises ConfigError for unknown languages or an evaluation set that is not here, VerificationError where a shard's
    bytes are not those registered, UsageError where no document of a dataset is left.
    """
    against, cleaned = _evaluation(datasets, config.decontaminate)
    tell = progress or (lambda name: _silent)
    together = peers if config.across.order and peers is not None and len(peers.sites) > 1 else None
    works = [
        _Work(dataset, config, against, together, store, prefix, shared or prefix, tell(dataset.name))
        for dataset in cleaned
    ]
    if together is not None:
        together.in_order(config.across)
    done = {work.dataset.id: manifest.finished(store, work.marker) for work in works}
    found = {name: stage for name, stage in done.items() if stage is not None}
    if len(found) == len(works):
        if together is not None and found:
            decision = next(iter(found.values())).manifest["across"]["decision"]
            between.conclude(together, decision, store, prefix)
        return found
    if together is None:
        for work in works:
            if work.dataset.id not in found:
                found[work.dataset.id] = work.finish(work.decide(work.screened()))
        return found
    decided = [work.decide(work.screened()) for work in works]
    agreed = between.agree(
        together,
        config.near,
        config.across,
        lambda key: _left(works, decided, config, key),
        store,
        prefix,
    )
    starts = np.cumsum([0, *(_staying(fates) for fates in decided)])
    for work, fates, first, last in zip(works, decided, starts[:-1], starts[1:], strict=True):
        here = agreed.gives_up[(agreed.gives_up >= first) & (agreed.gives_up < last)] - first
        found[work.dataset.id] = work.finish(_without(fates, here, config), agreed)
    between.conclude(together, agreed.digest, store, prefix)
    return found


@dataclass(frozen=True, slots=True)
class _Work:
    """One dataset on its way."""

    dataset: Dataset
    given: CleanConfig
    against: tuple[Dataset, ...]
    together: between.Peers | None
    store: ObjectStore
    prefix: str
    work: str
    progress: Progress

    @property
    def config(self) -> CleanConfig:
        """The configuration with the languages that are kept of this dataset: of its own those the model knows."""
        own = {code_of(tag) for tag in self.dataset.languages}
        return replace(self.given, languages=tuple(sorted(self.given.languages or own & known_languages() or own)))

    @property
    def sets(self) -> tuple[list[str], list[tuple[str, str]]]:
        """The name of the evaluation set, and key and digest, of every shard of them."""
        pairs = [(dataset.name, shard) for dataset in self.against for shard in dataset.shards]
        return [name for name, _ in pairs], [(shard.key, shard.digest) for _, shard in pairs]

    @property
    def marker(self) -> str:
        """The completion marker's key. Raises ConfigError for unknown languages."""
        judges(self.config)
        inputs = [self.dataset.id, *(shard.digest for shard in self.dataset.shards)]
        sets = [digest for _, digest in self.sets[1]]
        config = {**to_json(self.config), "against": sets, "with": self.together.sites if self.together else []}
        return f"{self.prefix}/done/clean-{manifest.stage_key('clean', config, inputs)}.json"

    def screened(self) -> list[Part]:
        """Screen all shards and return what is small of them; signatures are memory maps of files without a name."""
        rows = [{"index": i, "key": s.key, "digest": s.digest} for i, s in enumerate(self.dataset.shards)]
        arguments = {"store": self.store, "work": self.work, "config": self.config, "sets": self.sets}
        cluster.each(screen_task, rows, arguments, phase="screen", progress=self.progress)
        return [self._part(summary) for summary in self.summaries()]

    def summaries(self) -> list[dict[str, Any]]:
        """Return what screening each shard made."""
        keys = (
            screened_key(self.work, shard.digest, i, self.config, self.sets)
            for i, shard in enumerate(self.dataset.shards)
        )
        return [self._recalled(key) for key in keys]

    def _recalled(self, key: str) -> dict[str, Any]:
        entry: dict[str, Any] | None = markers.recall(self.store, key, look=False)  # a worker has just looked
        if entry is None:
            raise NotFoundError("a screened shard's marker is gone", where=key, fix="submit the job again")
        return entry

    def _part(self, summary: dict[str, Any]) -> Part:
        key, digest = summary["keys"]
        keys, signatures, observed = markers.work_object(self.store, key, digest), None, None
        if self.config.dedup == "near":
            key, digest = self._recalled(signed_key(self.work, summary, self.config))["found"]
            signatures = minhash.view(_mapped(self.store, key, digest), self.config.near, where=key)
        if self.config.quarantine:
            key, digest = self._recalled(observed_key(self.work, summary))["found"]
            observed = Observed.unpack(markers.work_object(self.store, key, digest))
        return Part(keys, signatures, observed)

    def decide(self, parts: Sequence[Part]) -> Fates:
        """Return every candidate's fate as far as this dataset alone decides it."""
        return grouping.decide(parts, self.config, _Texts(self.store, self.summaries()))

    def finish(self, fates: Fates, agreed: between.Agreed | None = None) -> manifest.Stage:
        """Write clean shards, annotations, index, profiles and manifest, and last the completion marker."""
        summaries = self.summaries()
        rows_of = [_side_rows(self.store, summary) for summary in summaries]
        starts = np.cumsum([0, *map(len, rows_of)])
        all_rows = np.concatenate([np.empty(0, dtype=np.int64), *rows_of])
        reasons = json.dumps([[reason.rule, reason.value, reason.threshold] for reason in fates.reasons])
        rows = []
        for i, summary in enumerate(summaries):
            stands = fates.stands[i]
            shard_of = np.searchsorted(starts, stands, side="right") - 1
            rows.append(
                {
                    "index": i,
                    "candidates": summary["candidates"],
                    "arrivals": summary["arrivals"],
                    "annotations": summary["annotations"],
                    "why": fates.why[i].astype("<i4").tobytes(),
                    "standing": np.stack([shard_of, all_rows[stands]], axis=1).astype("<i8").tobytes(),
                    "reasons": reasons,
                }
            )
        arguments = {"store": self.store, "prefix": self.prefix}
        settled = cluster.each(settle_task, rows, arguments, phase="settle", progress=self.progress)
        stage = self._seal(summaries, [json.loads(row["report"]) for row in settled], agreed)
        manifest.mark_done(self.store, self.marker, stage)
        return stage

    def _seal(
        self, summaries: list[dict[str, Any]], reports: list[dict[str, Any]], agreed: between.Agreed | None
    ) -> manifest.Stage:
        counts = total(_added(before, after) for before, after in zip(summaries, reports, strict=True)).check()
        shards = tuple(from_json(Shard, report["shard"]) for report in reports if report["shard"])
        if not shards:
            given_up = counts.removed_by(between.RULE)
            raise UsageError(
                f"no document of {self.dataset.name} is left"
                + (": other sites keep copies of the last ones" if given_up else ""),
                where=", ".join(sorted(counts.removed)),
                fix="check that `languages` names the collection's language; or loosen the rules",
            )
        profiles = {
            "before": to_json(profile.total(from_json(Profile, summary["before"]) for summary in summaries)),
            "after": to_json(profile.total(from_json(Profile, report["after"]) for report in reports)),
        }
        written = self.store.put_addressed(
            f"{self.prefix}/profiles", json.dumps(profiles, sort_keys=True).encode(), ".json"
        )
        across = {"sites": list(agreed.sites), "decision": agreed.digest} if agreed else {}
        return manifest.seal_stage(
            self.store,
            self.prefix,
            {"clean": shards},
            {
                "stage": "clean",
                "inputs": [manifest.describe(self.dataset)],
                "evaluation": [manifest.describe(dataset) for dataset in self.against],
                "across": across,
                "config": to_json(self.config),
                "counts": to_json(counts),
                "profiles": written.digest,
                "annotations": [report["annotations"][at] for at in (0, 1) for report in reports],
                "index": [report["index"] for report in reports],
            },
        )


def _left(
    works: Sequence[_Work], decided: Sequence[Fates], config: CleanConfig, key: bytes
) -> tuple[Signatures, list[str]]:
    """Return the signatures of all documents that stay, dataset by dataset, and when they were published."""
    parts: list[Signatures] = []
    published: list[str] = []
    for work, fates in zip(works, decided, strict=True):
        rows = [
            {"index": i, "candidates": summary["candidates"], "stays": (fates.why[i] < 0).tobytes()}
            for i, summary in enumerate(work.summaries())
        ]
        arguments = {"store": work.store, "config": config, "key": key}
        for row in cluster.each(sign_task, rows, arguments, phase="across", progress=work.progress):
            parts.append(minhash.view(row["signed"], config.near, key))
            published += json.loads(row["published"])
    return minhash.joined(parts), published


def _staying(fates: Fates) -> int:
    return sum(int(np.count_nonzero(why < 0)) for why in fates.why)


def _without(fates: Fates, gives_up: I64, config: CleanConfig) -> Fates:
    """Return the fates with some of those that stay, by their place among them, given up for another site's copy."""
    reason = Reason(between.RULE, "another site keeps the copy", f"{config.near.threshold:g}")
    whole = np.concatenate([np.empty(0, dtype=np.int64), *fates.why])
    whole[np.flatnonzero(whole < 0)[gives_up]] = len(fates.reasons)
    ends = np.cumsum([len(why) for why in fates.why])
    return Fates(fates.stands, list(np.split(whole, ends[:-1])), (*fates.reasons, reason))


def _added(summary: dict[str, Any], report: dict[str, Any]) -> Counts:
    before = from_json(Counts, summary["counts"], where="screened shard")
    return replace(
        before,
        documents_out=report["documents_out"],
        removed={**before.removed, **report["removed"]},
        chars_out=report["chars_out"],
    ).check()


def _evaluation(
    datasets: Sequence[Dataset], config: DecontaminateConfig
) -> tuple[tuple[Dataset, ...], tuple[Dataset, ...]]:
    """Return the evaluation sets among the inputs, and the others."""

    def named(dataset: Dataset) -> bool:
        return not set(dataset.names).isdisjoint(config.against)

    sets = tuple(dataset for dataset in datasets if named(dataset))
    if config.against and not sets:
        raise UsageError(
            f"no evaluation set is here: {', '.join(config.against)}",
            where="decontaminate.against",
            fix="register one at every site of the job, and name it among the job's inputs, too",
        )
    return sets, tuple(dataset for dataset in datasets if not named(dataset))


def _side_rows(store: ObjectStore, summary: Mapping[str, Any]) -> I64:
    key, digest = summary["rows"]
    return np.frombuffer(markers.work_object(store, key, digest), dtype="<i4").astype(np.int64)


def _mapped(store: ObjectStore, key: str, digest: str) -> memoryview:
    with (
        markers.reading(store, key),
        store.fetched(key, digest) as file,
        pa.memory_map(f"/proc/self/fd/{file.fileno()}") as opened,  # keeps no file open, as Python's own map does
    ):
        return memoryview(opened.read_buffer())


class _Texts:
    """The candidates' texts by shard and row; the shards last asked for are held."""

    def __init__(self, store: ObjectStore, summaries: Sequence[Mapping[str, Any]]) -> None:
        self._column = lru_cache(maxsize=_TEXTS_HELD)(self._read)
        self._store, self._summaries = store, summaries

    def __call__(self, shard: int, rows: I64) -> list[str]:
        return self._column(shard).take(pa.array(rows)).to_pylist()  # type: ignore[no-any-return]

    def _read(self, shard: int) -> pa.ChunkedArray:
        key, digest = self._summaries[shard]["candidates"]
        return read_table(markers.work_object(self._store, key, digest), where=key).column("text")


def _silent(advance: Any) -> None:
    """Tell nobody."""
