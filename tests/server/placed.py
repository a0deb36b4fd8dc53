"""A job at work in the server's own parts, without a server or a site."""

from __future__ import annotations

from typing import Any

from consortium.domain.data import ArtifactClass
from consortium.domain.job import Job, Resources, SignedSpec
from consortium.domain.partner import Role
from consortium.keys.canonical import canonical
from consortium.keys.tokens import Claims
from consortium.scheduler.types import LegPlacement, Placement, Plan
from consortium.server import submit
from consortium.server.core import Core
from consortium.state import data, jobs
from consortium.state.commit import commit_plan
from tests.server.conftest import Fed

ME = Claims(subject="fr/amelie", roles=(Role.ENGINEER,), partner="fr", expires_ms=1 << 47)


def at_work(core: Core, fed: Fed, *sites: str, cls: ArtifactClass = ArtifactClass.RAW, **changes: Any) -> Job:
    """A job of fr/health on 6 GPUs of each of these sites (by default fr-1), offered."""
    homes = sites or ("fr-1",)
    given = {"resources": Resources(gpus=6, walltime_s=7200), "account": "fr/health"} | changes
    with core.db.write() as connection:
        inputs = [fed.new_dataset(site, f"laws-{fed.new_id('ds')}", artifact_class=cls) for site in homes]
        for item in inputs:
            data.insert_dataset(connection, item, now_ms=1, signer="fr/amelie", signature="x")
    spec = fed.spec(inputs, **given)
    signed = SignedSpec(spec=spec, signature=fed.people["fr/amelie"].sign(canonical(spec)))
    job = submit.submit(core, ME, signed, "")
    nodes = {"n0": spec.resources.gpus}
    placed = tuple(LegPlacement(site=site, flavor="h100-sxm", nodes=nodes) for site in homes)
    plan = Plan(placements=(Placement(job=job["id"], legs=placed),), reasons={})
    with core.db.write() as connection:
        done = commit_plan(connection, plan, {job["id"]: 1}, incarnation=core.incarnation,
                           now_ms=core.clock.now_ms(), new_id=core.clock.new_id)  # fmt: skip
        assert done.placed == (job["id"],)
        return jobs.find_job(connection, job["id"])
