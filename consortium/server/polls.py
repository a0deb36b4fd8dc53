"""A site's poll: take in what happened, renew leases, answer with offers, starts, stops and the log's proof.

News goes to the inbox in one transaction; its commit acknowledges final reports. The answer waits shortly for the loop
to fold the news in, so that a gang usually starts in the poll that completes it.
"""

from __future__ import annotations

import logging

from sqlalchemy import Connection

from consortium import PROTOCOL_VERSION
from consortium.domain.codec import to_json
from consortium.domain.data import Dataset
from consortium.domain.job import Job, Leg, LegState, SignedSpec
from consortium.domain.protocol import LegCommand, LegOffer, LegReport, Pinned, PollRequest, PollResponse
from consortium.errors import UsageError
from consortium.server.ancestry import ancestry
from consortium.server.core import Core
from consortium.state import data, inbox, jobs, records
from consortium.state.evict import making_way
from consortium.state.sites import SiteStatus, all_sites, update_site

log = logging.getLogger(__name__)
TRACKING_WAIT_MS = 4_000
"""How long an offer waits for its run at the tracking server, so that the leg can log into it."""
FOLD_WAIT_S = 2.0
MORE_LEGS = 10_000
"""Legs that any site may report in one poll, besides four for each of its GPUs."""
STOPPING_S = 10
"""What a leg needs to stop once its progress is kept."""


def poll(core: Core, site: str, request: PollRequest) -> PollResponse:
    """Answer a site's poll. Raises UsageError for a protocol that this server does not speak."""
    if not PROTOCOL_VERSION - 1 <= request.protocol <= PROTOCOL_VERSION:
        raise UsageError(
            f"{site} speaks protocol {request.protocol}, this server {PROTOCOL_VERSION} (and the one before)",
            fix="install the consortium's current release at the site",
        )
    now_ms = core.clock.now_ms()
    core.contacts.heard_site(site, now_ms, healthy=request.healthy)
    _take_in(core, site, request, _news(core, site, request), now_ms)
    with core.db.read() as connection:
        return _answer(core, connection, site, request)


def most_legs(core: Core, site: str) -> int:
    """How many legs one poll may report: far more than a site with that many GPUs can have to report at a time."""
    return MORE_LEGS + 4 * sum(node.gpus for node in core.federation.site(site).nodes)


def _news(core: Core, site: str, request: PollRequest) -> list[LegReport]:
    """The reports that may change something: of the site's own legs, of epochs that have yet to end, once each."""
    with core.db.read() as connection:
        awaited = inbox.open_epochs(connection, site, (report.leg for report in request.legs))
    last = {(report.leg, report.epoch): report for report in request.legs}
    return [report for key, report in last.items() if key in awaited and core.contacts.is_news(report)]


def _take_in(core: Core, site: str, request: PollRequest, news: list[LegReport], now_ms: int) -> None:
    with core.db.read() as connection:
        stored = all_sites(connection).get(site)
        gone = _gone(core, connection, site, request)
    status = _status(request)
    changed = stored is None or _differs(stored, status)
    if not news and not changed and not gone:
        return
    number = 0
    with core.db.write() as connection:
        if changed:
            update_site(connection, site, last_contact_ms=now_ms, **status)
        for report in news:
            number = inbox.put(connection, "report", {"site": site, "report": to_json(report)}, now_ms)
        for leg in gone:
            number = inbox.put(connection, "gone", {"leg": leg.id, "epoch": str(leg.epoch)}, now_ms)
    for report in news:
        core.contacts.taken(report)
    if number:
        core.wait_folded(number, FOLD_WAIT_S)
    else:
        core.bell.set()


def _status(request: PollRequest) -> dict[str, str | bool]:
    return {
        "healthy": request.healthy,
        "unhealthy_reason": request.unhealthy_reason,
        "code_digest": request.code_digest,
        "policy_digest": request.policy_digest,
    }


def _differs(stored: SiteStatus, status: dict[str, str | bool]) -> bool:
    return any(getattr(stored, name) != value for name, value in status.items())


def _gone(core: Core, connection: Connection, site: str, request: PollRequest) -> list[Leg]:
    """Legs told to stop in an earlier poll that the site does not report: it does not know them (any more)."""
    reported = {(report.leg, report.epoch) for report in request.legs}
    stopping = jobs.legs_in(connection, [LegState.STOPPING], site=site)
    return [
        leg for leg in stopping if (leg.id, leg.epoch) not in reported and core.contacts.stop_sent(leg.id, leg.epoch)
    ]


