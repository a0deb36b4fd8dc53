"""`clean` on Ray Data: screen every shard, decide over the whole dataset, write what stays.

Everything is written under the leg's prefix of the private store and keyed by content, configuration and code:

    <prefix>/screened/<shard + rules on one document>.json   what screening a shard made; marks it done
    <prefix>/candidates/<sha256>.parquet                     its candidates, until it is known what others stand for
    <prefix>/sides/<sha256>.*                                what is small of them: keys, arrivals, profile
    <prefix>/signed/<candidates + n-gram, bands, rows>.sig   their signatures
    <prefix>/observed/<candidates>.seen                      what the screens for poisoning need of them
    <prefix>/settled/<candidates + fates>.json               what settling a shard made; marks it done
    <prefix>/annotations/<sha256>.parquet                    what was removed or edited, and why
    <prefix>/index/<sha256>.parquet                          what became of every document of a shard
    <prefix>/clean/<sha256>.parquet                          clean shards
    <prefix>/profiles/<sha256>.json                          what the dataset is made of, before and after
    <prefix>/manifests/<sha256>.json
    <prefix>/done/<inputs + config + code>.json              the completion marker

So a run that was killed anywhere goes on where it was and gives the same bytes, and a changed rule repeats only what
depends on it. Of all this only the manifest leaves home. A worker holds one shard.
"""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from consortium.data import between, cluster, grouping, manifest, minhash, profile
from consortium.data.counts import Counts, total
from consortium.data.decontaminate import EvaluationSets
from consortium.data.grouping import Fates, Part, Reason
from consortium.data.minhash import Signatures
from consortium.data.poisoning import Observed, observe
from consortium.data.profile import Profile
from consortium.data.progress import Progress
from consortium.data.screening import Fate, judges, screen, settle
from consortium.data.shingles import I64
from consortium.domain.cleaning import CleanConfig, DecontaminateConfig
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset, Shard
from consortium.errors import NotFoundError, UsageError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table, write_table, write_text

_OVER_DOCUMENTS = ("dedup", "near", "quarantine", "poisoning", "across")
"""Keys of the configuration that screening a shard does not depend on."""
_TEXTS_HELD = 8


def clean_dataset(
    dataset: Dataset, config: CleanConfig, store: ObjectStore, prefix: str, *, progress: Progress | None = None
) -> manifest.Stage:
    """Clean one dataset by itself: see `clean_datasets`."""
    return clean_datasets([dataset], config, store, prefix, progress=lambda name: progress or _silent)[dataset.id]


