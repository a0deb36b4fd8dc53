"""What sites say: polls, records, artifacts, rounds, agreements, logs."""

from __future__ import annotations

import json
import logging
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from consortium.domain.codec import from_json, storable, to_json
from consortium.domain.data import NEVER_CROSS, Artifact
from consortium.domain.decision import Denial
from consortium.domain.ids import CONSORTIUM, partner_of
from consortium.domain.protocol import PollRequest
from consortium.domain.records import Record
from consortium.domain.training import Commit, Verdict
from consortium.errors import (
    ConflictError,
    ConsortiumError,
    ForbiddenError,
    NotFoundError,
    PolicyDeniedError,
    UsageError,
    VerificationError,
)
from consortium.keys.signing import verify_value
from consortium.policy import log_request, release_request
from consortium.server import amounts, rounds
from consortium.server.auth import CoreArg, ReaderArg, SiteArg, own_site
from consortium.server.core import Core
from consortium.server.polls import most_legs
from consortium.server.polls import poll as answer_poll
from consortium.state import data
from consortium.state import jobs as store
from consortium.state import records as chains

logger = logging.getLogger(__name__)
router = APIRouter(tags=["sites"])
MAX_PIECE_CHARS = 1 << 20
Json = dict[str, Any]


class RecordBatch(BaseModel):
    """Records of one site, in order."""

    records: list[Json] = Field(max_length=5000)


class Agreement(BaseModel):
    """A site's digest for a topic, signed over {digest, job, site, topic}."""

    model_config = ConfigDict(extra="ignore")

    site: str
    digest: str = Field(max_length=200)
    signature: str = Field(max_length=200)


class LogText(BaseModel):
    """A piece of a leg's log; `offset` is its place in the leg's whole log."""

    leg: str
    site: str
    offset: int = Field(ge=0)
    text: str = Field(max_length=MAX_PIECE_CHARS)


@router.post("/sites/{site}/poll")
async def poll(site: str, core: CoreArg, caller: SiteArg, body: Json = Body()) -> Json:  # noqa: B008  FastAPI's way
    """Take in what happened at a site; answer with what it is to do.

    Polls have threads of their own: leases are renewed however many slow requests others make.
    """
    return await to_thread.run_sync(_polled, site, core, caller, body, limiter=core.poll_threads)


def _polled(site: str, core: Core, caller: str, body: Json) -> Json:
    own_site(site, caller)
    legs, most = body.get("legs"), most_legs(core, site)
    if isinstance(legs, list) and len(legs) > most:
        raise UsageError(
            f"the poll reports {len(legs):,} legs; {site} can have {most:,} at most to report",
            where=f"poll of {site}",
            fix="report each leg once, and none any more whose end was acknowledged",
        )
    request = from_json(PollRequest, storable(body), where=f"poll of {site}")
    if request.site != site:
        raise ForbiddenError(f"{site} cannot speak for {request.site}")
    response: Json = to_json(answer_poll(core, site, request))
    return response


@router.post("/sites/{site}/records")
def records(site: str, body: RecordBatch, core: CoreArg, caller: SiteArg) -> Json:
    """Take a site's records: numbered without gaps, chained, signed; as many as it may write by now."""
    own_site(site, caller)
    try:
        acked, took = _take(core, site, body.records)
    except (UsageError, VerificationError) as fault:
        if type(fault) is not ConflictError:  # a gap closes by itself, at the next poll
            _say_refused(core, site, fault)
        raise
    if took and core.contacts.refused(site, ""):
        logger.info("records of %s are taken again", site)
    core.bell.set()
    return {"acked_seq": acked}


def _take(core: Core, site: str, given: list[Json]) -> tuple[int, int]:
    """Take the records for which the site has room; return the last number that is held now, and how many they were."""
    known, now_ms = core.federation.site(site), core.clock.now_ms()
    sizes = [len(json.dumps(item)) for item in given]
    room = core.growth.fitting(site, sum(node.gpus for node in known.nodes), sizes, now_ms)
    taken = [from_json(Record, item, where=f"record of {site}") for item in given[:room]]
    with core.db.write() as connection:
        before = chains.chain(connection, site).next_seq
        acked = chains.take_site_records(connection, site, known.signing_key, taken, now_ms)
    new = [size for record, size in zip(taken, sizes, strict=False) if record.seq >= before]
    core.growth.spend(site, sum(new))
    return acked, len(taken)


def _say_refused(core: Core, site: str, fault: ConsortiumError) -> None:
    why = f"{fault.where or 'its records'}: {fault.what}"
    if core.contacts.refused(site, why):
        logger.warning("%s has records that are refused, and none after them come in: %s", site, why)


@router.post("/jobs/{job}/artifacts")
def announce(job: str, core: CoreArg, caller: SiteArg, body: Json = Body()) -> Json:  # noqa: B008  FastAPI's way
    """Announce a sealed artifact to its recipients; the server judges its release as the sender's gateway did."""
    artifact = from_json(Artifact, body, where="artifact")
    if artifact.job != job or artifact.sender != caller:
        raise ForbiddenError(f"{caller} cannot announce an artifact of {artifact.sender} in {artifact.job}")
    verify_value(core.federation.site(caller).signing_key, artifact, what=f"the artifact {artifact.name} of {caller}")
    with core.db.read() as connection:
        known = store.find_job(connection, job)
        amounts.check_round(known, artifact.round)
        _judge_release(core, known.spec, artifact)
    with core.db.write() as connection:
        rounds.live_leg(connection, job, caller)
        data.announce(connection, artifact, core.clock.now_ms())
    return {"announced": artifact.digest}


