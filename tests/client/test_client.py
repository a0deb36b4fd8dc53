"""The SDK: problem documents become errors, connection failures too; importing it is cheap."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import consortium
from consortium.client import Client
from consortium.errors import (
    AuthError,
    ConsortiumError,
    NotFoundError,
    PolicyDeniedError,
    UnreachableError,
    VerificationError,
)

OURS = {"Consortium-Protocol": "2", "Content-Type": "application/problem+json; charset=utf-8"}
"""What the consortium's server puts into the head of an answer."""


class Answers(BaseHTTPRequestHandler):
    """Answers each path with what the test laid down for it."""

    laid: dict[str, tuple[int, bytes]]
    sent: dict[str, str]
    seen: list[Any]

    def do_GET(self) -> None:
        status, body = self.laid[self.path.split("?")[0]]
        self.seen.append(dict(self.headers))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in self.sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Take it and end, as a server does that is killed."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[Answers]]]:
    handler = type("Laid", (Answers,), {"laid": {}, "seen": [], "sent": dict(OURS)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}", handler
        httpd.shutdown()
        thread.join()


def problem(slug: str, status: int) -> tuple[int, bytes]:
    document = {"type": f"urn:consortium:{slug}", "title": slug, "status": status, "detail": "what", "where": "here",
                "fix": "this"}  # fmt: skip
    return status, json.dumps(document).encode()


@pytest.mark.parametrize(
    ("slug", "status", "kind"),
    [
        ("not-found", 404, NotFoundError),
        ("unauthenticated", 401, AuthError),
        ("denied-by-policy", 403, PolicyDeniedError),
        ("verification-failed", 409, VerificationError),
        ("something-new", 500, ConsortiumError),
    ],
)
def test_a_problem_document_becomes_the_error_it_names(server: Any, slug: str, status: int, kind: type) -> None:
    url, handler = server
    handler.laid["/v1/jobs/job-1"] = problem(slug, status)
    with Client(url, "token") as client, pytest.raises(kind) as caught:
        client.job("job-1")
    assert type(caught.value) is kind
    assert (caught.value.what, caught.value.where, caught.value.fix) == ("what", "here", "this")


def test_the_token_and_the_protocol_version_are_sent(server: Any) -> None:
    url, handler = server
    handler.laid["/v1/health"] = (200, b'{"status": "ok"}')
    with consortium.Client(url, "secret") as client:
        assert client.health() == {"status": "ok"}
    assert handler.seen[0]["Authorization"] == "Bearer secret"
    assert handler.seen[0]["Consortium-Protocol"] == str(consortium.PROTOCOL_VERSION)


def asked(url: str, what: Callable[[Client], Any]) -> UnreachableError:
    with Client(url) as client, pytest.raises(UnreachableError) as caught:
        what(client)
    return caught.value


def test_a_large_report_is_waited_for_longer_than_other_answers(server: Any) -> None:
    url, handler = server
    asked_for_report, made, found = threading.Event(), threading.Event(), []

    def slowly(self: Answers) -> None:
        asked_for_report.set()
        made.wait(30)
        Answers.do_GET(self)

    handler.do_GET = slowly  # type: ignore[method-assign]
    handler.laid["/v1/reports/fr"] = (200, b'{"format": "consortium-report/4"}')
    handler.laid["/v1/sites"] = (200, b"[]")
    with Client(url, timeout_s=0.2) as client:
        waiting = threading.Thread(target=lambda: found.append(client.report("fr", "2026-11")))
        waiting.start()
        asked_for_report.wait(30)
        with pytest.raises(UnreachableError):
            client.sites()
        made.set()
        waiting.join()
    assert found == [{"format": "consortium-report/4"}]


NO_SERVER = "is not a consortium server"


@pytest.mark.parametrize("status", [200, 404, 501])
@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b"7", b'{"type": "a", "detail": "b"}'])
def test_what_is_no_consortium_server_is_said(server: Any, status: int, body: bytes) -> None:
    url, handler = server
    handler.sent.clear()
    for path in ("/v1/sites", "/v1/quota", "/v1/reports/fr", "/v1/log/checkpoint", "/v1/jobs/job-1"):
        handler.laid[path] = (status, body)
    for what in (Client.sites, Client.quota, Client.checkpoint):
        found = asked(url, what)
        said = f"; GET answered {status}" if status != 200 else ""
        assert found.what == f"what answers at {url} {NO_SERVER}{said}"
        assert found.fix == "check the server's address, or ask who runs what stands before it"
    assert NO_SERVER in asked(url, lambda client: client.report("fr", "2026-11")).what
    assert NO_SERVER in asked(url, lambda client: client.job("job-1")).what


def test_an_answer_of_another_shape_is_no_servers(server: Any) -> None:
    url, handler = server
    handler.laid = {"/v1/sites": (200, b"{}"), "/v1/quota": (200, b"[]"), "/v1/reports/fr": (200, b"{}"),
                    "/v1/health": (200, b"<html>"), "/v1/whoami": (422, b"{}")}  # fmt: skip
    for what in (Client.sites, Client.quota, Client.health, Client.whoami, lambda client: client.report("fr", "")):
        assert NO_SERVER in asked(url, what).what


def test_an_answer_that_is_not_packed_as_its_head_says_is_no_servers(server: Any) -> None:
    url, handler = server
    handler.sent["Content-Encoding"] = "gzip"
    handler.laid["/v1/sites"] = (200, b"[]")
    assert NO_SERVER in asked(url, Client.sites).what


def test_a_proxy_without_its_server_says_that_it_is_away(server: Any) -> None:
    url, handler = server
    handler.sent.clear()
    handler.laid["/v1/whoami"] = (502, b"<html>")
    assert "502" in asked(url, Client.whoami).what


def test_a_path_too_many_in_the_address_is_named(server: Any) -> None:
    url, handler = server
    status, body = problem("not-found", 404)
    handler.laid["/v1/v1/sites"] = (status, body.replace(b'"what"', b'"there is no /v1/v1/sites"'))
    assert asked(f"{url}/v1/", Client.sites).fix == "leave /v1 off the server's address"
    handler.laid["/v1/v1/sites"] = (status, body)
    with Client(f"{url}/v1") as client, pytest.raises(NotFoundError):
        client.sites()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[bad", "not a url"])
def test_an_absent_server_or_a_bad_address_is_unreachable(url: str) -> None:
    with pytest.raises(UnreachableError), Client(url) as client:
        client.health()


def test_importing_the_package_or_the_client_is_cheap() -> None:
    code = (
        "import sys, consortium, consortium.client; heavy = {'httpx', 'hydra', 'pydantic', 'sqlalchemy', 'ray'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"


def test_a_change_that_got_no_answer_may_have_been_made(server: tuple[str, type[Answers]]) -> None:
    url, _ = server
    with Client(url) as client, pytest.raises(UnreachableError, match="may have done all the same") as fault:
        client.cordon("fr-1", "n1")
    assert fault.value.exit_code == 6
    with Client("http://127.0.0.1:9") as client, pytest.raises(UnreachableError) as refused:
        client.cordon("fr-1", "n1")
    assert "may have done" not in refused.value.what, "nobody got it"
