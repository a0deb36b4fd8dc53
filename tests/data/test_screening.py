from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from consortium.data import dedup
from consortium.data.counts import Counts, total
from consortium.data.decontaminate import EvaluationSets
from consortium.data.documents import text_digest
from consortium.data.grouping import Fates, Part, decide
from consortium.data.minhash import sign, view
from consortium.data.poisoning import observe
from consortium.data.sample import generate
from consortium.data.screening import Fate, Screened, Settled, judges, screen, settle
from consortium.domain.cleaning import MAX_CHARS, CleanConfig, DecontaminateConfig, PiiKind
from consortium.errors import ConfigError, UsageError, VerificationError
from consortium.storage.shards import read_table, write_table, write_text

CONFIG = CleanConfig(
    languages=("fr",), min_language_confidence=0.5, min_chars=40, max_chars=1_000_000, redact=get_args(PiiKind)
)
NEAR = replace(CONFIG, dedup="near")


def shard(rows) -> pa.Table:
    return read_table(write_text({name: [row[name] for row in rows] for name in rows[0]}))


def together(parts: Sequence[Screened], config: CleanConfig) -> tuple[list[Settled], Fates]:
    """Decide over screened shards and settle each, as `clean` does on Ray."""
    tables = [part.candidates for part in parts]
    texts = [table.column("text").to_pylist() for table in tables]
    signed = [view(sign(of, config.near), config.near) for of in texts]
    seen = [
        observe(of, *(t.column(n).to_pylist() for n in ("contributor", "language")))
        for of, t in zip(texts, tables, strict=True)
    ]
    small = [Part(part.keys, near, found) for part, near, found in zip(parts, signed, seen, strict=True)]
    fates = decide(small, config, lambda at, rows: [texts[at][row] for row in rows.tolist()])
    places = np.array([(at, row) for at, table in enumerate(tables) for row in table.column("row").to_pylist()])
    places = places.reshape(-1, 2)
    done = []
    for at, part in enumerate(parts):
        fate = Fate(why=fates.why[at], standing=places[fates.stands[at]], reasons=fates.reasons)
        done.append(settle(part.candidates, part.arrivals, at, fate))
    return done, fates


@pytest.mark.parametrize("dedup", ["exact", "near"])
@pytest.mark.parametrize("language", ["fr", "de", "es"])
def test_cleaning_a_sample_finds_exactly_what_was_put_in(language: str, dedup: Literal["exact", "near"]) -> None:
    sample = generate(language, documents=600, seed=3)
    config = replace(CONFIG, languages=(language,), dedup=dedup)
    parts = [screen(shard(sample.rows[i::3]), i, config) for i in range(3)]
    done, _ = together(parts, config)
    counts = total(part.counts for part in parts)
    truth = sample.truth
    assert counts.total_in == truth.documents
    assert counts.removed_by("length.min") == truth.junk
    assert counts.removed_by("language.other") == truth.wrong_language
    assert counts.edits == {"redact.email": truth.emails}
    assert sum(sum(part.removed.get("dedup.exact", {}).values()) for part in done) == truth.duplicates
    near = sum(sum(part.removed.get("dedup.near", {}).values()) for part in done)
    assert sum(part.table.num_rows for part in done) == truth.clean - near
    assert dedup == "near" or not near
    assert not any("@" in text for part in done for text in part.table.column("text").to_pylist())


def test_a_second_run_on_its_own_output_drops_nothing() -> None:
    first = screen(shard(generate("fr", documents=200).rows), 0, NEAR)
    [clean], _ = together([first], NEAR)
    second = screen(clean.table, 0, NEAR)
    assert second.counts.total_out == clean.table.num_rows
    [again], _ = together([second], NEAR)
    assert write_text(again.table) == write_text(clean.table)


def test_the_index_leads_from_every_document_to_what_became_of_it() -> None:
    rows = generate("fr", documents=300, seed=2).rows
    parts = [screen(shard(rows[i::2]), i, NEAR) for i in range(2)]
    done, _ = together(parts, NEAR)
    for at, (part, settled) in enumerate(zip(parts, done, strict=True)):
        texts = [row["text"] for row in rows[at::2]]
        notes = pa.concat_tables([part.annotations, settled.annotations]).to_pylist()
        removed = {note["row"]: note["rule"] for note in notes if note["start"] < 0}
        stays = settled.table.column("text").to_pylist()
        index = settled.index.to_pylist()
        assert [line["document"] for line in index] == [text_digest(text) for text in texts]
        assert [line["row"] for line in index] == list(range(len(texts)))
        assert {line["row"]: line["rule"] for line in index if line["rule"]} == removed
        for line in index:
            if line["rule"]:
                assert (line["clean"], line["clean_row"]) == ("", -1)
            else:
                assert line["clean"] == text_digest(stays[line["clean_row"]])


