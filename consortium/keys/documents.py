"""Signed documents: a partner's policy, roster, site and quota files, word for word as it wrote them.

`text` is the raw YAML, so that file and line in a denial are those of the partner's own file.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from consortium.domain.codec import from_json, to_json
from consortium.domain.ids import CONSORTIUM
from consortium.errors import ConfigError, UsageError, VerificationError
from consortium.keys.signing import SigningKey, sign_value, verify_value
from consortium.keys.trust import Trust


class DocumentKind(StrEnum):
    """What a document rules."""

    POLICY = "policy"
    ROSTER = "roster"
    SITE = "site"
    QUOTA = "quota"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedDocument:
    """A file signed by its partner's root key.

    `partner` is `consortium` only for the agreed quota, which the server signs.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: DocumentKind
    partner: str
    version: int
    issued_ms: int
    expires_ms: int
    file: str
    """Its display path, such as `configs/policy/fr.yaml`."""
    text: str
    signature: str = ""

    @property
    def age(self) -> tuple[int, int]:
        """What the newer of two documents has more of.

        Its owner signed it, so that nobody who passes documents on brings an older one back.
        """
        return self.issued_ms, self.version


def sign_document(
    key: SigningKey,
    *,
    kind: DocumentKind | str,
    partner: str,
    version: int,
    issued_ms: int,
    expires_ms: int,
    file: str,
    text: str,
) -> SignedDocument:
    """Return the document signed with the partner's root key."""
    return sign_value(
        key,
        SignedDocument(
            kind=DocumentKind(kind),
            partner=partner,
            version=version,
            issued_ms=issued_ms,
            expires_ms=expires_ms,
            file=file,
            text=text,
        ),
    )


def save_document(document: SignedDocument, path: str | Path) -> None:
    """Write the document as JSON, durably and whole or not at all."""
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as out:
        out.write(json.dumps(to_json(document), indent=2, ensure_ascii=False) + "\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(target)


def document_files(folder: str | Path) -> list[Path]:
    """Return the files of documents, by name: not those that begin with a dot, such as an editor's links and drafts."""
    return sorted(path for path in Path(folder).glob("*.json") if not path.name.startswith("."))


def folder_stamp(folder: str | Path) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when a document's file in the folder does; one that cannot be looked at counts as empty."""
    return tuple((path.name, *_looks(path)) for path in document_files(folder))


def _looks(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0  # a dangling link, or gone meanwhile: who reads it says so
    return stat.st_mtime_ns, stat.st_size


def load_document(path: str | Path, trust: Trust) -> SignedDocument:
    """Read a document and check its signature; whether it still holds is for `check_unexpired`.

    Raises ConfigError where it cannot be read or is half-written, VerificationError where its partner did not sign it.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"cannot read the signed document: {fault}", where=str(path)) from fault
    except json.JSONDecodeError as fault:
        raise ConfigError(f"not valid JSON: {fault.msg}", where=f"{path}:{fault.lineno}") from fault
    except (ValueError, RecursionError) as fault:  # a number of endless digits, endless nesting
        raise ConfigError(f"not valid JSON: {fault}", where=str(path)) from fault
    try:
        document = from_json(SignedDocument, data, where=str(path))
    except UsageError as fault:
        raise ConfigError(fault.what, where=str(path)) from fault
    check_document(document, trust, where=str(path))
    return document


def check_document(document: SignedDocument, trust: Trust, *, where: str) -> None:
    """Raise VerificationError unless the document's partner signed it."""
    what = f"the {document.kind} of {document.partner} ({document.file})"
    if document.partner == CONSORTIUM and document.kind is not DocumentKind.QUOTA:
        raise VerificationError(f"{what} must be signed by a partner, not by the consortium", where=where)
    try:
        verify_value(trust.partner_key(document.partner), document, what=what)
    except VerificationError as fault:
        fix = f"get the signed file from {document.partner} again, or have it signed again after the change"
        raise VerificationError(fault.what, where=where, fix=fix) from fault


def check_unexpired(document: SignedDocument, now_ms: int, *, where: str) -> None:
    """Raise VerificationError unless the document still holds at `now_ms`."""
    if now_ms >= document.expires_ms:
        what = f"the {document.kind} of {document.partner} ({document.file})"
        fix = f"{document.partner} must issue and sign a new version"
        raise VerificationError(f"{what} expired on {_date(document.expires_ms)}", where=where, fix=fix)


def _date(unix_ms: int) -> str:
    day = datetime.fromtimestamp(max(0, unix_ms) / 1000, UTC)
    return day.strftime("%Y-%m-%d %H:%M:%S UTC")
