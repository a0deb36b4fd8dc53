"""Health, who am I, the federation."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, Response

from consortium import PROTOCOL_VERSION, __version__
from consortium.domain.codec import to_json
from consortium.domain.partner import Role
from consortium.scheduler import schedule
from consortium.scheduler.recorded import record
from consortium.server import snapshots
from consortium.server.auth import CoreArg, ReaderArg, UserArg, need

log = logging.getLogger(__name__)
router = APIRouter(tags=["operation"])


@router.get("/health")
def health(core: CoreArg) -> dict[str, Any]:
    """Whether the server is up, and when its loop last ended a cycle well (0: not yet); needs no token."""
    return {
        "status": "ok",
        "last_cycle_ms": core.last_cycle_ms,
        "version": __version__,
        "protocol": PROTOCOL_VERSION,
        "incarnation": core.incarnation,
        "log_size": core.ledger.size,
    }


@router.get("/whoami")
def whoami(claims: ReaderArg) -> dict[str, Any]:
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


@router.get("/snapshot")
def snapshot(core: CoreArg, claims: UserArg) -> Response:
    """What the next cycle decides from, and its plan (null where it cannot be made), in canonical JSON; admins may."""
    need(claims, Role.ADMIN)
    with core.db.read() as connection:
        taken = snapshots.take(core, connection).snapshot
    try:
        plan = schedule(taken)
    except Exception:  # such a snapshot is needed most of all
        log.exception("the scheduler fails on a snapshot")
        plan = None
    return Response(record(taken, plan), media_type="application/json")
