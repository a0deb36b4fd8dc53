"""From a collection to a dataset in the state's private store: content-addressed Parquet text shards.

Files are read in the order of their names, in a process of their own (`readers.apart`), and cut into shards of about
4 MiB of text; what could not be read is listed beside them. After every shard the journal (`uploads`) says how far it
is, so a run that was killed goes on there and writes the same bytes as one that was not. Memory, whatever the size of
the input: one shard (about ten times its text), the reader's (bounded at 3 GB of address space; 0.2 GB are usual), and
about 0.5 kB per file and 0.3 kB per shard.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from consortium.data.documents import UNKNOWN, Document, to_columns
from consortium.data.language import codes_of, unknown_among
from consortium.data.progress import Advance, Progress
from consortium.data.readers import Item, Quarantined, Source, find
from consortium.data.readers.apart import Reader
from consortium.data.readers.sources import Stores
from consortium.data.suppression import AT_LEAST
from consortium.data.uploads import Journal
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import ArtifactClass, Dataset, Description, Shard
from consortium.errors import UsageError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import write_text

SHARD_TEXT_BYTES = 4 << 20
"""Text per shard."""
_MAX_KEPT_REASONS = 10_000
_LICENCE = re.compile(r"[^\W_][\w .,:;/()+&'-]{0,79}")
"""What may stand in the description, which every partner reads, as a document's licence: a name, not a text."""
_MAX_KEPT_NAMES = 64
"""Different languages and licences that are taken from documents; each document keeps its own."""


def register_collection(
    paths: Sequence[str | Path],
    store: ObjectStore,
    name: str,
    site: str,
    *,
    dataset_id: str,
    territory: str = "",
    version: int = 1,
    languages: Sequence[str] = (),
    licence: str = "",
    source: str = "",
    categories: Sequence[str] = (),
    about: Description | None = None,
    keep_contributors: bool = False,
    shard_text_bytes: int = SHARD_TEXT_BYTES,
    stores: Stores | None = None,
    progress: Progress | None = None,
    note: Callable[[str], object] = lambda _: None,
) -> Dataset:
    """Write the collections at `paths` (files, folders, `s3://bucket/prefix`) into `store` and return their dataset.

    Empty `languages`, `licence` and `source` are taken from the documents. `territory` defaults to the site's partner.
    Where `about` names one contributor, all documents are its own, whatever they say: who registers knows who gave the
    files, and a row could name an institution that is to be accused in its place, or many that nobody knows. With
    `keep_contributors` only documents that name none get it. `progress` is told bytes of the files read,
    documents and bytes of text, since this run began; `note` what a person should know. What could not be read stands
    in the object that attribute `quarantine_key` names, with its counts by reason in the last line; what the attributes
    `quarantined` and `quarantine_reasons` say of them every partner reads, so counts below ten are not told there.

    Raises NotFoundError for absent paths, UsageError where nothing in them can be read, ConflictError where a file
    changes while it is read, and errors of the stores. Run again on the same input it goes on where it was; `finish`
    ends that.
    """
    return Upload(
        paths,
        store,
        name,
        about=about,
        keep_contributors=keep_contributors,
        shard_text_bytes=shard_text_bytes,
        stores=stores,
        progress=progress,
        note=note,
    ).run(
        site,
        dataset_id=dataset_id,
        territory=territory,
        version=version,
        languages=languages,
        licence=licence,
        source=source,
        categories=categories,
    )


