"""The partner's own copy of the rules: its policy, everybody's rosters and site files, each signed, none expired."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from consortium.domain.ids import partner_of
from consortium.domain.partner import Site
from consortium.errors import ConfigError, ConsortiumError, VerificationError
from consortium.keys.canonical import digest
from consortium.keys.documents import DocumentKind, SignedDocument, check_document, load_document
from consortium.keys.roster import Roster, Rosters
from consortium.keys.trust import Trust

if TYPE_CHECKING:
    from consortium.policy import PolicyBook


class Documents:
    """The signed files of one folder, read again when one of them changes. A file that does not hold counts as absent.

    What is asked for and absent is a VerificationError that says which file is at fault: nothing is let through for
    want of a rule.
    """

    def __init__(self, folder: str | Path, partner: str, trust: Trust) -> None:
        self.folder = Path(folder)
        self.partner = partner
        self.trust = trust
        self._mutex = threading.RLock()
        self._stamp: object = None
        self._held: list[SignedDocument] = []
        self._faults: dict[str, str] = {}
        self._book: PolicyBook | None = None

    def refresh(self, now_ms: int) -> dict[str, str]:
        """Read changed files; return what is wrong, by file name."""
        if not self.folder.is_dir():
            raise ConfigError("there is no folder of signed documents", where=str(self.folder))
        paths = sorted(self.folder.glob("*.json"))
        stamp = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in paths]
        with self._mutex:
            if stamp != self._stamp:
                self._held, self._faults, self._book = [], {}, None
                for path in paths:
                    try:
                        self._held.append(load_document(path, self.trust, now_ms))
                    except ConsortiumError as fault:
                        self._faults[path.name] = fault.what
                self._stamp = stamp
            return dict(self._faults)

    def policy(self, now_ms: int) -> PolicyBook:
        """Return the own partner's policy, ready to decide."""
        from consortium.config import parse_policy_text
        from consortium.policy import PolicyBook

        with self._mutex:
            document = self._one(DocumentKind.POLICY, now_ms)
            if self._book is None:
                self._book = PolicyBook.of([parse_policy_text(document.text, document.file)])
            return self._book

    def policy_digest(self, now_ms: int) -> str:
        """Return the digest of the own policy's text; empty where there is none that holds."""
        try:
            return digest(self._one(DocumentKind.POLICY, now_ms).text.encode())
        except VerificationError:
            return ""

    def rosters(self, now_ms: int) -> Rosters:
        """Return the people all partners vouch for."""
        return Rosters.of(Roster.parse(document) for document in self._all(DocumentKind.ROSTER, now_ms))

    def site(self, site: str, now_ms: int) -> Site:
        """Return a site as its own partner's signed site file describes it."""
        from consortium.config import parse_site_text

        for document in self._all(DocumentKind.SITE, now_ms):
            config = parse_site_text(document.text, document.file)
            if config.id == site and config.partner == document.partner:
                return config.site
        raise VerificationError(
            f"no signed site file of {site} that holds: where it stands is unknown",
            where=str(self.folder),
            fix=f"put the site file signed by {partner_of(site)} there{self._suspects()}",
        )

    def _one(self, kind: DocumentKind, now_ms: int) -> SignedDocument:
        mine = [document for document in self._all(kind, now_ms) if document.partner == self.partner]
        if not mine:
            raise VerificationError(
                f"no {kind.value} of {self.partner} that is signed and unexpired",
                where=str(self.folder),
                fix=f"{self.partner} must put a signed one there{self._suspects()}",
            )
        return max(mine, key=lambda document: (document.version, document.issued_ms))

    def _all(self, kind: DocumentKind, now_ms: int) -> list[SignedDocument]:
        holding = []
        with self._mutex:
            self.refresh(now_ms)
            for document in self._held:
                if document.kind is not kind:
                    continue
                try:
                    check_document(document, self.trust, now_ms, where=document.file)
                except VerificationError as fault:
                    self._faults[document.file] = fault.what
                else:
                    holding.append(document)
        return holding

    def _suspects(self) -> str:
        return "".join(f"; {name}: {what}" for name, what in sorted(self._faults.items()))