@router.get("/jobs/{job}/artifacts")
def announced(job: str, recipient: str, core: CoreArg, caller: SiteArg, round: int | None = None) -> list[Json]:
    """List what was announced of a job, or of a round of it, to the calling site, earlier attempts included."""
    own_site(recipient, caller)
    with core.db.read() as connection:
        store.find_job(connection, job)
        found: list[Json] = to_json(data.artifacts_for(connection, job, recipient, round=round))
    return found


@router.get("/jobs/{job}/rounds/{number}")
def round_(job: str, number: int, core: CoreArg, claims: ReaderArg) -> Json:
    """Return a round; while it takes commits, only whose the others' are."""
    with core.db.read() as connection:
        found: Json = to_json(rounds.read_round(core, connection, job, number, claims.subject))
    return found


@router.post("/jobs/{job}/rounds/{number}/commit")
def commit(job: str, number: int, core: CoreArg, caller: SiteArg, body: Json = Body()) -> Json:  # noqa: B008  FastAPI
    """Commit a site's contribution to a round."""
    given = from_json(Commit, body, where="commit")
    if (given.job, given.round) != (job, number):
        raise UsageError(f"the commit is of round {given.round} of {given.job}", where=f"{job} round {number}")
    with core.db.write() as connection:
        rounds.take_commit(core, connection, caller, given)
    core.bell.set()
    return {"committed": given.digest}


@router.post("/jobs/{job}/rounds/{number}/verdicts")
def verdicts(
    job: str,
    number: int,
    core: CoreArg,
    caller: SiteArg,
    body: list[Json] = Body(),  # noqa: B008  FastAPI's way
) -> Json:
    """Judge the commits of a round."""
    given = from_json(tuple[Verdict, ...], body, where="verdicts")
    if any(verdict.round != number for verdict in given):
        raise UsageError("a verdict is of another round", where=f"{job} round {number}")
    with core.db.write() as connection:
        rounds.take_verdicts(core, connection, caller, job, given)
    core.bell.set()
    return {"verdicts": len(given)}


@router.post("/jobs/{job}/agreements/{topic:path}")
def agree(job: str, topic: str, body: Agreement, core: CoreArg, caller: SiteArg) -> Json:
    """Publish a site's digest for a topic (`tokenizer`, `outer/3`)."""
    own_site(body.site, caller)
    if not 0 < len(topic) <= 200:
        raise UsageError("a topic has 1 to 200 characters")
    what = f"{caller}'s digest of {topic}"
    statement = {"job": job, "topic": topic, "site": caller, "digest": body.digest, "signature": body.signature}
    verify_value(core.federation.site(caller).signing_key, statement, what=what)
    with core.db.write() as connection:
        rounds.live_leg(connection, job, caller)
        rounds.check_agreement(connection, job, topic, body.digest)
        data.agree(
            connection,
            job=job,
            topic=topic,
            site=caller,
            digest=body.digest,
            signature=body.signature,
            now_ms=core.clock.now_ms(),
        )
        amounts.check_topics(connection, store.find_job(connection, job), caller)
    core.bell.set()
    return {"agreed": body.digest}


@router.get("/jobs/{job}/agreements/{topic:path}")
def agreements(job: str, topic: str, core: CoreArg, claims: ReaderArg, signed: bool = False) -> Json:
    """Return the digests published for a topic, by site; with `signed`, `{digest, signature}` of each."""
    with core.db.read() as connection:
        store.find_job(connection, job)
        found = data.signed_agreements(connection, job, topic)
    return found if signed else {site: said["digest"] for site, said in found.items()}


@router.post("/jobs/{job}/logs")
def log(job: str, body: LogText, core: CoreArg, caller: SiteArg) -> Json:
    """Take a piece of a leg's log, if the site's partner lets its logs go to the consortium.

    What comes long after the leg's end, or is more than a site sends, is not kept.
    """
    own_site(body.site, caller)
    with core.db.read() as connection:
        spec = store.find_job(connection, job).spec
        leg = store.find_leg(connection, body.leg)
    if leg is None or leg.job != job or leg.site != caller:
        raise NotFoundError(f"{caller} has no leg {body.leg!r} of this job", where=job)
    for reader in (CONSORTIUM, partner_of(spec.submitter)):
        decision = core.federation.policies.decide(log_request(spec, core.federation.site(caller), reader))
        if not decision.allowed:
            raise denied(decision.denials)
    with core.db.write() as connection:
        core.log_amounts.keep(connection, leg, body.offset, storable(body.text), core.clock.now_ms())
    return {"offset": body.offset + len(body.text)}


def _judge_release(core: Core, spec: Any, artifact: Artifact) -> None:
    if artifact.artifact_class in NEVER_CROSS:
        raise PolicyDeniedError(f"{artifact.artifact_class.value} text never crosses a border", where=artifact.name)
    if not artifact.recipients:
        raise UsageError("the artifact names no recipient", where=artifact.name)
    host = core.federation.site(artifact.sender)
    for recipient in artifact.recipients:
        request = release_request(spec, host, artifact.artifact_class, core.federation.site(recipient))
        decision = core.federation.policies.decide(request)
        if not decision.allowed:
            raise denied(decision.denials)


def denied(denials: tuple[Denial, ...]) -> PolicyDeniedError:
    """Return the error that names the first of the clauses."""
    first = denials[0]
    return PolicyDeniedError(
        f"{first.clause}: {first.message}", where=f"{first.file}:{first.line}", fix=first.would_pass
    )
