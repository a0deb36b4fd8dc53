"""Admins' signatures under changes of the quotas, until the change is in force or overtaken by another one."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select

from consortium.state import tables as t


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One partner's consent to one text, signed by one of its admins."""

    change: str
    """Digest of the text."""
    replaces: str
    """Digest of the document that was in force when it was signed."""
    partner: str
    person: str
    signature: str
    text: str
    at_ms: int


def approve(connection: Connection, approval: Approval) -> bool:
    """Store a consent; return False where that partner gave it already."""
    same = (
        (t.approvals.c.change == approval.change)
        & (t.approvals.c.replaces == approval.replaces)
        & (t.approvals.c.partner == approval.partner)
    )
    if connection.execute(select(t.approvals.c.person).where(same)).first() is not None:
        return False
    values = {
        name: getattr(approval, name) for name in ("change", "replaces", "partner", "person", "signature", "text")
    }
    connection.execute(t.approvals.insert().values(**values, at_ms=approval.at_ms))
    return True


def approvals(connection: Connection, *, change: str = "", replaces: str = "") -> list[Approval]:
    """Return the consents to a text, or to whatever would replace a document, by text and partner."""
    query = select(t.approvals).order_by(t.approvals.c.change, t.approvals.c.partner)
    if change:
        query = query.where(t.approvals.c.change == change)
    if replaces:
        query = query.where(t.approvals.c.replaces == replaces)
    return [
        Approval(
            change=row.change,
            replaces=row.replaces,
            partner=row.partner,
            person=row.person,
            signature=row.signature,
            text=row.text,
            at_ms=row.at_ms,
        )
        for row in connection.execute(query)
    ]
