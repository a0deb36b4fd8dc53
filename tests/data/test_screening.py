from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from consortium.data import dedup
from consortium.data.counts import Counts, total
from consortium.data.sample import generate
from consortium.data.screening import CleanConfig, screen, settle
from consortium.errors import ConfigError, UsageError, VerificationError
from consortium.storage.shards import read_table, write_table, write_text

CONFIG = CleanConfig(languages=("fr",), min_language_confidence=0.5, min_chars=40, max_chars=1_000_000)


def shard(rows) -> pa.Table:
    return read_table(write_text({name: [row[name] for row in rows] for name in rows[0]}))


@pytest.mark.parametrize("language", ["fr", "de", "es"])
def test_cleaning_a_sample_finds_exactly_what_was_put_in(language: str) -> None:
    sample = generate(language, documents=600, seed=3)
    config = replace(CONFIG, languages=(language,))
    parts = [screen(shard(sample.rows[i::3]), i, config) for i in range(3)]
    chosen = dedup.survivors([part.keys for part in parts])
    starts = [0, parts[0].candidates.num_rows, parts[0].candidates.num_rows + parts[1].candidates.num_rows]
    done = [settle(part.candidates, i, starts[i], chosen[i]) for i, part in enumerate(parts)]
    counts = total(part.counts for part in parts)
    truth = sample.truth
    assert counts.total_in == truth.documents
    assert counts.removed_by("length.min") == truth.junk
    assert counts.removed_by("language.other") == truth.wrong_language
    assert counts.edits.get("redact.email", 0) == truth.emails > 0
    assert sum(sum(part.removed.get("dedup.exact", {}).values()) for part in done) == truth.duplicates
    assert sum(part.table.num_rows for part in done) == truth.clean
    assert not any("@" in text for part in done for text in part.table.column("text").to_pylist())


def test_a_second_run_on_its_own_output_drops_nothing() -> None:
    first = screen(shard(generate("fr", documents=200).rows), 0, CONFIG)
    clean = settle(first.candidates, 0, 0, dedup.survivors([first.keys])[0]).table
    second = screen(clean, 0, CONFIG)
    assert second.counts.total_out == clean.num_rows
    again = settle(second.candidates, 0, 0, dedup.survivors([second.keys])[0]).table
    assert write_text(again) == write_text(clean)


def test_every_removed_document_has_one_annotation_and_every_edit_one() -> None:
    sample = generate("fr", documents=300)
    found = screen(shard(sample.rows), 4, CONFIG)
    rules = found.annotations.column("rule").to_pylist()
    assert len(rules) == sample.truth.junk + sample.truth.wrong_language + sample.truth.emails
    assert set(found.annotations.column("shard").to_pylist()) == {4}
    noted = found.annotations.select(["row", "id"]).to_pylist()
    assert all(sample.rows[note["row"]]["id"] == note["id"] for note in noted)


def test_the_same_shard_gives_the_same_bytes() -> None:
    table = shard(generate("fr", documents=100).rows)
    first, second = (screen(table, 0, CONFIG) for _ in range(2))
    assert write_table(first.candidates) == write_table(second.candidates)
    assert write_table(first.annotations) == write_table(second.annotations)


def test_unknown_and_missing_languages_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="xx"):
        replace(CONFIG, languages=("fr", "xx")).judges()
    with pytest.raises(ConfigError, match="no language"):
        replace(CONFIG, languages=()).judges()


def test_the_earliest_of_equal_texts_survives() -> None:
    keys = [[dedup.key(text) for text in texts] for texts in (["b", "A"], ["a ", "c"], ["B", "b\n", "C"])]
    chosen = dedup.survivors([b"".join(part) for part in keys])
    assert [part.tolist() for part in chosen] == [[0, 1], [1, 3], [0, 0, 3]]
    assert [part.tolist() for part in dedup.survivors([b"", keys[0][0], b""])] == [[], [0], []]
    assert dedup.survivors([]) == []


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("Straße", "STRASSE", True),
        ("e\u0301te\u0301", "\u00e9t\u00e9", True),
        ("a  b\n", "a b", True),
        ("a b", "ab", False),
        ("Artikel 1", "Artikel 2", False),
    ],
)
def test_texts_are_equal_up_to_case_white_space_and_unicode_form(first: str, second: str, equal: bool) -> None:
    assert (dedup.key(first) == dedup.key(second)) is equal


def test_counts_that_do_not_add_up_are_refused() -> None:
    good = Counts(documents_in={"fr": 3}, documents_out={"fr": 2}, removed={"length.min": {"fr": 1}})
    assert total([good, good]).check().total_in == 6
    with pytest.raises(VerificationError, match="fr do not add up: 3 in, 1 out, 1 removed"):
        replace(good, documents_out={"fr": 1}).check()


def test_a_sample_is_the_same_for_the_same_seed_only() -> None:
    assert generate("de", 50, seed=1) == generate("de", 50, seed=1) != generate("de", 50, seed=2)
    with pytest.raises(UsageError, match="'it'"):
        generate("it")
    with pytest.raises(UsageError, match="at least 20"):
        generate("fr", 3)
