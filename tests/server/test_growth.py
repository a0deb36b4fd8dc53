"""A site's records grow the log no faster than it has use for; what comes faster waits, and is lost by nobody."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from consortium.domain.codec import to_json
from consortium.domain.partner import Role
from consortium.domain.records import RecordType
from consortium.server.app import make_app
from consortium.server.growth import BYTES_S, GPU_BYTES_S, SAVED_BYTES, Growth


def test_a_site_may_write_so_much_a_second_and_save_some_of_it() -> None:
    growth = Growth()
    sizes = [1 << 20] * 1000
    assert growth.fitting("fr-1", 8, sizes, 1_000) == SAVED_BYTES >> 20
    growth.spend("fr-1", SAVED_BYTES)
    assert growth.fitting("fr-1", 8, sizes, 1_000) == 0
    assert growth.fitting("de-1", 8, sizes, 1_000) == SAVED_BYTES >> 20, "each has its own"
    each = BYTES_S + 8 * GPU_BYTES_S
    for at_ms in range(1_000, 2_000):
        assert growth.fitting("fr-1", 8, [each], at_ms) == 0
    assert growth.fitting("fr-1", 8, [each, 1], 2_000) == 1
    assert growth.fitting("fr-1", 8, [each, 1], 1_500) == 1, "a clock that goes back takes nothing away"
    assert growth.fitting("fr-1", 0, sizes, 1 << 45) == SAVED_BYTES >> 20, "and no more is saved"


def test_records_that_come_too_fast_are_taken_later(parts: Any) -> None:
    core, fed = parts
    site = fed.scripted("fr-1")
    for _ in range(5):
        site.record(RecordType.DOWNTIME, {"why": "x" * 2_000})
    core.growth = Growth(saved_bytes=6_000)
    records, head = to_json(site.chain), {"Authorization": f"Bearer {fed.token('fr-1', (Role.SITE,))}"}

    def push(first: int) -> int:
        answer = http.post("/v1/sites/fr-1/records", json={"records": records[first:]}, headers=head)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["acked_seq"])

    with TestClient(make_app(core)) as http:
        assert push(0) == 1, "two have room"
        core.growth.fitting("fr-1", 0, [], core.clock.now_ms() + 3_600_000)
        assert push(0) == 1, "what is here already takes room in the call, and none in the log"
        assert push(2) == 3
        core.growth.fitting("fr-1", 0, [], core.clock.now_ms() + 7_200_000)
        assert push(4) == 4
