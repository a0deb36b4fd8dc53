"""MLflow through the border: a leg may write numbers to its own run, and nothing else.

Every body is built anew from the fields listed here; metrics are rounded to six significant digits, strings are short
and of one line. Artifacts, models, traces and tracebacks have no way through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from consortium.domain.data import ArtifactClass
from consortium.errors import ConsortiumError, ForbiddenError, UnreachableError
from consortium.site.gateway.core import Gateway
from consortium.site.gateway.legs import MAX_CONTROL_BYTES, At, AtBorder, Leg, read_body
from consortium.site.gateway.numbers import rounded
from consortium.tracking.tracker import LINK_PREFIX

MAX_CHARS = 500
_TAG_KEYS = re.compile(
    rf"(?!{re.escape(LINK_PREFIX)})(consortium\.[a-z0-9._-]{{1,80}}|mlflow\.runName|mlflow\.data\.context)\Z"
)
_KEY = re.compile(r"[\w./ -]{1,200}\Z")
_API = re.compile(r"api/[23]\.0/mlflow/(runs/[a-z-]+)\Z")
router = APIRouter(prefix="/mlflow")


async def _body(request: Request) -> bytes:
    return await read_body(request, MAX_CONTROL_BYTES)


@router.get("/version")
def version(gateway: At, leg: Leg) -> Response:
    """Return the tracking server's version; MLflow's client asks for it."""
    answer = _send(gateway, "GET", "version", None, {}, leg.offer.job)
    return Response(answer.content, answer.status_code, media_type="text/plain")


@router.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
def call(
    gateway: At, border: AtBorder, leg: Leg, request: Request, path: str, body: Annotated[bytes, Depends(_body)]
) -> Response:
    """Pass an allowed call on."""
    try:
        wanted = _API.match(path)
        allowed = CALLS.get((request.method, wanted.group(1))) if wanted else None
        if allowed is None:
            what = f"{request.method} {path} is not on the gateway's list of MLflow calls"
            raise ForbiddenError(what, fix="log metrics, parameters, tags and inputs of the leg's own run only")
        clean = _rebuilt(allowed, dict(request.query_params) if request.method == "GET" else _object(body))
        if clean["run_id"] != leg.offer.tracking_run or not leg.offer.tracking_run:
            raise ForbiddenError(f"run {clean['run_id']!r} is not this leg's", fix="use the context's tracking_run")
        border.check_metrics(leg)
    except ConsortiumError as fault:
        code = "PERMISSION_DENIED" if fault.status == 403 else "INVALID_PARAMETER_VALUE"
        return JSONResponse({"error_code": code, "message": fault.render()}, status_code=fault.status)
    query = {"run_id": str(clean["run_id"])} if request.method == "GET" else {}
    content = None if request.method == "GET" else clean
    answer = _send(gateway, request.method, path, content, query, leg.offer.job)
    return Response(answer.content, answer.status_code, media_type="application/json")


def _object(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as fault:
        raise ForbiddenError(f"the body is not JSON: {fault}") from fault
    if not isinstance(said, dict):
        raise ForbiddenError("the body is not a JSON object")
    return said


def _rebuilt(allowed: Callable[[dict[str, Any]], dict[str, Any]], body: dict[str, Any]) -> dict[str, Any]:
    try:
        return allowed(body)
    except (TypeError, ValueError, AttributeError) as fault:  # a list where an object belongs, and the like
        raise ForbiddenError(f"the body is not what this call takes: {fault}") from fault


def _send(gateway: Gateway, method: str, path: str, body: Any, query: dict[str, str], job: str) -> httpx.Response:
    request = gateway.mlflow.build_request(method, f"/{path}", json=body, params=query)
    try:
        return gateway.exchange(gateway.mlflow, request, ArtifactClass.METRIC, job)
    except httpx.TransportError as fault:
        raise UnreachableError(
            f"the tracking server does not answer: {fault}", where=gateway.settings.mlflow_url, fix="try again"
        ) from fault


# -- bodies -------------------------------------------------------------------------------------------------------


def text(value: Any, what: str) -> str:
    """Return a short string of one line; raises ForbiddenError for what could be a traceback or a document."""
    line = str(value)
    if len(line) > MAX_CHARS or any(not char.isprintable() for char in line):
        raise ForbiddenError(
            f"{what} is longer than {MAX_CHARS} characters or has several lines: texts and tracebacks stay at the site",
            fix="shorten it, or write it to the leg's log",
        )
    return line


def _key(value: Any, allowed: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not allowed.match(value):
        raise ForbiddenError(f"{what} {value!r} is not one the gateway lets through")
    return value


def _metric(item: dict[str, Any]) -> dict[str, Any]:
    try:
        value, at, step = rounded(item["value"]), int(item.get("timestamp", 0)), int(item.get("step", 0))
    except (KeyError, TypeError, ValueError) as fault:
        raise ForbiddenError(f"not a metric: {fault}") from fault
    return {"key": _key(item.get("key"), _KEY, "metric"), "value": value, "timestamp": at, "step": step}


def _param(item: dict[str, Any]) -> dict[str, Any]:
    return {"key": _key(item.get("key"), _KEY, "parameter"), "value": text(item.get("value", ""), "a parameter")}


def _tag(item: dict[str, Any]) -> dict[str, Any]:
    return {"key": _key(item.get("key"), _TAG_KEYS, "tag"), "value": text(item.get("value", ""), "a tag")}


def _input(item: dict[str, Any]) -> dict[str, Any]:
    described, fields = item.get("dataset", {}), ("name", "digest", "source_type", "source")
    return {
        "tags": [_tag(tag) for tag in item.get("tags", ())],
        "dataset": {field: text(described.get(field, ""), f"a dataset's {field}") for field in fields},
    }


def _run(body: dict[str, Any]) -> dict[str, Any]:
    return {"run_id": str(body.get("run_id") or body.get("run_uuid") or "")}


def _batch(body: dict[str, Any]) -> dict[str, Any]:
    return {
        **_run(body),
        "metrics": [_metric(item) for item in body.get("metrics", ())],
        "params": [_param(item) for item in body.get("params", ())],
        "tags": [_tag(item) for item in body.get("tags", ())],
    }


def _inputs(body: dict[str, Any]) -> dict[str, Any]:
    return {**_run(body), "datasets": [_input(item) for item in body.get("datasets", ())]}


def _update(body: dict[str, Any]) -> dict[str, Any]:
    clean: dict[str, Any] = _run(body)
    if "status" in body:
        clean["status"] = text(body["status"], "a status")
    if "end_time" in body:
        clean["end_time"] = int(body["end_time"])
    return clean


CALLS: dict[tuple[str, str], Callable[[dict[str, Any]], dict[str, Any]]] = {
    ("GET", "runs/get"): _run,
    ("POST", "runs/log-batch"): _batch,
    ("POST", "runs/log-metric"): lambda body: _run(body) | _metric(body),
    ("POST", "runs/log-parameter"): lambda body: _run(body) | _param(body),
    ("POST", "runs/set-tag"): lambda body: _run(body) | _tag(body),
    ("POST", "runs/log-inputs"): _inputs,
    ("POST", "runs/update"): _update,
}
"""What a leg may call, and how each body is built anew."""
