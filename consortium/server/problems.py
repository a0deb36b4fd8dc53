"""Errors as RFC 9457 problem documents. No traceback leaves the server."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.exceptions import HTTPException

from consortium.domain.protocol import PROBLEM_TYPE
from consortium.errors import AuthError, ConsortiumError, NotFoundError, UnreachableError, UsageError
from consortium.state.database import away

log = logging.getLogger(__name__)


def problem(fault: ConsortiumError, *, status: int | None = None) -> JSONResponse:
    """Return an error as a problem document."""
    code = fault.status if status is None else status
    content: dict[str, Any] = {
        "type": f"urn:consortium:{fault.slug}",
        "title": fault.slug.replace("-", " ").capitalize(),
        "status": code,
        "detail": fault.what,
    }
    if fault.where:
        content["where"] = fault.where
    if fault.fix:
        content["fix"] = fault.fix
    headers = {"WWW-Authenticate": "Bearer"} if type(fault) is AuthError else None
    return JSONResponse(content, status_code=code, media_type=PROBLEM_TYPE, headers=headers)


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""

    @app.exception_handler(ConsortiumError)
    def _known(_: Request, fault: ConsortiumError) -> JSONResponse:
        if fault.status >= 500:
            log.error("%s", fault)
        return problem(fault)

    @app.exception_handler(RequestValidationError)
    def _invalid(_: Request, fault: RequestValidationError) -> JSONResponse:
        issues = "; ".join(
            f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in fault.errors()[:5]
        )
        return problem(UsageError(f"not a valid request: {issues}", fix="see /v1/openapi.json"))

    @app.exception_handler(HTTPException)
    def _http(request: Request, fault: HTTPException) -> JSONResponse:
        if fault.status_code == 404:
            return problem(NotFoundError(f"there is no {request.url.path}", fix="see /v1/openapi.json"))
        error = UsageError(f"{request.method} {request.url.path}: {fault.detail}", fix="see /v1/openapi.json")
        return problem(error, status=fault.status_code)

    @app.exception_handler(DataError)
    @app.exception_handler(OverflowError)
    def _not_storable(request: Request, fault: Exception) -> JSONResponse:
        log.warning(
            "%s %s: a value that the state database does not take: %.500s", request.method, request.url.path, fault
        )
        what = "the request holds a value that the state database does not take"
        return problem(UsageError(what, fix="no NUL characters in texts, no numbers beyond 64 bits"))

    @app.exception_handler(SQLAlchemyError)
    def _database(request: Request, fault: SQLAlchemyError) -> JSONResponse:
        if away(fault):  # every poll of every site meets this: one line each
            log.error("%s %s: the state database failed: %.300s", request.method, request.url.path, fault)
        else:
            log.error("%s %s: the state database failed", request.method, request.url.path, exc_info=fault)
        return problem(UnreachableError("the server's state database failed", fix="try again; its log says more"))

    @app.exception_handler(Exception)
    def _bug(request: Request, fault: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=fault)
        return problem(ConsortiumError("the server made a mistake; it is in its log", where=request.url.path))
