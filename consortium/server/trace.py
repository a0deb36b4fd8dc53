"""Lineage, both ways: from data or a model back to the registered collections, and on to what was made of it.

Every dataset and job comes with the ledger's records of it, so that an auditor can ask for the inclusion proof of each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Connection, String, case, cast, or_, select

from consortium.domain import ids
from consortium.domain.codec import to_json
from consortium.domain.data import Dataset
from consortium.domain.ids import SERVER
from consortium.domain.job import Job, JobKind
from consortium.domain.records import RecordType
from consortium.errors import NotFoundError, UsageError
from consortium.state import data, jobs
from consortium.state import tables as t

MIN_HEX = 12
"""Digits of a digest that stand for the whole, where no other shard begins with them."""
_HEX = re.compile(rf"sha256:[0-9a-f]{{{MIN_HEX},64}}\Z")
_OF_JOBS = (RecordType.JOB, RecordType.MANIFEST, RecordType.RUN, RecordType.ROUND)


def trace(connection: Connection, root: str) -> dict[str, Any]:
    """Return the graph around `root`: a dataset's id or name, a job's id, or a shard's digest (or how it begins).

    `datasets` and `jobs` are the nodes; `edges` run from what was read to what was made, back to the `collections`
    behind the root and on to what was made of it. `models` are the pretrain jobs among what was made, or the root.
    `records` has by node the ledger's records: id, type and leaf number, null until the ledger has it. Raises
    NotFoundError, and UsageError where a digest is too short or stands for several shards.
    """
    shard: dict[str, Any] = {}
    if root.startswith("sha256:"):
        digest, holders = _shard(connection, root)
        shard = {"digest": digest, "in": [_place(holder, digest) for holder in holders]}
        starts = [holder.id for holder in holders]
    else:
        digest = ""
        starts = [root if ids.is_id(root, "job") else _named(connection, root)]
    graph = _Graph(connection)
    back = graph.walk(starts, graph.sources)
    on = graph.walk(starts, graph.consumers)
    found = [graph.datasets[key] for key in sorted(graph.datasets)]
    collections = [item for item in found if item["id"] in back and not item["made_by"]]
    models = [graph.jobs[key] for key in sorted(on & graph.jobs.keys())]
    return {
        "root": digest or starts[0],
        "shard": shard,
        "datasets": found,
        "jobs": [graph.jobs[key] for key in sorted(graph.jobs)],
        "edges": [list(edge) for edge in sorted(graph.edges)],
        "licences": sorted({item["licence"] for item in collections}),
        "legal_bases": sorted({text for item in collections for text in item["about"].get("legal_basis", ())}),
        "collections": [item["id"] for item in collections],
        "models": [item["id"] for item in models if item["kind"] == JobKind.PRETRAIN.value],
        "records": _records(connection, graph),
    }


def _named(connection: Connection, name: str) -> str:
    """Return the id of a dataset by its name or id; NotFoundError, also of what begins as ids of jobs do."""
    try:
        return data.find_dataset(connection, name).id
    except NotFoundError:
        if not name.startswith("job-"):
            raise
        raise NotFoundError(f"there is no job {name!r}", fix="list them with: consortium jobs") from None


class _Graph:
    """Nodes and edges as they are come by."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.datasets: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.edges: set[tuple[str, str]] = set()

    def walk(self, starts: list[str], neighbours: Callable[[str], list[str]]) -> set[str]:
        """Follow `neighbours` from `starts` on; return all nodes on the way, the starts too."""
        seen: set[str] = set()
        todo = list(starts)
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += neighbours(node)
        return seen

    def sources(self, node: str) -> list[str]:
        """Return what a node was made of: a dataset's parents, a job's inputs and model.

        A job that made several datasets read more than went into one of them: only a dataset's own parents count.
        """
        if ids.is_id(node, "job"):
            found = self._job(node).spec
            read = [*found.inputs, *([found.reads_model] if found.reads_model else [])]
        else:
            read = list(self._dataset(node).parents)
            maker = self.datasets[node]["made_by"]
            if maker:
                self._job(maker)
                self.edges |= {(maker, node), *((parent, maker) for parent in read)}
                read = read or [maker]
        self.edges |= {(source, node) for source in read}
        return read

    def consumers(self, node: str) -> list[str]:
        """Return what was made of a node: of a dataset others and models, of a job its datasets and measurements."""
        if ids.is_id(node, "job"):
            self._job(node)
            found = [other.id for other in self._jobs_naming(node) if other.spec.reads_model == node]
            found += [made.id for made in data.outputs_of(self._connection, node)]
        else:
            self._dataset(node)
            ends = (JobKind.PRETRAIN, JobKind.EVALUATE)  # the other kinds go on by the datasets they made
            naming = self._jobs_naming(node)
            found = [other.id for other in naming if node in other.spec.inputs and other.spec.kind in ends]
            for child in self._datasets_naming(node):
                maker = data.made_by(self._connection, child.id)
                if node in child.parents:
                    found.append(child.id)
                if node in child.parents and maker:
                    self._job(maker)
                    self.edges |= {(node, maker), (maker, child.id)}
        self.edges |= {(node, other) for other in found}
        return found

    def _dataset(self, key: str) -> Dataset:
        found = data.find_dataset(self._connection, key)
        self.datasets[key] = _dataset(found) | {"made_by": data.made_by(self._connection, key)}
        return found

    def _job(self, key: str) -> Job:
        found = jobs.find_job(self._connection, key)
        self.jobs[key] = _job(found)
        return found

    def _jobs_naming(self, node: str) -> list[Job]:
        query = select(t.jobs.c.id).where(cast(t.jobs.c.spec, String).contains(node)).order_by(t.jobs.c.id)
        return [jobs.find_job(self._connection, key) for key in self._connection.execute(query).scalars()]

    def _datasets_naming(self, node: str) -> list[Dataset]:
        query = select(t.datasets.c.id).where(cast(t.datasets.c.doc, String).contains(node)).order_by(t.datasets.c.id)
        return [data.find_dataset(self._connection, key) for key in self._connection.execute(query).scalars()]


