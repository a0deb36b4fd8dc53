"""`data report` and `data explain` as people type them: with the store's keys at hand, and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consortium.data import cluster, outputs
from consortium.data.register import register_collection
from consortium.data.sample import generate
from consortium.domain.cleaning import CleanConfig
from consortium.domain.data import Dataset
from consortium.domain.job import JobKind, Resources
from consortium.domain.partner import Role
from consortium.storage.objects import ObjectStore
from tests.cleaned import clean_dataset
from tests.conftest import Call, Outcome
from tests.home import made_at
from tests.s3 import S3
from tests.server.test_jobs import submitted

pytestmark = pytest.mark.integration
CONFIG = CleanConfig(
    languages=(), min_language_confidence=0.5, min_chars=40, max_chars=100_000, redact=("email",), repair="none"
)


@pytest.fixture(scope="module")
def store(s3: S3) -> ObjectStore:
    return s3.fresh()


@pytest.fixture(scope="module")
def cleaned(fed: Any, store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A collection of fr-1, registered, and cleaned by a job whose site is scripted; shards are the real ones."""
    folder = tmp_path_factory.mktemp("collection")
    generate("fr", documents=300, seed=2).write(folder / "laws.jsonl")
    found = register_collection([folder], store, "laws-page", "fr-1", dataset_id=fed.new_id("ds"))
    given = {name: getattr(found, name) for name in ("id", "shards", "languages", "licence", "source", "attributes")}
    raw = fed.dataset("fr-1", "laws-page", **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "each", lambda f, rows, arguments, **_: [f(row, **arguments) for row in rows])
        stage = clean_dataset(raw, CONFIG, store, "jobs/j1")
    made = outputs.clean_output(raw, stage, fed.new_id("ds"))
    site = fed.site("fr-1")
    job = submitted(
        fed, [raw], kind=JobKind.CLEAN, params=fed.params("clean"), resources=Resources(gpus=1, walltime_s=600)
    )
    offer = site.hold(job["id"])
    site.wait_start(offer)
    site.succeed(offer, outputs=fed.to_json([made]), metrics=outputs.clean_metrics([stage], store))
    return made


@pytest.fixture
def at_home(s3: S3, store: ObjectStore, tmp_path: Path) -> Path:
    """A machine with fr-1's private store."""
    home = made_at(tmp_path, s3, store)
    return home


@pytest.fixture
def run(fed: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    def invoke(*arguments: str, home: Path | None = None) -> Outcome:
        monkeypatch.setenv("CONSORTIUM_SERVER", fed.url)
        monkeypatch.setenv("CONSORTIUM_TOKEN", fed.token("fr/amelie", (Role.ENGINEER,)))
        return call(*arguments, home=home)

    return invoke


def test_at_home_the_page_has_samples_speed_and_the_job_and_only_its_owner_can_read_the_file(
    cleaned: Dataset, run: Call, at_home: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = run("data", "report", cleaned.name, "--out", str(page), home=at_home)
    assert (done.code, done.out) == (0, f"{page}\n"), done.err
    assert "stays with fr" in done.err
    text = page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    assert "<blockquote" in text
    assert "documents a second" in text
    assert "job-" in text
    assert run("data", "report", cleaned.name, "--out", str(tmp_path / "again.html"), home=at_home).code == 0
    assert (tmp_path / "again.html").read_text() == text


def test_without_samples_nothing_of_a_text_is_written(
    cleaned: Dataset, run: Call, at_home: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = run("data", "report", cleaned.name, "--samples", "0", "--out", str(page), home=at_home)
    assert (done.code, done.err) == (0, "")
    assert "<blockquote" not in page.read_text()


def test_away_from_home_the_page_has_numbers_only_and_says_why(cleaned: Dataset, run: Call, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run("data", "report", cleaned.name, "--out", str(page))
    assert done.code == 0, done.err
    assert "the private store of fr-1 is not on this machine" in done.err
    text = page.read_text()
    assert "documents_in" in text
    assert "<blockquote" not in text


def test_a_page_that_cannot_be_written_is_one_clear_message(cleaned: Dataset, run: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("data", "report", cleaned.name, "--out", str(tmp_path / "file" / "page.html"))
    assert (done.code, done.out) == (2, "")
    assert "cannot write the page" in done.err


def test_what_may_be_told_of_a_dataset_has_no_small_cell(cleaned: Dataset, run: Call, at_home: Path) -> None:
    for name in (cleaned.name, cleaned.name.removesuffix("-clean")):
        done = run("data", "statistic", name, home=at_home)
        assert (done.code, done.err) == (0, "")
        told = json.loads(done.out)
        cells = [*told["languages"].values(), *told["domains"].values(), *told["lengths"]]
        documents = [cell["documents"] if isinstance(cell, dict) else cell[2] for cell in cells]
        assert documents
        assert not [n for n in documents if 0 < n < 10]
        assert sum(n for _, _, n in told["lengths"]) == told["total"]["documents"]
    refused = run("data", "statistic", cleaned.name, "--at-least", "2", home=at_home)
    assert (refused.code, refused.out) == (2, "")


def test_a_document_is_explained_by_its_id_or_hash_as_a_table_or_json(
    cleaned: Dataset, run: Call, at_home: Path
) -> None:
    wanted = next(row["id"] for row in generate("fr", documents=300, seed=2).rows if "@" in row["text"])
    shown = run("data", "explain", cleaned.name, wanted, home=at_home)
    assert shown.code == 0, shown.err
    assert "redact.email" in shown.out
    assert "fate      stays, as " in shown.out
    assert "scores of the text after its edits:" in shown.out
    assert "@" not in shown.out.replace(f"{cleaned.name.removesuffix('-clean')}@", "")
    (told,) = json.loads(run("data", "explain", cleaned.name, wanted, "--json", home=at_home).out)
    assert {"rule", "value", "start", "end"} <= set(told["annotations"][0])
    assert {"gopher.min_words", "repetition.top_2_gram", "fineweb.newlines"} <= {s["rule"] for s in told["scores"]}
    again = run("data", "explain", cleaned.name, told["document"], "--json", home=at_home)
    assert json.loads(again.out) == [told]


def test_a_document_is_explained_at_home_only_and_an_unknown_one_is_not_found(
    cleaned: Dataset, run: Call, at_home: Path, tmp_path: Path
) -> None:
    away = run("data", "explain", cleaned.name, "x", home=tmp_path / "elsewhere")
    assert (away.code, away.out) == (5, "")
    assert "text and annotations never leave them" in away.err
    unknown = run("data", "explain", cleaned.name, "x", home=at_home)
    assert (unknown.code, unknown.out) == (5, "")
    assert "32 hexadecimal digits" in unknown.err
