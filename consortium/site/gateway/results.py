"""What a leg's result may say to the consortium: descriptions of datasets, digests, numbers, names and a few words.

Everything here is checked in form, because a program could write anything into it. What the programs of `jobs/` leave
has these forms: flat counts (clean, tokenize), losses by language and round (evaluate), and what pretrain leaves, the
mixture by source and digests and losses by round.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from consortium.domain.codec import to_json
from consortium.domain.data import Dataset, Shard
from consortium.domain.ids import is_id
from consortium.domain.job import JobKind, JobSpec
from consortium.domain.protocol import MAX_RESULT_BYTES
from consortium.errors import UsageError
from consortium.site.gateway.forms import count, is_digest
from consortium.site.gateway.numbers import rounded

MAX_WORD_CHARS = 200
MAX_WORDS_CHARS = 4_000
"""Of all words in metrics together, as of progress; digests are counted apart."""
MAX_NAMES_CHARS = 64_000
"""Of all names in metrics together, each counted once: of rules, languages, sources. Round numbers are no names."""
MAX_DEPTH = 3
MAX_VALUES = 250_000
MORE_DIGESTS = 100
"""Digests that the metrics of any job may hold, besides three for each of its rounds."""
MAX_TEXT_CHARS = 500
"""Of a licence, a source or an attribute, where no input has a longer one."""
MAX_DESCRIPTION_CHARS = 20_000
"""Of all that outputs say of themselves but their shards, besides four times what the inputs say."""
MAX_FOLDERS = 100
"""Of the store, in which the shards of one dataset lie."""
_ROUND = re.compile(r"[0-9]{1,6}\Z")
_NAME = re.compile(r"[A-Za-z0-9_.:/@+-]{1,200}\Z")
_FOLDER = re.compile(r"[A-Za-z0-9_./@=-]{1,300}\Z")
_SUFFIX = re.compile(r"(\.[a-z0-9]{1,12}){0,2}\Z")


def checked_digest(text: str) -> str:
    """Return the digest of a manifest; raises UsageError unless it is one, or empty."""
    if text and not is_digest(text):
        raise UsageError("manifest_digest is 'sha256:' and 64 hex digits, or empty", where="result")
    return text


def is_name(text: str) -> bool:
    """Tell whether `text` may name a number: 1 to 200 letters, digits and `_.:/@+-`."""
    return bool(_NAME.match(text))


def checked_size(told: dict[str, Any]) -> None:
    """Raise UsageError where the consortium would never take what it is told of a result."""
    size = len(json.dumps(told))
    if size > MAX_RESULT_BYTES:
        raise UsageError(
            f"the result takes {size:,} bytes, the consortium takes {MAX_RESULT_BYTES:,} (about 80,000 shards)",
            where="result",
            fix="give the leg fewer inputs, or write larger shards",
        )


# -- metrics ------------------------------------------------------------------------------------------------------


def checked_metrics(said: dict[str, Any], spec: JobSpec) -> dict[str, Any]:
    """Return a result's metrics with numbers to six digits; raises UsageError for another form or too much of it."""
    walk = _Count(3 * _rounds(spec) + MORE_DIGESTS)
    return {walk.name(name): walk.value(value, name, 1) for name, value in said.items()}


def _rounds(spec: JobSpec) -> int:
    outer = spec.params.get("outer") if spec.kind is JobKind.PRETRAIN else None
    rounds = outer.get("rounds") if isinstance(outer, dict) else 0
    return min(rounds, 100_000) if isinstance(rounds, int) else 0


