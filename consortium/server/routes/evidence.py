"""The ledger's proofs, usage, crossings and contribution reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from fastapi import APIRouter, Query, Response
from sqlalchemy import func, select

from consortium.accounting.crossings import border_sums
from consortium.accounting.periods import bounds
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Crossing
from consortium.domain.ids import partner_of
from consortium.domain.partner import Role
from consortium.errors import ForbiddenError, NotFoundError
from consortium.reports.build import build_report
from consortium.server.auth import AuditorArg, CoreArg, ReaderArg, UserArg, need
from consortium.server.loop import drain
from consortium.state import tables as t
from consortium.state.shares import METERED_MS

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
def usage(core: CoreArg, claims: UserArg, period: str = "") -> dict[str, Any]:
    """Metered GPU-milliseconds: `rows` by account, site and flavor, `partners` with what each delivered and consumed.

    Rows that overlap earlier ones of their leg, or are not of a lease as the server knows it, are listed with
    `conflict` and counted for nobody.
    """
    conflict = t.usage.c.conflict != ""
    keys = (t.usage.c.account, t.usage.c.site, t.usage.c.flavor, conflict, t.usage.c.gpus)
    query = select(*keys, METERED_MS, func.count()).group_by(*keys).order_by(*keys)
    if period:
        start_ms, end_ms = bounds(period)
        query = query.where((t.usage.c.start_ms >= start_ms) & (t.usage.c.start_ms < end_ms))
    with core.db.read() as connection:
        found = _without_gpus(connection.execute(query))
    partners = {name: {"delivered_gpu_ms": 0, "consumed_gpu_ms": 0} for name in core.federation.partners}
    for account, site, _, overlaps, amount, _ in found:
        for partner, side in ((partner_of(site), "delivered_gpu_ms"), (partner_of(account), "consumed_gpu_ms")):
            if partner in partners and not overlaps:
                partners[partner][side] += amount
    rows = [
        {"account": row[0], "site": row[1], "flavor": row[2], "conflict": row[3], "gpu_ms": row[4], "rows": row[5]}
        for row in found
    ]  # fmt: skip
    return {"rows": rows, "partners": partners}


def _without_gpus(found: Iterable[Any]) -> list[tuple[str, str, str, bool, int, int]]:
    """Return account, site, flavor, conflict, GPU-milliseconds and count of sums that were made by number of GPUs."""
    sums: dict[tuple[str, str, str, bool], tuple[int, int]] = {}
    for account, site, flavor, conflict, gpus, held_ms, count in found:
        key = (account, site, flavor, bool(conflict))
        gpu_ms, rows = sums.get(key, (0, 0))
        sums[key] = gpu_ms + gpus * int(held_ms), rows + int(count)
    return [(*key, *amounts) for key, amounts in sums.items()]


@router.get("/crossings")
def crossings(core: CoreArg, claims: UserArg, period: str = "", job: str = "") -> list[dict[str, Any]]:
    """What crossed borders, by sender, recipient and class, as both sides recorded it."""
    query = select(t.crossings)
    if period:
        start_ms, end_ms = bounds(period)
        query = query.where((t.crossings.c.at_ms >= start_ms) & (t.crossings.c.at_ms < end_ms))
    if job:
        query = query.where(t.crossings.c.job == job)
    names = [name.name for name in fields(Crossing)]
    with core.db.read() as connection:
        rows = [from_json(Crossing, {name: row[name] for name in names}, where="crossings")
                for row in connection.execute(query).mappings()]  # fmt: skip
    return [
        {"from": item.sender, "to": item.recipient, "class": item.artifact_class.value, "bytes": item.size_bytes,
         "count": item.count, "released_bytes": item.released_bytes, "received_bytes": item.received_bytes,
         "released_count": item.released_count, "received_count": item.received_count, "agree": item.agree}
        for item in border_sums(rows)
    ]  # fmt: skip


@router.get("/reports/{partner}")
def report(partner: str, period: str, core: CoreArg, claims: AuditorArg) -> dict[str, Any]:
    """The contribution report of a partner for a month; its own auditors and admins may read it.

    Those of a partner that has left, too, as long as its keys are known.
    """
    need(claims, Role.AUDITOR, Role.ADMIN)
    known = sorted({*core.federation.partners, *core.trust.partners})
    if partner not in known:
        raise NotFoundError(f"there is no partner {partner!r}", fix=f"partners: {', '.join(known)}")
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
