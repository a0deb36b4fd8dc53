"""The operator's side of sites: drain and resume, recall with notice, cordons, maintenance windows, reservations."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from consortium.domain.codec import to_json
from consortium.domain.partner import Role, Site, SiteState
from consortium.domain.records import RecordType
from consortium.errors import ConflictError, ForbiddenError, NotFoundError, UsageError
from consortium.keys.tokens import Claims
from consortium.scheduler.types import Window, WindowKind
from consortium.server import nodes, snapshots
from consortium.server.auth import CoreArg, UserArg, need
from consortium.server.core import Core
from consortium.state import nodes as store
from consortium.state import windows
from consortium.state.sites import SiteStatus, all_sites, update_site
from consortium.state.windows import PlannedWindow

router = APIRouter(tags=["sites"])
MAX_AHEAD_MS = 366 * 86_400_000
Json = dict[str, Any]


class Notice(BaseModel):
    """A site's recall: from now it takes no leg that would outlive the notice."""

    model_config = ConfigDict(extra="forbid")

    notice_s: int = Field(ge=0, le=366 * 86_400)


class CordonReason(BaseModel):
    """Why a node is cordoned."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=500)


class Interval(BaseModel):
    """A window as its planner gives it; no nodes: all of the site."""

    model_config = ConfigDict(extra="forbid")

    kind: WindowKind
    start_ms: int
    end_ms: int
    nodes: list[str] = Field(default=[], max_length=10_000)
    account: str = ""


@router.get("/sites")
def sites(core: CoreArg, claims: UserArg) -> list[Json]:
    """List sites with their state, health, GPUs and how many of them are held, cordoned nodes and coming windows."""
    return _sites(core)


@router.post("/sites/{site}/drain")
def drain(site: str, core: CoreArg, claims: UserArg) -> Json:
    """Let a site finish its legs and take no new ones; admins of its partner may."""
    _own(core, claims, site)
    with core.db.write() as connection:
        now = _status(connection, site).state
        if now is SiteState.WITHDRAWN:
            raise ConflictError(f"{site} was withdrawn by its partner", where=site, fix="resume it first")
        if now not in (SiteState.DRAINING, SiteState.DRAINED):
            update_site(connection, site, state=SiteState.DRAINING)
            _record(core, connection, claims, site, SiteState.DRAINING.value)
    return _told(core, site)


@router.post("/sites/{site}/resume")
def resume(site: str, core: CoreArg, claims: UserArg) -> Json:
    """Let a drained or recalled site take legs again; admins of its partner may."""
    _own(core, claims, site)
    with core.db.write() as connection:
        now = _status(connection, site)
        if now.state is not SiteState.ACTIVE or now.withdraw_ms:
            update_site(connection, site, state=SiteState.ACTIVE, withdraw_ms=0)
            _record(core, connection, claims, site, SiteState.ACTIVE.value)
    return _told(core, site)


@router.post("/sites/{site}/withdraw")
def withdraw(site: str, body: Notice, core: CoreArg, claims: UserArg) -> Json:
    """Recall a site: when the notice is over, what still runs there is stopped; admins of its partner may."""
    _own(core, claims, site)
    ends_ms = core.clock.now_ms() + body.notice_s * 1000
    with core.db.write() as connection:
        if _status(connection, site).state is SiteState.WITHDRAWN:
            raise ConflictError(f"{site} is withdrawn already", where=site, fix="resume it first")
        update_site(connection, site, withdraw_ms=ends_ms)
        _record(core, connection, claims, site, "recalled", withdraw_ms=ends_ms)
    return _told(core, site)


@router.post("/sites/{site}/nodes/{node}/cordon")
def cordon(site: str, node: str, body: CordonReason, core: CoreArg, claims: UserArg) -> Json:
    """Let a node take no new legs; those that run there go on. Admins of its partner may."""
    _known_node(_own(core, claims, site), node)
    with core.db.write() as connection:
        now_ms, by = core.clock.now_ms(), claims.subject
        if store.cordon(connection, site, node, by=by, reason=body.reason, now_ms=now_ms):
            nodes.record_cordon(core, connection, site, node, "cordoned", by=by, reason=body.reason)
    return _told(core, site)


@router.post("/sites/{site}/nodes/{node}/uncordon")
def uncordon(site: str, node: str, core: CoreArg, claims: UserArg) -> Json:
    """End a node's cordon; its faults so far count no more. Admins of its partner may."""
    own = _own(core, claims, site)
    with core.db.write() as connection:
        if store.uncordon(connection, site, node, core.clock.now_ms()):
            nodes.record_cordon(core, connection, site, node, "uncordoned", by=claims.subject, reason="")
        else:
            _known_node(own, node)
    return _told(core, site)


@router.get("/windows")
def planned(core: CoreArg, claims: UserArg, site: str = "") -> list[Json]:
    """List maintenance windows and reservations that are not over, by start."""
    if site:
        core.federation.site(site)
    with core.db.read() as connection:
        return [_render(item) for item in windows.standing(connection, core.clock.now_ms(), site=site)]