class _Count:
    """Walks metrics and counts what could be more than numbers."""

    def __init__(self, most_digests: int) -> None:
        self.most_digests = most_digests
        self.digests = self.words = self.values = self.names_chars = 0
        self.names: set[str] = set()

    def name(self, text: str) -> str:
        if not is_name(text):
            raise _refused(f"{text[:40]!r} is no name of 1 to 200 letters, digits and '_.:/@+-'")
        if not _ROUND.match(text) and text not in self.names:
            self.names.add(text)
            self.names_chars += len(text)
            if self.names_chars > MAX_NAMES_CHARS:
                raise _refused(f"the names of metrics have {MAX_NAMES_CHARS:,} characters in all")
        return text

    def value(self, value: Any, name: str, depth: int) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise _refused(f"there are more than {MAX_VALUES:,} values")
        if isinstance(value, dict | list) and depth < MAX_DEPTH:
            if isinstance(value, dict):
                return {self.name(key): self.value(item, key, depth + 1) for key, item in value.items()}
            return [self.value(item, name, MAX_DEPTH) for item in value]
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and abs(value) < 1 << 63:
            return value
        if isinstance(value, float):
            return rounded(value)
        if isinstance(value, str):
            return self.word(value, name)
        raise _refused(f"{name} is no number of 64 bits, no short word, and no {MAX_DEPTH - 1} levels of them by name")

    def word(self, text: str, name: str) -> str:
        if is_digest(text):
            self.digests += 1
            if self.digests > self.most_digests:
                raise _refused(f"there are more than {self.most_digests:,} digests")
            return text
        self.words += len(text)
        if len(text) > MAX_WORD_CHARS or not text.isprintable() or self.words > MAX_WORDS_CHARS:
            most = f"{MAX_WORD_CHARS} characters of one line, {MAX_WORDS_CHARS:,} in all"
            raise _refused(f"{name} is text: a metric's words have {most}")
        return text


def _refused(why: str) -> UsageError:
    fix = "leave numbers, short words and digests; texts stay at the site, in the manifest or the leg's log"
    return UsageError(f"not metrics: {why}", where="result", fix=fix)


# -- outputs ------------------------------------------------------------------------------------------------------


def check_outputs(outputs: Sequence[Dataset], inputs: Sequence[Dataset]) -> None:
    """Raise UsageError where what a leg says of its outputs could be more than a description of datasets."""
    given = {text for item in inputs for text in (item.licence, item.source, *item.attributes.values())}
    for output in outputs:
        where = f"output {output.name}"
        named = [output.id, *output.parents]
        if not all(is_id(name, "ds") for name in named):
            raise UsageError("its id and its parents' are ids of the form ds-…", where=where)
        texts = {"licence": output.licence, "source": output.source, **output.attributes}
        for name, text in texts.items():
            if text not in given and (len(text) > MAX_TEXT_CHARS or not text.isprintable()):
                raise UsageError(f"{name[:40]} is longer than {MAX_TEXT_CHARS} characters of one line", where=where)
        checked_digest(output.manifest_digest)
        count(output.version, where)
        for shard in output.shards:
            for number in (shard.size_bytes, shard.documents, shard.tokens):
                count(number, where)
        folders = {_folder(shard, where) for shard in output.shards}
        if len(folders) > MAX_FOLDERS:
            raise UsageError(f"its shards lie in more than {MAX_FOLDERS} folders", where=where)
    size, most = _words(outputs), MAX_DESCRIPTION_CHARS + 4 * _words(inputs)
    if size > most:
        raise UsageError(f"the outputs describe themselves in {size:,} characters, {most:,} are enough", where="result")


def _words(datasets: Sequence[Dataset]) -> int:
    return sum(len(json.dumps(to_json(replace(item, shards=())))) for item in datasets)


def _folder(shard: Shard, where: str) -> str:
    """Return where a shard lies; raises UsageError unless its key is a folder, its digest and a suffix."""
    folder, _, name = shard.key.rpartition("/")
    hexed = shard.digest.removeprefix("sha256:")
    formed = is_digest(shard.digest) and name.startswith(hexed) and _SUFFIX.match(name[len(hexed) :])
    if not formed or not _FOLDER.match(folder):
        raise UsageError(f"{shard.key[:80]!r} is no key of the form FOLDER/DIGEST.SUFFIX", where=where)
    return folder
