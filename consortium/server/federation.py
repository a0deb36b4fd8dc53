"""What the partners signed: policies, rosters, sites, quotas. Loaded at start, and again when a file changes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, select

from consortium.config.federation import parse_policy_text, parse_quota_text, parse_site_text
from consortium.domain.codec import from_json, to_json
from consortium.domain.ids import SERVER
from consortium.domain.partner import Site
from consortium.domain.quota import Account, Budget, Pledge
from consortium.domain.records import RecordType
from consortium.errors import ConfigError, ConsortiumError, NotFoundError
from consortium.keys.canonical import digest as text_digest
from consortium.keys.canonical import digest_json
from consortium.keys.documents import (
    DocumentKind,
    SignedDocument,
    check_document,
    document_files,
    folder_stamp,
    load_document,
)
from consortium.keys.roster import Roster, Rosters
from consortium.keys.signing import SigningKey
from consortium.keys.trust import Trust
from consortium.policy import PolicyBook
from consortium.state import records
from consortium.state import tables as t
from consortium.state.approvals import approvals

log = logging.getLogger(__name__)
_RECORD_TYPES = {
    DocumentKind.POLICY: RecordType.POLICY,
    DocumentKind.ROSTER: RecordType.ROSTER,
    DocumentKind.SITE: RecordType.SITE,
    DocumentKind.QUOTA: RecordType.QUOTA,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """The federation as its signed documents say."""

    rosters: Rosters
    policies: PolicyBook
    sites: dict[str, Site]
    accounts: dict[str, Account]
    budgets: tuple[Budget, ...]
    pledges: tuple[Pledge, ...]
    documents: tuple[SignedDocument, ...]

    @property
    def partners(self) -> tuple[str, ...]:
        """Partners that take part: those with a policy."""
        return tuple(sorted({d.partner for d in self.documents if d.kind is DocumentKind.POLICY}))

    def site(self, site: str) -> Site:
        """Return a site; raises NotFoundError naming those there are."""
        if site not in self.sites:
            raise NotFoundError(f"there is no site {site!r}", fix=f"sites: {', '.join(sorted(self.sites))}")
        return self.sites[site]

    def account(self, account: str) -> Account:
        """Return an account; raises NotFoundError naming those there are."""
        if account not in self.accounts or not account:
            known = ", ".join(sorted(name for name in self.accounts if name))
            raise NotFoundError(f"there is no account {account!r}", fix=f"accounts: {known}")
        return self.accounts[account]


def load(documents_dir: str, trust: Trust, now_ms: int) -> Federation:
    """Read and verify all documents. Raises ConfigError or VerificationError naming the file at fault.

    An expired policy or roster is left out, so that what it touches is denied and its people may not submit; the other
    partners go on. An expired site or quota file stays in force. Either is logged.
    """
    folder = Path(documents_dir)
    if not folder.is_dir():
        raise ConfigError("there is no directory of signed documents", where=str(folder), fix="mend documents_dir")
    return _federation([load_document(path, trust) for path in document_files(documents_dir)], folder, trust, now_ms)


def _federation(documents: Sequence[SignedDocument], folder: Path, trust: Trust, now_ms: int) -> Federation:
    kinds: dict[DocumentKind, list[SignedDocument]] = {kind: [] for kind in DocumentKind}
    for document in documents:
        kinds[document.kind].append(document)
        if now_ms >= document.expires_ms:
            log.error("%s has expired: %s must sign a new version", document.file, document.partner)
    for kind in (DocumentKind.POLICY, DocumentKind.ROSTER, DocumentKind.SITE, DocumentKind.QUOTA):
        if not kinds[kind]:
            raise ConfigError(f"no signed {kind} document", where=str(folder), fix="put the partners' files there")
    for kind in (DocumentKind.POLICY, DocumentKind.ROSTER):
        kinds[kind] = [document for document in kinds[kind] if now_ms < document.expires_ms]
    sites = {site.id: site for site in (_site(document, trust) for document in kinds[DocumentKind.SITE])}
    quotas = [parse_quota_text(d.text, d.file, tuple(sites.values())) for d in kinds[DocumentKind.QUOTA]]
    return Federation(
        rosters=Rosters.of(Roster.parse(document) for document in kinds[DocumentKind.ROSTER]),
        policies=PolicyBook.of([parse_policy_text(d.text, d.file) for d in kinds[DocumentKind.POLICY]]),
        sites=dict(sorted(sites.items())),
        accounts={account.id: account for quota in quotas for account in quota.accounts},
        budgets=tuple(item for quota in quotas for item in quota.budgets),
        pledges=tuple(item for quota in quotas for item in quota.pledges),
        documents=tuple(documents),
    )


def kept_documents(connection: Connection) -> tuple[SignedDocument, ...]:
    """Return the documents that were last loaded, as the state keeps them."""
    docs = connection.execute(select(t.documents.c.doc).order_by(t.documents.c.kind, t.documents.c.partner))
    return tuple(from_json(SignedDocument, doc, where="documents of the state") for doc in docs.scalars())


def last_roster(connection: Connection, partner: str, trust: Trust) -> Rosters:
    """Return whom a partner vouched for last, whether it still takes part or not; nobody where it never did.

    Raises VerificationError where its key is not known any more.
    """
    rosters = (t.records.c.origin == SERVER) & (t.records.c.type == RecordType.ROSTER.value)
    of_partner = rosters & (t.records.c.payload["body"]["partner"].as_string() == partner)
    bodies = connection.execute(select(t.records.c.payload).where(of_partner).order_by(t.records.c.seq)).scalars()
    where = f"rosters of {partner} in the state"
    signed = [from_json(SignedDocument, payload["body"]["document"], where=where) for payload in bodies]
    if not signed:
        return Rosters({})
    last = max(reversed(signed), key=lambda document: document.age)
    check_document(last, trust, where=where)
    return Rosters.of([Roster.parse(last)])


def record_documents(connection: Connection, key: SigningKey, federation: Federation, now_ms: int) -> int:
    """Put documents that are new or changed into the ledger; return how many. Those that were taken away are let go."""
    changed, loaded = 0, {_key(document) for document in federation.documents}
    for row in list(connection.execute(select(t.documents))):
        if (row.kind, row.partner, row.file) not in loaded:
            connection.execute(t.documents.delete().where(_same(row.kind, row.partner, row.file)))
    for document in federation.documents:
        kind, partner, name = _key(document)
        same = _same(kind, partner, name)
        digest = digest_json(document)
        known = connection.execute(select(t.documents.c.digest).where(same)).scalar()
        if known == digest:
            continue
        values = {"version": document.version, "digest": digest, "doc": to_json(document)}
        if known is None:
            keys = {"kind": kind, "partner": partner, "file": name}
            connection.execute(t.documents.insert().values(**keys, **values))
        else:
            connection.execute(t.documents.update().where(same).values(**values))
        body = {"partner": document.partner, "digest": digest, "replaces": known or "", "document": to_json(document)}
        if document.kind is DocumentKind.QUOTA:
            consents = approvals(connection, change=text_digest(document.text.encode()))
            body["approvals"] = [{"person": item.person, "signature": item.signature} for item in consents]
        records.append_own(connection, key, _RECORD_TYPES[document.kind], body, now_ms)
        changed += 1
    return changed


def _key(document: SignedDocument) -> tuple[str, str, str]:
    return document.kind.value, document.partner, Path(document.file).name


def _same(kind: str, partner: str, file: str) -> ColumnElement[bool]:
    return (t.documents.c.kind == kind) & (t.documents.c.partner == partner) & (t.documents.c.file == file)


class FederationFiles:
    """The loaded federation, kept up to date with its directory and with the documents' expiry.

    Where a file does not hold at the start, `kept`, what was last loaded, is in force instead, as in a server that ran
    on. Raises what `load` raises where nothing was kept, or does not hold by now.
    """

    def __init__(self, documents_dir: str, trust: Trust, now_ms: int, kept: Sequence[SignedDocument] = ()) -> None:
        self._dir = documents_dir
        self._trust = trust
        self._seen = folder_stamp(documents_dir)
        self.fault: ConsortiumError | None = None
        """Why the files as they lie there are not in force; None where they are."""
        try:
            self.current = load(documents_dir, trust, now_ms)
        except ConsortiumError as fault:
            self.fault = fault
            if not kept or not Path(documents_dir).is_dir():
                raise
            for document in kept:
                check_document(document, trust, where="documents of the state")
            self.current = _federation(kept, Path(documents_dir), trust, now_ms)
            log.error("the signed documents do not hold; the last good ones of the state stay in force: %s", fault)
        self._until_ms = self._next_expiry(now_ms)

    def refresh(self, now_ms: int) -> bool:
        """Load again if a file changed or expired; a file that does not hold leaves the last good state in force, and
        is said."""
        seen = folder_stamp(self._dir)
        if seen == self._seen and now_ms < self._until_ms:
            return False
        self._seen = seen
        try:
            self.current, self.fault = load(self._dir, self._trust, now_ms), None
        except ConsortiumError as fault:
            self.fault = fault
            log.error("the signed documents changed and do not hold; the last good ones stay in force: %s", fault)
            return False
        finally:
            self._until_ms = self._next_expiry(now_ms)
        return True

    def _next_expiry(self, now_ms: int) -> int:
        due = [d.expires_ms for d in self.current.documents if d.expires_ms > now_ms]
        return min(due, default=now_ms + 366 * 86_400_000)


def _site(document: SignedDocument, trust: Trust) -> Site:
    site = parse_site_text(document.text, document.file).site
    if site.partner != document.partner:
        raise ConfigError(f"{site.id} is not {document.partner}'s to sign", where=document.file)
    keys = trust.sites.get(site.id)
    if keys is None:
        raise ConfigError(f"no trusted keys for site {site.id}", where=document.file, fix="add them to trust.json")
    return replace(site, signing_key=keys.signing, sealing_key=keys.sealing)
