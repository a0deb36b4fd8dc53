"""Changing the agreed quotas: what a text would change, whose consent it needs, its effect on the queue; and doing it.

A change is in force once the admins of all partners whose consent it needs have signed the same text in place of the
same document. The server then signs the new document, as it signs every agreed quota, and loads it in its next cycle.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consortium.config import QuotaConfig, parse_quota_text
from consortium.config.quota_diff import QuotaChange, consent_needed, quota_changes
from consortium.domain.codec import to_json
from consortium.domain.ids import CONSORTIUM, partner_of
from consortium.domain.partner import Role
from consortium.domain.quota import QuotaApproval
from consortium.domain.records import RecordType
from consortium.errors import ConfigError, ConflictError, ConsortiumError, ForbiddenError
from consortium.keys.canonical import canonical, digest, digest_json
from consortium.keys.documents import (
    DocumentKind,
    SignedDocument,
    document_files,
    load_document,
    save_document,
    sign_document,
)
from consortium.keys.signing import verify
from consortium.keys.tokens import Claims
from consortium.scheduler import Snapshot, forecast, schedule
from consortium.server import snapshots
from consortium.server.core import Core
from consortium.server.federation import load
from consortium.state import approvals
from consortium.state.approvals import Approval

LOAD_S = 10.0
"""How long `apply` waits for the loop to load the new document."""
SAME_MS = 1_000
"""Starts nearer than this count as the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A text against the quotas in force."""

    document: SignedDocument
    replaces: str
    config: QuotaConfig
    changes: tuple[QuotaChange, ...]

    @property
    def consent(self) -> tuple[str, ...]:
        """Partners whose admins must sign."""
        return consent_needed(self.changes)


def in_force(core: Core) -> SignedDocument:
    """Return the signed quota document in force. Raises ConflictError where there are several."""
    found = [document for document in core.federation.documents if document.kind is DocumentKind.QUOTA]
    if len(found) != 1:
        raise ConflictError(
            f"{len(found)} quota documents are in force: which one to change is not clear",
            where=core.settings.documents_dir,
            fix="join them into one file",
        )
    return found[0]


def propose(core: Core, text: str) -> Proposal:
    """Return what a text would change. Raises ConfigError with file and line where it does not hold."""
    document, federation = in_force(core), core.federation
    sites = tuple(federation.sites.values())
    config = parse_quota_text(text, document.file, sites, federation.partners)
    changes = quota_changes(parse_quota_text(document.text, document.file, sites), config, core.clock.now_ms())
    return Proposal(document=document, replaces=digest_json(document), config=config, changes=changes)


def plan(core: Core, text: str) -> dict[str, Any]:
    """Return what a text would change, whose consent it needs, and its effect on the queue; nothing is stored."""
    proposal = propose(core, text)
    changed = replace(
        core.federation,
        accounts={account.id: account for account in proposal.config.accounts},
        budgets=proposal.config.budgets,
        pledges=proposal.config.pledges,
    )
    with core.db.read() as connection:
        before = snapshots.take(core, connection).snapshot
        after = snapshots.take(core, connection, changed, before.now_ms).snapshot
        given = approvals.approvals(connection, change=digest(text.encode()), replaces=proposal.replaces)
    return _told(proposal, [item.partner for item in given]) | {"effect": effect(before, after)}


def effect(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Return which waiting jobs start earlier or later, and which running ones are evicted by it. Pure.

    Starts are those of a closed run in which jobs take as long as they are expected to.
    """
    was, becomes = forecast(before, run="expected"), forecast(after, run="expected")
    moved = []
    for job in sorted(before.pending, key=lambda item: (item.created_ms, item.id)):
        start, later = was.get(job.id), becomes.get(job.id)
        if start is None and later is None:
            continue
        if start is None or later is None or abs(start - later) >= SAME_MS:
            moved.append({"job": job.id, "account": job.account, "before_ms": start, "after_ms": later})
    evicted = {item.job for item in schedule(before).evictions}
    fresh = [to_json(item) for item in schedule(after).evictions if item.job not in evicted]
    return {"jobs": moved, "waiting": len(before.pending), "evictions": fresh}


