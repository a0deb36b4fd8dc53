"""Datasets, artifacts, agreements and logs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consortium.domain.data import Artifact, ArtifactClass, Dataset
from consortium.errors import ConflictError, NotFoundError, UsageError
from consortium.state import Database, data
from tests import builders

LAWS = Dataset(
    id=builders.new_id("ds", 1),
    name="laws-fr",
    version=1,
    site="fr-1",
    territory="fr",
    artifact_class=ArtifactClass.RAW,
    languages=("fr",),
    licence="CC0-1.0",
    source="test",
    shards=(),
)
STATISTIC = Artifact(
    job="job-1",
    artifact_class=ArtifactClass.STATISTIC,
    name="counts",
    round=0,
    sender="fr-1",
    recipients=("de-1", "uy-1"),
    digest="sha256:x",
    key="k1",
    size_bytes=5,
    signature="s",
)


def test_versions_count_up_and_names_find_the_latest(db: Database) -> None:
    with db.write() as connection:
        assert data.insert_dataset(connection, LAWS, now_ms=1)
        assert not data.insert_dataset(connection, LAWS, now_ms=2), "the very same one again"
        second = replace(LAWS, id=builders.new_id("ds", 2), version=2)
        data.insert_dataset(connection, second, now_ms=3)
        assert data.find_dataset(connection, "laws-fr") == second
        assert data.find_dataset(connection, "laws-fr@1") == LAWS
        assert data.find_dataset(connection, LAWS.id) == LAWS
        with pytest.raises(ConflictError, match="the next is 3"):
            data.insert_dataset(connection, replace(LAWS, id=builders.new_id("ds", 3), version=2), now_ms=4)
        with pytest.raises(ConflictError, match="another dataset"):
            data.insert_dataset(connection, replace(LAWS, source="else"), now_ms=4)
        with pytest.raises(NotFoundError, match="laws-de"):
            data.find_dataset(connection, "laws-de")


def test_a_name_stays_with_its_partner_and_is_never_taken_for_an_id(db: Database) -> None:
    theirs = replace(LAWS, id=builders.new_id("ds", 2), version=2, site="de-1", territory="de")
    with db.write() as connection:
        data.insert_dataset(connection, LAWS, now_ms=1)
        with pytest.raises(ConflictError, match="fr's"):
            data.insert_dataset(connection, theirs, now_ms=2)
        data.insert_dataset(connection, replace(theirs, site="fr-2", territory="fr"), now_ms=2)
        for changes in ({"id": "laws-fr"}, {"name": LAWS.id}):
            with pytest.raises(UsageError):
                data.insert_dataset(connection, replace(theirs, **changes), now_ms=3)  # type: ignore[arg-type]


def test_names_that_jobs_give_to_what_they_write_go_with_the_dataset_they_read(db: Database) -> None:
    def made(number: int, name: str, site: str = "de-1", **changes: object) -> Dataset:
        return replace(LAWS, id=builders.new_id("ds", number), name=name, site=site, territory=site[:2], **changes)  # type: ignore[arg-type]

    with db.write() as connection:
        data.insert_dataset(connection, LAWS, now_ms=1)
        for suffix in ("-clean", "-tokens", "-tokens-heldout", "-tokens-clean"):
            with pytest.raises(ConflictError, match="goes with laws-fr, which is fr's"):
                data.insert_dataset(connection, made(2, "laws-fr" + suffix), now_ms=2)
        data.insert_dataset(connection, made(3, "laws-fr-clean", "fr-2"), now_ms=3)
        data.insert_dataset(connection, made(4, "laws-fr-2"), now_ms=3)
        data.insert_dataset(connection, made(5, "books-clean"), now_ms=3)
        with pytest.raises(ConflictError, match="goes with books-clean, which is de's"):
            data.insert_dataset(connection, made(6, "books", "fr-1"), now_ms=3)
        data.insert_dataset(connection, made(7, "books", "fr-1"), now_ms=3, job="job-1")
        data.insert_dataset(connection, made(8, "books-clean", version=2), now_ms=3)


def test_artifacts_reach_their_recipients_only(db: Database) -> None:
    with db.write() as connection:
        assert data.announce(connection, STATISTIC, 1)
        assert not data.announce(connection, STATISTIC, 2)
        assert data.artifacts_for(connection, "job-1", "uy-1") == [STATISTIC]
        assert data.artifacts_for(connection, "job-1", "fr-1") == []
        assert data.artifacts_for(connection, "job-1", "uy-1", round=STATISTIC.round) == [STATISTIC]
        assert data.artifacts_for(connection, "job-1", "uy-1", round=STATISTIC.round + 1) == []
        with pytest.raises(ConflictError):
            data.announce(connection, replace(STATISTIC, size_bytes=6), 3)


def test_nobody_floods_a_round_with_artifacts(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MOST_ARTIFACTS", 1)
    with db.write() as connection:
        assert data.announce(connection, STATISTIC, 1)
        with pytest.raises(UsageError, match="announced 1 artifacts"):
            data.announce(connection, replace(STATISTIC, key="another"), 2)
        assert data.announce(connection, replace(STATISTIC, key="third", round=STATISTIC.round + 1), 3)
        assert not data.announce(connection, STATISTIC, 4), "what is known is no more of it"


def test_a_site_agrees_once_per_topic(db: Database) -> None:
    given = {"job": "job-1", "topic": "outer/1", "signature": "s", "now_ms": 1}
    with db.write() as connection:
        data.agree(connection, site="fr-1", digest="a", **given)  # type: ignore[arg-type]
        data.agree(connection, site="fr-1", digest="a", **given)  # type: ignore[arg-type]
        data.agree(connection, site="de-1", digest="b", **given)  # type: ignore[arg-type]
        assert data.agreements(connection, "job-1", "outer/1") == {"de-1": "b", "fr-1": "a"}
        with pytest.raises(ConflictError, match="before"):
            data.agree(connection, site="fr-1", digest="c", **given)  # type: ignore[arg-type]


def test_log_text_sent_again_or_grown_is_kept_once(db: Database) -> None:
    def add(offset: int, text: str) -> None:
        with db.write() as connection:
            data.add_log(
                connection, job="job-1", leg="leg-1", site="fr-1", offset=offset, text=text, now_ms=1, most=100
            )

    add(0, "hello ")
    add(0, "hello ")
    add(0, "hello world")
    add(11, "!")
    add(0, "another epoch")
    with db.read() as connection:
        found = data.read_logs(connection, "job-1")
        assert [piece["text"] for piece in found] == ["hello ", "world", "!", "another epoch"]
        assert data.read_logs(connection, "job-1", after=found[2]["seq"])[0]["text"] == "another epoch"
        assert data.read_logs(connection, "job-1", site="de-1") == []
