"""The ledger's proofs, usage, crossings and contribution reports."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query, Response
from sqlalchemy import func, select

from consortium.accounting.periods import bounds
from consortium.domain.codec import to_json
from consortium.domain.partner import Role
from consortium.errors import ForbiddenError, NotFoundError
from consortium.reports.build import build_report
from consortium.server.auth import CoreArg, ReaderArg, UserArg, need
from consortium.server.loop import drain
from consortium.state import tables as t

router = APIRouter(tags=["evidence"])


@router.get("/log/checkpoint", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def checkpoint(core: CoreArg, claims: ReaderArg) -> Response:
    """The signed checkpoint of the log (C2SP signed note)."""
    return Response(core.ledger.checkpoint(), media_type="text/plain; charset=utf-8")


@router.get("/log/entries")
def entries(
    core: CoreArg, claims: ReaderArg, start: int = Query(0, ge=0), count: int = Query(100, ge=1, le=1000)
) -> dict[str, Any]:
    """Leaves of the log in order, with salt and payload where not erased."""
    found = core.ledger.entries(start, count)
    return {"size": core.ledger.size, "entries": to_json(found)}


@router.get("/log/proof")
def proof(
    core: CoreArg,
    claims: ReaderArg,
    index: int | None = Query(None, ge=0),
    size: int | None = Query(None, ge=1),
    old: int | None = Query(None, ge=1),
) -> dict[str, Any]:
    """The inclusion proof of leaf `index`, or the consistency proof from `old` leaves, in the tree of `size`."""
    total = core.ledger.size if size is None else size
    answer: dict[str, Any] = {"size": total, "root": core.ledger.root_at(total)}
    if index is not None:
        answer |= {"index": index, "inclusion": core.ledger.inclusion(index, total)}
    if old is not None:
        answer |= {"old": old, "consistency": core.ledger.consistency(old, total)}
    return answer


@router.get("/usage")
def usage(core: CoreArg, claims: UserArg, period: str = "") -> list[dict[str, Any]]:
    """Metered GPU-milliseconds by account, site and flavor; rows that overlap earlier ones are counted apart."""
    gpu_ms = func.sum((t.usage.c.end_ms - t.usage.c.start_ms) * t.usage.c.gpus)
    conflict = t.usage.c.conflict != ""
    keys = (t.usage.c.account, t.usage.c.site, t.usage.c.flavor, conflict)
    query = select(*keys, gpu_ms, func.count()).group_by(*keys).order_by(*keys)
    if period:
        start_ms, end_ms = bounds(period)
        query = query.where((t.usage.c.start_ms >= start_ms) & (t.usage.c.start_ms < end_ms))
    with core.db.read() as connection:
        rows = list(connection.execute(query))
    return [
        {"account": row[0], "site": row[1], "flavor": row[2], "conflict": bool(row[3]), "gpu_ms": int(row[4]),
         "rows": int(row[5])}
        for row in rows
    ]  # fmt: skip


@router.get("/crossings")
def crossings(core: CoreArg, claims: UserArg, period: str = "", job: str = "") -> list[dict[str, Any]]:
    """What crossed borders: bytes and counts by sender, recipient, side and class."""
    keys = (t.crossings.c.sender, t.crossings.c.recipient, t.crossings.c.side, t.crossings.c.artifact_class)
    query = select(*keys, func.sum(t.crossings.c.size_bytes), func.sum(t.crossings.c.count)).group_by(*keys)
    if period:
        start_ms, end_ms = bounds(period)
        query = query.where((t.crossings.c.at_ms >= start_ms) & (t.crossings.c.at_ms < end_ms))
    if job:
        query = query.where(t.crossings.c.job == job)
    with core.db.read() as connection:
        rows = list(connection.execute(query.order_by(*keys)))
    return [
        {"sender": row[0], "recipient": row[1], "side": row[2], "artifact_class": row[3], "size_bytes": int(row[4]),
         "count": int(row[5])}
        for row in rows
    ]  # fmt: skip


@router.get("/reports/{partner}")
def report(partner: str, period: str, core: CoreArg, claims: UserArg) -> dict[str, Any]:
    """The contribution report of a partner for a month; its own auditors and admins may read it."""
    need(claims, Role.AUDITOR, Role.ADMIN)
    if partner not in core.federation.partners:
        raise NotFoundError(f"there is no partner {partner!r}", fix=f"partners: {', '.join(core.federation.partners)}")
    if claims.partner != partner:
        raise ForbiddenError(f"the report of {partner} is for its own auditors and admins", where=claims.subject)
    drain(core)
    return build_report(
        partner=partner,
        period=period,
        log=core.ledger,
        sites=tuple(core.federation.sites.values()),
        trust=core.trust,
        key=core.key,
        made_ms=core.clock.now_ms(),
    )
