"""Workers on one machine read one copy of the tokens: real processes, a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset
from consortium.storage.objects import ObjectStore
from consortium.train.node import Node
from consortium.train.tokens import open_sequences
from tests.train.conftest import VOCAB, put_tokens
from tests.train.ranks import start

PLACES = ((0, 0), (0, 1), (1, 0))
"""Machine and worker there, by rank."""
CONTEXT = 16


def rank_main(rank: int, given: dict[str, Any]) -> None:
    """Read all tokens; who is not its machine's first worker has a store that nobody serves."""
    machine, worker = PLACES[rank]
    endpoint = "http://127.0.0.1:9" if worker else given["endpoint"]
    store = ObjectStore(endpoint, given["key"], given["secret"], given["bucket"], attempts=1)
    datasets = [from_json(Dataset, one) for one in given["datasets"]]
    text = open_sequences(store, datasets, CONTEXT, VOCAB, node=Node(machine, worker, len(PLACES)))
    np.save(Path(given["folder"]) / f"{rank}.npy", text.read(np.arange(len(text), dtype=np.uint64)))


@pytest.mark.integration
def test_a_machine_fetches_what_its_workers_read_once(s3, tmp_path):
    store = s3.fresh()
    datasets = [put_tokens(store, "fr-1"), put_tokens(store, "fr-2")]
    ranks = start(
        "tests.train.test_node:rank_main",
        {
            "endpoint": s3.endpoint,
            "key": s3.access_key,
            "secret": s3.secret_key,
            "bucket": store.bucket,
            "folder": str(tmp_path),
            "datasets": json.loads(json.dumps([to_json(one) for one in datasets])),
        },
        world=len(PLACES),
    )
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    alone = open_sequences(store, datasets, CONTEXT, VOCAB)
    expected = alone.read(np.arange(len(alone), dtype=np.uint64))
    for rank in range(len(PLACES)):
        np.testing.assert_array_equal(np.load(tmp_path / f"{rank}.npy"), expected)
