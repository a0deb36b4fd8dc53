"""A dataset's page, end to end: a collection with hostile texts is registered, cleaned and shown, on a real S3 store.

The shards go through the functions that Ray runs, one after another in this process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

from consortium.data import cluster, outputs
from consortium.data.documents import text_digest
from consortium.data.register import register_collection
from consortium.data.sample import generate
from consortium.domain.cleaning import CleanConfig, PiiKind
from consortium.domain.data import ArtifactClass, Dataset
from consortium.errors import NotFoundError, UsageError, VerificationError
from consortium.reports.dataset import Run, facts_at_home, facts_from_server, manifest_of
from consortium.reports.dataset_page import percent, render
from consortium.reports.rule_words import in_words
from consortium.reports.story import EVERY_RULE, stories
from consortium.reports.visible import visible
from consortium.storage.objects import ObjectStore
from tests.builders import dataset as described
from tests.builders import new_id
from tests.cleaned import clean_dataset, measured

pytestmark = pytest.mark.integration
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}</style></figure>"
TURNED = "\u202eevil\u2066 \x1b[31mred\x07 \ufdd0" + "a" + "\u0301" * 50
MD5 = "0123456789abcdef" * 2
LAW = "La présente loi fixe les règles applicables aux contrats conclus entre les personnes, selon le décret {}. "
CONFIG = CleanConfig(
    languages=("fr",),
    min_language_confidence=0.5,
    min_chars=60,
    max_chars=3000,
    dedup="near",
    redact=("email", "iban", "phone"),
    lines=("repeated",),
    filters=("gopher_repetition",),
    repair="none",
)


@dataclass(frozen=True, slots=True)
class Cleaned:
    raw: Dataset
    made: Dataset
    store: ObjectStore

    def dataset_of(self, name: str) -> Dataset:
        assert name == self.raw.id
        return self.raw


def hostile_rows() -> list[dict[str, str]]:
    rows = generate("fr", documents=240, seed=7).rows
    own = [
        (MD5, LAW.format(3) + "Article troisième."),
        ("short", SCRIPT),
        ("turned", TURNED),
        ("long", (LAW.format(7) + SCRIPT) * 40),
        ("mail", LAW.format(1) + "Écrire à jean.dupont@exemple.fr, tél. +33 1 42 34 56 78, ou <b>passer</b>." + SCRIPT),
        ("twice", LAW.format(2) + "\n" + SCRIPT + " " * 3 + "longue ligne\n" + SCRIPT + " " * 3 + "longue ligne\n"),
        ("address", "Adresse du serveur 203.0.113.77. " + LAW.format(9) * 40),
        ("<i>id</i>", "Too short."),
    ]
    made = [{"id": id_, "text": text, "source": f"https://evil.example/{SCRIPT}", "lang": "fr"} for id_, text in own]
    odd = {"id": "odd", "text": "x", "lang": "<script>", "source": SCRIPT}
    return [*({**row, "lang": row.get("language", "fr")} for row in rows), *made, odd]


@pytest.fixture(scope="module")
def cleaned(s3, tmp_path_factory: pytest.TempPathFactory) -> Cleaned:
    store: ObjectStore = s3.fresh()
    folder = tmp_path_factory.mktemp("collection")
    lines = [json.dumps(row) for row in hostile_rows()]
    (folder / "laws.jsonl").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "each", lambda f, rows, arguments, **_: [f(row, **arguments) for row in rows])
        raw = register_collection(
            [folder], store, "laws-fr", "fr-1", dataset_id=new_id("ds", 1), shard_text_bytes=20_000, licence="<b>CC</b>"
        )
        stage = clean_dataset(raw, CONFIG, store, "jobs/j1")
    assert len(raw.shards) > 2
    return Cleaned(raw, outputs.clean_output(raw, stage, new_id("ds", 2)), store)


def page(cleaned: Cleaned, samples: int = 40) -> str:
    run = Run(job="job-1", seconds=2.0, code_digest="sha256:0")
    return render(facts_at_home(cleaned.made, cleaned.store, cleaned.dataset_of, samples=samples, run=run))


class Markup(HTMLParser):
    """All elements with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.cells: list[list[str]] = []
        self._in_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.cells[-1][-1] += data


def test_hostile_text_is_shown_and_never_becomes_markup(cleaned: Cleaned) -> None:
    shown = page(cleaned)
    found = Markup(shown)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "img", "i", "iframe", "link", "object", "form", "a", "base"}
    assert found.text.count("<script>alert(1)</script>") >= 3
    assert "{{ 7 * 7 }}" in found.text
    allowed = {"lang", "charset", "http-equiv", "content", "name", "class", "viewbox", "preserveaspectratio"}
    allowed |= {"aria-hidden", "aria-label", "role", "width", "height", "fill", "stroke", "dir", "font-size"}
    allowed |= {"font-family", "x", "y", "x1", "x2", "y1", "y2", "text-anchor"}
    assert {name for _, attributes in found.elements for name in attributes} <= allowed


