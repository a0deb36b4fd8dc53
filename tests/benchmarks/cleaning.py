"""The figures of `clean`: `python -m tests.benchmarks.cleaning [--json] [--only rules,...] [--datatrove PYTHON]`.

- `rules`: the text rules of the profile `web` on the three real corpora, from texts in memory to a Parquet shard.
- `decisions`: the same verdicts as datatrove 0.10, rule set by rule set, on the same words; `--datatrove` names an
  interpreter that has it, else the rows are left out and it is said. In a virtual environment outside the checkout:
  `pip install -c tests/benchmarks/constraints-datatrove.txt datatrove`.
- `language`: language identification on passages of 100 characters and more.
- `again`: a second run on its own output.
- `pii`, `near`: the rows of `cleaning_pii` and `cleaning_near`.
- `pipeline`: those of `cleaning_pipeline`, all stages on Ray with an S3 store, by the wall.

Seconds of the others are CPU seconds of one thread, so that other work on the machine counts little. References:
datatrove 0.10 and py3langid on the whole text, measured on one core of the machine the targets were set on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from consortium.config import compose_job
from consortium.data import languages, screening, steps
from consortium.data.documents import Document, Notes, annotation_table, to_columns
from consortium.data.lines import Lines, LinesConfig
from consortium.data.quality import Quality, QualityConfig
from consortium.data.screening import screen
from consortium.data.web import SENTENCE_BREAK
from consortium.domain.cleaning import C4, CleanConfig
from consortium.domain.codec import from_json
from consortium.storage.shards import read_table, write_table, write_text
from tests.benchmarks import cleaning_near, cleaning_pii, cleaning_pipeline
from tests.benchmarks.table import Row, arguments, row, show

Corpora = dict[str, list[Document]]
PARTS = ("rules", "decisions", "language", "again", "pii", "near", "pipeline")
DATATROVE_MB_S = 0.31
SAMPLE = 8
"""Every eighth document is compared with datatrove."""
PASSAGE_CHARS = 100


def folder() -> Path:
    """Where the corpora are, if they are."""
    return Path(os.environ.get("CONSORTIUM_CORPORA", Path(__file__).parents[3] / "shared" / "corpora"))


def corpora(every: int) -> Corpora:
    """The real corpora, every `every`th document; empty, and it is said, where they are missing."""
    found: Corpora = {}
    for path in sorted(folder().glob("*.parquet")):
        table = pq.read_table(path, columns=["text", "lang"])
        pairs = list(zip(table.column("text").to_pylist(), table.column("lang").to_pylist(), strict=True))[::every]
        found[path.stem] = [
            Document(id=str(row), text=text, row=row, language=language, declared=language)
            for row, (text, language) in enumerate(pairs)
        ]
    if not found:
        print("skipped: no corpora; name their folder in CONSORTIUM_CORPORA", file=sys.stderr)
    return found


def profile(name: str, language: str) -> CleanConfig:
    """The rules of a profile for one language."""
    params = compose_job("clean", [f"clean={name}"]).params
    return replace(from_json(CleanConfig, params), languages=(language,))


def rules(given: Corpora) -> Iterator[Row]:
    """Speed of the text rules: alone, with personal data and writing, and of the whole pass over single documents."""
    for name, documents in given.items():
        config = profile("web", documents[0].language)
        text_rules = replace(config, redact=())
        *_, quality = screening.judges(config)
        size = megabytes(documents)
        for what, edits, writes, target in (
            (f"{name}: repair, line rules, Gopher, C4, FineWeb", screening.edits(text_rules), False, None),
            (f"{name}: the same with personal data and writing", screening.edits(config), True, 5),
        ):
            notes = Notes(0)
            begun = time.process_time()
            kept = list(quality(steps.edited(edits, documents, notes), notes))
            if writes:
                write_text(to_columns(kept))
                write_table(annotation_table(notes.annotations))
            seconds = time.process_time() - begun
            yield row(what, size / seconds, "MB/s", DATATROVE_MB_S, least=target)
        shard = write_text(to_columns(documents))
        begun = time.process_time()
        screened = screening.screen(read_table(shard), 0, config)
        for table in (screened.candidates, screened.annotations, screened.arrivals):
            write_table(table)
        seconds = time.process_time() - begun
        yield row(f"{name}: with length, language, index, read and written", size / seconds, "MB/s")


def decisions(given: Corpora, python: str) -> Iterator[Row]:
    """Agreement with datatrove on the same words, and both speeds."""
    if not python:
        print("decisions: skipped, --datatrove names no interpreter", file=sys.stderr)
        return
    config = QualityConfig(filters=())
    for name, everything in given.items():
        documents = everything[::SAMPLE]
        language = languages.language(documents[0].language)
        asked = {
            "texts": [document.text for document in documents],
            "stop_words": sorted(language.stop_words),
            "terminal": language.terminal_punctuation,
            "sentence_break": SENTENCE_BREAK.pattern,
        }
        script = Path(__file__).with_name("datatrove_decisions.py")
        ran = subprocess.run([python, script], input=json.dumps(asked), check=True, capture_output=True, text=True)
        for rule_set, theirs in json.loads(ran.stdout).items():
            begun = time.process_time()
            judged = documents
            if rule_set == "c4":  # English policy phrases, as datatrove has them
                english = [replace(document, language="en") for document in documents]
                judged = list(Lines(LinesConfig(c4=C4(), rules=(), min_repeated_chars=1))(english, Notes(0)))
            kept = {document.id for document in Quality(replace(config, filters=(rule_set,)))(judged, Notes(0))}
            seconds = time.process_time() - begun
            ours = [document.id in kept for document in documents]
            same = sum(a == b for a, b in zip(ours, theirs["stays"], strict=True))
            what = f"{name}: {rule_set}, same decision as datatrove"
            yield row(what, 100 * same / len(ours), "%", None, least=99.5)
            size = megabytes(documents)
            yield row(f"{name}: {rule_set}, speed on the same words", size / seconds, "MB/s", size / theirs["seconds"])


def language(given: Corpora) -> Iterator[Row]:
    """Language identification: the language of the collection is taken for the truth."""
    passages = [d for documents in given.values() for d in documents if len(d.text) >= PASSAGE_CHARS]
    if not passages:
        return
    step = steps.language(steps.LanguageConfig(languages=steps.CONTRAST, min_confidence=0.0))
    list(step(passages[:1], Notes(0)))
    begun = time.process_time()
    kept = list(step(passages, Notes(0)))
    seconds = time.process_time() - begun
    right = sum(document.language == document.declared for document in kept)
    yield row("language id, passages of 100+ characters", megabytes(passages) / seconds, "MB/s", 1.7, least=5)
    yield row("language id, right", 100 * right / len(passages), "%", None, least=99)


def again(given: Corpora) -> Iterator[Row]:
    """What a second run drops or changes of what the first left."""
    for name, documents in given.items():
        for chosen in ("standard", "web"):
            config = profile(chosen, documents[0].language)
            first = screen(read_table(write_text(to_columns(documents[::SAMPLE]))), 0, config).candidates
            second = screen(read_table(write_text(first.select(["id", "text", "language"]).to_pydict())), 0, config)
            what = f"{name}, {chosen}: dropped or changed of {first.num_rows} by a second run"
            yield row(what, second.annotations.num_rows, "documents", 7, most=0)


def megabytes(documents: list[Document]) -> float:
    """Their text, UTF-8."""
    return sum(len(document.text.encode()) for document in documents) / 1e6


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__, PARTS)
    parser.add_argument("--datatrove", default="", help="a Python that has datatrove 0.10")
    parser.add_argument("--every", type=int, default=1, help="take every n-th document of the corpora only")
    choice = parser.parse_args()
    given = corpora(choice.every)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "rules": lambda: rules(given),
        "decisions": lambda: decisions(given, choice.datatrove),
        "language": lambda: language(given),
        "again": lambda: again(given),
        "pii": lambda: cleaning_pii.rows(folder() if given else None),
        "near": lambda: cleaning_near.rows(cleaning_near.corpora()),
        "pipeline": lambda: cleaning_pipeline.rows(cleaning_pipeline.PARTS),
    }
    show((found for part in choice.only for found in parts[part]()), as_json=choice.json)


if __name__ == "__main__":
    main()
