"""datatrove's decisions on texts, with a splitter of ours; run by `cleaning` under an interpreter that has datatrove.

Reads one JSON object from standard input: `texts`, `stop_words`, `terminal`, `sentence_break` (a pattern). Writes one:
per rule set, which texts stay and the CPU seconds it took.
"""

from __future__ import annotations

import json
import re
import sys
import time


def main() -> None:
    """Decide and print."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import c4_filters as c4
    from datatrove.pipeline.filters import fineweb_quality_filter as fineweb
    from datatrove.pipeline.filters import gopher_quality_filter as quality
    from datatrove.pipeline.filters import gopher_repetition_filter as repetition

    given = json.load(sys.stdin)
    pattern = re.compile(given["sentence_break"])
    for module in (quality, repetition, fineweb):
        module.split_into_words = lambda text, language=None: text.split()
    c4.split_into_sentences = lambda text, language=None: [""] * (1 + len(pattern.findall(text)))
    c4.C4QualityFilter._requires_dependencies = []
    sets = {
        "gopher_quality": quality.GopherQualityFilter(stop_words=given["stop_words"]),
        "gopher_repetition": repetition.GopherRepetitionFilter(),
        "fineweb": fineweb.FineWebQualityFilter(None, stop_chars=tuple(given["terminal"])),
        "c4": c4.C4QualityFilter(filter_no_terminal_punct=False),
    }
    found = {}
    for name, each in sets.items():
        begun = time.process_time()
        stays = [each.filter(Document(text=text, id=str(at))) is True for at, text in enumerate(given["texts"])]
        found[name] = {"stays": stays, "seconds": time.process_time() - begun}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