def test_the_page_s_policy_forbids_everything_but_its_own_style_sheet(cleaned: Cleaned) -> None:
    shown = page(cleaned)
    found = Markup(shown)
    (policy,) = [a["content"] for tag, a in found.elements if a.get("http-equiv") == "Content-Security-Policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", shown, re.DOTALL)
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{hashed}'; base-uri 'none'; form-action 'none'"
    assert "url(" not in style
    assert "@import" not in style
    assert not [a for _, a in found.elements if {"src", "href", "style"} & set(a)]


def test_characters_that_turn_or_hide_text_become_their_numbers(cleaned: Cleaned) -> None:
    shown = page(cleaned)
    assert not [sign for sign in shown if ord(sign) < 32 and sign not in "\n\t"]
    assert not set("\u202e\u2066\ufdd0\x1b\x7f") & set(shown)
    assert "⟨202E⟩evil⟨2066⟩ ⟨1B⟩[31mred⟨7⟩ ⟨FDD0⟩a\u0301\u0301" in shown
    assert "\u0301" * 3 not in shown
    assert visible("é\u0301 עברית\n") == "é\u0301 עברית\n"


def test_no_sample_shows_personal_data(cleaned: Cleaned) -> None:
    shown = page(cleaned)
    assert "@exemple" not in shown
    assert "42 34 56" not in shown
    assert "jean.dupont" not in shown
    assert "<mark>[EMAIL]</mark>, tél. [PHONE], ou &lt;b&gt;passer" in shown
    assert "203.0.113" not in shown  # which the stage was not told to redact
    assert "Adresse du serveur [IP]." in shown
    truth = [row["text"] for row in hostile_rows()]
    addresses = {found for text in truth for found in re.findall(r"[\w.]+@[\w.]+\w", text)}
    assert addresses
    assert not [address for address in addresses if address in shown]


def test_the_numbers_on_the_page_add_up_to_what_came_in(cleaned: Cleaned) -> None:
    found = Markup(page(cleaned))
    table = [row for row in found.cells if len(row) >= 6]
    rules = [row for row in table if re.search(r"[a-z]\.[a-z]", row[0])]
    sums = {row[0]: row for row in table if row[0] in ("all removed", "kept", "came in")}
    for column in (1, *range(4, len(rules[0]))):
        added = sum(int(row[column].replace(",", "")) for row in rules)
        removed, kept, came = (int(sums[name][column].replace(",", "")) for name in ("all removed", "kept", "came in"))
        assert added == removed
        assert removed + kept == came
    assert int(sums["came in"][1].replace(",", "")) == cleaned.raw.documents
    assert int(sums["kept"][1].replace(",", "")) == cleaned.made.documents
    assert re.search(rf"Most often: [^(]+ \({rules[0][1]}\)[;.]", found.text)


def test_the_same_stage_gives_the_same_bytes_and_no_samples_show_no_text(cleaned: Cleaned) -> None:
    assert page(cleaned) == page(cleaned)
    bare = page(cleaned, samples=0)
    assert "alert(1)" not in Markup(bare).text.replace("evil.example", "").split("Where it was made")[1]
    assert "<blockquote" not in bare
    assert "Stays at home" not in bare


def test_counts_that_do_not_add_up_make_no_page(cleaned: Cleaned) -> None:
    manifest = manifest_of(cleaned.made, cleaned.store)
    manifest["counts"]["documents_out"]["fr"] -= 1
    key, digest = cleaned.store.put_addressed("jobs/j1/manifests", json.dumps(manifest).encode(), ".json")
    broken = replace(cleaned.made, manifest_digest=digest, attributes={"manifest_key": key})
    with pytest.raises(VerificationError, match="do not add up"):
        facts_at_home(broken, cleaned.store, cleaned.dataset_of)


def test_an_input_that_is_gone_leaves_a_page_of_numbers_that_says_so(cleaned: Cleaned) -> None:
    def gone(name: str) -> Dataset:
        raise NotFoundError("no such dataset", where=name)

    facts = facts_at_home(cleaned.made, cleaned.store, gone)
    assert facts.counts is not None
    assert not facts.samples
    assert "the input can no longer be read" in render(facts)


