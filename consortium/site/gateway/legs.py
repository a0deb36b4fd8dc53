"""The API of running legs: what they are to do, what they report, artifacts, rounds and agreements."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import ArtifactClass, Dataset
from consortium.domain.job import Fault, LegState
from consortium.domain.protocol import MAX_REQUEST_BYTES, LegContext, StoreAccess
from consortium.domain.training import Commit, Verdict
from consortium.errors import ConflictError, PolicyDeniedError, UsageError
from consortium.keys.signing import sign_value
from consortium.site.gateway import forms
from consortium.site.gateway.border import MAX_ARTIFACT_BYTES, Border
from consortium.site.gateway.core import Gateway
from consortium.site.gateway.evidence import check_agreements, check_round
from consortium.site.gateway.numbers import rounded
from consortium.site.gateway.results import (
    MAX_WORD_CHARS,
    check_outputs,
    checked_digest,
    checked_metrics,
    checked_size,
    is_name,
)
from consortium.site.legs import SiteLeg, told

MAX_CONTROL_BYTES = 8 << 20
MAX_LEFT_BYTES = 256 << 20
"""Of what a program leaves, with the manifest, which stays here; what leaves is `MAX_RESULT_BYTES` at most."""
MAX_FAILURE_CHARS = 2000
router = APIRouter(prefix="/leg")


@dataclass(frozen=True, slots=True, kw_only=True)
class LegResult:
    """What a program leaves behind when it is done."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    outputs: tuple[Dataset, ...] = ()
    manifest_digest: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LegFailure:
    """What a program says before it fails."""

    message: str
    fault: Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitBody:
    """A commit as the leg gives it; the gateway adds job, round, site and signature."""

    tokens: int
    steps: int
    digest: str
    norm: str
    loss: str
    train_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictBody:
    """A verdict as the leg gives it; the gateway adds job, round, judge and signature."""

    site: str
    digest: str
    accept: bool
    reason: str = ""
    norm: str = ""


def gateway_of(request: Request) -> Gateway:
    """Return the process's gateway."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def border_of(request: Request) -> Border:
    """Return the process's border."""
    border: Border = request.app.state.border
    return border


async def read_body(request: Request, limit: int) -> bytes:
    """Return the request's body; raises UsageError above `limit` bytes."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise UsageError(f"the body is larger than {limit} bytes", where=request.url.path)
        parts.append(part)
    return b"".join(parts)


async def small_json(request: Request) -> Any:
    """Return a small JSON body."""
    return await _json(request, MAX_CONTROL_BYTES)


async def result_json(request: Request) -> Any:
    """Return what a program leaves: it may name every shard of a leg's datasets, in the manifest more than once."""
    return await _json(request, MAX_LEFT_BYTES)


async def request_json(request: Request) -> Any:
    """Return a JSON body as large as the consortium's server takes it."""
    return await _json(request, MAX_REQUEST_BYTES)


async def _json(request: Request, limit: int) -> Any:
    try:
        return json.loads(await read_body(request, limit) or b"null")
    except (ValueError, RecursionError) as fault:
        raise UsageError(f"the body is not JSON: {fault}", where=request.url.path) from fault


async def artifact_body(request: Request) -> bytes:
    """Return the bytes of an artifact."""
    return await read_body(request, MAX_ARTIFACT_BYTES)


def calling_leg(
    gateway: Annotated[Gateway, Depends(gateway_of)], authorization: Annotated[str, Header()] = ""
) -> SiteLeg:
    """Return the leg whose token the caller shows."""
    return gateway.leg(authorization)


At = Annotated[Gateway, Depends(gateway_of)]
AtBorder = Annotated[Border, Depends(border_of)]
Leg = Annotated[SiteLeg, Depends(calling_leg)]
Json = Annotated[Any, Depends(small_json)]
ResultJson = Annotated[Any, Depends(result_json)]
Number = Annotated[int, Path(ge=0, le=1_000_000)]
"""Of a round."""
LargeJson = Annotated[Any, Depends(request_json)]


@router.get("/context")
def context(gateway: At, leg: Leg) -> Any:
    """What the leg is to do, with the keys to its site's private store."""
    offer, private = leg.offer, gateway.settings.private_store
    spec = offer.spec.spec
    return to_json(
        LegContext(
            job=offer.job,
            job_kind=spec.kind.value,
            job_name=spec.name,
            attempt=offer.attempt,
            leg=offer.leg,
            epoch=str(offer.epoch),
            site=offer.site,
            partner=gateway.site.partner,
            peers=offer.peers,
            params=spec.params,
            inputs=offer.inputs,
            gpus=sum(offer.nodes.values()),
            gpus_per_worker=spec.resources.gpus_per_worker,
            gpu_resource=gateway.site.gpu_resource,
            store=StoreAccess(
                endpoint=private.endpoint,
                bucket=private.bucket,
                access_key=private.access_key,
                secret_key=private.secret(),
                prefix=f"jobs/{offer.job}/",
            ),
            model=spec.model,
            tracking_run=offer.tracking_run,
            min_sites=spec.min_sites,
            checkpoint_every_s=spec.checkpoint_every_s,
        )
    )


