"""A steward at home: collections in, text out, with a real server and a real private store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from consortium.client.api import Client
from consortium.data.readers import Quarantined, read
from consortium.data.sample import generate
from consortium.domain.data import Description
from consortium.domain.partner import Role
from consortium.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnreachableError,
    UsageError,
    VerificationError,
)
from consortium.local.paths import FederationDir
from consortium.local.steward import export_at_home, register_at_home, register_in_place
from consortium.storage.objects import ObjectStore
from tests.home import made_at
from tests.s3 import S3

pytestmark = pytest.mark.integration
ABOUT = Description(contributors=("Archives",), consent_until="2099-12-31")


@pytest.fixture
def home(s3: S3, store: ObjectStore, tmp_path: Path) -> FederationDir:
    """A machine with fr-1's private store."""
    return FederationDir(root=made_at(tmp_path, s3, store) / "federations" / "t")


@pytest.fixture
def client(fed: Any) -> Iterator[Client]:
    with Client(fed.url, fed.token("fr/amelie", (Role.ENGINEER,))) as found:
        yield found


def test_a_collection_is_registered_exported_and_read_again_as_it_was(
    fed: Any, client: Client, home: FederationDir, store: ObjectStore, tmp_path: Path
) -> None:
    generate("fr", documents=400).write(tmp_path / "in.jsonl")
    (tmp_path / "in.jsonl").open("a").write("{\n")
    said: list[str] = []
    key = fed.people["fr/amelie"]
    made = register_at_home(
        client,
        key,
        name="steward",
        paths=[tmp_path / "in.jsonl"],
        site="fr-1",
        about=ABOUT,
        directory=home,
        say=said.append,
    )
    assert client.dataset(made.id) == made
    assert made.about == ABOUT
    assert "400 documents" in said[-2]
    assert said[-1] == "not readable: 1 json"
    assert not list(store.list("datasets/steward/uploads/"))
    documents = [item for item in read([tmp_path / "in.jsonl"]) if not isinstance(item, Quarantined)]
    for ending in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet"):
        out = tmp_path / f"out.{ending}"
        export_at_home(client, made.id, out, directory=home, say=said.append)
        assert out.stat().st_mode & 0o077 == 0
        again = [item for item in read([out]) if not isinstance(item, Quarantined)]
        assert [(d.id, d.text, d.language) for d in again] == [(d.id, d.text, d.language) for d in documents]
        with pytest.raises(UsageError, match="there already"):
            export_at_home(client, made.id, out, directory=home)
    assert not list(tmp_path.glob(".*.part"))
    with pytest.raises(UsageError, match="no known kind"):
        export_at_home(client, made.id, tmp_path / "out.csv", directory=home)
    for shard in made.shards:
        store.put(f"given/{shard.key}", store.get(shard.key))
    given = [f"s3://{store.bucket}/given"]
    again_made = register_in_place(client, key, name="steward", paths=given, site="fr-1", about=ABOUT, directory=home)
    assert (again_made.version, again_made.documents, again_made.about) == (made.version + 1, 400, ABOUT)
    assert [shard.digest for shard in again_made.shards] == [shard.digest for shard in made.shards]
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 400


def test_what_consent_no_longer_covers_is_not_exported_either(
    fed: Any, client: Client, home: FederationDir, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("texte")
    over = Description(consent_until="2020-01-01")
    key = fed.people["fr/amelie"]
    made = register_at_home(
        client, key, name="over", paths=[tmp_path / "a.txt"], site="fr-1", about=over, directory=home
    )
    with pytest.raises(ForbiddenError, match="ended on 2020-01-01"):
        export_at_home(client, made.id, tmp_path / "out.jsonl", directory=home)
    assert not (tmp_path / "out.jsonl").exists()


def test_where_the_server_does_not_take_it_the_next_run_reads_nothing_again(
    fed: Any, client: Client, home: FederationDir, store: ObjectStore, tmp_path: Path
) -> None:
    generate("fr", documents=50).write(tmp_path / "in.jsonl")

    def run(said: list[str], signer: str) -> Any:
        paths, key = [str(tmp_path / "in.jsonl")], fed.people[signer]
        return register_at_home(client, key, name="away", paths=paths, site="fr-1", directory=home, say=said.append)

    said: list[str] = []
    with pytest.raises(VerificationError):
        run([], "de/anna")  # another's signature: as good as a server that is away
    assert run(said, "fr/amelie").documents == 50
    assert said[0] == "going on after 50 documents that an earlier run wrote"
    assert not list(store.list("datasets/away/uploads/"))


def test_a_run_that_ended_after_its_dataset_was_taken_is_not_repeated_as_another_version(
    fed: Any, client: Client, home: FederationDir, store: ObjectStore, tmp_path: Path
) -> None:
    """The server takes it and is killed before it answers, or who registers is killed then."""
    generate("fr", documents=50).write(tmp_path / "in.jsonl")

    class Cut(Client):
        def register_dataset(self, *given: Any, **named: Any) -> Any:
            super().register_dataset(*given, **named)
            raise UnreachableError("killed")

    def run(through: Client, licence: str = "") -> Any:
        paths, key = [tmp_path / "in.jsonl"], fed.people["fr/amelie"]
        return register_at_home(through, key, name="cut", paths=paths, site="fr-1", licence=licence, directory=home)

    with Cut(fed.url, fed.token("fr/amelie", (Role.ENGINEER,))) as cut:
        with pytest.raises(UnreachableError):
            run(cut)
        assert [run(client)] == list(client.datasets("cut"))
        assert not list(store.list("datasets/cut/uploads/"))
        with pytest.raises(UnreachableError):
            run(cut)
    assert run(client, licence="CC0").version == 3, "it is not the same any more"


def test_who_may_not_register_is_told_before_anything_is_copied(
    fed: Any, client: Client, home: FederationDir, store: ObjectStore, tmp_path: Path
) -> None:
    generate("fr", documents=50).write(tmp_path / "in.jsonl")
    fed.dataset("de-1", "theirs")

    def run(name: str, through: Client) -> Any:
        key, paths = fed.people["fr/amelie"], [tmp_path / "in.jsonl"]
        return register_at_home(through, key, name=name, paths=paths, site="fr-1", directory=home)

    for who, role in (("fr/claire", Role.AUDITOR), ("de/anna", Role.ENGINEER)):
        with (
            Client(fed.url, fed.token(who, (role,))) as other,
            pytest.raises(ForbiddenError, match="only an engineer or admin of fr registers it"),
        ):
            run("mine", other)
    with pytest.raises(ConflictError, match="the name theirs is de's"):
        run("theirs", client)
    assert list(store.list("")) == []


def test_a_site_that_is_elsewhere_is_named(client: Client, home: FederationDir, fed: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not on this machine"):
        register_at_home(client, fed.people["fr/amelie"], name="x", paths=[tmp_path], site="de-1", directory=home)
