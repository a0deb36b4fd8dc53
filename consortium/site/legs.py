"""The leg table: every epoch of every leg this site was offered, and the fences that keep old epochs out."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset
from consortium.domain.job import Epoch, Fault, LegState, SignedSpec
from consortium.domain.protocol import LegCommand, LegOffer, LegReport
from consortium.site.db import SiteDb, put_meta

ACTIVE = (LegState.HELD, LegState.STARTING, LegState.RUNNING, LegState.STOPPING)
"""States that hold capacity at the site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLeg:
    """One epoch of a leg as the site keeps it. Times are UTC milliseconds of the site's clock."""

    offer: LegOffer
    state: LegState
    reason: str = ""
    reason_code: str = ""
    denial: dict[str, Any] = field(default_factory=dict)
    fault: Fault | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    failure: dict[str, str] | None = None
    """What the program said before it failed: `message` and `fault`."""
    stop_state: LegState | None = None
    """The final state a confirmed stop leads to: `stopped` as told, `lost` where the lease ended."""
    lease_until_ms: int = 0
    started_ms: int | None = None
    metered_ms: int | None = None
    """Usage is recorded up to here."""
    submitted: bool = False
    log_sent: int = 0
    log_policy: str = ""
    """Empty until asked; `open` or `withheld`."""
    archived: bool = False
    acknowledged: bool = False
    calls: int = 0
    """Goes up while the program calls the gateway: its sign of life."""
    listens: bool = False
    """Whether the program asks if it is to stop: then it gets the time to keep its progress."""
    stop_by_ms: int = 0
    """Until when a program that listens may go on after it was told to stop."""
    seen_ms: int = 0
    """When it was last seen alive, to within some seconds; 0: not yet."""

    @property
    def key(self) -> str:
        """`leg@epoch`: the Ray submission id."""
        return f"{self.offer.leg}@{self.offer.epoch}"

    @property
    def active(self) -> bool:
        """Whether it holds capacity."""
        return self.state in ACTIVE

    @property
    def outputs(self) -> tuple[Dataset, ...]:
        """The datasets it wrote; none unless it succeeded."""
        told = (self.result or {}).get("outputs", ()) if self.state is LegState.SUCCEEDED else ()
        return from_json(tuple[Dataset, ...], told, where=f"result of {self.key}")

    def report(self) -> LegReport:
        """What the site says of it at a poll."""
        return LegReport(
            leg=self.offer.leg,
            epoch=self.offer.epoch,
            state=self.state,
            reason=self.reason,
            reason_code=self.reason_code,
            denial=self.denial,
            fault=self.fault,
            progress=self.progress,
            result=told(self.result or {}) if self.state is LegState.SUCCEEDED else {},
        )


def packed(legs: Iterable[SiteLeg], most_bytes: int) -> tuple[list[LegReport], bool, int]:
    """Return the reports of one poll, whether results were left for the next ones, and the bytes of those that go.

    A large poll takes too long: results go in order, one at least and then as long as all take `most_bytes` at most;
    none where that is 0. A leg whose result waits is reported as running, which it was: one that is not reported counts
    as unknown here.
    """
    reports, size, waits = [], 0, False
    for leg in legs:
        report = leg.report()
        if report.result:
            waits = waits or not most_bytes or (size > 0 and size + _size(report) > most_bytes)
            if waits:
                report = replace(report, state=LegState.RUNNING, result={})
            else:
                size += _size(report)
        reports.append(report)
    return reports, waits, size


def _size(report: LegReport) -> int:
    return len(json.dumps(to_json(report)))


def told(result: dict[str, Any]) -> dict[str, Any]:
    """What the server hears of a result: the manifest itself stays at home, in the private store."""
    return {name: value for name, value in result.items() if name != "manifest"}


def new_leg(offer: LegOffer, code: str = "", reason: str = "", denial: dict[str, Any] | None = None) -> SiteLeg:
    """Return an offer as judged: held, or refused with `code` and `reason`."""
    return SiteLeg(
        offer=offer,
        state=LegState.REFUSED if code else LegState.HELD,
        reason=reason,
        reason_code=code,
        denial=denial or {},
    )


