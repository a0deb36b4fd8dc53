from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from typing import Any

import pytest

from consortium.client import leg as module
from consortium.client.leg import LegSession, run
from consortium.domain.data import Artifact, ArtifactClass
from consortium.errors import ConfigError, NotFoundError, UnreachableError, UsageError, VerificationError
from tests.site.http import App, Serving


def test_outside_a_leg_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSORTIUM_GATEWAY", raising=False)
    with pytest.raises(ConfigError, match="CONSORTIUM_GATEWAY is not set"):
        LegSession.from_env()


def test_a_gateway_that_is_away_for_a_moment_is_waited_for() -> None:
    app = App()
    app.route("GET", "/leg/agreements/outer/1")(lambda body, query: {"fr-1": "sha256:a"})
    answers = iter([True, True, False])
    app.away = lambda: next(answers, False)
    with Serving(app) as server:
        assert LegSession(server.url, "t").agreements("outer/1") == {"fr-1": "sha256:a"}
    assert len(app.heard) == 3
    assert app.heard[0].headers["Authorization"] == "Bearer t"


def test_one_that_stays_away_is_named() -> None:
    with pytest.raises(UnreachableError, match="the gateway does not answer"):
        LegSession("http://127.0.0.1:9", "t", patience_s=0.3).inbox()


def test_an_artifact_that_breaks_off_is_fetched_again_from_its_beginning() -> None:
    data, tries = bytes(range(256)) * 4096, iter([256_000, None])

    class Breaking(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: next(tries)])

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Breaking)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    file = BytesIO(b"before")
    file.seek(6)
    try:
        session = LegSession(f"http://127.0.0.1:{server.server_port}", "t")
        assert session.receive_into(artifact(), file) == len(data)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
    assert file.getvalue() == b"before" + data


def test_an_artifact_that_is_not_announced_leaves_nothing_in_the_file() -> None:
    file = BytesIO()
    with Serving(App()) as server, pytest.raises(NotFoundError):
        LegSession(server.url, "t").receive_into(artifact(), file)
    assert file.getvalue() == b""


def artifact() -> Artifact:
    return Artifact(job="job-1", artifact_class=ArtifactClass.PSEUDO_GRADIENT, name="x", round=1, sender="de-1",
                    recipients=("fr-1",), digest="sha256:ab", key="k", size_bytes=1)  # fmt: skip


def test_a_problem_document_becomes_the_error_it_names_and_is_not_repeated() -> None:
    app = App()
    with Serving(app) as server, pytest.raises(NotFoundError):
        LegSession(server.url, "t").round(1)
    assert len(app.heard) == 1


def test_an_agreement_waits_for_all_and_names_who_differs() -> None:
    app, known = App(), {"de-1": "sha256:a"}
    app.route("POST", "/leg/agreements/tokenizer")(lambda body, query: known.update({"fr-1": body["digest"]}) or {})
    app.route("GET", "/leg/agreements/tokenizer")(lambda body, query: known)
    with Serving(app) as server:
        session = LegSession(server.url, "t")
        late = threading.Timer(0.3, lambda: known.update({"uy-1": "sha256:a"}))
        late.start()
        session.wait_agreement("tokenizer", "sha256:a", 10, sites=["de-1", "fr-1", "uy-1"], poll_s=0.05)
        with pytest.raises(UnreachableError, match="zz-1"):
            session.wait_agreement("tokenizer", "sha256:a", 0.1, sites=["fr-1", "zz-1"], poll_s=0.05)
        known["uy-1"] = "sha256:b"
        with pytest.raises(VerificationError, match="uy-1 hold another tokenizer"):
            session.wait_agreement("tokenizer", "sha256:a", 10, sites=["fr-1", "uy-1"])


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (UsageError("no such column"), 2, {"message": "no such column", "fault": "user"}),
        (UnreachableError("peers are away"), 6, {"message": "peers are away", "fault": "site"}),
    ],
)
def test_a_program_that_fails_says_whose_fault_it_was(
    fault: Exception, code: int, said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App()
    app.route("POST", "/leg/failure")(lambda body, query: {})

    def program(session: LegSession) -> None:
        raise fault

    with Serving(app) as server:
        monkeypatch.setenv(module.GATEWAY_ENV, server.url)
        monkeypatch.setenv(module.TOKEN_ENV, "t")
        assert run(program) == code
        assert app.heard[-1].body == said


def test_a_traceback_stays_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    app.route("POST", "/leg/failure")(lambda body, query: {})

    def program(session: Any) -> None:
        raise ZeroDivisionError("first line\nsecond line")

    with Serving(app) as server:
        monkeypatch.setenv(module.GATEWAY_ENV, server.url)
        monkeypatch.setenv(module.TOKEN_ENV, "t")
        with pytest.raises(ZeroDivisionError):
            run(program)
    assert app.heard[-1].body == {"message": "ZeroDivisionError: first line", "fault": "user"}