def test_a_raw_collection_and_a_token_dataset_have_smaller_pages(cleaned: Cleaned) -> None:
    raw = render(facts_at_home(cleaned.raw, cleaned.store, cleaned.dataset_of))
    assert "Collection as it was registered" in raw
    assert "How long documents are" in raw
    assert "evil.example" in raw
    assert "What was removed" not in raw
    key, digest = cleaned.store.put_addressed(
        "jobs/j2/manifests", b'{"stage":"tokenize","counts":{"words":12}}', ".json"
    )
    tokens = described(
        "laws-tokens", artifact_class=ArtifactClass.TOKENS, manifest_digest=digest, attributes={"manifest_key": key}
    )
    shown = Markup(render(facts_at_home(tokens, cleaned.store, cleaned.dataset_of)))
    assert ["words", "12"] in shown.cells


def test_away_from_home_there_are_the_numbers_of_the_run_and_a_word_on_what_is_missing(cleaned: Cleaned) -> None:
    why = NotFoundError("the private store of fr-1 is not on this machine")
    numbers = {"documents_in": 247, "removed.length.min": 60, "tracked": True, "name": "x"}
    shown = Markup(render(facts_from_server(cleaned.made, numbers, why, None)))
    assert "the private store of fr-1 cannot be read from here" in shown.text
    assert ["removed.length.min Too short.", "60"] in shown.cells


def test_the_story_of_a_document_tells_its_edits_and_its_full_score_vector(cleaned: Cleaned) -> None:
    text = next(row["text"] for row in hostile_rows() if row["id"] == "mail")
    (by_id,) = stories(cleaned.made, "mail", cleaned.store, cleaned.dataset_of)
    (by_hash,) = stories(cleaned.made, text_digest(text), cleaned.store, cleaned.dataset_of)
    (by_clean,) = stories(cleaned.made, by_id.clean, cleaned.store, cleaned.dataset_of)
    assert by_id == by_hash == by_clean
    assert (by_id.kept, by_id.rule, by_id.language, by_id.as_judged) == (True, "", "fr", True)
    assert [note.rule for note in by_id.annotations] == ["redact.email", "redact.phone"]
    final = text.replace("jean.dupont@exemple.fr", "[EMAIL]").replace("+33 1 42 34 56 78", "[PHONE]")
    assert by_id.clean == text_digest(final)
    quality = {score.rule: score.value for score in by_id.scores if not score.rule.startswith("length.")}
    assert quality == measured(final, "fr")
    asked = {score.rule.partition(".")[0] for score in by_id.scores if score.asked}
    assert asked == {"length", "repetition"}


def test_the_story_of_a_removed_document_gives_rule_value_and_threshold(cleaned: Cleaned) -> None:
    (story,) = stories(cleaned.made, "short", cleaned.store, cleaned.dataset_of)
    assert (story.kept, story.clean, story.clean_row) == (False, "", -1)
    last = story.annotations[-1]
    assert (story.rule, last.rule) == (last.rule, story.rule)
    (raw,) = stories(cleaned.raw, "short", cleaned.store, cleaned.dataset_of)
    assert (raw.annotations, raw.as_judged, raw.document) == ((), False, story.document)
    with pytest.raises(NotFoundError, match="nothing"):
        stories(cleaned.made, "nothing", cleaned.store, cleaned.dataset_of)
    with pytest.raises(UsageError, match="not text"):
        stories(described(artifact_class=ArtifactClass.TOKENS), "short", cleaned.store, cleaned.dataset_of)


def test_a_document_whose_id_looks_like_a_hash_is_found(cleaned: Cleaned) -> None:
    for dataset in (cleaned.made, cleaned.raw):
        (story,) = stories(dataset, MD5, cleaned.store, cleaned.dataset_of)
        assert (story.id, story.chars) == (MD5, len(LAW.format(3) + "Article troisième."))


def test_every_rule_is_said_in_plain_words() -> None:
    rules = [*measured("un texte", "fr"), *(f"redact.{kind}" for kind in get_args(PiiKind))]
    assert EVERY_RULE
    named = re.findall(r"^\| \d+ \| (.*?) \|", Path("docs/data.md").read_text(), re.MULTILINE)
    rules += [rule for cell in named for rule in re.findall(r"`([a-z]+\.[a-z_]+)`", cell)]
    assert len(rules) > 30
    assert not [rule for rule in rules if not in_words(rule)]
    assert in_words("repetition.top_3_gram") == "One group of 3 words makes up too much of the text."


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [(0, 0, "-"), (0, 9, "0%"), (9, 9, "100%"), (1, 10**6, "< 0.1%"), (10**6 - 1, 10**6, "> 99.9%"), (1, 3, "33.3%")],
)
def test_a_share_is_all_or_nothing_only_where_it_is(part: int, whole: int, said: str) -> None:
    assert percent(part, whole) == said
