"""The agent's process: three threads over one database.

`poll` talks to the server and decides; `runner` talks to Ray; `ship` sends records and logs. So a Ray head or a store
that hangs never keeps the site from hearing the server, nor the other way round.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import consortium
from consortium import PROTOCOL_VERSION
from consortium.domain.job import LegState
from consortium.domain.protocol import LegOffer, PollRequest, PollResponse
from consortium.domain.records import RecordType
from consortium.errors import ConsortiumError, UnreachableError
from consortium.keys.code import code_digest
from consortium.keys.signing import SigningKey
from consortium.keys.trust import Trust
from consortium.site.agent.admission import Admission
from consortium.site.agent.logs import LogKeeper
from consortium.site.agent.runner import Runner
from consortium.site.agent.server import ServerLine
from consortium.site.db import SiteDb
from consortium.site.documents import Documents
from consortium.site.legs import LegTable, new_leg, packed
from consortium.site.metering import SiteClock
from consortium.site.outbox import Outbox
from consortium.site.ray_jobs import RayCluster
from consortium.site.settings import SiteSettings
from consortium.site.watch import LogWatch
from consortium.storage.objects import ObjectStore

RUNNER_S = 0.5
SHIP_S = 1.0
LOGS_S = 3.0
FIRST_LOOK_S = 5.0
LAST_S = 5.0
"""How long the last records wait for the last usage."""
RECORDS = 200
"""Sent in one call: fewer, down to one, while the server refuses what is among them."""
RESULTS_BYTES = 4 << 20
"""Of the results in one poll, unless a single one is larger: every poll renews the leases of all legs, in time."""
log = logging.getLogger(__name__)


class Agent:
    """One site's agent. `run` returns after `stop`, or raises what a thread could not go on after."""

    def __init__(self, settings: SiteSettings) -> None:
        self.settings = settings
        self.stopping = threading.Event()
        self._news, self._work, self._looked = threading.Event(), threading.Event(), threading.Event()
        self._metered = threading.Event()
        self._fault: BaseException | None = None
        trust = Trust.load(settings.trust_path)
        self.clock = SiteClock(time.time_ns() // 1_000_000, time.monotonic)
        self.db = SiteDb(settings.home)
        self.table = LegTable(self.db)
        self.outbox = Outbox(self.db, settings.site.id, SigningKey.load(settings.signing_key_path))
        self.watch = LogWatch(self.db, trust)
        self.documents = Documents(settings.documents_dir, settings.site.partner, trust)
        self.cluster = RayCluster(settings.ray_dashboard_url, settings.ray_token_path)
        self.code = code_digest(Path(consortium.__file__).parent, settings.jobs_dir)
        self.runner = Runner(settings, self.db, self.outbox, self.cluster, self.clock.now_ms, self._news.set)
        self.admission = Admission(
            site=settings.site,
            code_digest=self.code,
            jobs_dir=Path(settings.jobs_dir),
            documents=self.documents,
            table=self.table,
        )
        self._server_holds: int | None = None
        self._batch = RECORDS
        self._carried = 0
        """Bytes of the results in the last poll."""
        self._said: dict[str, str] = {}

    def run(self) -> None:
        """Work until told to stop. Legs go on without the agent, up to their lease."""
        for name, fault in self.documents.refresh(self.clock.now_ms()).items():
            log.warning("%s: %s", name, fault)
        self._attempt("leases", self.runner.shorten_leases)  # before any thread looks at them
        jobs = (("poll", self._poll_loop), ("runner", self._runner_loop), ("ship", self._ship_loop))
        threads = [threading.Thread(target=self._guarded, args=(job,), name=name) for name, job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._fault is not None:
            raise self._fault

    def stop(self) -> None:
        """Make `run` return."""
        self.stopping.set()
        for event in (self._news, self._work, self._looked):
            event.set()

    # -- poll -----------------------------------------------------------------------------------------------------

    def poll_once(self, server: ServerLine) -> None:
        """Tell the server where the site stands, and do what it says as far as the site agrees.

        While an alarm stands, the server's word counts for nothing: running legs go on to the end of their lease.
        """
        asked_ms = self.clock.now_ms()
        request, more = self._request(asked_ms)
        response = server.poll(request)
        alarm = self.watch.check(response)
        self._say("alarm", f"ALARM {alarm}; no offers are taken until the operator runs --repin" if alarm else "")
        self._server_holds = response.acked_seq
        self.runner.hang_s = response.hang_s
        if not alarm and self.db.meta("lease_ms") != str(response.lease_ms):
            self.db.set_meta(lease_ms=str(response.lease_ms))
        lease_until_ms = asked_ms + response.lease_ms
        for offer in response.offers:
            if self.table.get(offer.leg, offer.epoch) is None and (alarm or not self._still_here(offer)):
                self._judge(offer, lease_until_ms)
        if not alarm:
            self._obey(response, lease_until_ms)
        if response.stops or response.starts:
            self._work.set()
        if more and not alarm:  # under an alarm nothing is acknowledged, and the same would go again at once
            self._news.set()

    def _request(self, now_ms: int) -> tuple[PollRequest, bool]:
        """Return what the site says now, and whether there are results that wait for the next poll."""
        unfit = self.watch.alarm or self.runner.unhealthy
        # After a large result one poll goes without any, which renews the leases in good time.
        reports, more, carried = packed(self.table.reported(), 0 if self._carried > RESULTS_BYTES else RESULTS_BYTES)
        self._carried = carried
        request = PollRequest(
            site=self.settings.site.id,
            protocol=PROTOCOL_VERSION,
            healthy=not unfit,
            unhealthy_reason=unfit,
            code_digest=self.code,
            policy_digest=self.documents.policy_digest(now_ms),
            highest_epoch=self.table.highest(),
            legs=(*reports, *self.table.fenced()),
            pinned=self.watch.pinned,
            next_seq=self.outbox.next_seq,
        )
        return request, more

    def _obey(self, response: PollResponse, lease_until_ms: int) -> None:
        self.table.acknowledge(response.acknowledged)
        for command in response.stops:
            leg = self.table.named(command)
            if leg is None:
                self.table.fence(command)
            elif leg.active:
                reason = command.reason or "stopped by the consortium"
                self.runner.stop(leg, LegState.STOPPED, reason, keep_s=command.keep_s)
        renewed = set(response.renewed)
        self.runner.shorten_leases()  # or it would cut, later, what is renewed here
        for leg in self.table.active():
            if leg.offer.leg in renewed and lease_until_ms > leg.lease_until_ms:
                self.table.change(leg, lease_until_ms=lease_until_ms)
        for command in response.starts:
            held = self.table.named(command)
            if held is not None and held.state is LegState.HELD:
                self.table.change(held, state=LegState.STARTING.value, lease_until_ms=lease_until_ms)
                log.info("%s: starting %s %s", held.key, held.offer.spec.spec.kind.value, held.offer.job)

    def _still_here(self, offer: LegOffer) -> bool:
        """Whether an earlier epoch of the offer's job has yet to stop: two would run and be billed side by side.

        The offer stays unanswered meanwhile; the server repeats it at every poll.
        """
        return any(leg.offer.job == offer.job for leg in self.table.active())

    def _judge(self, offer: LegOffer, lease_until_ms: int) -> None:
        """Accept or refuse an offer, durably, and tell the server at once."""
        now_ms = self.clock.now_ms()
        refusal = self.admission.judge(offer, now_ms, self.watch.alarm or self.runner.unhealthy)
        leg = new_leg(offer, refusal.code, refusal.reason, refusal.denial) if refusal else new_leg(offer)
        with self.db.write() as write:
            self.table.add(leg, lease_until_ms, write)
            if refusal is not None:
                body = {
                    "job": offer.job,
                    "leg": offer.leg,
                    "epoch": str(offer.epoch),
                    "code": refusal.code,
                    "reason": refusal.reason,
                    "denial": refusal.denial,
                }
                self.outbox.add(write, RecordType.REFUSAL, body, now_ms)
        log.info("%s: %s", leg.key, f"refused ({refusal.code}): {refusal.reason}" if refusal else "accepted")
        self._news.set()

    # -- threads --------------------------------------------------------------------------------------------------

    def _poll_loop(self) -> None:
        server = ServerLine(self.settings)
        self._looked.wait(FIRST_LOOK_S)  # or a healthy site would call itself unhealthy and refuse an offer
        while not self.stopping.is_set():
            self._news.clear()
            self._attempt("server", lambda: self.poll_once(server))
            self._news.wait(self.settings.poll_ms / 1000)
        server.close()

    def _runner_loop(self) -> None:
        try:
            while not self.stopping.is_set():
                self._work.clear()
                self._attempt("leases", self.runner.shorten_leases)
                self._attempt("ray", self.runner.step)
                self._looked.set()
                self._work.wait(RUNNER_S)
            self._attempt("ray", self.runner.meter_seen)
        finally:
            self._metered.set()

    def _ship_loop(self) -> None:
        settings, server = self.settings, ServerLine(self.settings)
        private = settings.private_store
        store = ObjectStore(private.endpoint, private.access_key, private.secret(), private.bucket)
        keeper = LogKeeper(self.table, self.cluster, store, server)
        logs_at = 0.0
        while not self.stopping.is_set():
            self._attempt("records", lambda: self._send_records(server))
            if time.monotonic() >= logs_at:
                logs_at = time.monotonic() + LOGS_S
                self._attempt("logs", keeper.step)
            self.stopping.wait(SHIP_S)
        self._metered.wait(LAST_S)
        self._attempt("records", lambda: self._send_records(server))
        server.close()

    def _send_records(self, server: ServerLine) -> None:
        """Send what the server lacks. Where it refuses some, what comes before the first that it refuses goes alone."""
        while (held := self._server_holds) is not None:
            records = self.outbox.after(held, self._batch)
            if not records:
                return
            try:
                self._server_holds = taken = server.send_records(records)
            except UnreachableError:
                raise
            except ConsortiumError:
                if len(records) == 1:
                    raise
                self._batch = len(records) // 2
                continue
            if taken <= held:
                return  # it took none of them: they go again in a while, not at once
            self._batch = min(2 * self._batch, RECORDS)

    def _attempt(self, what: str, work: Callable[[], None]) -> None:
        """Do one round of work; a fault that may pass, such as a full disk, is said once and tried again."""
        try:
            work()
        except ConsortiumError as fault:
            self._say(what, fault.render().replace("\n", ";"))
        except sqlite3.OperationalError as fault:
            self._say(what, f"cannot use {self.db.path}: {fault}; see that its disk has room")
        else:
            self._say(what, "")

    def _say(self, what: str, fault: str) -> None:
        if self._said.get(what, "") == fault:
            return
        self._said[what] = fault
        if fault:
            log.warning("%s: %s", what, fault)
        elif what != "alarm":
            log.info("%s: works again", what)

    def _guarded(self, job: Callable[[], None]) -> None:
        """Run a thread; what nobody foresaw ends the whole process, and its supervisor starts it anew."""
        try:
            job()
        except BaseException as fault:
            self._fault = self._fault or fault
            self.stop()
        finally:
            self.db.close()