class LegTable:
    """Reads and changes rows of `legs`; every change is one durable transaction (or part of the caller's)."""

    def __init__(self, db: SiteDb) -> None:
        self.db = db

    def add(self, leg: SiteLeg, lease_until_ms: int, write: sqlite3.Connection) -> None:
        """Insert a judged offer and raise the highest epoch seen."""
        offer = leg.offer
        write.execute(
            "INSERT INTO legs (leg, incarnation, counter, job, state, offer, spec_signature, reason, reason_code,"
            " denial, lease_until_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                offer.leg,
                offer.epoch.incarnation,
                offer.epoch.counter,
                offer.job,
                leg.state.value,
                json.dumps(to_json(offer)),
                offer.spec.signature,
                leg.reason,
                leg.reason_code,
                json.dumps(leg.denial),
                lease_until_ms,
            ),
        )
        if offer.epoch > self.highest(write):
            put_meta(write, "highest_epoch", str(offer.epoch))

    def change(self, leg: SiteLeg, write: sqlite3.Connection | None = None, **columns: Any) -> bool:
        """Change columns of a leg's row; tells whether it did.

        Where `state` is among them, the row must still be in the state that `leg` was read in: agent threads and the
        gateway work on the same table.
        """
        if write is None:
            with self.db.write() as own:
                return self.change(leg, own, **columns)
        names = ", ".join(f"{name} = ?" for name in columns)
        values = [json.dumps(value) if isinstance(value, dict) else value for value in columns.values()]
        sql = f"UPDATE legs SET {names} WHERE leg = ? AND incarnation = ? AND counter = ?"  # noqa: S608  fixed names
        bound = [*values, leg.offer.leg, leg.offer.epoch.incarnation, leg.offer.epoch.counter]
        if "state" in columns:
            sql, bound = f"{sql} AND state = ?", [*bound, leg.state.value]
        return write.execute(sql, bound).rowcount == 1

    def fence(self, command: LegCommand) -> None:
        """Remember that an epoch which never arrived was stopped, so that a late offer of it is refused."""
        with self.db.write() as write:
            bound = (command.leg, command.epoch.incarnation, command.epoch.counter)
            write.execute("INSERT OR IGNORE INTO fences (leg, incarnation, counter) VALUES (?, ?, ?)", bound)

    def fenced(self) -> list[LegReport]:
        """Reports of epochs that were stopped before they arrived."""
        rows = self.db.read().execute("SELECT * FROM fences WHERE acknowledged = 0 ORDER BY incarnation, counter, leg")
        return [
            LegReport(
                leg=row["leg"],
                epoch=Epoch(incarnation=row["incarnation"], counter=row["counter"]),
                state=LegState.STOPPED,
                reason="this site holds no such leg",
            )
            for row in rows
        ]

    def acknowledge(self, commands: Iterable[LegCommand]) -> None:
        """Forget final reports that the server has committed."""
        for command in commands:
            leg = self.named(command)
            if leg is not None and leg.state.final and not leg.acknowledged:
                self.change(leg, acknowledged=1)
            elif leg is None:
                with self.db.write() as write:
                    write.execute(
                        "UPDATE fences SET acknowledged = 1 WHERE leg = ? AND incarnation = ? AND counter = ?",
                        (command.leg, command.epoch.incarnation, command.epoch.counter),
                    )

    def get(self, leg: str, epoch: Epoch) -> SiteLeg | None:
        """Return one epoch of a leg."""
        where = "WHERE leg = ? AND incarnation = ? AND counter = ?"
        return next(iter(self._select(where, (leg, epoch.incarnation, epoch.counter))), None)

    def of(self, leg: str) -> list[SiteLeg]:
        """Return all epochs of a leg, in order."""
        return self._select("WHERE leg = ?", (leg,))

    def of_job(self, job: str) -> list[SiteLeg]:
        """Return all legs of a job here that were not refused, in order."""
        return self._select("WHERE job = ? AND state != ?", (job, LegState.REFUSED.value))

    def named(self, command: LegCommand) -> SiteLeg | None:
        """Return the leg a command names."""
        return self.get(command.leg, command.epoch)

    def reported(self) -> list[SiteLeg]:
        """All legs the server has yet to acknowledge, in order."""
        return self._select("WHERE acknowledged = 0")

    def active(self) -> list[SiteLeg]:
        """All legs that hold capacity."""
        marks = ", ".join("?" for _ in ACTIVE)
        return self._select(f"WHERE state IN ({marks})", tuple(state.value for state in ACTIVE))

    def unarchived(self) -> list[SiteLeg]:
        """Ended legs that were submitted to Ray and whose log is not archived yet."""
        return [leg for leg in self._select("WHERE submitted = 1 AND archived = 0") if leg.state.final]

    def archived(self, keys: Iterable[str]) -> list[SiteLeg]:
        """Return those of these Ray submission ids whose leg's log is archived."""
        known = set(keys)
        legs = json.dumps(sorted({key.rpartition("@")[0] for key in known}))
        found = self._select("WHERE archived = 1 AND leg IN (SELECT value FROM json_each(?))", (legs,))
        return [leg for leg in found if leg.key in known]

    def highest(self, connection: sqlite3.Connection | None = None) -> Epoch:
        """The highest epoch this site has seen."""
        source = connection or self.db.read()
        row = source.execute("SELECT value FROM meta WHERE name = 'highest_epoch'").fetchone()
        return Epoch(incarnation=0, counter=0) if row is None else Epoch.parse(row["value"])

    def highest_of(self, leg: str) -> Epoch | None:
        """The highest epoch of one leg that this site has seen."""
        rows = self.db.read().execute(
            "SELECT incarnation, counter FROM legs WHERE leg = ? UNION SELECT incarnation, counter FROM fences"
            " WHERE leg = ?",
            (leg, leg),
        )
        return max((Epoch(incarnation=row["incarnation"], counter=row["counter"]) for row in rows), default=None)

    def jobs_of_signature(self, signature: str) -> set[str]:
        """Return the jobs for which this submitter's signature was presented here."""
        rows = self.db.read().execute("SELECT DISTINCT job FROM legs WHERE spec_signature = ?", (signature,))
        return {str(row["job"]) for row in rows}

    def specs_of_job(self, job: str) -> list[SignedSpec]:
        """Return the signed specs that were presented here for a job: one, and those that added sites to it since."""
        rows = self.db.read().execute("SELECT offer FROM legs WHERE job = ? GROUP BY spec_signature", (job,))
        return [from_json(LegOffer, json.loads(row["offer"]), where=job).spec for row in rows]

    def _select(self, where: str, bound: Iterable[Any] = ()) -> list[SiteLeg]:
        sql = f"SELECT * FROM legs {where} ORDER BY incarnation, counter, leg"  # noqa: S608  fixed clauses, bound values
        return [_leg(row) for row in self.db.read().execute(sql, tuple(bound))]


def _leg(row: sqlite3.Row) -> SiteLeg:
    return SiteLeg(
        offer=from_json(LegOffer, json.loads(row["offer"]), where=f"leg {row['leg']}"),
        state=LegState(row["state"]),
        reason=row["reason"],
        reason_code=row["reason_code"],
        denial=json.loads(row["denial"]),
        fault=Fault(row["fault"]) if row["fault"] else None,
        progress=json.loads(row["progress"]),
        result=json.loads(row["result"]) if row["result"] else None,
        failure=json.loads(row["failure"]) if row["failure"] else None,
        stop_state=LegState(row["stop_state"]) if row["stop_state"] else None,
        lease_until_ms=row["lease_until_ms"],
        started_ms=row["started_ms"],
        metered_ms=row["metered_ms"],
        submitted=bool(row["submitted"]),
        log_sent=row["log_sent"],
        log_policy=row["log_policy"],
        archived=bool(row["archived"]),
        acknowledged=bool(row["acknowledged"]),
        calls=row["calls"],
        listens=bool(row["listens"]),
        stop_by_ms=row["stop_by_ms"],
        seen_ms=row["seen_ms"],
    )
