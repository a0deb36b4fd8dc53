"""A small real HTTP server for tests, in a thread: routes by regular expression, remembers every request."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from consortium.errors import ConsortiumError


class Heard(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: Any


Handler = Callable[[Any, dict[str, str]], Any]


class App:
    def __init__(self) -> None:
        self.routes: list[tuple[str, re.Pattern[str], Handler]] = []
        self.heard: list[Heard] = []
        self.away: Callable[[], bool] = lambda: False

    def route(self, method: str, pattern: str) -> Callable[[Handler], Handler]:
        def add(handler: Handler) -> Handler:
            self.routes.append((method, re.compile(pattern), handler))
            return handler

        return add

    def answer(self, heard: Heard, query: dict[str, str]) -> tuple[int, Any]:
        self.heard.append(heard)
        if self.away():
            return 503, {"type": "urn:consortium:unreachable", "detail": "away", "status": 503}
        for method, pattern, handler in self.routes:
            if method == heard.method and pattern.fullmatch(heard.path):
                try:
                    return 200, handler(heard.body, query)
                except ConsortiumError as fault:
                    return fault.status, {"type": f"urn:consortium:{fault.slug}", "detail": fault.what}
        return 404, {"type": "urn:consortium:not-found", "detail": heard.path, "status": 404}


class Serving:
    """`with Serving(app) as url`."""

    def __init__(self, app: App) -> None:
        self.app = app

        class Handle(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    body = json.loads(data) if data else None
                except ValueError:
                    body = data
                parts = urlsplit(self.path)
                heard = Heard(self.command, unquote(parts.path), dict(self.headers), body)
                status, answer = app.answer(heard, dict(parse_qsl(parts.query)))
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handle)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Serving:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