def apply(core: Core, claims: Claims, text: str, replaces: str, signature: str) -> dict[str, Any]:
    """Give an admin's consent to a text; once all have, put it in force.

    Raises ConflictError where the quotas changed since it was signed, ForbiddenError where it is not theirs to change
    or the notice of a pledge is not kept, VerificationError where the signature does not hold, ConfigError where it
    cannot come into force.
    """
    proposal = propose(core, text)
    if proposal.replaces != replaces:
        raise ConflictError("the quotas changed meanwhile", where=proposal.document.file, fix="plan again, then apply")
    _check_consent(proposal, claims)
    statement = QuotaApproval(
        federation=core.trust.log_name, person=claims.subject, change=digest(text.encode()), replaces=replaces
    )
    person = core.federation.rosters.person(claims.subject)
    verify(person.signing_key, canonical(statement), signature, what=f"the change of the quotas by {person.id}")
    partner = partner_of(person.id)
    with core.db.write() as connection:
        approval = Approval(change=statement.change, replaces=replaces, partner=partner, person=person.id,
                            signature=signature, text=text, at_ms=core.clock.now_ms())  # fmt: skip
        if approvals.approve(connection, approval):
            body = {"kind": DocumentKind.QUOTA.value, "partner": partner, "statement": statement, "text": text,
                    "signature": signature, "changes": proposal.changes}  # fmt: skip
            core.record(connection, RecordType.APPROVAL, to_json(body))
        given = [item.partner for item in approvals.approvals(connection, change=statement.change, replaces=replaces)]
    told = _told(proposal, given)
    if not told["missing"]:
        told["version"] = _put_in_force(core, proposal, text)
    core.bell.set()
    return told


def waiting_changes(core: Core) -> list[dict[str, Any]]:
    """Return the changes that some partners signed and others have yet to."""
    replaces = digest_json(in_force(core))
    with core.db.read() as connection:
        given = approvals.approvals(connection, replaces=replaces)
    found = {}
    for item in given:
        if item.change not in found:
            partners = [other.partner for other in given if other.change == item.change]
            found[item.change] = _told(propose(core, item.text), partners)
    return list(found.values())


def _told(proposal: Proposal, given: list[str]) -> dict[str, Any]:
    signed = sorted(set(given) & set(proposal.consent))
    return {
        "file": proposal.document.file,
        "version": proposal.document.version,
        "replaces": proposal.replaces,
        "changes": to_json(proposal.changes),
        "consent": list(proposal.consent),
        "signed": signed,
        "missing": sorted(set(proposal.consent) - set(signed)),
    }


def _check_consent(proposal: Proposal, claims: Claims) -> None:
    partner = partner_of(claims.subject)
    if Role.ADMIN not in claims.roles:
        raise ForbiddenError(f"{claims.subject} is not admin", fix="ask an admin of your partner")
    if not proposal.changes:
        raise ConflictError("nothing would change", where=proposal.document.file)
    refused = next((change for change in proposal.changes if change.refused), None)
    if refused is not None:
        raise ForbiddenError(f"{refused.what} of {refused.account}: {refused.refused}", where=proposal.document.file)
    if partner not in proposal.consent:
        raise ForbiddenError(
            f"nothing in it is {partner}'s to decide",
            where=proposal.document.file,
            fix=f"ask an admin of {' and of '.join(proposal.consent)}",
        )


def _put_in_force(core: Core, proposal: Proposal, text: str) -> int:
    """Sign the text as the next version, write it where the documents lie, and wait until it is loaded.

    Raises ConfigError where another document does not hold (nothing is written then), or the new one is not loaded.
    """
    old, now_ms = proposal.document, core.clock.now_ms()
    document = sign_document(
        core.key,
        kind=DocumentKind.QUOTA,
        partner=CONSORTIUM,
        version=old.version + 1,
        issued_ms=now_ms,
        expires_ms=now_ms + (old.expires_ms - old.issued_ms),
        file=old.file,
        text=text,
    )
    path = _path(core)
    with core.db.write():  # one change at a time
        if digest_json(load_document(path, core.trust)) != proposal.replaces:
            raise ConflictError("another change came first", where=old.file, fix="plan again, then apply")
        _check_others(core)
        try:
            save_document(document, path)
        except OSError as fault:
            raise ConfigError(f"cannot write the new quotas: {fault.strerror}", where=str(path)) from fault
    core.bell.set()
    until = time.monotonic() + LOAD_S
    while in_force(core).version < document.version and time.monotonic() < until:
        time.sleep(0.02)
    if in_force(core).version < document.version:
        kept_out = core.files.fault
        raise ConfigError(
            f"version {document.version} of the quotas is written, but not in force"
            + (f": {kept_out.what}" if kept_out is not None else ", and the server's log says why"),
            where=str(path) if kept_out is None else kept_out.where,
            fix="mend that: what is written then comes into force",
        )
    return document.version


def _check_others(core: Core) -> None:
    """Raise ConfigError where the documents as they lie there would not be loaded: no new one comes into force then."""
    try:
        load(core.settings.documents_dir, core.trust, core.clock.now_ms())
    except ConsortiumError as fault:
        raise ConfigError(
            f"the new quotas cannot come into force and are not written: another document does not hold: {fault.what}",
            where=fault.where,
            fix="have that document mended, then apply again: consents that were given stand",
        ) from fault


def _path(core: Core) -> Path:
    """Where the quota document lies."""
    for path in document_files(core.settings.documents_dir):
        if load_document(path, core.trust).kind is DocumentKind.QUOTA:
            return path
    raise ConfigError("the quota document is gone", where=core.settings.documents_dir, fix="put it back")
