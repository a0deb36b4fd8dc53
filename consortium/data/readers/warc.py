"""Web archives (WARC 1.0 and 1.1, also WET), read record by record with FastWARC.

Records that hold a page or plain text become documents: responses with status 200, resources and conversions. Other
media, other statuses and broken records are quarantined one by one; requests, revisits and descriptions of the crawl
(warcinfo, metadata) hold no content and are passed over. A document's id is its record's, `published` is when it was
crawled, `source` the host. Headers are bounded at 32 KiB by FastWARC, bodies here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from consortium.data.readers import pages, streams
from consortium.data.readers.items import Item, Later, Quarantined, document, first_line

_PAGES = ("text/html", "application/xhtml+xml")
_TEXTS = ("text/plain",)
_PIECE_BYTES = 64 << 10


def records(name: str, file: BinaryIO) -> Iterator[Later]:
    """Yield the records of an archive that hold content, each to be made before the next is asked for."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    silent = (WarcRecordType.warcinfo, WarcRecordType.request, WarcRecordType.metadata, WarcRecordType.revisit)
    number = 0
    try:
        stream: Any = _Reader(file)
        for record in ArchiveIterator(stream, parse_http=False, stream_detect=False):
            if record.record_type not in silent:
                yield partial(_record, record, name, number)
                number += 1
        if number == 0 and not stream.any:
            yield _stopped(name, "warc", "the archive is empty")
    except streams.FAULTS as fault:
        from consortium.data.readers.formats import reason_of

        reason = "bomb" if reason_of(fault) == "bomb" else "warc"
        yield _stopped(name, reason, f"unreadable from record {number} on: {first_line(fault)}")


def _record(record: Any, name: str, row: int) -> Item:
    def refused(reason: str, detail: str) -> Quarantined:
        return Quarantined(file=name, row=row, reason=reason, detail=detail[:300])

    try:
        kind = str(record.record_type)
        if kind not in ("response", "resource", "conversion"):
            return refused("record_type", f"a record of type {kind}")
        whole = int(record.content_length)
        media, charset, encodings = _described(record)
        if isinstance(media, Quarantined):
            return refused(media.reason, media.detail)
        if media not in (*_PAGES, *_TEXTS):
            return refused("media_type", media or "no media type")
        head = whole - int(record.content_length)
        body = record.reader.read(pages.MAX_PAGE_BYTES + 1)
        if len(body) > pages.MAX_PAGE_BYTES:
            return refused("too_large", f"more than {pages.MAX_PAGE_BYTES} bytes")
        if len(body) < whole - head:
            return refused("truncated", f"the record has {len(body)} of {whole - head} bytes")
        for encoding in encodings:
            body = _decode(encoding, body)
        address = (record.headers.get("WARC-Target-URI") or "").strip("<>")
        crawled = (record.headers.get("WARC-Date") or "")[:40]
    except (ValueError, *streams.FAULTS) as fault:
        return refused("http", first_line(fault))
    values = {
        "id": (record.record_id or "").strip("<>") or address or f"{name}#{row}",
        "source": _host(address),
        "published": crawled,
    }
    if media in _PAGES:
        return pages.page(body, name, row, values, charset)
    try:
        return document({**values, "text": pages.decoded(body, charset)}, name, row)
    except ValueError as fault:
        reason, _, detail = first_line(fault).partition(": ")
        return refused(reason, detail)


def _described(record: Any) -> tuple[str | Quarantined, str, list[str]]:
    """Return a record's media type, its charset and the encodings to undo, outermost first."""
    headers, told, encodings = record.headers, "", []
    if record.is_http:
        record.parse_http()
        headers = record.http_headers
        status = headers.status_code if headers is not None else None
        if status != 200:
            return Quarantined(file="", row=-1, reason="http_status", detail=f"status {status}"), "", []
        for header in ("Transfer-Encoding", "Content-Encoding"):
            named = [part.strip().lower() for part in (headers.get(header) or "").split(",")]
            encodings += [part for part in reversed(named) if part not in ("", "identity")]
        if len(encodings) > 3:
            raise ValueError("encoded more than three times")
    told = headers.get("Content-Type") or ""
    media, *parameters = (part.strip() for part in told.split(";"))
    charset = next((p.partition("=")[2].strip("\"' ") for p in parameters if p.lower().startswith("charset=")), "")
    return media.lower(), charset, encodings


def _decode(encoding: str, body: bytes) -> bytes:
    """Undo one encoding of HTTP. Raises ValueError where the body is broken or expands beyond a page's limit."""
    if encoding == "chunked":
        return _unchunked(body)
    if encoding in ("gzip", "x-gzip"):
        return _inflated(body, 31)
    if encoding == "deflate":
        return _inflated(body, 15 if body[:1] and body[0] & 0x0F == 8 else -15)
    if encoding == "br":
        return _brotli(body)
    raise ValueError(f"encoding {encoding[:40]!r}")


def _unchunked(body: bytes) -> bytes:
    out: list[bytes] = []
    at = 0
    while True:
        end = body.find(b"\r\n", at, at + 1024)
        size = int(body[at:end].split(b";")[0].strip() or b"x", 16) if end >= 0 else -1
        if size < 0:
            raise ValueError("a chunk without a size")
        if size == 0:
            return b"".join(out)
        at = end + 2 + size
        if body[at : at + 2] != b"\r\n":
            raise ValueError("a chunk is cut")
        out.append(body[end + 2 : at])
        at += 2


def _inflated(body: bytes, window: int) -> bytes:
    out = b""
    while body:
        inflate = zlib.decompressobj(window)
        out += inflate.decompress(body, pages.MAX_PAGE_BYTES + 1 - len(out))
        if len(out) > pages.MAX_PAGE_BYTES:
            raise ValueError(f"the body expands to more than {pages.MAX_PAGE_BYTES} bytes")
        if not inflate.eof:
            raise ValueError("the body's compression is cut")
        body = inflate.unused_data if window == 31 and inflate.unused_data[:2] == b"\x1f\x8b" else b""
    return out


def _brotli(body: bytes) -> bytes:
    import brotli

    inflate, out = brotli.Decompressor(), b""
    try:
        out = inflate.process(body, output_buffer_limit=pages.MAX_PAGE_BYTES + 1)
    except brotli.error as fault:
        raise ValueError(first_line(fault)) from fault
    if len(out) > pages.MAX_PAGE_BYTES:
        raise ValueError(f"the body expands to more than {pages.MAX_PAGE_BYTES} bytes")
    if not inflate.is_finished():
        raise ValueError("the body's compression is cut")
    return bytes(out)


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _stopped(name: str, reason: str, detail: str) -> Later:
    return lambda: Quarantined(file=name, row=-1, reason=reason, detail=detail)


class _Reader:
    """What FastWARC asks of a stream, and whether there was anything in it."""

    def __init__(self, file: Any) -> None:
        self._file = file  # buffered: `read1` gives what was read before a fault
        self._at = 0
        self.any = False

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read1(min(size, _PIECE_BYTES) if size > 0 else _PIECE_BYTES)
        self._at += len(data)
        self.any = self.any or bool(data.strip())
        return data

    def tell(self) -> int:
        return self._at