@router.post("/progress", status_code=204)
def progress(gateway: At, border: AtBorder, leg: Leg, body: Json) -> None:
    """Keep where the leg stands; the agent's next poll carries it.

    Where the own policy keeps metrics at home it goes without what was measured: without fractions.
    """
    values = from_json(dict[str, int | float | str | bool | None], body, where="progress")
    if len(json.dumps(values)) > 4000 or not all(is_name(key) and _is_small(value) for key, value in values.items()):
        raise UsageError(
            "progress is small numbers and words: 4 kB in all, 200 characters of one line a word",
            fix="name each with letters, digits and '_.:/@+-'",
        )
    if any(isinstance(value, float) for value in values.values()):
        try:
            border.check_metrics(leg)
        except PolicyDeniedError:
            values = {key: value for key, value in values.items() if not isinstance(value, float)}
    # As of metrics, six digits are enough for people.
    short = {key: rounded(value) if isinstance(value, float) else value for key, value in values.items()}
    gateway.table.change(leg, progress=short)


def _is_small(value: float | str | None) -> bool:
    return not isinstance(value, str) or (len(value) <= MAX_WORD_CHARS and value.isprintable())


@router.get("/stop")
def stop(gateway: At, leg: Leg) -> Any:
    """Whether the program is to keep its progress and end. One that asks is given the time for it."""
    if not leg.listens:
        gateway.table.change(leg, listens=1)
    return {"stop": leg.state is LegState.STOPPING}


@router.post("/result", status_code=204)
def result(gateway: At, border: AtBorder, leg: Leg, body: ResultJson) -> None:
    """Keep the leg's result; a later one replaces it, until the leg has ended.

    Where the own policy has come to keep metrics at home since the leg began, the result goes without them.
    """
    left = from_json(LegResult, body, where="result")
    for output in left.outputs:
        if output.site != leg.offer.site or output.territory != gateway.site.territory:
            raise UsageError(f"dataset {output.name} names {output.site} in {output.territory!r} as its home, not here")
    checked_digest(left.manifest_digest)
    check_outputs(left.outputs, leg.offer.inputs)
    metrics = checked_metrics(left.metrics, leg.offer.spec.spec)
    try:
        border.check_metrics(leg)
    except PolicyDeniedError:
        metrics = {}
    kept = to_json(replace(left, metrics=metrics))
    checked_size(told(kept))
    _keep(gateway, leg, result=kept)


@router.post("/failure", status_code=204)
def failure(gateway: At, border: AtBorder, leg: Leg, body: Json) -> None:
    """Keep what the program says before it fails; the agent's next poll carries it, so it is short.

    Its words may quote text, so they leave only where the log may.
    """
    said = from_json(LegFailure, body, where="failure")
    if len(said.message) > MAX_FAILURE_CHARS:
        raise UsageError(f"a failure is told in {MAX_FAILURE_CHARS} characters: tracebacks stay in the leg's log")
    _keep(gateway, leg, failure=to_json(replace(said, message=border.words(leg, said.message))))


def _keep(gateway: Gateway, leg: SiteLeg, **columns: Any) -> None:
    with gateway.db.write() as write:
        now = gateway.table.get(leg.offer.leg, leg.offer.epoch)
        if now is None or now.state not in (LegState.STARTING, LegState.RUNNING):
            raise ConflictError(f"{leg.key} has ended meanwhile")
        gateway.table.change(leg, write, **columns)


@router.post("/artifacts")
def send(
    border: AtBorder,
    leg: Leg,
    data: Annotated[bytes, Depends(artifact_body)],
    artifact_class: Annotated[str, Query(alias="class")],
    name: Annotated[str, Query(max_length=200)],
    round: Annotated[int, Query(ge=0)] = 0,
    recipients: str = "",
) -> Any:
    """Release an artifact to other sites of the job."""
    try:
        kind = ArtifactClass(artifact_class)
    except ValueError as fault:
        known = ", ".join(item.value for item in ArtifactClass)
        raise UsageError(f"no artifact class {artifact_class!r}", fix=f"one of {known}") from fault
    if not is_name(name):
        raise UsageError(f"no name of an artifact: {name[:40]!r}", fix="give letters, digits and '_.:/@+-'")
    to = sorted({site for site in recipients.split(",") if site})
    return to_json(border.release(leg, kind, name, round, to, data))