def clean_datasets(
    datasets: Sequence[Dataset],
    config: CleanConfig,
    store: ObjectStore,
    prefix: str,
    *,
    peers: between.Peers | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> dict[str, manifest.Stage]:
    """Clean datasets on the connected Ray cluster; output `clean` of each stage, by dataset id, are the clean shards.

    Datasets that `config.decontaminate.against` names are evaluation sets: read, not cleaned. With an order in
    `config.across`, all datasets together are compared with the `peers'`. `progress` says who hears of a dataset.

    Raises ConfigError for unknown languages or an evaluation set that is not here, VerificationError where a shard's
    bytes are not those registered, UsageError where no document of a dataset is left.
    """
    against, cleaned = _evaluation(datasets, config.decontaminate)
    tell = progress or (lambda name: _silent)
    together = peers if config.across.order and peers is not None and len(peers.sites) > 1 else None
    works = [_Work(dataset, config, against, together, store, prefix, tell(dataset.name)) for dataset in cleaned]
    done = {work.dataset.id: manifest.finished(store, work.marker) for work in works}
    found = {name: stage for name, stage in done.items() if stage is not None}
    if len(found) == len(works):
        return found
    if together is None:
        for work in works:
            if work.dataset.id not in found:
                with work.screened() as parts:
                    fates = work.decide(parts)
                found[work.dataset.id] = work.finish(fates)
        return found
    decided = []
    for work in works:
        with work.screened() as parts:
            decided.append(work.decide(parts))
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
    between.forget(store, prefix)
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
    progress: Progress

    @property
    def config(self) -> CleanConfig:
        """The configuration with the languages that are kept of this dataset."""
        return replace(self.given, languages=tuple(sorted(self.given.languages or self.dataset.languages)))

    @property
    def marker(self) -> str:
        """The completion marker's key. Raises ConfigError for unknown languages."""
        judges(self.config)
        inputs = [shard.digest for shard in self.dataset.shards]
        sets = [shard.digest for dataset in self.against for shard in dataset.shards]
        config = {**to_json(self.config), "against": sets, "with": self.together.sites if self.together else []}
        return f"{self.prefix}/done/clean-{manifest.stage_key('clean', config, inputs)}.json"

    @contextmanager
    def screened(self) -> Iterator[list[Part]]:
        """Screen all shards and yield what is small of them; signatures are memory maps of files that go with it."""
        sets = [(shard.key, shard.digest) for dataset in self.against for shard in dataset.shards]
        names = [dataset.name for dataset in self.against for _ in dataset.shards]
        rows = [{"index": i, "key": s.key, "digest": s.digest} for i, s in enumerate(self.dataset.shards)]
        arguments = {"store": self.store, "prefix": self.prefix, "config": self.config, "sets": (names, sets)}
        cluster.each(screen_task, rows, arguments, phase="screen", progress=self.progress)
        with tempfile.TemporaryDirectory(prefix="signatures-") as folder:
            yield [self._part(summary, Path(folder, str(i))) for i, summary in enumerate(self.summaries())]

    def summaries(self) -> list[dict[str, Any]]:
        """Return what screening each shard made."""
        keys = (_screen_key(shard.digest, i, self.config, self.against) for i, shard in enumerate(self.dataset.shards))
        return [json.loads(self.store.get(f"{self.prefix}/screened/{key}.json")) for key in keys]

    def _part(self, summary: dict[str, Any], file: Path) -> Part:
        keys, signatures, observed = self.store.get(*summary["keys"][:1], digest=summary["keys"][1]), None, None
        if self.config.dedup == "near":
            where = _signed_key(self.prefix, summary, self.config)
            signatures = minhash.view(_mapped(self.store, where, file), self.config.near, where=where)
        if self.config.quarantine:
            observed = Observed.unpack(self.store.get(_observed_key(self.prefix, summary)))
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
            raise UsageError(
                f"the rules remove all {counts.total_in} documents of {self.dataset.name}",
                where=", ".join(f"{rule}: {counts.removed_by(rule)}" for rule in counts.removed),
                fix="loosen the rules, or check that `languages` names the collection's language",
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
                "annotations": [part["annotations"][1] for part in (*summaries, *reports)],
                "index": [report["index"][1] for report in reports],
            },
        )


