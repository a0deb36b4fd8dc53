"""Files as they arrive, and as somebody makes them who wants to do harm."""

from __future__ import annotations

import gzip
import json
import os
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.data.documents import Document
from consortium.data.readers import Quarantined, apart, find, read
from consortium.data.readers.apart import Reader
from consortium.data.readers.pages import decoded
from consortium.data.register import register_collection
from consortium.domain.codec import to_json
from consortium.errors import JobFailedError, UsageError
from consortium.storage.objects import ObjectStore
from tests.data.archives import page, record, zstd

PACKED: dict[str, Any] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
LINES = b"".join(json.dumps({"text": f"{i:06d}" * 50}).encode() + b"\n" for i in range(2000))


def items(path: Path, name: str, data: bytes) -> tuple[list[Document], list[Quarantined]]:
    folder = path / "in"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    found = list(read([folder]))
    (folder / name).unlink()
    return [i for i in found if isinstance(i, Document)], [i for i in found if isinstance(i, Quarantined)]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.binary(max_size=40)
        | st.text(max_size=20).map(lambda text: json.dumps({"text": text}).encode())
        | st.sampled_from(
            [b"{}", b"[]", b"null", b'{"text": 3}', b'{"text": "\\ud800"}', b'{"a":' + b"9" * 5000 + b"}"]
        )
        | st.just(b"[" * 100_000),
        max_size=12,
    ),
    packed=st.sampled_from(sorted(PACKED)),
    end=st.sampled_from([b"\n", b"\r\n"]),
    bom=st.booleans(),
)
def test_every_line_is_a_document_or_is_quarantined(tmp_path_factory, rows, packed, end, bom) -> None:
    rows = [row.replace(b"\n", b"") for row in rows]
    data = (b"\xef\xbb\xbf" if bom else b"") + end.join(rows)
    documents, bad = items(tmp_path_factory.getbasetemp(), f"x.jsonl{packed}", PACKED[packed](data))
    written = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert sorted(item.row for item in [*documents, *bad]) == [n for n, row in enumerate(written) if row.strip()]


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("cut", [1, 7, 400, 2000])
def test_a_cut_file_gives_what_is_readable_and_says_where_it_ends(tmp_path: Path, packed: str, cut: int) -> None:
    documents, [bad] = items(tmp_path, f"x.jsonl{packed}", PACKED[packed](LINES)[:-cut])
    assert (bad.reason, bad.row) == ("read", -1)
    assert f"from line {len(documents) + 1} on" in bad.detail
    assert [document.row for document in documents] == list(range(len(documents)))


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_files_written_in_several_runs_are_read_to_the_end(tmp_path: Path, packed: str) -> None:
    documents, bad = items(tmp_path, f"x.jsonl{packed}", PACKED[packed](LINES) + PACKED[packed](LINES))
    assert (len(documents), bad) == (4000, [])


@pytest.mark.parametrize(
    ("name", "content"),  # made where it is needed: every worker of a test run collects this file
    [
        ("x.jsonl", lambda: b"0" * 200_000_000),
        ("x.jsonl", lambda: b"\n" * 200_000_000),
        ("x.txt", lambda: b"0" * 40_000_000),
        ("x.html", lambda: b"<p>" * 20_000_000),
        ("x.warc", lambda: b"WARC/1.0\r\n" + b"X: y\r\n" * 20_000_000),
        ("x.warc", lambda: record(b"0" * 100_000_000)),
    ],
)
@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_bomb_ends_in_quarantine(tmp_path: Path, name: str, content: Callable[[], bytes], packed: str) -> None:
    documents, bad = items(tmp_path, name + packed, PACKED[packed](content()))
    assert documents == []
    assert bad
    assert {item.reason for item in bad} <= {"bomb", "too_large", "warc", "http"}


