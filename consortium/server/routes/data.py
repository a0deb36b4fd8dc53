"""Datasets and where models come from."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset
from consortium.domain.partner import Role
from consortium.domain.records import RecordType
from consortium.errors import ForbiddenError, UsageError
from consortium.keys.roster import verify_dataset
from consortium.server.auth import CoreArg, ReaderArg, UserArg, need
from consortium.server.descriptions import check_description
from consortium.server.trace import trace as walk
from consortium.state import data

router = APIRouter(prefix="/datasets", tags=["data"])


class Registration(BaseModel):
    """A dataset, with the calling person's signature over its canonical JSON."""

    model_config = ConfigDict(extra="forbid")

    dataset: dict[str, Any]
    signature: str = Field(max_length=200)
    person: str = Field(default="", max_length=200)


@router.post("", status_code=201)
def register(body: Registration, core: CoreArg, claims: UserArg) -> dict[str, Any]:
    """Register a dataset that lies at a site; an engineer or admin of its partner does."""
    need(claims, Role.ENGINEER, Role.ADMIN)
    dataset = from_json(Dataset, body.dataset, where="dataset")
    if claims.partner != dataset.partner:
        raise ForbiddenError(f"{dataset.name} lies at {dataset.site}: only {dataset.partner}'s people register it")
    site = core.federation.site(dataset.site)
    if dataset.territory != site.territory:
        raise UsageError(
            f"{dataset.site} stands in {site.territory!r}, not in {dataset.territory!r}", where=dataset.name
        )
    if not dataset.shards:
        raise UsageError("a dataset needs at least one shard", where=dataset.name)
    check_description(dataset)
    if body.person not in ("", claims.subject):
        raise ForbiddenError(f"{claims.subject} cannot register in the name of {body.person}", where=dataset.name)
    person = verify_dataset(dataset, claims.subject, body.signature, core.federation.rosters)
    with core.db.write() as connection:
        now_ms = core.clock.now_ms()
        fresh = data.insert_dataset(connection, dataset, now_ms=now_ms, signer=person.id, signature=body.signature)
        if fresh:
            record = {"dataset": dataset, "job": "", "leg": "", "signer": person.id, "signature": body.signature}
            core.record(connection, RecordType.DATASET, to_json(record))
    core.bell.set()
    answer: dict[str, Any] = to_json(dataset)
    return answer


@router.get("")
def listing(core: CoreArg, claims: ReaderArg, name: str = "") -> list[dict[str, Any]]:
    """List all versions of all datasets, or of one name."""
    with core.db.read() as connection:
        found: list[dict[str, Any]] = to_json(data.list_datasets(connection, name))
    return found


@router.get("/{dataset}")
def show(dataset: str, core: CoreArg, claims: ReaderArg) -> dict[str, Any]:
    """Show a dataset by id, by `name@version`, or the latest version of a name."""
    with core.db.read() as connection:
        found: dict[str, Any] = to_json(data.find_dataset(connection, dataset))
    return found


@router.get("/{dataset}/trace")
def trace(dataset: str, core: CoreArg, claims: ReaderArg) -> dict[str, Any]:
    """Walk a dataset, or the model of a pretrain job, back to the collections behind it."""
    with core.db.read() as connection:
        return walk(connection, dataset)
