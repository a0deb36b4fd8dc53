"""Stores, datasets and contexts for the tests of training."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from consortium.domain.data import ArtifactClass, Dataset, Shard
from consortium.domain.protocol import LegContext, StoreAccess
from consortium.keys.canonical import digest
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_tokens
from tests.builders import new_id, token_shard
from tests.s3 import S3
from tests.train.hub import JOB

VOCAB = 64
PARAMS: dict[str, Any] = {
    "model": {"name": "tiny", "dim": 32, "layers": 2, "heads": 2, "context": 16, "mlp_ratio": 2},
    "data": {"batch_size": 4, "shuffle": True},
    "optim": {"name": "adamw", "lr": 0.01, "warmup_steps": 2},
    "outer": {"name": "nesterov", "rounds": 3, "inner_steps": 4, "lr": 0.7, "momentum": 0.9, "quorum": 0},
    "seed": 7,
}


def documents(seed: int, count: int = 40) -> list[list[int]]:
    """Documents with something to learn: each counts up from a random token with a step of its site."""
    random = np.random.default_rng(seed)
    return [
        [int(1 + (start + (seed + 1) * place) % (VOCAB - 1)) for place in range(int(random.integers(20, 60)))]
        for start in random.integers(0, VOCAB, count)
    ]


@pytest.fixture
def leg(s3: S3) -> Callable[..., tuple[LegContext, ObjectStore]]:
    """A leg's context and store at a site, with its own bucket and token datasets there."""

    def make(site: str, peers: tuple[str, ...], **changes: Any) -> tuple[LegContext, ObjectStore]:
        store = s3.store(f"private-{site}-{secrets.token_hex(4)}")
        store.ensure_bucket()
        return context(store, site, peers, s3=s3, **changes), store

    return make


def context(store: ObjectStore, site: str, peers: tuple[str, ...], *, s3: S3, **changes: Any) -> LegContext:
    partner = site[:2]
    dataset = put_tokens(store, site, held_out=bool(changes.get("model")))
    access = StoreAccess(
        endpoint=s3.endpoint, bucket=store.bucket, access_key=s3.access_key, secret_key=s3.secret_key, prefix="jobs/"
    )
    made = LegContext(
        job=JOB,
        job_kind="pretrain",
        job_name="test",
        attempt=new_id("att", 1),
        leg=new_id("leg", int(partner.encode().hex(), 16)),
        epoch="1.1",
        site=site,
        partner=partner,
        peers=peers,
        params=PARAMS,
        inputs=(dataset,),
        gpus=1,
        gpus_per_worker=1,
        gpu_resource="sim_gpu",
        store=access,
    )
    return replace(made, **changes)


def put_tokens(store: ObjectStore, site: str, *, held_out: bool = False) -> Dataset:
    """Write a token shard of the site's own documents and return the dataset."""
    seed = sum(site.encode()) + (1000 if held_out else 0)
    data = token_shard(documents(seed), eos=0, vocab_size=VOCAB)
    key, _ = store.put_addressed("datasets", data, ".tokens")
    tokens = len(read_tokens(data).tokens)
    shard = Shard(key=key, digest=digest(data), size_bytes=len(data), documents=40, tokens=tokens)
    return Dataset(
        id=new_id("ds", seed),
        name=f"laws-{site}-tokens" + ("-heldout" if held_out else ""),
        version=1,
        site=site,
        territory=site[:2],
        artifact_class=ArtifactClass.TOKENS,
        languages=(site[:2],),
        licence="public",
        source="test",
        shards=(shard,),
        held_out=held_out,
        attributes={"vocab_size": str(VOCAB), "tokenizer_digest": "sha256:00"},
    )