def test_a_bomb_inside_an_archive_does_not_take_its_neighbours_along(tmp_path: Path) -> None:
    zeros = b"0" * 50_000_000
    bodies = {"gzip": gzip.compress(zeros), "deflate": zlib.compress(zeros), "br": brotli.compress(zeros, quality=1)}
    whole = record(page(), number=1)
    for number, (name, body) in enumerate(bodies.items(), 2):
        whole += record(body, number=number, headers=f"Content-Type: text/html\r\nContent-Encoding: {name}")
    documents, bad = items(tmp_path, "x.warc", whole + record(page(), number=5))
    assert [document.id for document in documents] == ["urn:uuid:1", "urn:uuid:5"]
    assert [(item.row, item.reason) for item in bad] == [(1, "http"), (2, "http"), (3, "http")]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_an_archive_gives_its_pages_with_id_host_and_day_and_names_the_rest(tmp_path: Path, packed: str) -> None:
    chunked = (
        b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (page()[:99], page()[99:])) + b"0\r\n\r\n"
    )
    parts = [
        record(b"software: crawler", kind="warcinfo", headers="Content-Type: application/warc-fields"),
        record(page(), number=1),
        record(b"GET / HTTP/1.1\r\n\r\n", kind="request", headers="Content-Type: application/http; msgtype=request"),
        record(chunked, number=2, headers="Content-Type: text/html\r\nTransfer-Encoding: chunked"),
        record(b"PNG", number=3, headers="Content-Type: image/png"),
        record(page(), number=4, status="404 Not Found"),
        record(gzip.compress(page()), number=5, headers="Content-Type: text/html\r\nContent-Encoding: gzip"),
        record("Texte déjà extrait".encode(), number=6, kind="conversion", headers="Content-Type: text/plain"),
        record(chunked[:300], number=7, headers="Content-Type: text/html\r\nTransfer-Encoding: chunked"),
        record(page(), number=8, headers="Content-Type: text/html; charset=unicode_escape"),
    ]
    documents, bad = items(tmp_path, f"x.warc{packed}", b"".join(map(PACKED[packed], parts)))
    assert [(d.id, d.source, d.published[:10]) for d in documents] == [
        (f"urn:uuid:{n}", "archives.example.fr", f"2020-01-0{n}") for n in (1, 2, 5, 6)
    ]
    assert {d.text for d in documents[:3]} == {documents[0].text}
    assert documents[0].text.startswith("Loi 1\nLe présent article")
    assert "Accueil" not in documents[0].text
    assert [document.language for document in documents] == ["fr", "fr", "fr", "und"]
    assert [(item.row, item.reason) for item in bad] == [
        (2, "media_type"),
        (3, "http_status"),
        (6, "http"),
        (7, "charset"),
    ]


def test_what_is_broken_in_an_archive_is_said_and_what_stands_before_it_is_kept(tmp_path: Path) -> None:
    good = record(page())
    for broken in (good[:-300], b"junk\r\n\r\n" + good, record(b"", length=-5), record(page(), length=10**17)):
        documents, bad = items(tmp_path, "x.warc", good + broken)
        assert len(documents) == 1
        assert bad
    documents, bad = items(tmp_path, "x.warc.gz", gzip.compress(good) * 2 + gzip.compress(good)[:-30])
    assert len(documents) == 2
    assert bad[-1].reason == "warc"
    assert [item.reason for item in items(tmp_path, "x.warc", b"")[1]] == ["warc"]


def test_a_page_is_read_in_its_own_encoding_and_day_and_language_are_taken_from_it(tmp_path: Path) -> None:
    documents, bad = items(tmp_path, "x.html", page())
    assert [(d.id, d.language, d.published) for d in documents] == [("x.html", "fr", "2021-03-04")]
    old = page().decode().replace("charset='utf-8'", "charset='iso-8859-1'").encode("cp1252")
    assert items(tmp_path, "x.html", old)[0][0].text == documents[0].text
    undeclared = page().decode().replace("<meta charset='utf-8'>", "").encode("cp1252")
    assert items(tmp_path, "x.htm", undeclared)[0][0].text == documents[0].text
    assert items(tmp_path, "x.html", page().decode().encode("utf-16"))[0][0].text == documents[0].text
    assert bad == []
    binary = b"<html><meta charset=utf-8>" + bytes(range(128, 256)) * 20
    assert [item.reason for item in items(tmp_path, "x.html", binary)[1]] == ["utf8"]
    assert [item.reason for item in items(tmp_path, "x.html", b"")[1]] == ["html"]
    assert [item.reason for item in items(tmp_path, "x.html", b"<a>" * 500_000)[1]] == ["html"]


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [
        ("cp1251", "cp1251", "Гражданство"),
        ("iso-8859-8-i", "iso-8859-8", "חוק האזרחות"),
        ("iso8859-2", "iso-8859-2", "ustawa o obywatelstwie łódź"),
        ("UTF-16LE", "utf-16-le", "Gesetz"),
        ("euc-kr", "cp949", "똠방각하"),
        ("big5", "big5hkscs", "香港法例 嘅"),
        ("EUC-JP", "euc_jis_2004", "①国籍法"),
    ],
)
def test_a_label_means_what_browsers_take_it_for(label: str, codec: str, text: str) -> None:
    assert decoded(text.encode(codec), label) == text


def test_nothing_that_a_page_names_is_fetched(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        own = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        secret = tmp_path / "secret.txt"
        secret.write_text("SECRET")
        doctype = f'<!DOCTYPE html [<!ENTITY e SYSTEM "file://{secret}"><!ENTITY f SYSTEM "{own}">]>'
        body = f'&e;&f;<img src="{own}"><script src="{own}"></script><iframe src="{own}"></iframe>'
        hostile = page(body=body).decode().replace("<!doctype html>", doctype)
        hostile = hostile.replace("<head>", f'<head><base href="{own}"><link rel="canonical stylesheet" href="{own}">')
        documents, _ = items(tmp_path, "x.html", hostile.encode())
        assert len(documents) == 1
        assert "SECRET" not in documents[0].text
        with pytest.raises(TimeoutError):
            server.accept()


def test_links_pipes_and_unreadable_names_in_a_folder_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("SECRET")
    folder = tmp_path / "given"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "a.txt").write_text("un")
    (folder / "link.txt").symlink_to(tmp_path / "secret" / "key.txt")
    (folder / "linked").symlink_to(tmp_path / "secret")
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe.txt")
    (Path(os.fsdecode(bytes(folder) + b"/\xff.txt"))).write_text("deux")
    found = list(read([folder]))
    assert [(i.id, i.text) for i in found if isinstance(i, Document)] == [("deep/er/a.txt", "un"), ("�.txt", "deux")]
    assert [(i.file, i.reason) for i in found if isinstance(i, Quarantined)] == [
        ("link.txt", "symlink"),
        ("linked", "symlink"),
        ("pipe.txt", "format"),
        ("round", "symlink"),
    ]
    assert [i.text for i in read([folder / "link.txt"]) if isinstance(i, Document)] == ["SECRET"]  # named itself
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.txt").symlink_to(folder / "deep")
    with pytest.raises(UsageError, match="1 seen: symlink"):
        list(read([tmp_path / "only"]))


