"""The HTTP side: FastAPI under /v1, problem documents, the protocol header."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consortium import PROTOCOL_VERSION, __version__
from consortium.domain.protocol import MAX_REQUEST_BYTES, PROTOCOL_HEADER
from consortium.errors import UsageError
from consortium.server import problems
from consortium.server.core import Core
from consortium.server.routes import data, evidence, jobs, operate, quota, sites, upkeep

_TOO_LARGE = f"the request is larger than {MAX_REQUEST_BYTES // 1024**2} MiB"


def make_app(core: Core) -> FastAPI:
    """Return the application over `core`."""
    app = FastAPI(
        title="consortium",
        version=__version__,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        description="Several states pool GPU clusters, data and people; each keeps control of its own.",
    )
    app.state.core = core
    problems.install(app)

    app.add_middleware(BoundedBody)

    @app.middleware("http")
    async def _negotiate(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _refuse(request)
        response = await call_next(request) if refused is None else problems.problem(refused)
        response.headers[PROTOCOL_HEADER] = str(PROTOCOL_VERSION)
        return response

    # The fixed paths of operation and evidence come first; sites' paths below /jobs/{job}/ before the users'.
    fixed = (operate, upkeep, quota, evidence)
    for router in (*(room.router for room in fixed), sites.router, jobs.router, data.router):
        app.include_router(router, prefix="/v1")
    return app


class BoundedBody:
    """Stops reading a body that grows too large, whatever its caller said of its length."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on; raises HTTPException (413) out of the read that goes too far."""
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_REQUEST_BYTES:
                raise HTTPException(413, _TOO_LARGE)
            return message

        await self.app(scope, bounded, send)


def _refuse(request: Request) -> UsageError | None:
    spoken = request.headers.get(PROTOCOL_HEADER)
    if spoken is not None and spoken not in (str(PROTOCOL_VERSION), str(PROTOCOL_VERSION - 1)):
        return UsageError(
            f"the caller speaks protocol {spoken[:20]!r}, this server {PROTOCOL_VERSION} (and the one before)",
            where=PROTOCOL_HEADER,
            fix="install the consortium's current release",
        )
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_REQUEST_BYTES:
        return UsageError(_TOO_LARGE, where=request.url.path)
    return None