@router.post("/sites/{site}/windows", status_code=201)
def plan(site: str, body: Interval, core: CoreArg, claims: UserArg) -> Json:
    """Set nodes of a site aside for an interval; admins of its partner may."""
    own, now_ms = _own(core, claims, site), core.clock.now_ms()
    for node in body.nodes:
        _known_node(own, node)
    if not now_ms < body.end_ms <= now_ms + MAX_AHEAD_MS or body.start_ms >= body.end_ms:
        raise UsageError("a window ends after it starts, later than now, within a year", where=site)
    if (body.kind is WindowKind.RESERVATION) != bool(body.account):
        raise UsageError("a reservation is for an account, maintenance for none", where=site)
    if body.account:
        core.federation.account(body.account)
    window = Window(
        id=core.clock.new_id("win"),
        kind=body.kind,
        site=site,
        nodes=tuple(sorted(set(body.nodes))),
        start_ms=max(body.start_ms, now_ms),
        end_ms=body.end_ms,
        account=body.account,
    )
    with core.db.write() as connection:
        _check_free(connection, window, now_ms)
        windows.add(connection, window, by=claims.subject, now_ms=now_ms)
        _record_window(core, connection, claims, window, "planned")
    core.bell.set()
    return _render(PlannedWindow(window=window, by=claims.subject, created_ms=now_ms))


@router.delete("/windows/{window}")
def call_off(window: str, core: CoreArg, claims: UserArg) -> Json:
    """Call a window off, or end one that has begun; admins of its site's partner may."""
    now_ms = core.clock.now_ms()
    with core.db.write() as connection:
        found = windows.find(connection, window, now_ms)
        if found is None:
            raise NotFoundError(f"there is no window {window!r}", fix="list them with: consortium site windows")
        _own(core, claims, found.window.site)
        windows.remove(connection, window, now_ms)
        _record_window(core, connection, claims, found.window, "called off")
    core.bell.set()
    return _render(found)


def _own(core: Core, claims: Claims, site_id: str) -> Site:
    """Return a site; raises ForbiddenError unless the caller is an admin of its partner."""
    site = core.federation.site(site_id)
    need(claims, Role.ADMIN)
    if claims.partner != site.partner:
        raise ForbiddenError(f"{site_id} is {site.partner}'s", fix=f"ask an admin of {site.partner}")
    return site


def _known_node(site: Site, node: str) -> None:
    known = sorted(item.id for item in site.nodes)
    if node not in known:
        raise NotFoundError(f"{site.id} has no node {node!r}", fix=f"nodes: {', '.join(known)}")


def _check_free(connection: Connection, window: Window, now_ms: int) -> None:
    """Nobody reserves what is set aside already; maintenance goes before everything."""
    if window.kind is not WindowKind.RESERVATION:
        return
    for item in windows.standing(connection, now_ms, site=window.site):
        other = item.window
        apart = other.end_ms <= window.start_ms or other.start_ms >= window.end_ms
        shared = not other.nodes or not window.nodes or set(other.nodes) & set(window.nodes)
        if shared and not apart:
            raise ConflictError(f"{other.id} ({other.kind.value}) sets some of these nodes aside then", where=other.id)


def _status(connection: Connection, site: str) -> SiteStatus:
    return all_sites(connection).get(site) or SiteStatus(id=site)


def _record(core: Core, connection: Connection, claims: Claims, site: str, state: str, **more: int) -> None:
    core.record(connection, RecordType.DOWNTIME, {"site": site, "state": state, "by": claims.subject, **more})


def _record_window(core: Core, connection: Connection, claims: Claims, window: Window, state: str) -> None:
    """A reservation is an approval for an account, maintenance is time in which the site delivers less."""
    kind = RecordType.APPROVAL if window.kind is WindowKind.RESERVATION else RecordType.DOWNTIME
    core.record(connection, kind, {"site": window.site, "state": state, "by": claims.subject, "window": window})


def _told(core: Core, site: str) -> Json:
    core.bell.set()
    return next(item for item in _sites(core) if item["id"] == site)


def _render(planned: PlannedWindow) -> Json:
    shown: Json = to_json(planned.window)
    return shown | {"by": planned.by, "created_ms": planned.created_ms}


def _sites(core: Core) -> list[Json]:
    with core.db.read() as connection:
        stored, cordoned = all_sites(connection), store.cordons(connection)
        coming = windows.standing(connection, core.clock.now_ms())
        held: dict[str, int] = {}
        for leg in snapshots.held_legs(connection):
            held[leg.site] = held.get(leg.site, 0) + leg.gpus
    rows = []
    for site in core.federation.sites.values():
        status = stored.get(site.id, SiteStatus(id=site.id))
        last_contact_ms = core.contacts.site(site.id) or status.last_contact_ms
        row = {
            "id": site.id,
            "partner": site.partner,
            "territory": site.territory,
            "state": core.site_state(site.id, stored.get(site.id)).value,
            "healthy": status.healthy,
            "unhealthy_reason": status.unhealthy_reason if last_contact_ms else "it never called",
            "records_refused": core.contacts.records_refused(site.id),
            "flavor": site.flavor.id,
            "gpus": site.gpus,
            "gpus_held": held.get(site.id, 0),
            "code_digest": status.code_digest,
            "policy_digest": status.policy_digest,
            "last_contact_ms": last_contact_ms,
            "withdraw_ms": status.withdraw_ms,
            "cordoned": [
                {"node": item.node, "since_ms": item.since_ms, "by": item.by, "reason": item.reason}
                for item in cordoned
                if item.site == site.id
            ],
            "windows": [_render(item) for item in coming if item.window.site == site.id],
        }
        rows.append(row)
    return rows
