"""Finds the demo's input: one collection per state, real where there is one, else a generated sample."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from consortium.errors import NotFoundError, UsageError

VARIABLE = "CONSORTIUM_CORPORA"
_SUFFIXES = (".parquet", ".jsonl.gz", ".jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpora:
    """Where each partner's collection lies; `generated` when none was found and a sample is to be made."""

    found: Mapping[str, Path]
    """Partner id to file or folder; empty when generated."""
    source: str
    """For people: which input it is and how it was chosen."""

    @property
    def generated(self) -> bool:
        """Whether a sample has to be made."""
        return not self.found


def find_corpora(given: Path | None, languages: Mapping[str, Sequence[str]]) -> Corpora:
    """Return the collections named by `--corpora`, `$CONSORTIUM_CORPORA` or `../shared/corpora`, in this order.

    `languages` maps each partner to its languages: a collection is a file or folder called after the partner
    (`uy.parquet`) or one of its languages (`es.jsonl.gz`, `es/`). Raises NotFoundError for a folder that was named and
    does not exist, UsageError for one that lacks a partner's collection.
    """
    beside = Path(__file__).resolve().parents[4] / "shared" / "corpora"
    named = os.environ.get(VARIABLE)
    if given is not None:
        return _read(given, f"--corpora {given}", languages)
    if named:
        return _read(Path(named), f"${VARIABLE}={named}", languages)
    if beside.is_dir():
        return _read(beside, "../shared/corpora", languages)
    return Corpora(found={}, source="a sample generated with Faker (no corpora were named: --corpora DIR)")


def _read(folder: Path, source: str, languages: Mapping[str, Sequence[str]]) -> Corpora:
    if not folder.is_dir():
        raise NotFoundError("the folder of corpora does not exist", where=source, fix="name one that does")
    found: dict[str, Path] = {}
    for partner, codes in sorted(languages.items()):
        names = [partner, *codes]
        match = next((path for name in names for path in _candidates(folder, name) if path.exists()), None)
        if match is None:
            raise UsageError(
                f"no collection for partner {partner} in the folder of corpora",
                where=source,
                fix=f"put there {partner}{'|'.join(_SUFFIXES)}, or a folder {partner}/ of text or Markdown files",
            )
        found[partner] = match
    return Corpora(found=found, source=f"{source} ({', '.join(path.name for path in found.values())})")


def _candidates(folder: Path, name: str) -> list[Path]:
    return [*(folder / f"{name}{suffix}" for suffix in _SUFFIXES), folder / name]
