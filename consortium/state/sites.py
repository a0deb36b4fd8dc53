"""What the server knows of the sites beyond their signed documents: the operator's wish, health, versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from consortium.domain.partner import SiteState
from consortium.state import tables as t


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteStatus:
    """The stored side of a site. `state` is never stored as `lost`: silence is measured, not remembered."""

    id: str
    state: SiteState = SiteState.ACTIVE
    healthy: bool = False
    unhealthy_reason: str = ""
    code_digest: str = ""
    policy_digest: str = ""
    last_contact_ms: int = 0
    withdraw_ms: int = 0
    """When the notice of its recall ends; 0 where it is not recalled."""

    @property
    def unhealthy(self) -> str:
        """What is wrong by its last word; empty where it called itself healthy, or never called."""
        return "" if self.healthy or not self.last_contact_ms else f"unhealthy ({self.unhealthy_reason[:200]})"


def all_sites(connection: Connection) -> dict[str, SiteStatus]:
    """Return every site that was ever heard of or set, by id."""
    return {
        row.id: SiteStatus(
            id=row.id,
            state=SiteState(row.state),
            healthy=row.healthy,
            unhealthy_reason=row.unhealthy_reason,
            code_digest=row.code_digest,
            policy_digest=row.policy_digest,
            last_contact_ms=row.last_contact_ms,
            withdraw_ms=row.withdraw_ms,
        )
        for row in connection.execute(select(t.sites).order_by(t.sites.c.id))
    }


def update_site(connection: Connection, site: str, **values: Any) -> None:
    """Change columns of a site, making its row where there is none."""
    if "state" in values:
        values["state"] = SiteState(values["state"]).value
    if not connection.execute(t.sites.update().where(t.sites.c.id == site).values(**values)).rowcount:
        base = {"state": SiteState.ACTIVE.value, "healthy": False}
        connection.execute(t.sites.insert().values(**(base | {"id": site} | values)))
