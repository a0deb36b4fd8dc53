"""What comes out of a file: documents, and what could not become one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from consortium.data.documents import Document
from consortium.data.language import code_of

MAX_TEXT_BYTES = 32 << 20
"""A larger text, or line of JSON, is quarantined."""
MAX_FIELD_CHARS = 2_048
"""An id, source or licence that is longer is no id, source or licence."""

TEXT_NAMES = ("text", "content", "body")
FIELDS = {
    "id": ("id", "_id", "doc_id", "url"),
    "language": ("language", "lang"),
    "licence": ("licence", "license"),
    "source": ("source",),
    "published": ("published", "date"),
    "contributor": ("contributor",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """Something that could not become a document. `row` is -1 for a whole file or its remainder."""

    file: str
    row: int
    reason: str
    detail: str


Item = Document | Quarantined
Later = Callable[[], Item]
"""An item that is made when it is asked for, so that one which is skipped costs little. Call it before the next."""


def document(values: Mapping[str, Any], file: str, row: int) -> Item:
    """Return the document that a row's values make, or why they make none."""
    text = next((values[name] for name in TEXT_NAMES if values.get(name) is not None), None)
    if isinstance(text, bytes):  # a column that its writer did not mark as UTF-8
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as fault:
            return Quarantined(file=file, row=row, reason="utf8", detail=first_line(fault))
    if not isinstance(text, str):
        return Quarantined(file=file, row=row, reason="no_text", detail=f"the text is {type(text).__name__}")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as fault:
        return Quarantined(file=file, row=row, reason="utf8", detail=first_line(fault))
    if size > MAX_TEXT_BYTES:
        return Quarantined(file=file, row=row, reason="too_large", detail=f"{size} bytes, at most {MAX_TEXT_BYTES}")
    try:
        found = {field: _string(values, names) for field, names in FIELDS.items()}
    except ValueError as fault:
        return Quarantined(file=file, row=row, reason="too_large", detail=first_line(fault))
    language = code_of(found.pop("language"))
    return Document(
        **{**found, "id": found["id"] or f"{file}#{row}"}, text=text, row=row, language=language, declared=language
    )


def _string(values: Mapping[str, Any], names: tuple[str, ...]) -> str:
    name = next((name for name in names if values.get(name) is not None), "")
    found = _told(values[name]) if name else ""
    if len(found) > MAX_FIELD_CHARS:
        raise ValueError(f"{name} has {len(found)} characters, at most {MAX_FIELD_CHARS}")
    return found.encode("utf-8", "replace").decode()


def _told(value: Any) -> str:
    """Return a value as text; bytes are UTF-8, or else a number's: their digits in hex."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.hex()


def first_line(fault: BaseException) -> str:
    """Return an error's first line, as a quarantined item's detail."""
    lines = str(fault).encode("utf-8", "replace").decode().splitlines()
    return (lines[0] if lines and lines[0] else type(fault).__name__)[:300]