@dataclass(slots=True)
class _State:
    """Everything before item `item` of file `file`: what was counted, and the shards it is in."""

    file: int = 0
    item: int = 0
    documents: int = 0
    text_bytes: int = 0
    languages: set[str] = field(default_factory=set)
    licences: set[str] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)
    kept: list[Quarantined] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)

    def count(self, item: Item) -> None:
        if isinstance(item, Quarantined):
            self.reasons[item.reason] += 1
            if len(self.kept) < _MAX_KEPT_REASONS:
                self.kept.append(item)
            return
        self.documents += 1
        self.text_bytes += len(item.text.encode())
        if len(self.languages) < _MAX_KEPT_NAMES:
            self.languages.add(item.language)
        if _LICENCE.fullmatch(item.licence) and len(self.licences) < _MAX_KEPT_NAMES:
            self.licences.add(item.licence)

    def entry(self, kept_before: int, shard: Shard | None) -> dict[str, Any]:
        return {
            "file": self.file,
            "item": self.item,
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            "languages": sorted(self.languages),
            "licences": sorted(self.licences),
            "reasons": dict(self.reasons),
            "quarantined": [asdict(item) for item in self.kept[kept_before:]],
            "shard": None if shard is None else to_json(shard),
        }

    @classmethod
    def after(cls, entries: Sequence[dict[str, Any]]) -> _State:
        if not entries:
            return cls()
        last = entries[-1]
        return cls(
            file=last["file"],
            item=last["item"],
            documents=last["documents"],
            text_bytes=last["text_bytes"],
            languages=set(last["languages"]),
            licences=set(last["licences"]),
            reasons=Counter(last["reasons"]),
            kept=[Quarantined(**item) for entry in entries for item in entry["quarantined"]],
            shards=[from_json(Shard, entry["shard"]) for entry in entries if entry["shard"] is not None],
        )


