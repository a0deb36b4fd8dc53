"""The scheduler loop: the one thread that places jobs and moves legs.

A cycle folds the inbox in, counts out the leases that ran out, clears nodes that are set aside, offers legs again,
advances rounds, decides and commits placements and evictions, and drains the outbox to the ledger. Every step is a
transaction of its own, so a crash between any two leaves a state from which the next start goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, select

from consortium.domain.codec import from_json, to_json
from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import JobState, LegState
from consortium.domain.partner import SiteState
from consortium.domain.protocol import LegReport
from consortium.domain.records import RecordType
from consortium.errors import ConsortiumError
from consortium.scheduler import schedule
from consortium.server import additions, evictions, faults, folding, legs, rounds, rulings, snapshots, tasks, upkeep
from consortium.server.core import Core
from consortium.server.federation import record_documents
from consortium.state import inbox, jobs, records
from consortium.state import tables as t
from consortium.state.commit import commit_plan
from consortium.state.database import away, first_line
from consortium.state.sites import all_sites, update_site

log = logging.getLogger(__name__)
OFFER_PATIENCE_MS = 60_000
"""How long a site that calls may leave an offer unanswered."""
FOLDS = 2
"""How many batches of the inbox a cycle folds in before it goes on: who sends much keeps nobody waiting."""


class Loop(threading.Thread):
    """Runs cycles until stopped. A cycle that fails is logged and the next one tries again.

    It ends, and calls `taken_over`, where another server has taken the state: two must not decide on one.
    """

    def __init__(self, core: Core, taken_over: Callable[[], None] = lambda: None) -> None:
        super().__init__(name="scheduler-loop", daemon=True)
        self._core = core
        self._taken_over = taken_over
        self._stopping = threading.Event()
        self._away = ""
        """What was last said of a database that does not answer; empty while it does."""

    def stop(self) -> None:
        """Ask the loop to end, and wait until it has."""
        self._stopping.set()
        self._core.bell.set()
        if self.is_alive():
            self.join(timeout=30)

    def run(self) -> None:
        """Cycle at least every `cycle_ms`, at once when the bell rings."""
        begun = False
        while not self._stopping.is_set():
            self._core.bell.clear()
            try:
                if not self._core.db.keep():
                    log.error("another server has taken the state over; this one ends")
                    self._taken_over()
                    return
                if not begun:
                    rounds.restart_deadlines(self._core)
                    begun = True
                cycle(self._core)
                self._core.last_cycle_ms = self._core.clock.now_ms()
                self._say_away("")
            except Exception as fault:
                if away(fault):
                    self._say_away(first_line(fault))
                else:
                    log.exception("a cycle failed; the next one tries again")
                time.sleep(min(1.0, self._core.settings.cycle_ms / 1000))
            self._core.bell.wait(self._core.settings.cycle_ms / 1000)

    def _say_away(self, fault: str) -> None:
        """Say once that the state database fails, however many cycles it does, and once that it is back."""
        if fault and not self._away:
            log.error("the state database fails: %s; cycles are tried again until it answers", fault)
        elif self._away and not fault:
            log.info("the state database answers again")
        self._away = fault


def cycle(core: Core) -> None:
    """One cycle."""
    _refresh_documents(core)
    if all(_fold_inbox(core) for _ in range(FOLDS)):
        core.bell.set()  # there may be more, for the next cycle
    _count_out(core)
    evictions.clear_sites(core)
    _offer_again(core)
    rounds.advance_all(core)
    rulings.withdraw_due(core)
    additions.add_due(core)
    upkeep.see_to(core)
    _place(core)
    drain(core)


def drain(core: Core) -> None:
    """Bring the records in the outbox to the ledger, in order."""
    while True:
        with core.db.read() as connection:
            batch = records.pending_outbox(connection)
        if not batch:
            return
        indices = core.ledger.append([(record_id, payload) for _, record_id, payload in batch])
        with core.db.write() as connection:
            confirmed = zip(batch, indices, strict=True)
            records.confirm_outbox(connection, [(item[0], item[1], index) for item, index in confirmed])


def _fold_inbox(core: Core) -> bool:
    with core.db.read() as connection:
        items = inbox.take(connection)
    for number, kind, payload, received_ms in items:
        try:
            with core.db.write() as connection:
                _fold(core, connection, kind, payload, received_ms)
                inbox.done(connection, number)
        except Exception as fault:
            if away(fault):
                raise  # this cycle ends, and the next one folds the item in
            # Whatever an item says must not stop the others for good, now and after every restart: it is dropped.
            whose = f"{kind} of {payload.get('site') or payload.get('by') or 'nobody'}"
            what = f"{type(fault).__name__}: {' '.join(str(fault).split())[:500]}"
            log.error("inbox item %d, a %s, is dropped: %s", number, whose, what, exc_info=not _ours(fault))
            with core.db.write() as connection:
                inbox.done(connection, number)
        with core.folded:
            core.folded_to = max(core.folded_to, number)
            core.folded.notify_all()
    return bool(items)


def _ours(fault: Exception) -> bool:
    return isinstance(fault, ConsortiumError)


def _fold(core: Core, connection: Connection, kind: str, payload: dict[str, Any], received_ms: int) -> None:
    if kind == "report":
        report = from_json(LegReport, payload["report"], where=f"report of {payload['site']}")
        folding.fold_report(core, connection, payload["site"], report, received_ms)
        with_tracking(core)
    elif kind == "cancel":
        by = payload["by"]
        reason = Reason(code=ReasonCode.CANCELLED, message=f"cancelled by {by}", numbers={"by": by})
        legs.end_job(core, connection, payload["job"], JobState.CANCELLED, reason)
        with_tracking(core)
    elif kind == "gone":
        leg = jobs.find_leg(connection, payload["leg"])
        if leg is not None and leg.state is LegState.STOPPING and str(leg.epoch) == payload["epoch"]:
            folding.confirm_stop(core, connection, leg)
    else:
        log.error("unknown inbox item %r", kind)


def with_tracking(core: Core) -> None:
    """Wake the tracking worker: a task may have been written."""
    core.tracking_bell.set()


def _count_out(core: Core) -> None:
    """Find legs whose lease has surely run out, and sites that finished draining."""
    with core.db.read() as connection:
        live = jobs.legs_in(connection, jobs.LIVE)
        stored = all_sites(connection)
    for leg in live:
        if not core.lease_over(leg.id, leg.epoch, leg.updated_ms):
            continue
        silent = core.silent(leg.site)
        unanswered_ms = core.clock.now_ms() - leg.updated_ms
        if leg.state is LegState.OFFERED and not silent and unanswered_ms < OFFER_PATIENCE_MS:
            continue
        why = f"{leg.site} was not heard of" if silent else f"{leg.site} does not report it"
        with core.db.write() as connection:
            current = jobs.find_leg(connection, leg.id)
            if current is not None and current.epoch == leg.epoch and current.state is leg.state:
                folding.lose(core, connection, current, why)
                log.warning("leg %s@%s is lost: %s", leg.id, leg.epoch, why)
    busy = {leg.site for leg in live}
    for status in stored.values():
        if status.state is SiteState.DRAINING and status.id not in busy:
            with core.db.write() as connection:
                _drained(core, connection, status.id)


def _drained(core: Core, connection: Connection, site: str) -> None:
    """Note that a site has drained, unless it finishes legs still, or its admin resumed it meanwhile."""
    status = all_sites(connection)[site]
    coming = [row for row in jobs.waiting_legs(connection) if row.site == site and legs.awaited(core, row, status)]
    if status.state is SiteState.DRAINING and not coming and not jobs.legs_in(connection, jobs.LIVE, site=site):
        update_site(connection, site, state=SiteState.DRAINED)
        core.record(connection, RecordType.DOWNTIME, {"site": site, "state": SiteState.DRAINED.value})


def _offer_again(core: Core) -> None:
    """Give waiting legs their next epoch, once their backoff is over and their site is there."""
    with core.db.read() as connection:
        due = [row.id for row in jobs.waiting_legs(connection) if row.retry_at_ms <= core.clock.now_ms()]
    for leg_id in due:
        try:
            with core.db.write() as connection:
                _offer_due(core, connection, leg_id)
        except Exception:
            # One leg must not keep everybody else's from being offered.
            log.exception("leg %s cannot be offered again", leg_id)


def _offer_due(core: Core, connection: Connection, leg_id: str) -> None:
    row, stored = jobs.leg_row(connection, leg_id), all_sites(connection)
    if not row.retry_at_ms:
        return  # its attempt ended with a leg before it
    leg, status = jobs.leg_of(row), stored.get(row.site)
    if core.gone(leg.site, status):
        faults.without_site(core, connection, leg)
    elif status is None or not status.healthy:
        legs.settle(core, connection, leg.job)
    else:
        faults.offer_again(core, connection, leg)


def _place(core: Core) -> None:
    with core.db.read() as connection:
        view = snapshots.take(core, connection)
        shown = {row.id: row.reason for row in connection.execute(_pending_reasons())}
    if not view.snapshot.pending:
        return
    plan = schedule(view.snapshot)
    if not plan.placements and not plan.evictions and not _changed(plan.reasons, shown):
        return
    with core.db.write() as connection:
        done = commit_plan(
            connection,
            plan,
            view.versions,
            incarnation=core.incarnation,
            now_ms=core.clock.now_ms(),
            new_id=core.clock.new_id,
        )
        for job_id in done.placed:
            job = jobs.find_job(connection, job_id)
            placed = job.attempt.legs if job.attempt else ()
            core.record(
                connection,
                RecordType.DECISION,
                {
                    "job": job_id,
                    "state": job.state.value,
                    "account": job.spec.account,
                    "attempt": job.attempt.id if job.attempt else "",
                    "legs": [
                        {"leg": leg.id, "epoch": str(leg.epoch), "site": leg.site, "gpus": leg.gpus} for leg in placed
                    ],
                },
            )
            tasks.job_started(connection, job_id, [leg.id for leg in placed])
        evictions.record(core, connection, plan, done)
    with_tracking(core)


def _pending_reasons() -> Any:
    return select(t.jobs.c.id, t.jobs.c.reason).where(t.jobs.c.state == JobState.PENDING.value)


def _changed(reasons: Mapping[str, Reason], shown: dict[str, Any]) -> bool:
    """Whether any reason differs from the one stored; time-dependent numbers apart, most cycles change nothing."""
    return any(to_json(reason) != shown.get(job) for job, reason in reasons.items())


def _refresh_documents(core: Core) -> None:
    if core.files.refresh(core.clock.now_ms()):
        with core.db.write() as connection:
            changed = record_documents(connection, core.key, core.federation, core.clock.now_ms())
        log.info("signed documents loaded again; %d changed", changed)
