"""Runs legs as Ray jobs and meters them. One thread; every step may be cut off by a crash and is taken up again.

A leg's row says `starting` before Ray hears of it, and Ray keeps the submission id `leg@epoch`, so after a crash
between the two the runner learns from Ray what happened and never submits twice. Usage and mark are one transaction.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from consortium.domain.job import Fault, LegState
from consortium.domain.records import RecordType
from consortium.errors import UnreachableError
from consortium.site.db import SiteDb
from consortium.site.legs import LegTable, SiteLeg
from consortium.site.metering import end_of_usage, usage_rows
from consortium.site.outbox import Outbox, period_of
from consortium.site.ray_jobs import RayCluster, RayJob, RayStatus
from consortium.site.settings import SiteSettings

METER_MS = 600_000
"""How long a leg runs for at the most until a usage record says so."""
SEEN_MS = 10_000
"""How often it is made durable that a leg was seen alive: so much of its usage can be lost."""
ROWS = 64
"""Of a usage record at the most."""
STOP_AGAIN_MS = 5_000
SUBMIT_PATIENCE_MS = 120_000
MAX_FAULTS = 2
MAX_UNLISTED = 16
"""Legs that Ray's list does not hold yet, looked at in one step: each takes two calls, and leases must end on time."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
log = logging.getLogger(__name__)


