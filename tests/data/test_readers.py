from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consortium.data.documents import Document
from consortium.data.readers import Quarantined, find, read
from consortium.errors import NotFoundError, UsageError
from consortium.storage.objects import ObjectStore


def split(*paths: Path) -> tuple[list[Document], list[Quarantined]]:
    items = list(read(paths))
    return [i for i in items if isinstance(i, Document)], [i for i in items if isinstance(i, Quarantined)]


def lines(*rows: object) -> bytes:
    return b"".join((json.dumps(row) + "\n").encode() for row in rows)


def test_parquet_keeps_ids_languages_and_licences(tmp_path: Path) -> None:
    rows = {"id": ["a", None], "text": ["eins", "zwei"], "lang": ["de", None], "licence": ["L", "M"], "other": [1, 2]}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    documents, bad = split(tmp_path / "x.parquet")
    assert [(d.id, d.text, d.language, d.licence) for d in documents] == [
        ("a", "eins", "de", "L"),
        ("x.parquet#1", "zwei", "und", "M"),
    ]
    assert not bad


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_parquet_column_of_bytes_is_read_as_utf8(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["été".encode(), b"caf\xe9", None, "深い".encode()]
    columns = {
        "text": pa.array(texts, kind),
        "lang": pa.array([b"fr"] * 4, kind),
        "id": pa.array([b"\xff\x01"] * 4, kind),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    documents, bad = split(tmp_path / "x.parquet")
    assert [(d.row, d.text, d.language, d.id) for d in documents] == [
        (0, "été", "fr", "ff01"),
        (3, "深い", "fr", "ff01"),
    ]
    assert [(item.row, item.reason) for item in bad] == [(1, "utf8"), (2, "no_text")]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_jsonl_quarantines_bad_lines_and_keeps_the_rest(tmp_path: Path, suffix: str) -> None:
    data = (
        lines({"text": "one"})
        + b"{broken\n"
        + b'{"text": "\xff"}\n'
        + b"\n"
        + lines({"text": None}, [1], {"text": "two"})
    )
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    documents, bad = split(path)
    assert [document.text for document in documents] == ["one", "two"]
    assert [(item.row, item.reason) for item in bad] == [(1, "json"), (2, "utf8"), (4, "no_text"), (5, "json")]


def test_a_cut_gzip_file_gives_what_is_readable_and_says_where_it_ends(tmp_path: Path) -> None:
    whole = gzip.compress(lines(*({"text": f"{i:06d}" * 50} for i in range(2000))))
    (tmp_path / "x.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    documents, [bad] = split(tmp_path)
    assert 0 < len(documents) < 2000
    assert (bad.reason, bad.row) == ("read", -1)


def test_a_folder_of_texts_is_read_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.md").write_text("# deux")
    (tmp_path / "a.txt").write_text("un")
    (tmp_path / "latin.txt").write_bytes("été".encode("latin-1"))
    (tmp_path / "picture.png").write_bytes(b"PNG")
    (tmp_path / ".hidden").write_text("x")
    documents, bad = split(tmp_path)
    assert [document.id for document in documents] == ["a.txt", "b/2.md"]
    assert [(item.file, item.reason) for item in bad] == [("latin.txt", "utf8"), ("picture.png", "format")]


def test_a_corrupt_parquet_file_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    pq.write_table(pa.table({"words": ["x"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["fine"]}), tmp_path / "c.parquet")
    documents, bad = split(tmp_path)
    assert [document.text for document in documents] == ["fine"]
    assert [(item.file, item.reason) for item in bad] == [("a.parquet", "parquet"), ("b.parquet", "no_text_column")]


def test_a_parquet_file_with_two_columns_of_one_name_is_quarantined(tmp_path: Path) -> None:
    for name, columns in (("a", ["text", "text"]), ("b", ["text", "lang", "lang"]), ("c", ["text", "x", "x"])):
        table = pa.Table.from_arrays([pa.array([str(at)]) for at in range(len(columns))], columns)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    documents, bad = split(tmp_path)
    assert [(d.id, d.text) for d in documents] == [("c.parquet#0", "0")]
    assert [(item.file, item.reason, item.detail[:34]) for item in bad] == [
        ("a.parquet", "duplicate_column", "more than one column is named text"),
        ("b.parquet", "duplicate_column", "more than one column is named lang"),
    ]


def test_files_of_one_name_in_two_folders_are_both_read(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
    documents, _ = split(tmp_path / "one", tmp_path / "two")
    assert sorted(document.text for document in documents) == ["one", "two"]


def test_a_file_that_several_paths_lead_to_is_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x.jsonl").write_bytes(lines({"text": "one"}))
    (folder / "b.jsonl").write_bytes(lines({"text": "two"}))
    (tmp_path / "link").symlink_to(folder)
    paths = [folder / "a" / "x.jsonl", folder, folder / "a", tmp_path / "link", tmp_path / "link" / "a" / ".."]
    for given in (paths, paths[::-1]):
        assert [source.name for source in find(given)] == ["a/x.jsonl", "b.jsonl"]
    assert [item.id for item in read(paths) if isinstance(item, Document)] == ["a/x.jsonl#0", "b.jsonl#0"]


@pytest.mark.integration
def test_an_object_that_several_prefixes_lead_to_is_read_once(store: ObjectStore) -> None:
    for key in ("in/a/x.jsonl", "in/b.jsonl"):
        store.put(key, lines({"text": "one"}))
    where = f"s3://{store.bucket}/in"
    found = find([f"{where}/a", where, f"{where}/", f"{where}/b.jsonl"], stores=lambda _: store)
    assert [source.name for source in found] == ["a/x.jsonl", "b.jsonl"]


def test_an_absent_path_and_a_folder_without_texts_are_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        split(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no collection found"):
        split(tmp_path)
