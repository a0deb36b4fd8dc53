"""Jobs: submit, list, explain, cancel, logs, rounds."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from consortium.domain.codec import from_json, to_json
from consortium.domain.ids import CONSORTIUM, partner_of
from consortium.domain.job import MAX_ARRAY, JobSpec, JobState, SignedSpec
from consortium.domain.partner import Role
from consortium.domain.training import Ruling
from consortium.errors import ConflictError, ForbiddenError, NotFoundError, UsageError
from consortium.policy import log_request
from consortium.scheduler import explain
from consortium.server import additions, attribution, rounds, snapshots
from consortium.server import submit as submission
from consortium.server.auth import CoreArg, ReaderArg, UserArg
from consortium.server.core import Core
from consortium.server.curves import curves
from consortium.server.dryrun import dry_run
from consortium.server.rulings import take_ruling
from consortium.state import data, inbox
from consortium.state import jobs as store
from consortium.state import rounds as round_store
from consortium.train.rounds import shown_to

router = APIRouter(prefix="/jobs", tags=["jobs"])


class Submission(BaseModel):
    """A signed job spec."""

    model_config = ConfigDict(extra="forbid")

    spec: dict[str, Any]
    signature: str = Field(default="", max_length=200)
    idempotency_key: str = Field(default="", max_length=200)
    dry_run: bool = False


class Member(BaseModel):
    """The signed job spec of one member of an array, or of a job as amended."""

    model_config = ConfigDict(extra="forbid")

    spec: dict[str, Any]
    signature: str = Field(max_length=200)


class ArraySubmission(BaseModel):
    """All members of a job array."""

    model_config = ConfigDict(extra="forbid")

    members: list[Member] = Field(min_length=1, max_length=MAX_ARRAY)
    idempotency_key: str = Field(default="", max_length=200)


@router.post("", status_code=201)
def submit(body: Submission, core: CoreArg, claims: UserArg, response: Response) -> dict[str, Any]:
    """Submit a job, or with `dry_run` ask what would become of it; that takes no signature."""
    if body.dry_run:
        response.status_code = 200
        return dry_run(core, claims, from_json(JobSpec, body.spec, where="job spec"))
    signed = from_json(SignedSpec, {"spec": body.spec, "signature": body.signature}, where="job spec")
    return submission.submit(core, claims, signed, body.idempotency_key)


@router.post("/array", status_code=201)
def submit_array(body: ArraySubmission, core: CoreArg, claims: UserArg) -> list[dict[str, Any]]:
    """Submit the members of a job array, all or none."""
    given = [{"spec": member.spec, "signature": member.signature} for member in body.members]
    members = from_json(tuple[SignedSpec, ...], given, where="members")
    return submission.submit_array(core, claims, members, body.idempotency_key)


@router.get("")
def listing(
    core: CoreArg, claims: UserArg, state: str = "", account: str = "", array: str = "", limit: int = 1000
) -> list[dict[str, Any]]:
    """List jobs, oldest first; `state` takes several, with commas; `array` is an array's id."""
    states = [from_json(JobState, part, where="state") for part in state.split(",") if part]
    if not 1 <= limit <= 10_000:
        raise UsageError(f"limit must be 1 to 10,000, got {limit}")
    with core.db.read() as connection:
        found = store.list_jobs(connection, states=states, account=account, array=array, limit=limit)
        if array and not found and not store.list_jobs(connection, array=array, limit=1):
            raise NotFoundError(f"there is no array {array!r}", fix="`consortium show JOB` names the array of a job")
    if account and not found:
        core.federation.account(account)  # one that the quotas no longer name may still have jobs
    listed: list[dict[str, Any]] = to_json(found)
    return listed


@router.get("/{job}")
def show(job: str, core: CoreArg, claims: ReaderArg) -> dict[str, Any]:
    """Show a job."""
    with core.db.read() as connection:
        return submission.render(connection, job)


@router.get("/{job}/explain")
def why(job: str, core: CoreArg, claims: UserArg) -> dict[str, Any]:
    """Explain why a job does not run: the funnel over all sites and rules."""
    with core.db.read() as connection:
        shown = submission.render(connection, job)
        view = snapshots.take(core, connection) if shown["state"] == JobState.PENDING.value else None
    funnel = None
    if view is not None and any(waiting.id == job for waiting in view.snapshot.pending):
        funnel = to_json(explain(view.snapshot, job))
    return {
        "job": job,
        "state": shown["state"],
        "reason": (funnel or shown)["reason"],
        "denials": shown["denials"],
        "funnel": funnel,
        "progress": shown["progress"],
    }


