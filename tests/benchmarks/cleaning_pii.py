"""The rows about personal data of the cleaning benchmark; alone: `python -m tests.benchmarks.cleaning_pii [--json]`.

- Recall and precision on generated truth, names excluded: a finding counts if kind and place are exactly right.
- Speed of the whole step on one core over the three law corpora, best of three passes, in CPU time. The reference is
  `phonenumbers.PhoneNumberMatcher` over a sample of the same texts in the same run: one kind of seven, for one state.
- Findings in the law corpora, 72 MB, against those that were looked at one by one (November 2026: all were right).
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from phonenumbers import PhoneNumberMatcher

from consortium.data.documents import Document, Notes
from consortium.data.pii import PiiConfig, redact, step
from tests.benchmarks.table import Row, arguments, row, show
from tests.data.pii_truth import labelled, score

MIN_MB_PER_S = 12.0
_CORPORA = {"fr": "fr", "de": "de", "uy": "es"}
_JUDGED = {
    "fr": {},
    "de": {"redact.email": 3, "redact.phone": 9},
    "uy": {"redact.national_id": 74},
}
"""Findings by corpus that were read in their context: offices' addresses and telephones, and persons' cédulas."""
_MATCHER_DOCUMENTS = 300


def rows(corpora: Path | None, documents: int = 1_500) -> Iterator[Row]:
    """The rows; those that need the corpora are left out, and it is said, where there are none."""
    config = PiiConfig()
    for language in ("fr", "de", "es", "en"):
        found, _wrong = score(labelled(language, documents), config)
        what = f"{found.there.total()} values, {language}"
        yield row(f"PII recall, {what}", 100 * found.recall(), "%", least=99)
        yield row(f"PII precision, {what}", 100 * found.precision(), "%", least=98)
    if corpora is None:
        print("no corpora: rows about the law texts left out (set CONSORTIUM_CORPORA)", file=sys.stderr)
        return
    differing = 0
    for name, language in _CORPORA.items():
        texts = pq.read_table(corpora / f"{name}.parquet", columns=["text"]).column("text").to_pylist()
        speed, edits = _speed(texts, language, config)
        reference = _matcher_speed(texts, name)
        yield row(f"PII, all kinds, all states, {name}, CPU time", speed, "MB/s", reference, least=MIN_MB_PER_S)
        judged = Counter(_JUDGED[name])
        differing += ((Counter(edits) - judged) + (judged - Counter(edits))).total()
    yield row("PII findings in the law corpora that nobody judged", differing, "findings", most=0)


def _speed(texts: Sequence[str], language: str, config: PiiConfig) -> tuple[float, dict[str, int]]:
    given = [
        Document(id=str(row), text=text, row=row, language=language, declared=language)
        for row, text in enumerate(texts)
    ]
    size = sum(len(text.encode()) for text in texts)
    redact("Tel. 01 23 45 67 89", config)  # tables of phonenumbers and stdnum loaded
    best, notes = float("inf"), Notes(0)
    for _ in range(3):
        notes = Notes(0)
        begun = time.process_time()
        for _document in step(config)(given, notes):
            pass
        best = min(best, time.process_time() - begun)
    return size / best / 1e6, notes.edits


def _matcher_speed(texts: Sequence[str], state: str) -> float:
    sample = texts[:: max(1, len(texts) // _MATCHER_DOCUMENTS)]
    begun = time.process_time()
    for text in sample:
        for _match in PhoneNumberMatcher(text, state.upper()):
            pass
    return sum(len(text.encode()) for text in sample) / (time.process_time() - begun) / 1e6


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--documents", type=int, default=1_500)
    choice = parser.parse_args()
    folder = Path(os.environ.get("CONSORTIUM_CORPORA", "../shared/corpora"))
    show(rows(folder if folder.is_dir() else None, choice.documents), as_json=choice.json)


if __name__ == "__main__":
    main()
