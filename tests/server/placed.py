"""A job at work in the server's own parts, without a server or a site."""

from __future__ import annotations

from typing import Any

from consortium.domain.data import ArtifactClass
from consortium.domain.job import Job, JobKind, LegState, Resources, SignedSpec
from consortium.domain.partner import Role
from consortium.domain.protocol import LegReport
from consortium.keys.canonical import canonical
from consortium.keys.tokens import Claims
from consortium.scheduler.types import LegPlacement, Placement, Plan
from consortium.server import folding, submit
from consortium.server.core import Core
from consortium.state import data, jobs
from consortium.state.commit import commit_plan
from consortium.state.sites import update_site
from tests.server.fed import Fed

RESULT = {"outputs": [], "manifest_digest": "sha256:m", "metrics": {}}
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


class Running:
    """A training whose legs run, and what their sites say of them."""

    def __init__(self, core: Core, fed: Fed, *sites: str, min_sites: int, runs: bool = True) -> None:
        self.core = core
        self.job = at_work(core, fed, *sites, cls=ArtifactClass.TOKENS, kind=JobKind.PRETRAIN, account="fr",
                           params=fed.params("pretrain"), resources=Resources(gpus=1, walltime_s=600),
                           min_sites=min_sites).id  # fmt: skip
        for site in sites:
            with core.db.write() as connection:
                update_site(connection, site, healthy=True, last_contact_ms=core.clock.now_ms())
            core.contacts.heard_site(site, core.clock.now_ms())
            if runs:
                self.says(site, LegState.HELD)
        for site in sites if runs else ():
            self.says(site, LegState.RUNNING)

    def now(self) -> Job:
        with self.core.db.read() as connection:
            return jobs.find_job(connection, self.job)

    def says(self, site: str, state: LegState, **more: Any) -> None:
        attempt = self.now().attempt
        assert attempt is not None
        (leg,) = [leg for leg in attempt.legs if leg.site == site]
        report = LegReport(leg=leg.id, epoch=leg.epoch, state=state, **more)
        with self.core.db.write() as connection:
            folding.fold_report(self.core, connection, site, report, self.core.clock.now_ms())

    def publishes(self, site: str, topic: str) -> None:
        with self.core.db.write() as connection:
            data.agree(connection, job=self.job, topic=topic, site=site, digest="sha256:x", signature="", now_ms=1)

    def attempt_open(self) -> bool:
        with self.core.db.read() as connection:
            return jobs.open_attempt(connection, self.job) is not None
