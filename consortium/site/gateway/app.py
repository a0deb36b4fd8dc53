"""The gateway's process: HTTP on loopback or the site's own network, and a thread for what must be done in time."""

from __future__ import annotations

import logging
import signal
import socket
import sqlite3
import threading

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from consortium import PROTOCOL_VERSION
from consortium.domain.protocol import PROBLEM_TYPE, PROTOCOL_HEADER
from consortium.errors import ConflictError, ConsortiumError, NotFoundError, UnreachableError, UsageError, of_sqlite
from consortium.site.gateway import legs, tracking, upstream
from consortium.site.gateway.border import Border, prune_received
from consortium.site.gateway.core import Gateway
from consortium.site.gateway.spent import Spent

CHORES_S = 2.0
log = logging.getLogger(__name__)


def create_app(gateway: Gateway) -> FastAPI:
    """Return the gateway's HTTP surface: `/leg/…` and `/mlflow/…` for legs, `/v1/…` for the agent."""
    app = FastAPI(title=f"border gateway of {gateway.site.id}", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.gateway = gateway
    app.state.border = Border(gateway)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Whether the gateway itself is up."""
        return {"site": gateway.site.id}

    app.include_router(legs.router)
    app.include_router(tracking.router)
    app.include_router(upstream.router)
    app.add_exception_handler(ConsortiumError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(sqlite3.OperationalError, _full)
    app.add_exception_handler(Exception, _unforeseen)
    return app


def serve(gateway: Gateway) -> None:
    """Serve until SIGTERM or SIGINT; then record what was counted. Raises ConflictError where the port is taken."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again once it has shut down
        signal.signal(number, lambda *_: stopping.set())
    listener = listen(gateway.settings.gateway_port, gateway.settings.gateway_host)
    app = create_app(gateway)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=5, timeout_keep_alive=30, lifespan="off"
    )
    server = uvicorn.Server(config)
    chores = _Chores(gateway, app.state.border, stopping, server)
    chores.start()
    try:
        server.run(sockets=[listener])
    finally:
        stopping.set()
        chores.join()
        gateway.close()
    if chores.fault is not None:
        raise chores.fault


def listen(port: int, host: str = "127.0.0.1") -> socket.socket:
    """Return a listening socket; raises ConflictError where the port is taken or the address is not this machine's."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as fault:
        listener.close()
        raise ConflictError(
            f"cannot listen on port {port}: {fault.strerror}",
            where=f"{host}:{port}",
            fix="stop what holds the port, or set another gateway_port or gateway_host",
        ) from fault
    return listener


class _Chores(threading.Thread):
    """What must be done in time: counts recorded, releases announced, spent envelopes deleted.

    What nobody foresaw ends the whole process.
    """

    def __init__(self, gateway: Gateway, border: Border, stopping: threading.Event, server: uvicorn.Server) -> None:
        super().__init__(name="chores")
        self.gateway = gateway
        self.border = border
        self.spent = Spent(gateway)
        self.stopping = stopping
        self.server = server
        self.fault: Exception | None = None

    def run(self) -> None:
        said = ""
        while not self.stopping.wait(CHORES_S):
            try:
                self.gateway.traffic.flush_if_due()
                prune_received(self.gateway)
                self.border.announce()
                self.spent.clear_if_due()
                said = ""
            except Exception as problem:
                fault = of_database(problem, self.gateway) if isinstance(problem, sqlite3.Error) else problem
                if not isinstance(fault, ConsortiumError):
                    self.fault = problem
                    self.server.should_exit = True
                    break
                if fault.what != said:
                    log.warning("%s", fault.render().replace("\n", ";"))
                said = fault.what
        self.gateway.db.close()


def of_database(fault: sqlite3.Error, gateway: Gateway) -> UnreachableError | None:
    """Return the error for what may pass, such as a full disk: calls are repeated. None for any other."""
    found = of_sqlite(fault, "the site's database cannot be used", where=str(gateway.db.path), damaged="")
    return found if isinstance(found, UnreachableError) else None


def _full(request: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, sqlite3.Error)
    found = of_database(fault, request.app.state.gateway)
    return _unforeseen(request, fault) if found is None else problem(found)


def _known(_: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, ConsortiumError)
    return problem(fault)


def _invalid(_: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, RequestValidationError)
    issues = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in fault.errors()[:5])
    return problem(UsageError(f"not a valid request: {issues}"))


def _http(request: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, HTTPException)
    what = f"{request.method} {request.url.path}: {fault.detail}"
    return problem(NotFoundError(what) if fault.status_code == 404 else UsageError(what))


def _unforeseen(request: Request, fault: Exception) -> JSONResponse:
    log.error("%s %s", request.method, request.url.path, exc_info=fault)
    return problem(ConsortiumError("the gateway failed; see its log", where=request.url.path))


def problem(fault: ConsortiumError) -> JSONResponse:
    """Return an error as an RFC 9457 problem document."""
    document = {
        "type": f"urn:consortium:{fault.slug}",
        "title": fault.slug.replace("-", " "),
        "status": fault.status,
        "detail": fault.what,
        "where": fault.where,
        "fix": fault.fix,
    }
    return JSONResponse(
        document,
        status_code=fault.status,
        media_type=PROBLEM_TYPE,
        headers={PROTOCOL_HEADER: str(PROTOCOL_VERSION)},
    )