@router.get("/artifacts")
def inbox(border: AtBorder, leg: Leg, round: Annotated[int | None, Query(ge=0)] = None) -> Any:
    """List what is addressed to this site, of all rounds or of one."""
    return to_json(border.inbox(leg, round))


@router.get("/artifacts/{digest}")
def receive(
    border: AtBorder, leg: Leg, digest: str, sender: str = "", round: Annotated[int | None, Query(ge=0)] = None
) -> Response:
    """Return an artifact's plaintext."""
    return Response(border.receive(leg, digest, sender, round), media_type="application/octet-stream")


@router.post("/rounds/{number}/commit")
def commit(gateway: At, leg: Leg, number: Number, body: Json) -> Any:
    """Sign a commit and pass it on."""
    said = from_json(CommitBody, body, where="commit")
    draft = Commit(
        job=leg.offer.job,
        round=number,
        site=leg.offer.site,
        tokens=forms.count(said.tokens, "tokens"),
        steps=forms.count(said.steps, "steps"),
        digest=forms.digest(said.digest, "digest"),
        norm=forms.hexadecimal(said.norm, "norm"),
        loss=forms.hexadecimal(said.loss, "loss"),
        train_ms=forms.count(said.train_ms, "train_ms"),
    )
    path = f"/v1/jobs/{leg.offer.job}/rounds/{number}/commit"
    return gateway.call("POST", path, sign_value(gateway.key, draft), job=leg.offer.job)


@router.post("/rounds/{number}/verdicts")
def verdicts(gateway: At, leg: Leg, number: Number, body: Json) -> Any:
    """Sign verdicts and pass them on."""
    given = from_json(list[VerdictBody], body, where="verdicts")
    sites = {leg.offer.site, *leg.offer.peers}
    if {said.site for said in given} - sites or len(given) > len(sites):
        raise UsageError("verdicts are on sites that take part in the job, one each", where=leg.offer.job)
    signed = [
        sign_value(
            gateway.key,
            Verdict(
                job=leg.offer.job,
                round=number,
                judge=leg.offer.site,
                site=said.site,
                digest=forms.digest(said.digest, "digest"),
                accept=said.accept,
                reason=forms.code(said.reason, "reason"),
                norm=said.norm and forms.hexadecimal(said.norm, "norm"),
            ),
        )
        for said in given
    ]
    return gateway.call("POST", f"/v1/jobs/{leg.offer.job}/rounds/{number}/verdicts", signed, job=leg.offer.job)


@router.get("/rounds/{number}")
def read_round(gateway: At, leg: Leg, number: Number) -> Any:
    """Return a round as the server keeps it, once every signature in it holds."""
    answer = gateway.call("GET", f"/v1/jobs/{leg.offer.job}/rounds/{number}", job=leg.offer.job)
    found = check_round(
        gateway.trust,
        leg.offer,
        number,
        answer,
        lambda: gateway.documents.rosters(gateway.now_ms()),
        gateway.verified,
    )
    if found.outer_digests:
        found = replace(found, outer_digests=_agreements(gateway, leg, f"outer/{number}"))
    return to_json(found)


@router.post("/agreements/{topic:path}")
def agree(gateway: At, leg: Leg, topic: str, body: Json) -> Any:
    """Sign this site's digest for a topic and pass it on."""
    said = from_json(dict[str, str], body, where="agreement")
    if set(said) != {"digest"}:
        raise UsageError("an agreement is {'digest': …}", where=topic)
    published = forms.digest(said["digest"], "digest")
    statement = {"job": leg.offer.job, "topic": forms.topic(topic), "site": leg.offer.site, "digest": published}
    signed = sign_value(gateway.key, statement)
    path = f"/v1/jobs/{leg.offer.job}/agreements/{topic}"
    answer = {name: signed[name] for name in ("site", "digest", "signature")}
    return gateway.call("POST", path, answer, job=leg.offer.job)


@router.get("/agreements/{topic:path}")
def agreements(gateway: At, leg: Leg, topic: str) -> Any:
    """Return the digests published for a topic, once their signatures hold."""
    return _agreements(gateway, leg, topic)


def _agreements(gateway: Gateway, leg: SiteLeg, topic: str) -> dict[str, str]:
    path = f"/v1/jobs/{leg.offer.job}/agreements/{forms.topic(topic)}"
    answer = gateway.call("GET", path, job=leg.offer.job, params={"signed": "true"})
    return check_agreements(gateway.trust, leg.offer, topic, answer)
