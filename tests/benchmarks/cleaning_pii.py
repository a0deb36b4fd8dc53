"""The rows about personal data of the cleaning benchmark; alone: `python -m tests.benchmarks.cleaning_pii [--json]`.

- Recall and precision on generated truth, names excluded: a finding counts if kind and place are exactly right.
- Speed of the whole step on one core over the three law corpora, best of three passes, in CPU time. The reference is
  `phonenumbers.PhoneNumberMatcher` over a sample of the same texts in the same run: one kind of seven, for one state.
- Findings in the law corpora, 72 MB, against those that were looked at one by one (November 2026: all were right).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from phonenumbers import PhoneNumberMatcher

from consortium.data.documents import Document, Notes
from consortium.data.pii import PiiConfig, redact, step
from tests.data.pii_truth import labelled, score

Row = dict[str, Any]

MIN_MB_PER_S = 12.0
_CORPORA = {"fr": "fr", "de": "de", "uy": "es"}
_JUDGED = {
    "fr": {},
    "de": {"redact.email": 3, "redact.phone": 9},
    "uy": {"redact.national_id": 74},
}
"""Findings by corpus that were read in their context: offices' addresses and telephones, and persons' cédulas."""
_MATCHER_DOCUMENTS = 300


def rows(corpora: Path | None, documents: int = 1_500) -> list[Row]:
    """Return the rows; those that need the corpora are left out, and it is said, where there are none."""
    config = PiiConfig()
    result = []
    for language in ("fr", "de", "es", "en"):
        found, _wrong = score(labelled(language, documents), config)
        what = f"{found.there.total()} values, {language}"
        result += [
            _row(f"PII recall, {what}", found.recall(), "share", "none", 0.99),
            _row(f"PII precision, {what}", found.precision(), "share", "none", 0.98),
        ]
    if corpora is None:
        print("no corpora: rows about the law texts left out (set CONSORTIUM_CORPORA)", file=sys.stderr)
        return result
    differing = 0
    for name, language in _CORPORA.items():
        texts = pq.read_table(corpora / f"{name}.parquet", columns=["text"]).column("text").to_pylist()
        speed, edits = _speed(texts, language, config)
        reference = f"PhoneNumberMatcher {_matcher_speed(texts, name):.3f}"
        result.append(_row(f"PII, all kinds, all states, {name}", speed, "MB/s of CPU time", reference, MIN_MB_PER_S))
        judged = Counter(_JUDGED[name])
        differing += ((Counter(edits) - judged) + (judged - Counter(edits))).total()
    row = _row("PII findings in the law corpora that nobody judged", float(differing), "findings", "none", 0.0)
    return [*result, row | {"met": differing == 0}]


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


def _row(what: str, value: float, unit: str, reference: str, target: float) -> Row:
    return {
        "what": what,
        "value": round(value, 4),
        "unit": unit,
        "reference": reference,
        "target": target,
        "met": value >= target,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--documents", type=int, default=1_500)
    chosen = parser.parse_args(argv)
    folder = Path(os.environ.get("CONSORTIUM_CORPORA", "../shared/corpora"))
    found = rows(folder if folder.is_dir() else None, chosen.documents)
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    for row in found:
        print(
            f"{row['what']:52} {row['value']:>10} {row['unit']:17} {row['reference']:28} {row['target']} {row['met']}"
        )


if __name__ == "__main__":
    main()