def test_a_duplicates_annotation_names_what_stands_for_it() -> None:
    rows = generate("fr", documents=200, seed=2).rows
    parts = [screen(shard(rows[i::2]), i, CONFIG) for i in range(2)]
    done, _ = together(parts, CONFIG)
    notes = [note for settled in done for note in settled.annotations.to_pylist()]
    assert notes
    for note in notes:
        _, at, _, row = note["value"].split()
        stands = parts[int(at)].candidates.filter(pc.field("row") == int(row)).column("text").to_pylist()
        gone = parts[note["shard"]].candidates.filter(pc.field("row") == note["row"]).column("text").to_pylist()
        assert note["rule"] == "dedup.exact"
        assert dedup.key(stands[0]) == dedup.key(gone[0])


def test_whom_a_screen_finds_is_set_aside_and_stands_for_nobody() -> None:
    rows = [dict(row, contributor="abc"[at % 3]) for at, row in enumerate(generate("fr", documents=900, seed=4).rows)]
    stolen = [row for row in rows if row["contributor"] == "a" and len(row["text"]) > 300][:40]
    planted = [dict(row, contributor="mallory", text=f"{row['text']} zzyxqq") for row in stolen]
    copied = [dict(row, contributor="mallory") for row in stolen]
    config = replace(CONFIG, dedup="near", quarantine=True)
    part = screen(shard([*copied, *planted, *rows]), 0, config)
    [done], fates = together([part], config)
    assert set(done.removed) >= {"poisoning.trigger"}
    assert "mallory" not in done.table.column("contributor").to_pylist()
    [honest], _ = together([screen(shard(rows), 0, config)], config)
    assert done.table.column("text").to_pylist() == honest.table.column("text").to_pylist()
    cleared = replace(config, poisoning=replace(config.poisoning, cleared=("mallory",)))
    [back], _ = together([part], cleared)
    assert "mallory" in back.table.column("contributor").to_pylist()
    assert {reason.rule for reason in fates.reasons} > {reason.rule for reason in together([part], cleared)[1].reasons}


def test_what_stands_in_an_evaluation_set_goes() -> None:
    rows = generate("fr", documents=100, seed=2).rows
    asked = next(row["text"] for row in rows if len(row["text"].split()) > 30)
    config = replace(CONFIG, decontaminate=DecontaminateConfig(against=("exam",)))
    found = screen(shard(rows), 0, config, EvaluationSets({"exam": [asked]}, config.decontaminate))
    assert found.counts.removed_by("decontaminate.ngram") >= 1
    assert asked not in found.candidates.column("text").to_pylist()


def test_what_is_judged_again_in_another_language_is_noted_once() -> None:
    law = next(row["text"] for row in generate("fr", documents=100, seed=2).rows if len(row["text"].split()) > 30)
    drawn = {"id": "a", "text": f"{law}\nTous droits réservés\n{law}", "language": "de"}
    leak = DecontaminateConfig(against=("exam",), drop=False)
    config = replace(CONFIG, lines=("boilerplate",), decontaminate=leak)
    found = screen(shard([drawn]), 0, config, EvaluationSets({"exam": [law]}, leak))
    rules = found.annotations.column("rule").to_pylist()
    assert rules == ["lines.boilerplate", "decontaminate.ngram"]
    (text,) = found.candidates.column("text").to_pylist()
    noted = found.annotations.to_pylist()[1]
    assert text == f"{law}\n{law}"
    assert text[noted["start"] : noted["end"]]


def test_every_removed_document_has_one_annotation_and_every_edit_one() -> None:
    sample = generate("fr", documents=300)
    found = screen(shard(sample.rows), 4, CONFIG)
    rules = found.annotations.column("rule").to_pylist()
    assert len(rules) == sample.truth.junk + sample.truth.wrong_language + sample.truth.emails
    assert set(found.annotations.column("shard").to_pylist()) == {4}
    noted = found.annotations.select(["row", "id"]).to_pylist()
    assert all(sample.rows[note["row"]]["id"] == note["id"] for note in noted)


def test_a_text_that_could_never_stay_is_not_edited_first() -> None:
    rows = [*generate("fr", documents=20).rows]
    rows[3] = dict(rows[3], text="password=" * (MAX_CHARS // 9 + 1))
    found = screen(shard(rows), 0, CONFIG)
    [note] = [note for note in found.annotations.to_pylist() if note["row"] == 3]
    assert (note["rule"], note["threshold"]) == ("length.max", str(MAX_CHARS))
    assert found.counts.check().removed_by("length.max") == 1


def test_the_same_shard_gives_the_same_bytes() -> None:
    table = shard(generate("fr", documents=100).rows)
    first, second = (screen(table, 0, CONFIG) for _ in range(2))
    assert write_table(first.candidates) == write_table(second.candidates)
    assert write_table(first.annotations) == write_table(second.annotations)


def test_unknown_and_missing_languages_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="xx"):
        judges(replace(CONFIG, languages=("fr", "xx")))
    with pytest.raises(ConfigError, match="no language"):
        judges(replace(CONFIG, languages=()))


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
        ("（１）法，\u3000令\u200b", "(1)法, 令", True),  # noqa: RUF001  as in print
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