@router.post("/{job}/cancel")
def cancel(job: str, core: CoreArg, claims: UserArg) -> dict[str, Any]:
    """Cancel a job: its submitter may, and the admins of its account's partner."""
    with core.db.read() as connection:
        found = store.find_job(connection, job)
    admin = Role.ADMIN in claims.roles and claims.partner == partner_of(found.spec.account)
    if claims.subject != found.spec.submitter and not admin:
        raise ForbiddenError(
            f"{claims.subject} may not cancel a job of {found.spec.submitter}",
            where=job,
            fix=f"ask {found.spec.submitter} or an admin of {partner_of(found.spec.account)}",
        )
    if found.state is JobState.CANCELLED:
        return show(job, core, claims)
    if found.state.final:
        raise ConflictError(f"the job is {found.state.value} and cannot be cancelled", where=job)
    with core.db.write() as connection:
        number = inbox.put(connection, "cancel", {"job": job, "by": claims.subject}, core.clock.now_ms())
    core.wait_folded(number, 5.0)
    return show(job, core, claims)


@router.get("/{job}/logs")
def logs(job: str, core: CoreArg, claims: UserArg, site: str = "", after: int = 0, limit: int = 500) -> dict[str, Any]:
    """Read what the legs' sites let out of their logs; `withheld` names the sites that keep theirs."""
    with core.db.read() as connection:
        found = store.find_job(connection, job)
        chunks = data.read_logs(connection, job, site=site, after=max(after, 0), limit=min(max(limit, 1), 2000))
    ran = {leg.site for attempt in found.attempts for leg in attempt.legs} or set(found.target_sites)
    known = sorted(ran | set(found.target_sites) or set(core.federation.sites))
    if site and site not in known:
        raise NotFoundError(f"the job has no leg at {site!r}", where=job, fix=f"its sites: {', '.join(known)}")
    withheld = sorted(name for name in ran if not _may_read(core, found.spec, name, claims.partner))
    return {
        "chunks": [chunk for chunk in chunks if chunk["site"] not in withheld],
        "next": chunks[-1]["seq"] if chunks else max(after, 0),
        "withheld": [name for name in withheld if not site or name == site],
        "final": found.state.final,
    }


@router.get("/{job}/rounds")
def all_rounds(job: str, core: CoreArg, claims: ReaderArg, after: int = 0) -> list[dict[str, Any]]:
    """List a job's rounds after number `after`, with commits, verdicts, certificates and outer digests.

    Of a round that takes commits it says only whose they are, but for the caller's own.
    """
    with core.db.read() as connection:
        store.find_job(connection, job)
        found = [shown_to(claims.subject, one) for one in rounds.job_rounds(connection, job, after)]
    return [dict(to_json(one)) for one in found]


@router.get("/{job}/attribution")
def job_attribution(job: str, core: CoreArg, claims: UserArg) -> dict[str, Any]:
    """Return who brought what to the model of a training, by round and site and by partner, as far as it is closed."""
    with core.db.read() as connection:
        return attribution.as_json(connection, job)


@router.get("/{job}/curves")
def job_curves(job: str, core: CoreArg, claims: UserArg) -> dict[str, Any]:
    """Return what the pictures of a training show: losses by round and site, what each site did when."""
    found: dict[str, Any] = to_json(curves(core, job))
    return found


@router.get("/{job}/rulings")
def rulings(job: str, core: CoreArg, claims: UserArg) -> dict[str, Any]:
    """Return what admins ruled in a job, the first round that takes rulings, and who committed to it already."""
    with core.db.read() as connection:
        store.find_job(connection, job)
        first = round_store.first_open(connection, job)
        current = round_store.read(connection, job, first)
        given = round_store.rulings(connection, job, 2**31 - 1)
    committed = sorted(commit.site for commit in current.commits) if current else []
    return {"first_open": first, "committed": committed, "rulings": to_json(given)}


@router.post("/{job}/rulings")
def rule(job: str, body: dict[str, Any], core: CoreArg, claims: UserArg) -> dict[str, Any]:
    """Reject, readmit or withdraw a site's part from a round on; admins may, over their signature."""
    ruling = from_json(Ruling, body, where="ruling")
    if ruling.job != job:
        raise UsageError(f"the ruling is of {ruling.job}", where=job)
    with core.db.write() as connection:
        take_ruling(core, connection, claims, ruling)
    core.bell.set()
    return rulings(job, core, claims)


@router.post("/{job}/additions", status_code=202)
def add_sites(job: str, body: Member, core: CoreArg, claims: UserArg) -> dict[str, list[str]]:
    """Add sites to a training at its next round boundary, over its spec as amended and signed by its submitter."""
    given = {"spec": body.spec, "signature": body.signature}
    return additions.take_addition(core, claims, job, from_json(SignedSpec, given, where="job spec"))


def _may_read(core: Core, spec: JobSpec, site: str, partner: str) -> bool:
    """Whether a site's logs of a job may come to the consortium, and from there to somebody of `partner`."""
    host = core.federation.sites.get(site)
    policies = core.federation.policies
    return host is not None and policies.decide_all(log_request(spec, host, r) for r in (CONSORTIUM, partner)).allowed
