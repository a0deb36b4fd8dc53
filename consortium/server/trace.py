"""Lineage: from a dataset or a model back to the registered collections, with the jobs and licences between."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from consortium.domain import ids
from consortium.domain.data import Dataset
from consortium.domain.job import Job
from consortium.state import data, jobs


def trace(connection: Connection, root: str) -> dict[str, Any]:
    """Return the graph behind `root` (a dataset's id or name, or a job's id).

    `datasets` and `jobs` are the nodes; `edges` run from what was read to what was made. Raises NotFoundError.
    """
    datasets: dict[str, dict[str, Any]] = {}
    made: dict[str, dict[str, Any]] = {}
    edges: set[tuple[str, str]] = set()
    start = root if ids.is_id(root, "job") else data.find_dataset(connection, root).id
    todo = [start]
    while todo:
        node = todo.pop()
        if node in datasets or node in made:
            continue
        if ids.is_id(node, "job"):
            job = jobs.find_job(connection, node)
            made[node] = _job(job)
            sources = [*job.spec.inputs, *([job.spec.model] if job.spec.model else [])]
        else:
            found = data.find_dataset(connection, node)
            maker = data.made_by(connection, found.id)
            datasets[node] = _dataset(found) | {"made_by": maker}
            sources = [*found.parents, *([maker] if maker else [])]
        edges |= {(source, node) for source in sources}
        todo += sources
    roots = [item for item in datasets.values() if not item["made_by"]]
    return {
        "root": start,
        "datasets": [datasets[key] for key in sorted(datasets)],
        "jobs": [made[key] for key in sorted(made)],
        "edges": [list(edge) for edge in sorted(edges)],
        "licences": sorted({item["licence"] for item in roots}),
        "collections": sorted(item["id"] for item in roots),
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.spec.kind.value,
        "name": job.spec.name,
        "state": job.state.value,
        "purpose": job.spec.purpose,
        "submitter": job.spec.submitter,
        "code_digest": job.spec.code_digest,
        "manifests": {site: part.get("manifest_digest", "") for site, part in sorted(job.result.items())},
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
        "documents": found.documents,
        "size_bytes": found.size_bytes,
        "tokens": found.tokens,
        "shards": [shard.digest for shard in found.shards],
        "manifest_digest": found.manifest_digest,
    }
