"""Two sites clean together, with a real store and their tasks called in place: when results are left, and restarts."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from consortium.data import between, clean
from consortium.data.manifest import Stage
from consortium.data.register import register_collection
from consortium.data.sample import generate
from consortium.domain.cleaning import AcrossConfig, CleanConfig
from consortium.domain.data import Dataset
from consortium.errors import UnreachableError
from consortium.storage.objects import ObjectStore
from tests.builders import new_id
from tests.data.test_between import At, KilledError, Post

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_cluster")]
CONFIG = CleanConfig(
    languages=("fr",), min_language_confidence=0.5, min_chars=40, max_chars=1_000_000, dedup="near",
    across=AcrossConfig(order=("fr", "de")),
)  # fmt: skip
SITES = ("de-1", "fr-1")


@pytest.fixture
def raws(store: ObjectStore, tmp_path: Path) -> dict[str, Dataset]:
    """The sites share 20 documents."""
    rows, found = generate("fr", documents=60, seed=5).rows, {}
    for number, (site, own) in enumerate({"de-1": rows[:40], "fr-1": rows[20:]}.items(), 1):
        file = tmp_path / f"{site}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in own))
        found[site] = register_collection(
            [file], store, f"laws-{site}", site, dataset_id=new_id("ds", number), shard_text_bytes=20_000
        )
    return found


@dataclass
class Leg(At):
    """A leg's way out that notes what its site has written when it says that it is done, or dies after a decision."""

    store: ObjectStore | None = None
    dies: bool = False

    def wait_agreement(self, topic: str, digest: str, timeout_s: float) -> None:
        if topic == between.DONE:
            assert self.store is not None
            assert list(self.store.list(f"jobs/{self.site}/done/"))
        super().wait_agreement(topic, digest, timeout_s)
        if self.dies:
            raise KilledError(topic)


def cleaned(
    site: str, raws: dict[str, Dataset], store: ObjectStore, post: Post, timeout_s: float = 30, *, dies: bool = False
) -> Stage:
    exchange = Leg(post, site, store=store, dies=dies)
    peers = between.Peers(site=site, sites=SITES, exchange=exchange, timeout_s=timeout_s)
    return clean.clean_datasets([raws[site]], CONFIG, store, f"jobs/{site}", peers=peers)[raws[site].id]


def test_no_site_leaves_its_result_before_the_one_that_keeps_the_copies_has_written_them(
    raws: dict[str, Dataset], store: ObjectStore
) -> None:
    post = Post(sites=2)
    with ThreadPoolExecutor(2) as pool:
        keeps = pool.submit(cleaned, "fr-1", raws, store, post, dies=True)
        gives_up = pool.submit(cleaned, "de-1", raws, store, post, 3)
        with pytest.raises(KilledError):
            keeps.result()
        with pytest.raises(UnreachableError, match="across/done"):
            gives_up.result()
        again = [pool.submit(cleaned, site, raws, store, post) for site in SITES]
        decisions = {each.result().manifest["across"]["decision"] for each in again}
    assert decisions == set(post.agreed[between.DONE].values())
    assert not any(store.exists(f"jobs/{site}/across/key") for site in SITES)


def test_a_site_whose_result_is_damaged_after_the_end_says_what_to_do(
    raws: dict[str, Dataset], store: ObjectStore
) -> None:
    post = Post(sites=2)
    with ThreadPoolExecutor(2) as pool:
        stages = [each.result() for each in [pool.submit(cleaned, site, raws, store, post) for site in SITES]]
    assert cleaned("fr-1", raws, store, post).manifest_digest == stages[1].manifest_digest
    store.delete(stages[1].outputs["clean"][0].key)
    with pytest.raises(UnreachableError, match="no longer whole"):
        cleaned("fr-1", raws, store, post)
