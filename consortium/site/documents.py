"""The partner's own copy of the rules: its policy, everybody's rosters and site files, each signed, none expired."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from consortium.domain.ids import partner_of
from consortium.domain.partner import Site
from consortium.errors import ConfigError, ConsortiumError, VerificationError
from consortium.keys.canonical import digest
from consortium.keys.documents import (
    DocumentKind,
    SignedDocument,
    check_unexpired,
    document_files,
    folder_stamp,
    load_document,
)
from consortium.keys.roster import Roster, Rosters
from consortium.keys.trust import Trust

if TYPE_CHECKING:
    from consortium.policy import PolicyBook


class _Held(NamedTuple):
    """The newest document of its kind and of what it is about, with what it says where others wrote it."""

    document: SignedDocument
    path: Path
    says: Roster | Site | None


class Documents:
    """The signed files of one folder, read again when one of them changes. A file that does not hold counts as absent.

    Of several that rule the same the newest counts, also where it has expired: what it took the place of stays out of
    force. What is asked for and absent is a VerificationError that says which file is at fault: nothing is let through
    for want of a rule. No file of another partner keeps the others from being read.
    """

    def __init__(self, folder: str | Path, partner: str, trust: Trust) -> None:
        self.folder = Path(folder)
        self.partner = partner
        self.trust = trust
        self._mutex = threading.RLock()
        self._stamp: object = None
        self._held: list[_Held] = []
        self._faults: dict[str, str] = {}
        self._book: PolicyBook | None = None

    def refresh(self, now_ms: int) -> dict[str, str]:
        """Read changed files; return what is wrong, by file name."""
        if not self.folder.is_dir():
            raise ConfigError("there is no folder of signed documents", where=str(self.folder))
        stamp = folder_stamp(self.folder)
        with self._mutex:
            if stamp != self._stamp:
                newest, self._faults, self._book = dict[tuple[str, ...], _Held](), {}, None
                for path in document_files(self.folder):
                    try:
                        held = self._read(path)
                    except ConsortiumError as fault:
                        self._faults[path.name] = fault.what
                        continue
                    about = held.says.id if isinstance(held.says, Site) else ""
                    key = (held.document.kind, held.document.partner, about)
                    if key not in newest or newest[key].document.age <= held.document.age:
                        newest[key] = held
                self._held = list(newest.values())
                self._stamp = stamp
            expired = {}
            for held in self._held:
                try:
                    check_unexpired(held.document, now_ms, where=str(held.path))
                except VerificationError as fault:
                    expired[held.path.name] = fault.what
            return {**self._faults, **expired}

    def policy(self, now_ms: int) -> PolicyBook:
        """Return the own partner's policy, ready to decide."""
        from consortium.config import parse_policy_text
        from consortium.policy import PolicyBook

        with self._mutex:
            document = self._policy(now_ms)
            if self._book is None:
                self._book = PolicyBook.of([parse_policy_text(document.text, document.file)])
            return self._book

    def policy_digest(self, now_ms: int) -> str:
        """Return the digest of the own policy's text; empty where there is none that holds."""
        try:
            return digest(self._policy(now_ms).text.encode())
        except VerificationError:
            return ""

    def rosters(self, now_ms: int) -> Rosters:
        """Return the people all partners vouch for."""
        return Rosters.of(held.says for held in self._all(now_ms) if isinstance(held.says, Roster))

    def site(self, site: str, now_ms: int) -> Site:
        """Return a site as its own partner's signed site file describes it."""
        for held in self._all(now_ms):
            if isinstance(held.says, Site) and held.says.id == site:
                return held.says
        raise VerificationError(
            f"no signed site file of {site} that holds: where it stands is unknown",
            where=str(self.folder),
            fix=f"put the site file signed by {partner_of(site)} there{self._suspects(now_ms)}",
        )

    def _policy(self, now_ms: int) -> SignedDocument:
        for document, _, _ in self._all(now_ms):
            if document.kind is DocumentKind.POLICY and document.partner == self.partner:
                return document
        raise VerificationError(
            f"no {DocumentKind.POLICY} of {self.partner} that is signed and unexpired",
            where=str(self.folder),
            fix=f"{self.partner} must put a signed one there{self._suspects(now_ms)}",
        )

    def _all(self, now_ms: int) -> list[_Held]:
        with self._mutex:
            self.refresh(now_ms)
            return [held for held in self._held if now_ms < held.document.expires_ms]

    def _read(self, path: Path) -> _Held:
        """Return what a file says. Raises ConsortiumError where it does not hold, however long it was to."""
        from consortium.config import parse_site_text

        document = load_document(path, self.trust)
        if document.kind is DocumentKind.ROSTER:
            return _Held(document, path, Roster.parse(document))
        if document.kind is not DocumentKind.SITE:
            return _Held(document, path, None)
        site = parse_site_text(document.text, document.file).site
        if site.partner != document.partner:
            raise ConfigError(f"{site.id} is not {document.partner}'s to sign", where=document.file)
        return _Held(document, path, site)

    def _suspects(self, now_ms: int) -> str:
        return "".join(f"; {name}: {what}" for name, what in sorted(self.refresh(now_ms).items()))