def _shard(connection: Connection, text: str) -> tuple[str, list[Dataset]]:
    """Return a shard's whole digest and the datasets that hold it."""
    if not _HEX.match(text):
        raise UsageError(
            f"not a shard's digest: {text[:80]!r}", fix=f"sha256: and 64 hex digits, or the first {MIN_HEX} or more"
        )
    query = select(t.datasets.c.id).where(cast(t.datasets.c.doc, String).contains(text)).order_by(t.datasets.c.id)
    found: dict[str, list[Dataset]] = {}
    for key in connection.execute(query).scalars():
        dataset = data.find_dataset(connection, key)
        for digest in sorted({shard.digest for shard in dataset.shards if shard.digest.startswith(text)}):
            found.setdefault(digest, []).append(dataset)
    if not found:
        raise NotFoundError(
            f"no dataset has a shard {text}",
            fix="`consortium data show DATASET` lists shards; a document's hash is given without sha256:",
        )
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} shards begin with {text}", where=", ".join(sorted(found)[:4]), fix="give more digits"
        )
    return found.popitem()


def _place(holder: Dataset, digest: str) -> dict[str, Any]:
    number = next(i for i, shard in enumerate(holder.shards) if shard.digest == digest)
    shard = holder.shards[number]
    counts = {"documents": shard.documents, "tokens": shard.tokens, "size_bytes": shard.size_bytes}
    return {"dataset": holder.id, "number": number, "of": len(holder.shards), **counts}


def _records(connection: Connection, graph: _Graph) -> dict[str, list[dict[str, Any]]]:
    """Return by node what the ledger has of it: of a dataset its registration, of a job all but earlier rounds.

    What a site wrote of a job that it had no part in is left out.
    """
    of_datasets = t.records.c.payload[("body", "dataset", "id")].as_string()
    of_jobs = t.records.c.payload[("body", "job")].as_string()
    types = [kind.value for kind in _OF_JOBS]
    wanted = or_(
        (t.records.c.type == RecordType.DATASET.value) & of_datasets.in_(sorted(graph.datasets)),
        t.records.c.type.in_(types) & of_jobs.in_(sorted(graph.jobs)),
    )
    node = case((t.records.c.type == RecordType.DATASET.value, of_datasets), else_=of_jobs).label("node")
    columns = (t.records.c.record_id, t.records.c.type, t.records.c.ledger_index, t.records.c.origin, node)
    parts = select(t.legs.c.site, t.legs.c.job).where(t.legs.c.job.in_(sorted(graph.jobs)))
    theirs = {tuple(row) for row in connection.execute(parts)}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in connection.execute(select(*columns).where(wanted).order_by(t.records.c.at_ms, t.records.c.record_id)):
        if row.origin != SERVER and (row.origin, row.node) not in theirs:
            continue
        kept = "round" if row.type == RecordType.ROUND.value else row.record_id  # of the rounds, the last
        found.setdefault(row.node, {})[kept] = {"record": row.record_id, "type": row.type, "leaf": row.ledger_index}
    return {node: list(found[node].values()) for node in sorted(found)}


def _job(job: Job) -> dict[str, Any]:
    metrics: Iterable[dict[str, Any]] = (part.get("metrics", {}) for _, part in sorted(job.result.items()))
    return {
        "id": job.id,
        "kind": job.spec.kind.value,
        "name": job.spec.name,
        "state": job.state.value,
        "purpose": job.spec.purpose,
        "submitter": job.spec.submitter,
        "code_digest": job.spec.code_digest,
        "manifests": {site: part.get("manifest_digest", "") for site, part in sorted(job.result.items())},
        "outer_digest": next((found["outer_digest"] for found in metrics if "outer_digest" in found), ""),
        "tracking_run": job.tracking_run,
    }


def _dataset(found: Dataset) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "version": found.version,
        "site": found.site,
        "territory": found.territory,
        "artifact_class": found.artifact_class.value,
        "languages": list(found.languages),
        "licence": found.licence,
        "source": found.source,
        "about": to_json(found.about),
        "documents": found.documents,
        "size_bytes": found.size_bytes,
        "tokens": found.tokens,
        "shards": [shard.digest for shard in found.shards],
        "manifest_digest": found.manifest_digest,
    }
