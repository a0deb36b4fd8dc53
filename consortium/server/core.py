"""What all parts of the server share: state, ledger, key, clock, the signed federation, and the loop's bell."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Any

from anyio import CapacityLimiter
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from consortium.domain.ids import SERVER
from consortium.domain.job import Epoch
from consortium.domain.partner import SiteState
from consortium.domain.records import Record, RecordType
from consortium.errors import ConflictError
from consortium.keys.signing import SigningKey
from consortium.keys.trust import Trust
from consortium.ledger.log import Ledger
from consortium.server.clock import Clock
from consortium.server.contacts import Contacts
from consortium.server.federation import Federation, FederationFiles, kept_documents, record_documents
from consortium.server.growth import Growth
from consortium.server.logs import LogAmounts
from consortium.server.settings import ServerSettings
from consortium.state import Database, records, times
from consortium.state.database import next_counter
from consortium.state.sites import SiteStatus

log = logging.getLogger(__name__)
POLL_THREADS = 20
"""For polls alone. All other requests share anyio's 40, and the state has connections for both."""


@dataclass(slots=True)
class Core:
    """The server's parts. Threads share it: requests, the scheduler loop, the tracking worker."""

    settings: ServerSettings
    db: Database
    ledger: Ledger
    key: SigningKey
    trust: Trust
    clock: Clock
    contacts: Contacts
    files: FederationFiles
    incarnation: int
    bell: threading.Event = field(default_factory=threading.Event)
    """Rung when the loop has something to do before its next cycle."""
    tracking_bell: threading.Event = field(default_factory=threading.Event)
    tracking_away: bool = True
    """Whether the tracking server did not answer last time (or was not asked yet)."""
    folded: threading.Condition = field(default_factory=threading.Condition)
    poll_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(POLL_THREADS))
    log_amounts: LogAmounts = field(default_factory=LogAmounts)
    growth: Growth = field(default_factory=Growth)
    folded_to: int = 0
    """Number of the last inbox item folded in."""
    last_cycle_ms: int = 0
    """When the loop last came to the end of a cycle; 0 until it has."""

    @classmethod
    def open(cls, settings: ServerSettings) -> Core:
        """Open everything; raises a ConsortiumError that says what is wrong, where, and what to do."""
        clock = Clock()
        key = SigningKey.load(settings.signing_key_path)
        trust = Trust.load(settings.trust_path)
        db = Database(settings.database_url)
        try:
            with db.read() as connection:
                kept = kept_documents(connection)
            files = FederationFiles(settings.documents_dir, trust, clock.now_ms(), kept)
            ledger = Ledger(settings.ledger_dir, key, trust.log_name)
            _refuse_older_state(db, ledger, settings)
            core = cls(
                settings=settings,
                db=db,
                ledger=ledger,
                key=key,
                trust=trust,
                clock=clock,
                contacts=Contacts(clock.now_ms()),
                files=files,
                incarnation=db.new_incarnation(clock.now_ms()),
            )
            with db.write() as connection:
                record_documents(connection, key, files.current, clock.now_ms())
                lost = records.refill_outbox(connection, ledger.size)
                ahead_ms = times.bring_back(connection, core.clock.now_ms())
            if ahead_ms:
                log.warning(
                    "the clock was set back by %d s at least; what was noted later counts as now", ahead_ms // 1000
                )
            if lost:
                log.warning("the ledger lost %d records (an old backup?); they are appended again", lost)
            return core
        except DBAPIError as fault:
            db.close()
            raise db.fault(fault) from fault
        except BaseException:
            db.close()
            raise

    @property
    def federation(self) -> Federation:
        """The signed federation as last loaded."""
        return self.files.current

    def record(self, connection: Connection, kind: RecordType, body: dict[str, Any]) -> Record:
        """Add a record of the server's own in the caller's transaction."""
        return records.append_own(connection, self.key, kind, body, self.clock.now_ms())

    def next_epoch(self, connection: Connection) -> Epoch:
        """Return an epoch never used before."""
        return Epoch(incarnation=self.incarnation, counter=next_counter(connection))

    def site_state(self, site: str, stored: SiteStatus | None) -> SiteState:
        """Return a site's state now: what its operator wished, or `lost` where it is silent or unhealthy for long."""
        wish = SiteState.ACTIVE if stored is None else stored.state
        if wish is SiteState.WITHDRAWN:
            return wish
        never = self.contacts.site(site) is None and (stored is None or not stored.last_contact_ms)
        unfit_ms = self.clock.now_ms() - self.contacts.unfit_since(site)
        return SiteState.LOST if never or unfit_ms > self.settings.site_lost_ms else wish

    def silent(self, site: str) -> bool:
        """Whether a site has not called for so long that it counts as lost."""
        return self.clock.now_ms() - self.contacts.silent_since(site) > self.settings.site_lost_ms

    def ailment(self, site: str, stored: SiteStatus | None) -> str:
        """Return what is wrong with a site by its own word; empty where it is silent, or was taken out of service."""
        if stored is None or stored.state in (SiteState.DRAINED, SiteState.WITHDRAWN) or self.silent(site):
            return ""
        return stored.unhealthy

    def gone(self, site: str, stored: SiteStatus | None) -> bool:
        """Whether nobody waits for a site any more that is to run a leg again."""
        away = (SiteState.LOST, SiteState.WITHDRAWN, SiteState.DRAINED)
        return site not in self.federation.sites or self.site_state(site, stored) in away

    def lease_over(self, leg: str, epoch: Epoch, since_ms: int) -> bool:
        """Whether an epoch's lease has surely run out at its site, skew included."""
        last = self.contacts.leg(leg, epoch, since_ms)
        return self.clock.now_ms() > last + self.settings.lease_ms + self.settings.max_skew_ms

    def wait_folded(self, number: int, timeout_s: float) -> bool:
        """Ring the loop and wait until it has folded inbox item `number`; False after `timeout_s`."""
        self.bell.set()
        with self.folded:
            return self.folded.wait_for(lambda: self.folded_to >= number, timeout_s)

    def close(self) -> None:
        """Let go of state and ledger."""
        self.ledger.close()
        self.db.close()


def _refuse_older_state(db: Database, ledger: Ledger, settings: ServerSettings) -> None:
    """A state database older than the ledger would number the server's records twice. Raises ConflictError."""
    with db.read() as connection:
        following = records.chain(connection, SERVER).next_seq
    if ledger.find(f"{SERVER}:{following}") is None:
        return
    ledger.close()
    raise ConflictError(
        f"the state is older than the ledger, which has the server's record {following} already",
        where=f"{settings.ledger_dir}, {db.engine.url.render_as_string(hide_password=True)}",
        fix="restore both from one backup, or the newer state",
    )
