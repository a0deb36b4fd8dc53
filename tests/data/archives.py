"""Web pages and archives as crawlers write them, for tests."""

from __future__ import annotations

import pyarrow as pa

SENTENCE = "Le présent article fixe les règles applicables aux archives publiques de la commune. "


def page(title: str = "Loi 1", *, lang: str = "fr", day: str = "2021-03-04", body: str = SENTENCE * 8) -> bytes:
    return (
        f'<!doctype html><html lang="{lang}"><head><title>{title}</title><meta name="date" content="{day}">'
        f"<meta charset='utf-8'></head><body><nav><a href='/'>Accueil</a><a href='/x'>Plan du site</a></nav>"
        f"<article><h1>{title}</h1><p>{body}</p><p>{SENTENCE * 3}</p></article>"
        f"<footer>Mentions légales</footer></body></html>"
    ).encode()


def record(
    body: bytes,
    *,
    kind: str = "response",
    number: int = 1,
    headers: str = "Content-Type: text/html; charset=utf-8",
    status: str = "200 OK",
    length: int | None = None,
) -> bytes:
    block = body
    media = headers.partition(": ")[2]
    if kind == "response":
        block = f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + body
        media = "application/http; msgtype=response"
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\n"
        f"WARC-Target-URI: https://archives.example.fr/{number}\r\nWARC-Date: 2020-01-0{number}T00:00:00Z\r\n"
        f"Content-Type: {media}\r\nContent-Length: {len(block) if length is None else length}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())
