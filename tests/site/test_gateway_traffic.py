"""What passes the gateway is counted, and nobody who answers without end or drips holds it up."""

from __future__ import annotations

import gzip
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from consortium.domain.data import ArtifactClass
from consortium.domain.job import LegState
from consortium.errors import ConsortiumError, UnreachableError
from consortium.ledger.origins import check_chain
from consortium.site.gateway.peers import LANES, PeerStore
from consortium.site.gateway.traffic import Traffic
from tests.site.border import Border, track

pytestmark = pytest.mark.integration


def test_calls_are_counted_in_batches(border: Border) -> None:
    for _ in range(3):
        track(border, "runs/log-metric", {"run_id": "run-1", "key": "x", "value": 1})
    border.http.get("/leg/artifacts", headers=border.leg)
    assert border.records("crossing") == []
    border.gateway.traffic.flush()
    border.gateway.traffic.flush()
    (body,) = border.records("crossing")
    counted = {(item["artifact_class"], item["side"]): item for item in body["crossings"]}
    assert counted["metric", "release"]["count"] == 3
    assert counted["metric", "release"]["recipient"] == "consortium"
    assert counted["metric", "release"]["size_bytes"] > 0
    assert counted["control", "receipt"]["job"] == border.offer.job
    check_chain(border.gateway.outbox.after(-1), lambda _: border.world.signing["fr-1"].public)


def test_counted_calls_are_recorded_every_ten_minutes_and_when_the_last_leg_has_ended(border: Border) -> None:
    gateway, now = border.gateway, [0]
    traffic = Traffic(gateway.db, gateway.outbox, "fr-1", lambda: 1_750_000_000_000 + now[0])
    recorded = []
    for minute in range(31):  # a call every minute; the leg ends in the 25th
        now[0] = minute * 60_000
        traffic.count(ArtifactClass.CONTROL, 100, 50)
        if minute == 25:
            (leg,) = gateway.table.active()
            gateway.table.change(leg, state=LegState.SUCCEEDED.value)
        traffic.flush_if_due()
        if len(border.records("crossing")) > len(recorded):
            recorded.append(minute)
    assert recorded == [10, 20, 25]
    assert border.records("crossing")[-1]["cumulative"] == {"count": 52, "size_bytes": 26 * 150}


def test_what_left_is_counted_where_no_answer_came(border: Border) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung_up:
        border.gateway.server.base_url = f"http://127.0.0.1:{hung_up.getsockname()[1]}"

        def listen_and_leave() -> None:
            caller, _ = hung_up.accept()
            heard = b""
            while b"x" * 5000 not in heard:
                heard += caller.recv(65536)
            caller.close()

        server = threading.Thread(target=listen_and_leave)
        server.start()
        with pytest.raises(UnreachableError):
            border.gateway.call("POST", "/v1/jobs/j/logs", {"text": "x" * 5000}, artifact_class=ArtifactClass.LOG)
        server.join()
    with pytest.raises(UnreachableError):  # nobody is there: nothing leaves
        border.gateway.call("POST", "/v1/jobs/j/logs", {"text": "x" * 5000}, artifact_class=ArtifactClass.LOG)
    border.gateway.traffic.flush()
    (body,) = border.records("crossing")
    (crossing,) = body["crossings"]
    assert (crossing["artifact_class"], crossing["side"], crossing["count"]) == ("log", "release", 1)
    assert crossing["size_bytes"] > 5000


@pytest.mark.parametrize("packed", [True, False])
def test_a_server_that_answers_without_end_is_not_read_to_it(border: Border, packed: bool) -> None:
    body = gzip.compress(b" " * (64 << 20)) if packed else b" " * (1 << 20)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) if packed else 1 << 40}\r\n"
    head += "Content-Encoding: gzip\r\n\r\n" if packed else "\r\n"
    with answering(head.encode(), body, again=not packed) as url:
        border.gateway.server.base_url = url
        with pytest.raises(UnreachableError, match="packed" if packed else "larger than"):
            border.gateway.call("GET", "/v1/jobs/j/rounds/1")


@pytest.mark.parametrize("status", [200, 403])
def test_a_peers_store_that_answers_without_end_is_not_read_to_it(border: Border, status: int) -> None:
    with answering(
        f"HTTP/1.1 {status} X\r\nContent-Length: {1 << 40}\r\n\r\n".encode(), b"x" * 65536, again=True
    ) as url:
        store = peer(border, url)
        with pytest.raises(ConsortiumError, match="more than 10 bytes" if status == 200 else "refused"):
            store.get("jobs/j/statistic/x.env", size=10)


def test_a_peers_store_that_drips_holds_up_a_few_calls_and_nobody_else(border: Border) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    with answering(head, b"x", again=True, pause_s=0.05) as url:
        store = peer(border, url, wait_s=0.1, least_s=0.5)
        faults: list[str] = []

        def ask() -> None:
            try:
                store.get("jobs/j/statistic/x.env", size=1000)
            except UnreachableError as fault:
                faults.append(fault.what)

        asking = [threading.Thread(target=ask) for _ in range(LANES + 2)]
        for one in asking:
            one.start()
        for one in asking:
            one.join(timeout=20)
    assert sum("already" in what for what in faults) == 2
    assert sum("of 1000 bytes in time" in what for what in faults) == LANES


@pytest.mark.parametrize("by_header", [True, False])
def test_a_peers_store_of_another_region_is_signed_for_as_it_says(border: Border, by_header: bool) -> None:
    refusal = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>fr-par</Region></Error>"
    regions: list[str] = []

    class Store(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            regions.append(self.headers["Authorization"].split("/")[2])
            right = regions[-1] == "fr-par"
            self.send_response(200 if right else 400)
            if by_header and not right:
                self.send_header("x-amz-bucket-region", "fr-par")
            content = b"sealed" if right else b"" if by_header else refusal
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = peer(border, f"http://127.0.0.1:{server.server_address[1]}")
        assert [store.get("jobs/j/x.env", size=6) for _ in range(2)] == [b"sealed"] * 2
        server.shutdown()
    assert regions == ["us-east-1", "fr-par", "fr-par"]


def peer(border: Border, url: str, **times: float) -> PeerStore:
    settings = border.gateway.settings.peer_egress["de-1"]
    return PeerStore(replace(settings, endpoint=url), **times)


@contextmanager
def answering(head: bytes, body: bytes, *, again: bool = False, pause_s: float = 0.0) -> Iterator[str]:
    """A server that answers anything with `head` and `body`, once or until its caller leaves."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                self.request.recv(65536)
                self.request.sendall(head + body)
                while again:
                    time.sleep(pause_s)
                    self.request.sendall(body)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
