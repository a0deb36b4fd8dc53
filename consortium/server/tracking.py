"""The tracking worker: tells MLflow what happened, in order, in a thread of its own.

What it is to tell stands in a table, so nothing is lost while MLflow is away, and no job waits for it longer than an
offer does. When a run is finished, the digest of its contents becomes a record.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import httpx
from sqlalchemy import Connection, Row, select

from consortium.domain.codec import from_json
from consortium.domain.job import JobKind, JobSpec
from consortium.domain.records import RecordType
from consortium.errors import ConsortiumError, UnreachableError
from consortium.server import attribution
from consortium.server.core import Core
from consortium.server.curves import curves
from consortium.state import data, jobs
from consortium.state import tables as t
from consortium.tracking.tracker import Tracker
from consortium.train.plot import FORMS, draw

log = logging.getLogger(__name__)
_EXPERIMENT = "consortium"
RETRY_S = 5.0
PROBE_S = 2.0
MAX_TRIES = 5
"""How often a call that MLflow itself refuses is repeated before it is given up; absence is never given up."""


class TrackingWorker(threading.Thread):
    """Works through the tracking tasks until stopped."""

    def __init__(self, core: Core) -> None:
        super().__init__(name="tracking", daemon=True)
        self._core = core
        self._tracker = Tracker(core.settings.mlflow_url)
        self._stopping = threading.Event()
        self._said_away = False
        self._is_warm = False

    def stop(self) -> None:
        """Ask the worker to end. It is not waited for long: what it did not tell stays in the table."""
        self._stopping.set()
        self._core.tracking_bell.set()
        if self.is_alive():
            self.join(timeout=2)

    def run(self) -> None:
        """Work until stopped."""
        while not self._stopping.is_set():
            self._core.tracking_bell.clear()
            pause_s = 1.0
            try:
                self._probe()
                self._warm()
                while not self._stopping.is_set() and self._step():
                    self._probe()
            except UnreachableError as fault:
                if not self._said_away:
                    log.warning("the tracking server does not answer; jobs go on without it: %s", fault.what)
                self._said_away = self._core.tracking_away = True
            except Exception:
                log.exception("the tracking worker failed; it tries again")
                pause_s = RETRY_S
            if pause_s > 1.0 or self._core.tracking_away:
                self._stopping.wait(pause_s)
            else:
                self._core.tracking_bell.wait(pause_s)

    def _warm(self) -> None:
        """Import MLflow's client and make the experiment before the first job needs them: that takes seconds."""
        if not self._is_warm:
            self._tracker.experiment(_EXPERIMENT)
            self._is_warm = True

    def _probe(self) -> None:
        """Ask whether MLflow is there before anything is told: its own client would try for half a minute.

        Raises UnreachableError.
        """
        try:
            answer = httpx.get(f"{self._tracker.url}/health", timeout=PROBE_S, trust_env=False)
        except (httpx.TransportError, httpx.InvalidURL) as fault:
            raise UnreachableError(f"{fault or type(fault).__name__}", where=self._tracker.url) from fault
        if answer.status_code >= 500:
            raise UnreachableError(f"it answered {answer.status_code}", where=self._tracker.url)
        if self._said_away:
            log.info("the tracking server answers again")
        self._said_away = self._core.tracking_away = False

    def _step(self) -> bool:
        """Tell one thing; False where there is nothing to tell."""
        core = self._core
        with core.db.read() as connection:
            task = connection.execute(select(t.tracking_tasks).order_by(t.tracking_tasks.c.id).limit(1)).one_or_none()
        if task is None:
            return False
        try:
            self._tell(task)
        except UnreachableError:
            raise
        except (ConsortiumError, ArithmeticError, LookupError, TypeError, ValueError) as fault:
            # Whatever is wrong with one, it must not keep those of all other jobs from being told.
            if task.tries + 1 < MAX_TRIES:
                log.warning("the tracking server was not told %s of %s: %s", task.kind, task.leg or task.job, fault)
                self._count_try(task)
                self._stopping.wait(1.0)
                return True
            log.error("gave up telling the tracking server %s of %s: %s", task.kind, task.leg or task.job, fault)
        with core.db.write() as connection:
            connection.execute(t.tracking_tasks.delete().where(t.tracking_tasks.c.id == task.id))
        return True

    def _count_try(self, task: Row[Any]) -> None:
        with self._core.db.write() as connection:
            same = t.tracking_tasks.c.id == task.id
            connection.execute(t.tracking_tasks.update().where(same).values(tries=task.tries + 1))

    def _tell(self, task: Row[Any]) -> None:
        with self._core.db.read() as connection:
            job = jobs.job_row(connection, task.job)
            leg = jobs.leg_row(connection, task.leg) if task.leg else None
            spec = from_json(JobSpec, job.spec, where=task.job)
        if task.kind == "job_started":
            if not job.tracking_run:
                self._start_job(task.job, spec)
        elif task.kind == "leg_started" and leg is not None:
            if not leg.tracking_run:
                self._start_leg(leg, spec, job.tracking_run)
        elif task.kind == "leg_ended" and leg is not None:
            if leg.tracking_run:
                self._finish(leg.tracking_run, task.payload["status"], task.job, leg.id)
        elif task.kind == "job_ended" and job.tracking_run:
            if spec.kind is JobKind.PRETRAIN:
                self._picture(job.tracking_run, task.job)
                self._attribute(job.tracking_run, task.job)
            self._finish(job.tracking_run, task.payload["status"], task.job, "")

    def _start_job(self, job_id: str, spec: JobSpec) -> None:
        tags = {"consortium.job": job_id, "consortium.kind": spec.kind.value, "consortium.account": spec.account,
                "consortium.submitter": spec.submitter, "consortium.purpose": spec.purpose}  # fmt: skip
        run = self._tracker.create_run(_EXPERIMENT, f"{spec.name} {job_id[-6:]}", tags, None)
        with self._core.db.write() as connection:
            jobs.set_tracking_run(connection, job=job_id, run=run)
        self._tracker.log_params(run, spec.params)

    def _start_leg(self, leg: Row[Any], spec: JobSpec, parent: str) -> None:
        tags = {"consortium.job": leg.job, "consortium.leg": leg.id, "consortium.site": leg.site,
                "consortium.attempt": leg.attempt}  # fmt: skip
        run = self._tracker.create_run(_EXPERIMENT, f"{spec.name} at {leg.site}", tags, parent or None)
        with self._core.db.write() as connection:
            jobs.set_tracking_run(connection, leg=leg.id, run=run)
        self._core.bell.set()
        with self._core.db.read() as connection:
            inputs = _inputs(connection, leg)
        self._tracker.log_params(run, spec.params)
        if inputs:
            self._tracker.log_inputs(run, inputs)

    def _picture(self, run: str, job: str) -> None:
        """Put a training's pictures into its run. They are for people: where that fails, it is said and left."""
        try:
            shown = curves(self._core, job)
            if shown.points:
                for form in FORMS:
                    self._tracker.log_figure(run, f"training.{form}", draw(shown, form))
        except Exception as fault:
            log.warning("no pictures of %s in the tracking server: %s", job, fault)

    def _attribute(self, run: str, job: str) -> None:
        """Log by round what each site brought to the model, into the job's own run."""
        try:
            with self._core.db.read() as connection:
                by_round = attribution.metrics(attribution.attribute(connection, job))
        except ConsortiumError as fault:  # it is for people: the run ends all the same
            log.warning("what sites brought to %s is not in the tracking server: %s", job, fault.what)
            return
        for number, values in sorted(by_round.items()):
            self._tracker.log_metrics(run, values, number)

    def _finish(self, run: str, status: str, job: str, leg: str) -> None:
        self._tracker.finish(run, status)
        digest = self._tracker.contents_digest(run)
        with self._core.db.write() as connection:
            body = {"run": run, "contents_digest": digest, "job": job, "leg": leg, "status": status}
            self._core.record(connection, RecordType.RUN, body)
        self._core.bell.set()


def _inputs(connection: Connection, leg: Row[Any]) -> list[Any]:
    return [data.find_dataset(connection, name) for name in leg.inputs]