def screen_task(
    row: cluster.Row,
    *,
    store: ObjectStore,
    prefix: str,
    config: CleanConfig,
    sets: tuple[Sequence[str], Sequence[tuple[str, str]]],
) -> cluster.Row:
    """Screen one shard, sign and observe its candidates, each unless an earlier run did."""
    names, shards = sets
    marker = f"{prefix}/screened/{_screen_key(row['digest'], row['index'], config, shards=shards)}.json"
    candidates: pa.Table | None = None
    try:
        summary = json.loads(store.get(marker))
    except NotFoundError:
        table = read_table(store.get(row["key"], digest=row["digest"]), where=row["key"])
        evaluation = _evaluation_sets(store, names, shards, config.decontaminate) if shards else None
        found = screen(table, row["index"], config, evaluation)
        candidates = found.candidates
        rows = np.array(candidates.column("row"), dtype="<i4")
        summary = {
            "candidates": store.put_addressed(f"{prefix}/candidates", write_table(candidates), ".parquet"),
            "annotations": store.put_addressed(f"{prefix}/annotations", write_table(found.annotations), ".parquet"),
            "arrivals": store.put_addressed(f"{prefix}/sides", write_table(found.arrivals), ".arrivals"),
            "keys": store.put_addressed(f"{prefix}/sides", found.keys, ".keys"),
            "rows": store.put_addressed(f"{prefix}/sides", rows.tobytes(), ".rows"),
            "counts": to_json(found.counts),
            "before": to_json(found.before),
            "text_bytes": sum(map(len, map(str.encode, table.column("text").to_pylist()))),
        }
        store.put(marker, json.dumps(summary, sort_keys=True).encode())
    small: dict[str, Callable[[list[str]], bytes]] = {}
    if config.dedup == "near":
        small[_signed_key(prefix, summary, config)] = lambda texts: minhash.sign(texts, config.near)
    if config.quarantine:
        small[_observed_key(prefix, summary)] = lambda texts: _observed(texts, candidates).pack()
    for key, make in small.items():
        if not store.exists(key):
            if candidates is None:
                candidates = read_table(store.get(summary["candidates"][0], digest=summary["candidates"][1]))
            store.put(key, make(candidates.column("text").to_pylist()))
    came = sum(summary["counts"]["documents_in"].values())
    return {"index": row["index"], "documents": came, "text_bytes": summary["text_bytes"]}


def settle_task(row: cluster.Row, *, store: ObjectStore, prefix: str) -> cluster.Row:
    """Drop what goes of one screened shard because of others, and write its clean shard, unless an earlier run did."""
    why = np.frombuffer(row["why"], dtype="<i4").astype(np.int64)
    standing = np.frombuffer(row["standing"], dtype="<i8").reshape(-1, 2)
    reasons = [Reason(*reason) for reason in json.loads(row["reasons"])]
    fate = Fate(why=why, standing=standing, reasons=reasons)
    gone = [[reasons[why[at]].rule, *standing[at].tolist()] for at in np.flatnonzero(why >= 0).tolist()]
    told = {"gone": gone, "why": why.tolist(), "reasons": row["reasons"], "index": row["index"]}
    key = manifest.stage_key("settle", told, [row["candidates"][1], row["arrivals"][1]])
    marker = f"{prefix}/settled/{key}.json"
    try:
        report = json.loads(store.get(marker))
    except NotFoundError:
        candidates, arrivals = (
            read_table(store.get(address, digest=digest), where=address)
            for address, digest in (row["candidates"], row["arrivals"])
        )
        found = settle(candidates, arrivals, row["index"], fate)
        shard: dict[str, Any] = {}
        if found.table.num_rows:
            data = write_text(found.table)
            address, digest = store.put_addressed(f"{prefix}/clean", data, ".parquet")
            shard = {"key": address, "digest": digest, "size_bytes": len(data), "documents": found.table.num_rows}
        report = {
            "shard": shard,
            "annotations": store.put_addressed(f"{prefix}/annotations", write_table(found.annotations), ".parquet"),
            "index": store.put_addressed(f"{prefix}/index", write_table(found.index), ".parquet"),
            "removed": found.removed,
            "documents_out": found.documents_out,
            "chars_out": found.chars_out,
            "after": to_json(found.after),
        }
        store.put(marker, json.dumps(report, sort_keys=True).encode())
    return {"index": row["index"], "documents": len(why), "report": json.dumps(report)}


def sign_task(row: cluster.Row, *, store: ObjectStore, config: CleanConfig, key: bytes) -> cluster.Row:
    """Sign what stays of one shard's candidates with an exchange's secret key."""
    table = read_table(store.get(row["candidates"][0], digest=row["candidates"][1])).filter(
        pa.array(np.frombuffer(row["stays"], dtype=bool))
    )
    signed = minhash.sign(table.column("text").to_pylist(), config.near, key)
    return {"index": row["index"], "signed": signed, "published": json.dumps(table.column("published").to_pylist())}


