"""Links between the documents lead somewhere, and what code and configs say of a document's sections is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [*sorted((ROOT / "consortium").rglob("*.py")), *sorted((ROOT / "configs").rglob("*.yaml"))]


def headings(document: Path) -> list[str]:
    """Return a document's headings; fenced blocks have comments that look like some."""
    return re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S), re.M)


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings: lower case, hyphens for blanks, no other signs."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings(document)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    astray = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        name, _, anchor = link.partition("#")
        if name.startswith(("http://", "https://")):
            continue
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            astray.append(link)
    assert astray == []


def test_sections_that_sources_name_are_there() -> None:
    astray = []
    for source in SOURCES:
        for name, section in re.findall(r"(docs/[\w/-]+\.md)(?:, \"([^\"]+)\")?", source.read_text()):
            if not (ROOT / name).exists() or (section and section not in headings(ROOT / name)):
                astray.append(f"{source.relative_to(ROOT)}: {name} {section}")
    assert astray == []