class Runner:
    """Moves legs from `starting` to their end. `changed` is called when the server has something new to hear."""

    def __init__(
        self,
        settings: SiteSettings,
        db: SiteDb,
        outbox: Outbox,
        cluster: RayCluster,
        now_ms: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.db = db
        self.table = LegTable(db)
        self.outbox = outbox
        self.cluster = cluster
        self.now_ms = now_ms
        self.changed = changed
        self.unhealthy = "Ray has not answered yet"
        """Why the cluster cannot be used; empty while it answers."""
        self._failures = 0
        self._began_ms: int | None = None
        self._shortened = False
        self._stopped_at: dict[str, int] = {}
        self._unwritten: dict[str, tuple[LegState, str, Fault | None]] = {}
        """Stops of legs that the disk did not take: how each ends, why, and by whose fault."""
        self._submitting: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._alive: dict[str, tuple[int, int]] = {}
        """Per leg: its count of calls, and since when it has not moved."""
        self.hang_s: Mapping[str, int] = {}
        """By kind of job: after how long without a sign of life a leg hangs. The consortium's server says."""

    def step(self) -> None:
        """Look at the cluster and at every active leg once: one call for all of them, then one per change.

        Raises sqlite3.OperationalError, having looked at all of them, where something could not be written.
        """
        self.end_leases()
        faults: list[str] = []
        full: sqlite3.OperationalError | None = None
        jobs: Mapping[str, RayJob] = {}
        asked_ms = self.now_ms()
        try:
            jobs = self.cluster.jobs()
        except UnreachableError as fault:
            faults = [fault.what] * MAX_FAULTS
        legs = [leg for leg in self.table.active() if leg.state is not LegState.HELD]
        unlisted = [leg for leg in legs if leg.key not in jobs]
        for leg in [leg for leg in legs if leg.key in jobs] + unlisted[:MAX_UNLISTED]:
            if len(faults) >= MAX_FAULTS:  # each may have waited out its timeout, and leases must end on time
                break
            try:
                self._advance(leg, jobs.get(leg.key), asked_ms)
            except UnreachableError as fault:
                faults.append(fault.what)
            except sqlite3.OperationalError as fault:
                full = fault
        self._failures = self._failures + 1 if faults else 0
        if self._failures != 1:  # one slow answer is no outage
            self._set_health(faults[0] if faults else "")
        self._meter_running()
        if full is not None:
            raise full

    def end_leases(self) -> None:
        """Begin to stop every leg whose lease has ended."""
        for leg in self.table.active():
            if leg.state is LegState.STOPPING or self.now_ms() < leg.lease_until_ms:
                continue
            reason = "the lease ended without word from the server; the leg was stopped"
            if leg.key not in self._unwritten:
                log.warning("%s: %s", leg.key, reason)
            self.stop(leg, LegState.LOST, reason, Fault.SITE)

    def shorten_leases(self) -> None:
        """Take the skew off every lease, and leave none longer than the server makes them: once, when an agent starts.

        The wall clock may have moved while none ran. On a full disk it is tried again, and no lease is renewed before.
        """
        if self._shortened:
            return
        self._began_ms = self.now_ms() if self._began_ms is None else self._began_ms
        with self.db.write() as write:
            lease_ms = int(self.db.meta("lease_ms", "0"))
            for leg in () if self._shortened else self.table.active():
                until_ms = leg.lease_until_ms - self.settings.max_skew_ms
                cut_ms = min(until_ms, self._began_ms + lease_ms) if lease_ms else until_ms
                self.table.change(leg, write, lease_until_ms=cut_ms)
        self._shortened = True

    def stop(self, leg: SiteLeg, final: LegState, reason: str, fault: Fault | None = None, *, keep_s: int = 0) -> None:
        """Begin to stop an active leg; a held one never ran and ends at once.

        A program that listens has `keep_s` to keep its progress and end by itself; a later stop may take that back.
        Where the disk does not take it, Ray is to stop the leg all the same, without that time; it is written later.
        """
        try:
            self._write_stop(leg, final, reason, fault, keep_s)
        except sqlite3.OperationalError as problem:
            if leg.key not in self._unwritten:
                log.warning("%s: that it is stopped cannot be written yet: %s", leg.key, problem)
            self._unwritten[leg.key] = final, reason, fault
        else:
            self._unwritten.pop(leg.key, None)
            self.changed()

    def _write_stop(self, leg: SiteLeg, final: LegState, reason: str, fault: Fault | None, keep_s: int) -> None:
        whose = None if fault is None else fault.value
        stop_by_ms = self.now_ms() + keep_s * 1000 if keep_s and leg.listens else 0
        if leg.state is LegState.HELD:
            self.table.change(leg, state=final.value, reason=reason, fault=whose)
        elif leg.state is not LegState.STOPPING:
            self.table.change(
                leg,
                state=LegState.STOPPING.value,
                stop_state=final.value,
                reason=reason,
                fault=whose,
                stop_by_ms=stop_by_ms,
            )
        elif not keep_s and leg.stop_by_ms:
            self.table.change(leg, stop_by_ms=0)

    # -- one leg --------------------------------------------------------------------------------------------------

    def _advance(self, leg: SiteLeg, job: RayJob | None, asked_ms: int) -> None:
        """Move one leg on. `job` is what Ray's list, asked for at `asked_ms`, says of it."""
        if job is None:  # new, or forgotten: that is believed only of a leg that was asked for by name
            asked_ms, job = self.now_ms(), self.cluster.job(leg.key)
        unwritten = self._unwritten.get(leg.key)
        if unwritten is not None:
            if not job.status.ended:
                self._ask_to_stop(leg)
            self.stop(leg, *unwritten)
        elif leg.state is LegState.STARTING and job.status is RayStatus.UNKNOWN and not leg.submitted:
            self._submit(leg)
        elif leg.state is LegState.STOPPING:
            self._finish_stop(leg, job)
        elif job.status.ended:
            self._finish(leg, job)
        else:
            self._observe(leg, job, asked_ms)

    def _submit(self, leg: SiteLeg) -> None:
        settings, token = self.settings, self.db.leg_token(leg.key)
        env = leg_environment(settings.gateway_url, settings.ray_dashboard_url, token)
        program = Path(settings.jobs_dir).resolve() / f"{leg.offer.spec.spec.kind.value}.py"
        first_ms = self._submitting.setdefault(leg.key, self.now_ms())
        try:
            self.cluster.submit(
                leg.key,
                str(program),
                settings.python or sys.executable,
                env,
                node_label=settings.ray_node_label,
                nodes=leg.offer.nodes,
            )
        except UnreachableError as fault:
            if self.now_ms() - first_ms > SUBMIT_PATIENCE_MS:
                self.stop(leg, LegState.FAILED, f"Ray did not take the job: {fault.what}", Fault.SITE)
            raise
        self._submitting.pop(leg.key, None)
        self.table.change(leg, submitted=1)
        log.info("%s: submitted to Ray (%s)", leg.key, program.name)

    def _observe(self, leg: SiteLeg, job: RayJob, now: int) -> None:
        """Bill and judge a leg that was alive at `now`."""
        self._seen[leg.key] = now
        if leg.started_ms is None or leg.metered_ms is None:
            start = now if job.start_ms is None else min(now, job.start_ms)
            self.table.change(leg, submitted=1, started_ms=start, metered_ms=start)
            return
        if leg.state is LegState.STARTING and job.status is RayStatus.RUNNING:
            self.table.change(leg, state=LegState.RUNNING.value)
            self.changed()
        if now - max(leg.seen_ms, leg.metered_ms) >= SEEN_MS:
            self.table.change(leg, seen_ms=now)
        quiet_s = self._quiet_ms(leg, now) // 1000
        hang_s = self.hang_s.get(leg.offer.spec.spec.kind.value, 0)
        if hang_s and quiet_s > hang_s:
            self.stop(leg, LegState.FAILED, f"it hangs: no sign of life from its program for {quiet_s} s", Fault.NODE)
        walltime_s = leg.offer.spec.spec.resources.walltime_s
        if now - leg.started_ms > walltime_s * 1000:
            self.stop(leg, LegState.FAILED, f"it ran past its walltime of {walltime_s} s", Fault.USER)

    def _quiet_ms(self, leg: SiteLeg, now_ms: int) -> int:
        """For how long the program has not called the gateway; counted from the agent's start at the earliest."""
        calls, since_ms = self._alive.get(leg.key, (-1, now_ms))
        if calls != leg.calls:
            self._alive[leg.key] = leg.calls, now_ms
            return 0
        return now_ms - since_ms

    def _finish_stop(self, leg: SiteLeg, job: RayJob) -> None:
        now = self.now_ms()
        if job.status.ended:
            self._stopped_at.pop(leg.key, None)
            self._end(leg, job, leg.stop_state or LegState.STOPPED, leg.reason, leg.fault)
        elif now >= leg.stop_by_ms:
            self._ask_to_stop(leg)

    def _ask_to_stop(self, leg: SiteLeg) -> None:
        now = self.now_ms()
        if now - self._stopped_at.get(leg.key, 0) >= STOP_AGAIN_MS:
            self._stopped_at[leg.key] = now
            self.cluster.stop(leg.key)

    def _finish(self, leg: SiteLeg, job: RayJob) -> None:
        leg = self.table.get(leg.offer.leg, leg.offer.epoch) or leg  # the result may have come since it was read
        if job.status is RayStatus.SUCCEEDED and leg.result is not None:
            self._end(leg, job, LegState.SUCCEEDED, "", None)
        else:
            fault, reason = classify(leg, job)
            self._end(leg, job, LegState.FAILED, reason, fault)

    def _end(self, leg: SiteLeg, job: RayJob, state: LegState, reason: str, fault: Fault | None) -> None:
        """Record the last usage and the final state together. A job that Ray forgot is billed until last seen alive."""
        now = self.now_ms()
        columns: dict[str, Any] = {"state": state.value, "reason": reason, "fault": fault.value if fault else None}
        start = leg.started_ms if leg.started_ms is not None else job.start_ms
        if start is None:
            self.table.change(leg, **columns)
        else:
            mark = leg.metered_ms if leg.metered_ms is not None else min(start, now)
            seen = max(self._seen.get(leg.key, 0), leg.seen_ms)
            ended = seen if job.status is RayStatus.UNKNOWN else job.end_ms
            self._meter(leg, mark, end_of_usage(mark, ended, now), started_ms=start, submitted=1, **columns)
        self._seen.pop(leg.key, None)
        self._alive.pop(leg.key, None)
        log.info("%s: %s%s", leg.key, state.value, f": {reason}" if reason else "")
        self.changed()

    def _meter(self, leg: SiteLeg, mark_ms: int, until_ms: int, **columns: Any) -> None:
        """Record usage of [mark_ms, until_ms), move the mark and change `columns`: all of it or nothing."""
        with self.db.write() as write:
            if not self.table.change(leg, write, metered_ms=until_ms, **columns):
                return
            rows = usage_rows(leg.offer, self.settings.site.flavor.id, mark_ms, until_ms)
            self.outbox.add_usage(write, rows, self.now_ms())
            if columns.get("state") == LegState.SUCCEEDED.value:
                self._add_manifest(write, leg)

    def _add_manifest(self, write: sqlite3.Connection, leg: SiteLeg) -> None:
        result = leg.result or {}
        body = {
            "job": leg.offer.job,
            "leg": leg.offer.leg,
            "epoch": str(leg.offer.epoch),
            "site": leg.offer.site,
            "manifest_digest": result.get("manifest_digest", ""),
            "outputs": [output["id"] for output in result.get("outputs", ())],
        }
        self.outbox.add(write, RecordType.MANIFEST, body, self.now_ms())

    # -- the cluster ----------------------------------------------------------------------------------------------

    def _set_health(self, unhealthy: str) -> None:
        if bool(unhealthy) == bool(self.unhealthy):
            self.unhealthy = unhealthy
            return
        self.unhealthy = unhealthy
        log.warning("Ray: %s", unhealthy) if unhealthy else log.info("Ray answers")
        if unhealthy:
            self.meter_seen()
        self.changed()

    def meter_seen(self) -> None:
        """Record usage up to when each leg was seen alive, before that is forgotten."""
        self._meter_running(least_ms=1)

    def _meter_running(self, least_ms: int = METER_MS) -> None:
        """Record usage of all legs up to when each was seen alive, once that is `least_ms` for one of them.

        All legs stand in one record, or few: a ledger of years holds them.
        """
        used = [
            (leg, leg.metered_ms, seen)
            for leg in self.table.active()
            if leg.metered_ms is not None and (seen := self._seen.get(leg.key, 0)) > leg.metered_ms
        ]
        months = any(period_of(mark_ms) != period_of(seen) for _, mark_ms, seen in used)  # its report is due
        if not months and not any(seen - mark_ms >= least_ms for _, mark_ms, seen in used):
            return
        for start in range(0, len(used), ROWS):
            with self.db.write() as write:
                rows = [
                    row
                    for leg, mark_ms, seen in used[start : start + ROWS]
                    if self.table.change(leg, write, metered_ms=seen)
                    for row in usage_rows(leg.offer, self.settings.site.flavor.id, mark_ms, seen)
                ]
                self.outbox.add_usage(write, rows, self.now_ms())


def leg_environment(gateway_url: str, ray_dashboard_url: str, token: str) -> dict[str, str]:
    """Return the environment variables that a leg's program and its Ray workers get."""
    return {
        "CONSORTIUM_GATEWAY": gateway_url,
        "CONSORTIUM_LEG_TOKEN": token,
        "MLFLOW_TRACKING_URI": f"{gateway_url.rstrip('/')}/mlflow",
        "MLFLOW_TRACKING_TOKEN": token,
        "PYTHONSAFEPATH": "1",  # as -P, for the processes that the program starts
        "PYTHONUNBUFFERED": "1",
        "RAY_API_SERVER_ADDRESS": ray_dashboard_url,  # else Ray finds the neighbours' too
        "RAY_COLOR_PREFIX": "0",  # logs are read in files and over the border, not on a terminal
        **dict.fromkeys(_THREADS, "1"),
    }


def classify(leg: SiteLeg, job: RayJob) -> tuple[Fault, str]:
    """Return whose fault the end of a job was, and a sentence on it. Log lines stay out: they may not leave the site.

    The program's own report counts first. Without one, a program that exited with a code was at fault; one that was
    killed was not (its node ran out of memory, or broke), nor one whose cluster lost it.
    """
    if leg.failure is not None:
        return Fault(leg.failure["fault"]), leg.failure["message"]
    if job.status is RayStatus.SUCCEEDED:
        return Fault.USER, "the program ended without leaving a result"
    if job.status is RayStatus.UNKNOWN:
        return Fault.SITE, "the Ray cluster was restarted and does not know the job any more"
    if job.status is RayStatus.STOPPED:
        return Fault.SITE, "the job was stopped at the site, not by the consortium"
    code = job.exit_code
    if code == UnreachableError.exit_code:  # it would have said so to the gateway
        return Fault.SITE, "the program could not reach its site's gateway; see its log"
    if code is not None and 0 < code < 128:
        return Fault.USER, f"the program ended with exit code {code}; see its log"
    if code is not None and code != 0:
        return Fault.NODE, f"the program was killed by signal {code - 128 if code > 128 else -code}"
    return Fault.SITE, f"Ray lost the program: {(job.message.splitlines() or ['no reason given'])[0][:300]}"