class Upload:
    """One collection on its way into a store. `run` it; `finish` it when its dataset is registered."""

    def __init__(
        self,
        paths: Sequence[str | Path],
        store: ObjectStore,
        name: str,
        *,
        about: Description | None = None,
        keep_contributors: bool = False,
        shard_text_bytes: int = SHARD_TEXT_BYTES,
        stores: Stores | None = None,
        progress: Progress | None = None,
        note: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.paths = [str(path) for path in paths]
        self.about = about or Description()
        self._store, self._name, self._progress, self._note = store, name, progress, note
        self._shard_text_bytes = shard_text_bytes
        self._contributor = self.about.contributors[0] if len(self.about.contributors) == 1 else ""
        self._sources = find(self.paths, stores=stores)
        given = [path if path.startswith("s3://") else os.path.realpath(path) for path in self.paths]
        self._keep_contributors = keep_contributors
        how = {"shard_text_bytes": shard_text_bytes, "contributor": self._contributor, "keep": keep_contributors}
        self._journal = Journal(store, name, given, self._sources, how)
        self.resumed = False
        """Whether an earlier run left something; it may also have registered the dataset."""

    def run(
        self,
        site: str,
        *,
        dataset_id: str,
        territory: str = "",
        version: int = 1,
        languages: Sequence[str] = (),
        licence: str = "",
        source: str = "",
        categories: Sequence[str] = (),
    ) -> Dataset:
        """Read, write what is not there yet, and return the raw dataset; as `register_collection`."""
        named = codes_of(languages)
        state = self._written()
        if not state.shards:
            raise UsageError(
                f"no document could be read: {_summary(state) or 'the files are empty'}",
                where=", ".join(self.paths),
                fix="each document needs a text in UTF-8 (column or key 'text', or a file of its own)",
            )
        spoken = named or tuple(sorted(state.languages - {UNKNOWN}))
        if unknown := unknown_among(spoken):
            said = f"the language model does not know {', '.join(unknown)}"
            self._note(f"{said}: `clean` keeps of those documents what looks like another language")
        return Dataset(
            id=dataset_id,
            name=self._name,
            version=version,
            site=site,
            territory=territory or site[:2],
            artifact_class=ArtifactClass.RAW,
            languages=spoken,
            licence=licence or "; ".join(sorted(state.licences)) or "unknown",
            source=source or ", ".join(sorted({Path(path).name for path in self.paths})),
            shards=tuple(state.shards),
            categories=tuple(categories),
            attributes=self._attributes(state),
            about=self.about,
        )

    def finish(self) -> None:
        """Forget how far it was."""
        self._journal.forget()

    def _written(self) -> _State:
        """Write all shards that are not there yet and return what they make together."""
        entries = self._journal.entries()
        state = _State.after(entries)
        self.resumed = bool(entries)
        if entries:
            self._note(f"going on after {state.documents:,} documents that an earlier run wrote")
        elif self._journal.drop_older():
            self._note("the input, or the program, changed since an upload that was not finished: starting anew")
        advance = _Advancing(self._sources, state, self._progress)
        kept, held, batch = len(state.kept), 0, list[Document]()
        number = len(entries)

        def flush() -> None:
            nonlocal kept, held, number
            data = write_text(to_columns(batch))
            key, found = self._store.put_addressed(f"datasets/{self._name}", data, ".parquet")
            shard = Shard(key=key, digest=found, size_bytes=len(data), documents=len(batch))
            state.shards.append(shard)
            self._journal.add(number, state.entry(kept, shard))
            number, kept, held = number + 1, len(state.kept), 0
            batch.clear()

        with Reader() as reader:
            for item in self._items(reader, state, advance):
                if isinstance(item, Document):
                    if self._contributor and not (self._keep_contributors and item.contributor):
                        item = replace(item, contributor=self._contributor)
                    size = len(item.text.encode())
                    if batch and held + size > self._shard_text_bytes:
                        flush()
                    batch.append(item)
                    held += size
                state.count(item)
                state.item += 1
                advance.tell(state)
        if batch:
            flush()
        advance.tell(state, last=True)
        return state

    def _items(self, reader: Reader, state: _State, advance: _Advancing) -> Iterator[Item]:
        """Yield all items from where `state` stands on: before the item that is yielded, till the caller counts it."""
        while state.file < len(self._sources):
            source = self._sources[state.file]
            yield from reader.read(source, state.item, advance.moved)
            source.check()
            advance.passed(source)
            state.file, state.item = state.file + 1, 0

    def _attributes(self, state: _State) -> dict[str, str]:
        """Write what was quarantined beside the dataset and return its counts, all as strings."""
        found = {"text_bytes": str(state.text_bytes), "quarantined": _told_total(state)}
        if state.kept:
            self._note(f"not readable: {_summary(state)}")
            lines = [*map(asdict, state.kept), {"counts": dict(state.reasons)}]
            data = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines).encode()
            found["quarantine_key"] = self._store.put_addressed(f"datasets/{self._name}/quarantine", data, ".jsonl").key
            found["quarantine_reasons"] = ", ".join(
                f"{count if count >= AT_LEAST else f'fewer than {AT_LEAST}'} {reason}"
                for reason, count in sorted(state.reasons.items())
            )
        return found


class _Advancing:
    """Tells how far this run is, in bytes of the files read; what earlier runs read does not count."""

    def __init__(self, sources: Sequence[Source], state: _State, progress: Progress | None) -> None:
        self._progress = progress
        self._whole = sum(source.size_bytes for source in sources[state.file :])
        self._documents, self._text_bytes = state.documents, state.text_bytes
        self._passed = self._at = 0

    def moved(self, at: int) -> None:
        self._at = at

    def passed(self, source: Source) -> None:
        self._passed, self._at = self._passed + source.size_bytes, 0

    def tell(self, state: _State, last: bool = False) -> None:
        if self._progress is not None:
            done = self._whole if last else max(0, min(self._passed + self._at, self._whole - 1))
            documents, text_bytes = state.documents - self._documents, state.text_bytes - self._text_bytes
            self._progress(Advance("register", done, self._whole, documents, text_bytes))


def _told_total(state: _State) -> str:
    """Return what the description says of how much could not be read: nothing that tells a reason's small count."""
    small = [count for count in state.reasons.values() if count < AT_LEAST]
    if not small:
        return str(state.reasons.total())
    return f"at least {state.reasons.total() - sum(small) + len(small)}"


def _summary(state: _State) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(state.reasons.items()))
