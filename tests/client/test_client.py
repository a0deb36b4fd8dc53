"""The SDK: problem documents become errors, connection failures too; importing it is cheap."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
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


class Answers(BaseHTTPRequestHandler):
    """Answers each path with what the test laid down for it."""

    laid: dict[str, tuple[int, bytes]]
    seen: list[Any]

    def do_GET(self) -> None:
        status, body = self.laid[self.path.split("?")[0]]
        self.seen.append(dict(self.headers))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[Answers]]]:
    handler = type("Laid", (Answers,), {"laid": {}, "seen": []})
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


def test_what_is_no_consortium_server_is_said(server: Any) -> None:
    url, handler = server
    handler.laid["/v1/health"] = (200, b"<html>")
    handler.laid["/v1/whoami"] = (502, b"<html>")
    with Client(url) as client:
        with pytest.raises(UnreachableError, match="not a consortium server"):
            client.health()
        with pytest.raises(UnreachableError, match="502"):
            client.whoami()


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
