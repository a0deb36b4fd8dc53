"""Health, who am I, the federation, quotas and shares."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from consortium import PROTOCOL_VERSION, __version__
from consortium.domain.codec import to_json
from consortium.server import snapshots
from consortium.server.auth import CoreArg, ReaderArg, UserArg
from consortium.server.shares import shares as compute_shares

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
