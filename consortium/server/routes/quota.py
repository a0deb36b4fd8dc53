"""Quotas and shares: what is agreed, how it stands, and how it is changed."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from consortium.domain.codec import to_json
from consortium.domain.partner import Role
from consortium.keys.canonical import digest_json
from consortium.server import quotas, snapshots
from consortium.server import shares as reckoning
from consortium.server.auth import CoreArg, UserArg, need

router = APIRouter(tags=["quotas"])
Json = dict[str, Any]
MAX_TEXT = 1_000_000


class QuotaText(BaseModel):
    """The whole text of a quota file."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(max_length=MAX_TEXT)


class SignedQuota(QuotaText):
    """The text, what it replaces, and the calling admin's signature over a `QuotaApproval` of it."""

    replaces: str = Field(max_length=100)
    signature: str = Field(max_length=200)


@router.get("/quota")
def quota(core: CoreArg, claims: UserArg) -> Json:
    """The agreed quotas, budgets and pledges; how budgets stand, what run times are known, which changes wait."""
    current, document = core.federation, quotas.in_force(core)
    with core.db.read() as connection:
        view = snapshots.standing(core, connection)
    return {
        "accounts": to_json(list(current.accounts.values())),
        "budgets": to_json(current.budgets),
        "pledges": to_json(current.pledges),
        "standings": [to_json(item) | {"left": item.left} for _, item in sorted(view.budgets.items())],
        "run_times": to_json(reckoning.run_times(view.snapshot, view.run_times)),
        "document": {
            "file": document.file,
            "version": document.version,
            "digest": digest_json(document),
            "issued_ms": document.issued_ms,
            "text": document.text,
        },
        "waiting": quotas.waiting_changes(core),
    }


@router.post("/quota/plan")
def plan(body: QuotaText, core: CoreArg, claims: UserArg) -> Json:
    """Say what a text would change, whose consent it needs and what it does to the queue; admins may."""
    need(claims, Role.ADMIN)
    return quotas.plan(core, body.text)


@router.post("/quota/apply")
def apply(body: SignedQuota, core: CoreArg, claims: UserArg) -> Json:
    """Consent to a change of the quotas; the last consent that it needs puts it in force."""
    need(claims, Role.ADMIN)
    return quotas.apply(core, claims, body.text, body.replaces, body.signature)


@router.get("/shares")
def shares(core: CoreArg, claims: UserArg) -> list[Json]:
    """Per account and flavor: GPUs nominal, held, borrowed and lent now, and every factor of the fair share."""
    with core.db.read() as connection:
        view = snapshots.standing(core, connection)
    found: list[Json] = to_json(reckoning.shares(view.snapshot))
    return found