def test_parquet_rows_that_cannot_be_are_quarantined_alone(tmp_path: Path) -> None:
    text = pa.array([b"one", b"\xff\xfe", b"three", b"four"]).view(pa.string())
    days = pa.array([0, 0, 2**60, 0], pa.timestamp("ms"))
    pq.write_table(pa.table({"text": text, "date": days, "id": ["a", "b", "c", "d" * 5000]}), tmp_path / "x.parquet")
    found = list(read([tmp_path]))
    assert [i.text for i in found if isinstance(i, Document)] == ["one"]
    assert [(i.row, i.reason) for i in found if isinstance(i, Quarantined)] == [
        (1, "utf8"),
        (2, "value"),
        (3, "too_large"),
    ]


def test_the_reader_in_its_own_process_gives_the_same_from_any_item_on(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES[:100_000]) + b"junk")
    (tmp_path / "b.warc").write_bytes(record(page(), number=1) + record(b"x", number=2, status="500") + b"junk")
    pq.write_table(pa.table({"text": [str(n) for n in range(300)]}), tmp_path / "c.parquet")
    with Reader() as reader:
        for source in find([tmp_path]):
            whole = list(read([source.path]))
            for start in (0, 1, len(whole) - 1, len(whole)):
                assert list(reader.read(source, start)) == whole[start:]


def test_a_page_that_takes_too_long_is_quarantined_and_the_next_is_read(tmp_path: Path) -> None:
    slow = page(body="<b>x</b>" * 60_000)
    (tmp_path / "x.warc").write_bytes(record(page(), number=1) + record(slow, number=2) + record(page(), number=3))
    [source] = find([tmp_path])
    with Reader(page_cpu_s=0.2) as reader:
        found = list(reader.read(source))
    assert [i.id for i in found if isinstance(i, Document)] == ["urn:uuid:1", "urn:uuid:3"]
    assert [(i.row, i.reason) for i in found if isinstance(i, Quarantined)] == [(1, "timeout")]


def test_a_file_of_pages_that_take_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "MAX_DEATHS", 2)
    slow = page(body="<b>x</b>" * 60_000)
    (tmp_path / "x.warc").write_bytes(b"".join(record(slow, number=n) for n in range(1, 9)))
    [source] = find([tmp_path])
    with Reader(page_cpu_s=0.2) as reader:
        found = list(reader.read(source))
    assert [(i.row, i.reason) for i in found if isinstance(i, Quarantined)] == [
        (0, "timeout"),
        (1, "timeout"),
        (-1, "timeout"),
    ]
    assert found[-1].detail.startswith("from item 2 on")


def test_a_reader_that_somebody_ends_is_not_the_files_fault(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(LINES * 20)
    [source] = find([tmp_path])
    with Reader() as reader:
        items = reader.read(source)
        next(items)
        assert reader._child is not None
        reader._child.kill()
        with pytest.raises(JobFailedError, match="signal 9"):
            list(items)
        assert len(list(reader.read(source))) == 40_000


@pytest.mark.integration
def test_a_text_that_stands_where_a_name_should_does_not_leave_with_the_description(
    store: ObjectStore, tmp_path: Path
) -> None:
    secret = "Il était une fois un texte qui ne devait pas sortir du territoire. " * 3
    rows = [
        {"text": "a", "lang": secret, "licence": secret},
        {"text": "b", "lang": "fr-CA", "licence": "Licence Ouverte 2.0"},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = register_collection([tmp_path], store, "x", "fr-1", dataset_id="ds-00000000000000000000000001")
    assert (made.languages, made.licence) == (("fr",), "Licence Ouverte 2.0")
    assert "fois" not in json.dumps(to_json(made))


def test_a_file_that_takes_too_much_memory_is_quarantined_and_the_next_is_read(tmp_path: Path) -> None:
    value = "x" * 30_000_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 60, pa.int32()), pa.array([value]))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 1_500_000
    (tmp_path / "b.txt").write_text("fine")
    with Reader(memory_bytes=1600 << 20) as reader:
        found = [item for source in find([tmp_path]) for item in reader.read(source)]
    assert [i.text for i in found if isinstance(i, Document) and len(i.text) < 10] == ["fine"]
    assert any(i.file == "a.parquet" and i.row == -1 for i in found if isinstance(i, Quarantined))
