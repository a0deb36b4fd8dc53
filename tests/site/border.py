"""A gateway between a real consortium server, a real upstream in MLflow's place and real S3 stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi.testclient import TestClient

from consortium.domain.protocol import LegOffer
from consortium.site.gateway.core import Gateway
from consortium.storage.objects import ObjectStore
from tests.site.http import App
from tests.site.world import SITE_TOKEN, Script, World

AGENT = {"Authorization": f"Bearer {SITE_TOKEN}"}


@dataclass
class Border:
    world: World
    script: Script
    gateway: Gateway
    mlflow: App
    server: App
    offer: LegOffer
    http: TestClient
    leg: dict[str, str]
    theirs: ObjectStore
    """The egress store of de-1, as de-1 sees it."""

    def records(self, kind: str) -> list[Any]:
        return [record.body for record in self.gateway.outbox.after(-1) if record.type.value == kind]

    def send(self, data: bytes, **query: Any) -> Any:
        fields = {"class": "statistic", "name": "counts", "recipients": "de-1"}
        return self.http.post("/leg/artifacts", params=fields | query, content=data, headers=self.leg)


def track(border: Border, call: str, body: dict[str, Any], method: str = "POST") -> Any:
    return border.http.request(method, f"/mlflow/api/2.0/mlflow/{call}", json=body, headers=border.leg)
