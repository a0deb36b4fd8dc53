"""A partner that has left: its auditors still read what it contributed, and do nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from consortium.accounting.periods import period_of
from consortium.domain.codec import from_json
from consortium.domain.partner import Role
from consortium.domain.records import UsageRow
from consortium.keys.documents import SignedDocument, save_document
from consortium.keys.signing import sign_value
from consortium.reports.verify import verify_report
from consortium.server import loop
from consortium.server.app import make_app
from consortium.server.core import Core
from consortium.state import records


@pytest.fixture
def gone(parts: Any) -> Iterator[tuple[Core, Any, TestClient, str]]:
    """A federation whose partner `uy` delivered GPU time and left, a way to call its server, and the month."""
    core, fed = parts
    now = core.clock.now_ms()
    deliver(core, fed, now)
    leave(core, fed)
    with TestClient(make_app(core)) as http:
        yield core, fed, http, period_of(now)


def deliver(core: Core, fed: Any, now: int) -> None:
    row = UsageRow(leg="leg-a", epoch="1.1", job="job-a", account="uy", site="uy-1", flavor="a100-40g", gpus=4,
                   start_ms=now, end_ms=now + 1)  # fmt: skip
    made = fed.scripted("uy-1").usage(row)
    with core.db.write() as connection:
        records.take_site_records(connection, "uy-1", fed.site_keys["uy-1"].public, [made], now)
    loop.drain(core)


def leave(core: Core, fed: Any) -> None:
    """Uruguay takes its documents away, and the consortium its accounts."""
    folder = Path(fed.settings["documents_dir"])
    for path in sorted(folder.glob("*-uy*.json")):
        path.unlink()
    path = folder / "quota-consortium.json"
    document = from_json(SignedDocument, json.loads(path.read_text()), where="quota")
    quota = yaml.safe_load(document.text)
    del quota["accounts"]["uy"]
    for account in quota["accounts"].values():
        for part in (account, *account["projects"].values()):
            part["quotas"].pop("a100-40g", None)
    for name, whose in (("budgets", "account"), ("pledges", "partner")):
        quota[name] = [item for item in quota[name] if item[whose] != "uy"]
    save_document(sign_value(fed.server_key, replace(document, text=yaml.safe_dump(quota), version=2)), path)
    loop._refresh_documents(core)
    assert core.files.fault is None
    assert core.federation.partners == ("de", "fr")


def asked(fed: Any, http: TestClient, who: str, path: str, role: Role = Role.AUDITOR) -> Any:
    return http.get(path, headers={"Authorization": f"Bearer {fed.token(who, (role,))}"})


def test_its_auditor_reads_and_verifies_what_it_delivered_until_it_left(gone: Any) -> None:
    core, fed, http, month = gone
    answer = asked(fed, http, "uy/carmen", f"/v1/reports/uy?period={month}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["figures"]["delivered"]["total"]["gpu_ms"] == 4
    assert "uy-1" in {site["id"] for site in answer.json()["sites"]}
    verify_report(answer.json(), core.trust)


def test_nobody_else_reads_it_and_it_reads_nothing_else(gone: Any) -> None:
    _, fed, http, month = gone
    for who, role in (("uy/nobody", Role.AUDITOR), ("uy/carmen", Role.ENGINEER), ("fr/claire", Role.AUDITOR)):
        assert asked(fed, http, who, f"/v1/reports/uy?period={month}", role).status_code == 403
    for path in (f"/v1/reports/fr?period={month}", "/v1/log/entries", "/v1/usage"):
        assert asked(fed, http, "uy/carmen", path).status_code == 403
    assert asked(fed, http, "xx/anna", f"/v1/reports/xx?period={month}").status_code == 403


def test_the_last_roster_that_it_signed_counts(parts: Any) -> None:
    core, fed = parts
    fed.sign("roster", "uy", text=json.dumps({"partner": "uy", "people": []}), version=2)
    loop._refresh_documents(core)
    leave(core, fed)
    month = period_of(core.clock.now_ms())
    with TestClient(make_app(core)) as http:
        assert asked(fed, http, "uy/carmen", f"/v1/reports/uy?period={month}").status_code == 403
