"""The agent's calls to the consortium's server: an allow-list, each body read against its schema and written anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import ArtifactClass
from consortium.domain.protocol import PollRequest
from consortium.domain.records import Record
from consortium.errors import ForbiddenError, NotFoundError
from consortium.site.gateway.core import Gateway
from consortium.site.gateway.legs import At, AtBorder, Json, LargeJson, gateway_of


def agent_only(gateway: Annotated[Gateway, Depends(gateway_of)], authorization: Annotated[str, Header()] = "") -> None:
    """Let only this site's agent through."""
    gateway.check_agent(authorization)


router = APIRouter(prefix="/v1", dependencies=[Depends(agent_only)])


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPiece:
    """A piece of a leg's log; `offset` in characters."""

    leg: str
    site: str
    offset: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The next records of the site's chain."""

    records: tuple[Record, ...]


@router.get("/health")
def health(gateway: At) -> Any:
    """Whether the server answers."""
    return gateway.call("GET", "/v1/health")


@router.post("/sites/{site}/poll")
def poll(gateway: At, site: str, body: LargeJson) -> Any:
    """Pass the agent's poll on; the results in it name every shard."""
    _own(gateway, site)
    request = from_json(PollRequest, body, where="poll")
    _own(gateway, request.site)
    return gateway.call("POST", f"/v1/sites/{site}/poll", request)


@router.post("/sites/{site}/records")
def records(gateway: At, site: str, body: Json) -> Any:
    """Pass signed records on."""
    _own(gateway, site)
    sent = from_json(Records, body, where="records")
    for record in sent.records:
        _own(gateway, record.origin)
    return gateway.call("POST", f"/v1/sites/{site}/records", sent)


@router.post("/jobs/{job}/logs")
def logs(gateway: At, border: AtBorder, job: str, body: Json) -> Any:
    """Let a piece of a leg's log out where the own policy allows it; else a 403 that names the clause."""
    piece = from_json(LogPiece, body, where="log")
    _own(gateway, piece.site)
    held = [leg for leg in gateway.table.of(piece.leg) if leg.offer.job == job]
    if not held:
        raise NotFoundError(f"this site has no leg {piece.leg} of {job}")
    border.check_log(held[-1])
    return gateway.call("POST", f"/v1/jobs/{job}/logs", to_json(piece), job=job, artifact_class=ArtifactClass.LOG)


@router.api_route("/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
def refused(rest: str) -> None:
    """Everything else stays inside."""
    raise ForbiddenError(f"/v1/{rest} is not on the gateway's list", fix="the agent needs poll, records and logs only")


def _own(gateway: Gateway, site: str) -> None:
    if site != gateway.site.id:
        raise ForbiddenError(f"this is the gateway of {gateway.site.id}, not of {site}")
