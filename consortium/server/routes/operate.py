"""Health, who am I, the federation, sites, quotas and shares."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from consortium import PROTOCOL_VERSION, __version__
from consortium.domain.codec import to_json
from consortium.domain.partner import Role, SiteState
from consortium.domain.records import RecordType
from consortium.errors import ConflictError, ForbiddenError
from consortium.server import snapshots
from consortium.server.auth import CoreArg, ReaderArg, UserArg, need
from consortium.server.core import Core
from consortium.server.shares import shares as compute_shares
from consortium.state.sites import all_sites, update_site

router = APIRouter(tags=["operation"])


@router.get("/health")
def health(core: CoreArg) -> dict[str, Any]:
    """Whether the server is up; needs no token."""
    return {
        "status": "ok",
        "version": __version__,
        "protocol": PROTOCOL_VERSION,
        "incarnation": core.incarnation,
        "log_size": core.ledger.size,
    }


@router.get("/whoami")
def whoami(core: CoreArg, claims: ReaderArg) -> dict[str, Any]:
    """What the caller's token says."""
    return {
        "subject": claims.subject,
        "partner": claims.partner,
        "roles": [role.value for role in claims.roles],
        "expires_ms": claims.expires_ms,
    }


@router.get("/federation")
def federation(core: CoreArg, claims: ReaderArg) -> dict[str, Any]:
    """The federation: partners, sites, keys, documents, code digest."""
    current = core.federation
    return {
        "log_name": core.trust.log_name,
        "incarnation": core.incarnation,
        "protocol": PROTOCOL_VERSION,
        "version": __version__,
        "code_digest": core.settings.code_digest,
        "mlflow_url": core.settings.mlflow_url,
        "partners": list(current.partners),
        "people": [{"id": p.id, "name": p.name, "roles": [r.value for r in p.roles]} for p in current.rosters.people],
        "accounts": sorted(name for name in current.accounts if name),
        "sites": to_json(list(current.sites.values())),
        "trust": to_json(core.trust),
        "documents": [
            {
                "kind": d.kind.value,
                "partner": d.partner,
                "version": d.version,
                "file": d.file,
                "expires_ms": d.expires_ms,
            }
            for d in current.documents
        ],
    }


@router.get("/sites")
def sites(core: CoreArg, claims: UserArg) -> list[dict[str, Any]]:
    """List sites with their state, health, GPUs and how many of them are held."""
    return _sites(core)


@router.post("/sites/{site}/drain")
def drain(site: str, core: CoreArg, claims: UserArg) -> dict[str, Any]:
    """Let a site finish its legs and take no new ones; admins of its partner may."""
    return _wish(core, claims, site, SiteState.DRAINING)


@router.post("/sites/{site}/resume")
def resume(site: str, core: CoreArg, claims: UserArg) -> dict[str, Any]:
    """Let a drained site take legs again; admins of its partner may."""
    return _wish(core, claims, site, SiteState.ACTIVE)


@router.get("/quota")
def quota(core: CoreArg, claims: UserArg) -> dict[str, Any]:
    """The agreed quotas, budgets and pledges."""
    current = core.federation
    return {
        "accounts": to_json(list(current.accounts.values())),
        "budgets": to_json(current.budgets),
        "pledges": to_json(current.pledges),
    }


@router.get("/shares")
def shares(core: CoreArg, claims: UserArg) -> list[dict[str, Any]]:
    """Per account and flavor: GPUs nominal, held, borrowed and lent now."""
    with core.db.read() as connection:
        held = snapshots.held_legs(connection)
    found: list[dict[str, Any]] = to_json(compute_shares(tuple(core.federation.accounts.values()), held))
    return found


def _sites(core: Core) -> list[dict[str, Any]]:
    with core.db.read() as connection:
        stored = all_sites(connection)
        held: dict[str, int] = {}
        for leg in snapshots.held_legs(connection):
            held[leg.site] = held.get(leg.site, 0) + leg.gpus
    return [
        {
            "id": site.id,
            "partner": site.partner,
            "territory": site.territory,
            "state": core.site_state(site.id, stored.get(site.id)).value,
            "healthy": bool(stored.get(site.id) and stored[site.id].healthy),
            "unhealthy_reason": stored[site.id].unhealthy_reason if site.id in stored else "it never called",
            "flavor": site.flavor.id,
            "gpus": site.gpus,
            "gpus_held": held.get(site.id, 0),
            "code_digest": stored[site.id].code_digest if site.id in stored else "",
            "policy_digest": stored[site.id].policy_digest if site.id in stored else "",
            "last_contact_ms": core.contacts.site(site.id)
            or (stored[site.id].last_contact_ms if site.id in stored else 0),
        }
        for site in core.federation.sites.values()
    ]


def _wish(core: Core, claims: UserArg, site_id: str, wish: SiteState) -> dict[str, Any]:
    site = core.federation.site(site_id)
    need(claims, Role.ADMIN)
    if claims.partner != site.partner:
        raise ForbiddenError(f"{site_id} is {site.partner}'s", fix=f"ask an admin of {site.partner}")
    with core.db.write() as connection:
        stored = all_sites(connection).get(site_id)
        now = SiteState.ACTIVE if stored is None else stored.state
        if now is SiteState.WITHDRAWN:
            raise ConflictError(f"{site_id} was withdrawn by its partner", where=site_id)
        done = now is wish or (wish is SiteState.DRAINING and now is SiteState.DRAINED)
        if not done:
            update_site(connection, site_id, state=wish)
            body = {"site": site_id, "state": wish.value, "by": claims.subject}
            core.record(connection, RecordType.DOWNTIME, body)
    core.bell.set()
    return next(item for item in _sites(core) if item["id"] == site_id)