def read_annotations(stage: manifest.Stage, store: ObjectStore, prefix: str) -> pa.Table:
    """Return all annotations of a finished clean stage as one table, for those at home."""
    digests = [str(digest).removeprefix("sha256:") for digest in stage.manifest["annotations"]]
    return pa.concat_tables(read_table(store.get(f"{prefix}/annotations/{hexed}.parquet")) for hexed in digests)


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
        return not {dataset.name, f"{dataset.name}@{dataset.version}", dataset.id}.isdisjoint(config.against)

    sets = tuple(dataset for dataset in datasets if named(dataset))
    if config.against and not sets:
        raise UsageError(
            f"no evaluation set is here: {', '.join(config.against)}",
            where="decontaminate.against",
            fix="register one at every site of the job, and name it among the job's inputs, too",
        )
    return sets, tuple(dataset for dataset in datasets if not named(dataset))


_held_sets: dict[Any, EvaluationSets] = {}
"""The evaluation sets of this worker's job: read once, used for every shard."""


def _evaluation_sets(
    store: ObjectStore, names: Sequence[str], shards: Sequence[tuple[str, str]], config: DecontaminateConfig
) -> EvaluationSets:
    key = tuple(names), tuple(digest for _, digest in shards), config
    if key not in _held_sets:
        texts: dict[str, list[str]] = {}
        for name, (address, digest) in zip(names, shards, strict=True):
            texts.setdefault(name, []).extend(read_table(store.get(address, digest=digest)).column("text").to_pylist())
        _held_sets.clear()
        _held_sets[key] = EvaluationSets(texts, config)
    return _held_sets[key]


def _screen_key(
    digest: str,
    index: int,
    config: CleanConfig,
    against: Sequence[Dataset] = (),
    shards: Sequence[tuple[str, str]] | None = None,
) -> str:
    if shards is None:
        shards = [(shard.key, shard.digest) for dataset in against for shard in dataset.shards]
    one = {name: value for name, value in to_json(config).items() if name not in _OVER_DOCUMENTS}
    return manifest.stage_key("screen", {**one, "sets": [found for _, found in shards]}, [digest, str(index)])


def _signed_key(prefix: str, summary: Mapping[str, Any], config: CleanConfig) -> str:
    near = [config.near.ngram, config.near.bands, config.near.rows]
    return f"{prefix}/signed/{manifest.stage_key('sign', near, [summary['candidates'][1]])}.sig"


def _observed_key(prefix: str, summary: Mapping[str, Any]) -> str:
    return f"{prefix}/observed/{manifest.stage_key('observe', {}, [summary['candidates'][1]])}.seen"


def _observed(texts: Sequence[str], candidates: pa.Table | None) -> Observed:
    """Observe candidates; documents without a contributor are not judged, so theirs are passed over."""
    assert candidates is not None
    contributors, languages = (candidates.column(name).to_pylist() for name in ("contributor", "language"))
    return observe(
        [text if who else "" for text, who in zip(texts, contributors, strict=True)], contributors, languages
    )


def _side_rows(store: ObjectStore, summary: Mapping[str, Any]) -> I64:
    key, digest = summary["rows"]
    return np.frombuffer(store.get(key, digest=digest), dtype="<i4").astype(np.int64)


def _mapped(store: ObjectStore, key: str, file: Path) -> memoryview:
    store.get_file(key, file)
    with file.open("rb") as opened:
        return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))


class _Texts:
    """The candidates' texts by shard and row; the shards last asked for are held."""

    def __init__(self, store: ObjectStore, summaries: Sequence[Mapping[str, Any]]) -> None:
        self._column = lru_cache(maxsize=_TEXTS_HELD)(self._read)
        self._store, self._summaries = store, summaries

    def __call__(self, shard: int, rows: I64) -> list[str]:
        return self._column(shard).take(pa.array(rows)).to_pylist()  # type: ignore[no-any-return]

    def _read(self, shard: int) -> pa.ChunkedArray:
        key, digest = self._summaries[shard]["candidates"]
        return read_table(self._store.get(key, digest=digest), where=key).column("text")


def _silent(advance: Any) -> None:
    """Tell nobody."""