def _answer(core: Core, connection: Connection, site: str, request: PollRequest) -> PollResponse:
    now_ms = core.clock.now_ms()
    live = {leg.id: leg for leg in jobs.legs_in(connection, jobs.LIVE, site=site)}
    told = [leg for leg in live.values() if leg.state is LegState.STOPPING]
    keeping = making_way(connection, told)
    keep_s = _keep_s(core)
    stops = {
        (leg.id, leg.epoch): LegCommand(
            leg=leg.id, epoch=leg.epoch, reason=leg.reason, keep_s=keep_s if leg.id in keeping else 0
        )
        for leg in told
    }
    renewed, acknowledged = [], []
    for report in request.legs:
        if report.state.final:
            acknowledged.append(LegCommand(leg=report.leg, epoch=report.epoch))
            core.contacts.forget(report.leg, report.epoch)
            stops.pop((report.leg, report.epoch), None)
            continue
        current = live.get(report.leg)
        if current is None or current.epoch != report.epoch:
            reason = "its lease is over" if current is None else "a later epoch took its place"
            stops[report.leg, report.epoch] = LegCommand(leg=report.leg, epoch=report.epoch, reason=reason)
        elif current.state is not LegState.STOPPING or _keeps(core, current, keeping):
            core.contacts.renew(report.leg, report.epoch, now_ms)
            renewed.append(report.leg)
    for leg in told:
        if (leg.id, leg.epoch) in stops:
            core.contacts.stopped(leg.id, leg.epoch)
    checkpoint, consistency = log_proof(core, request.pinned)
    return PollResponse(
        incarnation=core.incarnation,
        protocol=min(request.protocol, PROTOCOL_VERSION),
        lease_ms=core.settings.lease_ms,
        checkpoint=checkpoint,
        consistency=consistency,
        offers=_offers(core, connection, [leg for leg in live.values() if leg.state is LegState.OFFERED]),
        starts=tuple(LegCommand(leg=x.id, epoch=x.epoch) for x in live.values() if x.state is LegState.STARTING),
        stops=tuple(stops[key] for key in sorted(stops)),
        renewed=tuple(renewed),
        acknowledged=tuple(acknowledged),
        acked_seq=records.chain(connection, site).next_seq - 1,
        hang_s=core.settings.retry.hang_s,
    )


def _keeps(core: Core, leg: Leg, keeping: set[str]) -> bool:
    """Whether a leg that makes way has still time for it: until then its lease goes on."""
    stop_ms = core.settings.scheduler.stop_s * 1000
    return leg.id in keeping and core.clock.now_ms() <= leg.updated_ms + stop_ms


def _keep_s(core: Core) -> int:
    """How long the program of a leg that makes way may take to keep its progress: it must stop in time, too."""
    stop_s = core.settings.scheduler.stop_s
    return max(stop_s - STOPPING_S, stop_s // 2)


def log_proof(core: Core, pinned: Pinned | None) -> tuple[str, tuple[str, ...]]:
    """Return the log's checkpoint and the proof that it extends what the site pinned.

    A site that pinned more than the log has gets no proof: it notices that the log was cut.
    """
    checkpoint = core.ledger.checkpoint()
    size = int(checkpoint.split("\n")[1])
    if pinned is None or not 0 < pinned.size < size:
        return checkpoint, ()
    return checkpoint, tuple(core.ledger.consistency(pinned.size, size))


def _offers(core: Core, connection: Connection, offered: list[Leg]) -> tuple[LegOffer, ...]:
    found: dict[str, Job] = {}
    offers = []
    for leg in offered:
        row = jobs.leg_row(connection, leg.id)
        waits = not row.tracking_run and not core.tracking_away
        if waits and core.clock.now_ms() - row.created_ms < TRACKING_WAIT_MS:
            continue
        job = found.setdefault(leg.job, jobs.find_job(connection, leg.job))
        attempt = next(a for a in job.attempts if a.id == leg.attempt)
        offers.append(
            LegOffer(
                leg=leg.id,
                job=leg.job,
                attempt=leg.attempt,
                attempt_number=attempt.number,
                epoch=leg.epoch,
                site=leg.site,
                peers=tuple(sorted(peer.site for peer in attempt.legs)),
                nodes=leg.nodes,
                spec=SignedSpec(spec=job.spec, signature=job.signature),
                inputs=_inputs(connection, leg),
                vouchers={name: data.voucher(connection, name) for name in leg.inputs},
                model_peers=_model_sites(connection, job),
                tracking_run=row.tracking_run,
            )
        )
    return tuple(offers)


def _inputs(connection: Connection, leg: Leg) -> tuple[Dataset, ...]:
    return tuple(data.find_dataset(connection, name) for name in leg.inputs)


def _model_sites(connection: Connection, job: Job) -> tuple[str, ...]:
    """Sites behind the model that a job reads; each partner among them judges for itself what is made of it."""
    return tuple(site for site, _ in ancestry(connection, job.spec).sites)
