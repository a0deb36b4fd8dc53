from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from consortium.domain.job import LegState
from consortium.site.gateway.app import create_app
from consortium.site.gateway.core import Gateway
from consortium.site.legs import new_leg
from consortium.site.settings import StoreSettings
from tests.s3 import S3
from tests.site.border import Border
from tests.site.http import App, Serving
from tests.site.stage import Stage
from tests.site.world import World, consortium_server, script_for


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def border(world: World, s3: S3) -> Iterator[Border]:
    script, mlflow = script_for(world), App()
    mlflow.route("POST", r"/api/2.0/mlflow/.*")(lambda body, query: {})
    mlflow.route("GET", r"/api/2.0/mlflow/runs/get")(lambda body, query: {"run": {"info": query}})
    secret = world.root / "s3.secret"
    secret.write_text(s3.secret_key)
    stores = {
        name: StoreSettings(
            endpoint=s3.endpoint, bucket=s3.fresh().bucket, access_key=s3.access_key, secret_path=str(secret)
        )
        for name in ("egress", "de-1", "private")
    }
    server = consortium_server(script)
    tracking = Serving(mlflow)
    with server, tracking:
        gateway = Gateway(
            world.settings(
                server_url=server.url,
                mlflow_url=tracking.url,
                egress_store=stores["egress"],
                private_store=stores["private"],
                peer_egress={"de-1": stores["de-1"]},
            )
        )
        offer = world.offer(kind="tokenize", peers=("de-1", "fr-1"))
        with gateway.db.write() as write:
            gateway.table.add(replace(new_leg(offer), state=LegState.RUNNING), 0, write)
        token = gateway.db.leg_token(f"{offer.leg}@{offer.epoch}")
        http = TestClient(create_app(gateway), raise_server_exceptions=False)
        leg, theirs = {"Authorization": f"Bearer {token}"}, s3.store(stores["de-1"].bucket)
        yield Border(world, script, gateway, mlflow, server.app, offer, http, leg, theirs)
        gateway.close()


@pytest.fixture
def stage(world: World) -> Iterator[Stage]:
    stage = Stage(world)
    yield stage
    stage.serving.__exit__()
