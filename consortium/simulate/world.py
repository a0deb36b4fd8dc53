"""What the scheduler is told of a scenario: sites, accounts, windows, and a job without its run time."""

from __future__ import annotations

from consortium.config import Scenario
from consortium.config.quota import QuotaEntry
from consortium.config.scenario import Sharing
from consortium.domain import ids
from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.partner import Flavor, Node, Site, SiteState
from consortium.domain.quota import Account, Quota
from consortium.domain.units import MS_PER_HOUR
from consortium.scheduler import PendingJob, SiteView, Snapshot
from consortium.scheduler.types import Window
from consortium.simulate.workload import Job

EPOCH_MS = 1_767_225_600_000
"""What virtual time 0 is to the scheduler, which reads UTC: 2026-01-01T00:00:00Z."""


def sites(scenario: Scenario) -> tuple[Site, ...]:
    """Return the sites, by id. What the scheduler does not read of a flavor is filled in alike for all."""
    flavors = {
        name: Flavor(
            id=name,
            memory_bytes=80 << 30,
            peak_tflops="1000",
            measured_tflops="500",
            board_power_w=700,
            reference_factor=factor,
            factor_version="scenario",
        )
        for name, factor in scenario.flavors.items()
    }
    found = []
    for name, entry in sorted(scenario.sites.items()):
        nodes = tuple(Node(id=node, gpus=gpus) for node, gpus in entry.nodes(name).items())
        partner = ids.partner_of(name)
        found.append(
            Site(
                id=name,
                partner=partner,
                territory=partner,
                flavor=flavors[entry.flavor],
                nodes=nodes,
                cotenancy=entry.cotenancy,
            )
        )
    return tuple(found)


def accounts(scenario: Scenario) -> tuple[Account, ...]:
    """Return the tree of accounts: partners under one root, or, where nothing is shared, each its own root.

    A partner that the scenario gives no quotas may hold every flavor; where it gives no nominal, that is what the
    partner's sites hold less what its projects have as theirs.
    """
    pool = scenario.sharing is Sharing.POOL
    partners = {ids.partner_of(name) for name in (*scenario.sites, *scenario.quotas)}
    found = [Account(id="", parent=None)] if pool else []
    for name in sorted(partners | set(scenario.quotas)):
        entries = scenario.quotas.get(name, dict.fromkeys(scenario.flavors, QuotaEntry()))
        quotas = tuple(
            Quota(
                account=name,
                flavor=flavor,
                nominal=scenario.nominal(name, flavor),
                borrowing_limit=entry.borrowing_limit,
                lending_limit=entry.lending_limit,
            )
            for flavor, entry in sorted(entries.items())
        )
        parent = ids.partner_of(name) if "/" in name else "" if pool else None
        found.append(Account(id=name, parent=parent, weight=scenario.weights.get(name, 1), quotas=quotas))
    return tuple(found)


def windows(scenario: Scenario) -> tuple[Window, ...]:
    """Return the intervals in which nodes are set aside, by id."""
    return tuple(
        Window(
            id=name,
            kind=entry.kind,
            site=entry.site,
            nodes=entry.nodes,
            start_ms=EPOCH_MS + round(entry.from_h * MS_PER_HOUR),
            end_ms=EPOCH_MS + round(entry.until_h * MS_PER_HOUR),
            account=entry.account,
        )
        for name, entry in sorted(scenario.windows.items())
    )


def snapshot(scenario: Scenario) -> Snapshot:
    """Return the federation at virtual time 0: every site active, nothing running, nothing waiting."""
    return Snapshot(
        now_ms=EPOCH_MS,
        sites=tuple(SiteView(site=site, state=SiteState.ACTIVE) for site in sites(scenario)),
        accounts=accounts(scenario),
        held=(),
        pending=(),
        windows=windows(scenario),
        settings=scenario.scheduler,
    )


class Borders:
    """The sites a job may not use, as the verdicts the scheduler reads; jobs of one class share one dict."""

    def __init__(self, scenario: Scenario) -> None:
        self._sites = tuple(sorted(scenario.sites))
        self._known: dict[tuple[str, ...], dict[str, Reason]] = {(): {}}

    def unfit(self, allowed: tuple[str, ...]) -> dict[str, Reason]:
        """Return the sites outside `allowed`, with why; none where it is empty."""
        found = self._known.get(allowed)
        if found is None:
            found = self._known[allowed] = {
                name: Reason(
                    code=ReasonCode.TERRITORY, message=f"may run at {', '.join(allowed)} only, not at {name}", site=name
                )
                for name in self._sites
                if name not in allowed
            }
        return found


def pending(job: Job, borders: Borders, *, done_ms: int = 0, expected_s: int = 0) -> PendingJob:
    """Return the job as the scheduler sees it while it waits: with all of its walltime, whatever checkpoints kept."""
    at = job.gang or (job.allowed if len(job.allowed) == 1 else ())
    return PendingJob(
        id=job.id,
        account=job.account,
        priority=job.priority,
        created_ms=EPOCH_MS + job.submit_ms,
        gpus=job.gpus,
        gpus_per_worker=job.gpus_per_worker,
        flavors=job.flavors,
        walltime_s=job.walltime_s,
        sites=at,
        min_sites=max(1, len(job.gang)),
        done_ms=done_ms,
        expected_s=expected_s,
        checkpoint_every_s=job.checkpoint_every_s,
        preemptible=job.preemptible,
        unfit={} if at == job.allowed else borders.unfit(job.allowed),
    )
