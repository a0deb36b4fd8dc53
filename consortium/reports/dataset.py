"""What a dataset's page says: numbers from the manifest and profiles, samples from the shards. Made at home only.

A page with samples holds text of the collection. It is for the state that owns it, and must not be sent anywhere.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from consortium.data import profile
from consortium.data.counts import Counts
from consortium.data.documents import Annotation, Document, from_table
from consortium.data.outputs import profiles_of
from consortium.data.profile import Profile
from consortium.data.suppression import AT_LEAST, Statistic, suppressed
from consortium.domain.cleaning import CleanConfig
from consortium.domain.codec import from_json
from consortium.domain.data import NEVER_CROSS, Dataset
from consortium.errors import ConsortiumError, NotFoundError, UsageError, VerificationError
from consortium.reports.history import Passage, replay, shortened, without_personal_data
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table

SAMPLE_CHARS = 280
MAX_SAMPLES = 50
_PROFILED_BYTES = 512 << 20
"""A raw collection of more bytes in store is not read for its page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One document that a rule removed (`text`, shortened) or changed (`passage`); never with personal data."""

    document: str
    id: str
    shard: int
    row: int
    language: str
    value: str
    threshold: str
    text: str = ""
    passage: Passage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The job that made a dataset: its id, and how long its leg took, from its start to its end."""

    job: str
    seconds: float
    code_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that a page shows. What is unknown is None or empty, and `missing` says why."""

    dataset: Dataset
    manifest: dict[str, Any] = field(default_factory=dict)
    counts: Counts | None = None
    before: Profile | None = None
    after: Profile | None = None
    samples: dict[str, tuple[Sample, ...]] = field(default_factory=dict)
    """By rule."""
    numbers: dict[str, float] = field(default_factory=dict)
    """What the server knows of the run: all there is where the store cannot be read."""
    run: Run | None = None
    missing: tuple[str, ...] = ()


def facts_at_home(
    dataset: Dataset,
    store: ObjectStore,
    dataset_of: Callable[[str], Dataset],
    *,
    samples: int = 2,
    run: Run | None = None,
) -> Facts:
    """Return the facts of a dataset whose private store is at hand, with `samples` removals and edits per rule.

    `dataset_of` finds the description of an input by its id. Raises VerificationError where counts do not add up or
    bytes are not those that were registered, NotFoundError where the manifest is gone.
    """
    manifest = manifest_of(dataset, store)
    if manifest.get("stage") != "clean":
        text = not manifest and dataset.artifact_class in NEVER_CROSS
        if text and dataset.size_bytes > _PROFILED_BYTES:
            large = f"it has more than {_PROFILED_BYTES >> 20} MB in store and is not read for this page"
            return Facts(dataset=dataset, run=run, missing=(large,))
        return Facts(dataset=dataset, manifest=manifest, after=_profile(dataset, store) if text else None, run=run)
    counts = from_json(Counts, manifest["counts"], where=str(dataset.attributes["manifest_key"])).check()
    before, after = profiles_of(manifest, dataset.attributes["manifest_key"], store) or (None, None)
    missing: list[str] = []
    shown: dict[str, tuple[Sample, ...]] = {}
    if samples:
        try:
            shown = CleanStage(dataset, manifest, store, dataset_of).samples(min(samples, MAX_SAMPLES))
        except NotFoundError as fault:
            missing.append(f"no samples: the input can no longer be read ({fault.what}; {fault.where})")
    return Facts(
        dataset=dataset,
        manifest=manifest,
        counts=counts,
        before=before,
        after=after,
        samples=shown,
        run=run,
        missing=tuple(missing),
    )


def statistic_at_home(dataset: Dataset, store: ObjectStore, at_least: int = AT_LEAST) -> Statistic:
    """Return what may be told outside of what a text dataset is made of: class `statistic`, small cells suppressed.

    Raises UsageError for a dataset that is not text, or a bound below 3.
    """
    if dataset.artifact_class not in NEVER_CROSS:
        raise UsageError(
            f"{dataset.name} is {dataset.artifact_class.value}, not text",
            where=dataset.id,
            fix="name the clean or raw dataset it was made from; `consortium data trace` shows it",
        )
    both = profiles_of(manifest_of(dataset, store), dataset.attributes.get("manifest_key", ""), store)
    return suppressed(both[1] if both else _profile(dataset, store), at_least)


def manifest_of(dataset: Dataset, store: ObjectStore) -> dict[str, Any]:
    """Return the manifest of the stage that wrote a dataset, checked by its digest; empty for a collection."""
    key = dataset.attributes.get("manifest_key", "")
    return json.loads(store.get(key, digest=dataset.manifest_digest)) if key else {}


class CleanStage:
    """A finished clean stage, as those at home read it: one shard's tables and texts in memory at a time."""

    def __init__(
        self,
        dataset: Dataset,
        manifest: Mapping[str, Any],
        store: ObjectStore,
        dataset_of: Callable[[str], Dataset],
    ) -> None:
        self.dataset, self.manifest, self.store = dataset, manifest, store
        self.prefix = dataset.attributes["manifest_key"].partition("/manifests/")[0]
        self.config = from_json(CleanConfig, manifest["config"], where="config of the manifest")
        self._dataset_of = dataset_of
        self._input: Dataset | None = None

    @property
    def shards(self) -> int:
        """How many shards came in."""
        return len(self.manifest["index"])

    @property
    def input(self) -> Dataset:
        """The dataset that was cleaned. Raises VerificationError where it is not the manifest's."""
        if self._input is None:
            named = self.manifest["inputs"][0]
            found = self._dataset_of(named["id"])
            if [shard.digest for shard in found.shards] != list(named["shards"]):
                raise VerificationError(
                    f"{found.name} has other shards than the manifest of {self.dataset.name} names", where=found.id
                )
            self._input = found
        return self._input

    def index(self, shard: int) -> dict[str, list[Any]]:
        """Return what became of an input shard's documents: columns `document`, `rule`, `clean`, `clean_row`."""
        columns: dict[str, list[Any]] = self._table("index", self.manifest["index"][shard]).to_pydict()
        return columns

    def annotations(self, shard: int) -> list[Annotation]:
        """Return the annotations of an input shard: those of its screening, then those of its settling."""
        digests = self.manifest["annotations"]
        return [
            Annotation(**row)
            for digest in (digests[shard], digests[self.shards + shard])
            for row in self._table("annotations", digest).to_pylist()
        ]

    def documents(self, shard: int) -> list[Document]:
        """Return the documents of an input shard as they came."""
        found = self.input.shards[shard]
        return list(from_table(read_table(self.store.get(found.key, digest=found.digest), where=found.key)))

    def samples(self, per_rule: int) -> dict[str, tuple[Sample, ...]]:
        """Return some removals and edits per rule, the same for the same stage.

        Chosen are those with the lowest SHA-256 of rule and document hash: no order of the collection shows in it.
        """
        lowest: dict[str, list[tuple[str, int, Annotation]]] = {}
        for shard in range(self.shards):
            hashes = self.index(shard)["document"]
            first: dict[tuple[str, int], Annotation] = {}
            for note in self.annotations(shard):
                first.setdefault((note.rule, note.row), note)
            for (rule, row), note in first.items():
                rank = hashlib.sha256(f"{rule} {hashes[row]}".encode()).hexdigest()
                lowest.setdefault(rule, []).append((rank, shard, note))
            lowest = {rule: heapq.nsmallest(per_rule, found) for rule, found in lowest.items()}
        wanted: dict[int, set[int]] = {}
        for _, shard, note in (item for found in lowest.values() for item in found):
            wanted.setdefault(shard, set()).add(note.row)
        made = {(shard, note): sample for shard, rows in sorted(wanted.items())
                for note, sample in self._shown(shard, rows)}  # fmt: skip
        return {
            rule: tuple(made[shard, note] for _, shard, note in found if (shard, note) in made)
            for rule, found in sorted(lowest.items())
        }

    def _shown(self, shard: int, rows: set[int]) -> Iterator[tuple[Annotation, Sample]]:
        documents, hashes = self.documents(shard), self.index(shard)["document"]
        notes: dict[int, list[Annotation]] = {row: [] for row in sorted(rows)}
        for note in self.annotations(shard):
            if note.row in rows:
                notes[note.row].append(note)
        for row, noted in notes.items():
            history = replay(documents[row], self.config, noted)
            passages = dict(history.passages)  # none unless made again exactly
            for note in noted:
                text = without_personal_data(history.text, history.language) if note.start < 0 else ""
                sample = Sample(
                    document=hashes[row],
                    id=note.id,
                    shard=shard,
                    row=row,
                    language=documents[row].declared,
                    value=note.value,
                    threshold=note.threshold,
                    text=shortened(text, SAMPLE_CHARS),
                    passage=passages.get(note),
                )
                yield note, sample

    def _table(self, kind: str, digest: str) -> Any:
        key = f"{self.prefix}/{kind}/{digest.removeprefix('sha256:')}.parquet"
        return read_table(self.store.get(key, digest=digest), where=key)


def facts_from_server(dataset: Dataset, numbers: Mapping[str, Any], why: ConsortiumError, run: Run | None) -> Facts:
    """Return what can be shown away from home: the description, and the numbers that the run sent to the server."""
    known = {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}
    said = f"the private store of {dataset.site} cannot be read from here ({why.what}): numbers only, small ones hidden"
    return Facts(dataset=dataset, numbers=known, run=run, missing=(said,))


def _profile(dataset: Dataset, store: ObjectStore) -> Profile:
    """Read a text dataset, shard by shard."""
    tables = (read_table(store.get(shard.key, digest=shard.digest), where=shard.key) for shard in dataset.shards)
    return profile.total(profile.of(from_table(table)) for table in tables)


def parents_of(manifest: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the inputs that a manifest names, evaluation sets included."""
    return [*manifest.get("inputs", ()), *manifest.get("evaluation", ())]
