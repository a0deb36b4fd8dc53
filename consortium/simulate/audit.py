"""An independent check of a replay: it sees the events and the scenario, and shares no code with the scheduler.

It keeps its own books: GPUs per node, the site a node belongs to, what each account holds. `violations` counts
breaches:

- `capacity`: a node with more GPUs taken than it has, or one its site does not have; a start at a site or node that
  takes none (lost, drained, withdrawn, in maintenance, reserved for others), or a job still there when a window begins;
  a node shared against the site's rule.
- `gang`: a job that does not start with all its legs, whole workers and all GPUs at one instant, that starts twice or
  before it was submitted, or that ends without having started.
- `territory`: a leg where the job may not run, or on a flavor it does not accept.
- `quota`: after a start, an account above nominal plus its borrowing limit, or the cohort above what its members own
  and lend.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from consortium.config import Scenario
from consortium.domain.partner import Cotenancy, SiteState
from consortium.domain.quota import Account, Quota
from consortium.domain.units import MS_PER_HOUR
from consortium.scheduler.types import Window, WindowKind
from consortium.simulate import world
from consortium.simulate.events import Event, Kind
from consortium.simulate.workload import Job

RULES = ("quota", "capacity", "gang", "territory")


class Quotas:
    """What every account holds, and whether that is within what it owns and may borrow.

    For a flavor, `own(a)` is nominal(a) plus, over its children, own(c) less what c keeps for itself: with a lending
    limit max(0, own(c) - limit). `use(a)` is what a holds plus, over its children, what each holds above what it keeps.
    Then `use(a)` may be at most own(a) plus the borrowing limit of a; at a root there is nobody to borrow from.
    """

    def __init__(self, accounts: Iterable[Account]) -> None:
        self._parent = {account.id: account.parent for account in accounts}
        self._limit: dict[tuple[str, str], int | None] = {}
        self._kept: dict[tuple[str, str], int] = {}
        self._use: dict[tuple[str, str], int] = defaultdict(int)
        self._declared = {(quota.account, quota.flavor): quota for account in accounts for quota in account.quotas}
        for flavor in sorted({flavor for _, flavor in self._declared}):
            for account in (name for name, parent in self._parent.items() if parent is None):
                self._own(account, flavor)

    def _own(self, account: str, flavor: str) -> int:
        quota: Quota | None = self._declared.get((account, flavor))
        own = quota.nominal if quota else 0
        for child, parent in self._parent.items():
            if parent == account:
                own += self._own(child, flavor) - self._kept[child, flavor]
        lends = quota.lending_limit if quota else None
        borrows = quota.borrowing_limit if quota else None
        self._kept[account, flavor] = 0 if lends is None else max(0, own - lends)
        if self._parent[account] is None:
            borrows = 0
        self._limit[account, flavor] = None if borrows is None else own + borrows
        return own

    def change(self, account: str, flavor: str, gpus: int) -> None:
        """Count GPUs taken (or, below 0, given back), up the tree as far as they are not the account's own to keep."""
        node: str | None = account
        while node is not None and gpus:
            key = (node, flavor)
            before = max(0, self._use[key] - self._kept.get(key, 0))
            self._use[key] += gpus
            gpus = max(0, self._use[key] - self._kept.get(key, 0)) - before
            node = self._parent[node]

    def broken(self, account: str, flavor: str) -> bool:
        """Whether the account, or one above it, holds more of the flavor than it may."""
        if (account, flavor) not in self._declared:
            return True
        node: str | None = account
        while node is not None:
            limit = self._limit[node, flavor]
            if limit is not None and self._use[node, flavor] > limit:
                return True
            node = self._parent[node]
        return False


class Auditor:
    """Counts breaches event by event. Call `close` after the last event."""

    def __init__(self, scenario: Scenario) -> None:
        self.violations: dict[str, int] = dict.fromkeys(RULES, 0)
        self.found: list[str] = []
        """The first hundred, in words."""
        sites = world.sites(scenario)
        self._flavor = {site.id: site.flavor.id for site in sites}
        self._size = {site.id: {node.id: node.gpus for node in site.nodes} for site in sites}
        self._free = {site.id: {node.id: node.gpus for node in site.nodes} for site in sites}
        self._shared = {site.id: site.cotenancy for site in sites if site.cotenancy is not Cotenancy.OPEN}
        self._tenants: dict[str, Counter[str]] = defaultdict(Counter)
        self._quotas = Quotas(world.accounts(scenario))
        self._windows = world.windows(scenario)
        self._ahead = sorted(self._windows, key=lambda window: (-window.start_ms, window.id))
        """Windows that have not begun; the next is the last."""
        self._states = _States(scenario)
        self._submitted: set[str] = set()
        self._legs: dict[str, dict[str, Mapping[str, int]]] = {}
        """Job to its legs: site to nodes."""
        self._job: dict[str, Job] = {}
        self._starting: dict[str, Job] = {}
        self._now_ms = 0

    def see(self, event: Event) -> None:
        """Check one event."""
        t_ms, kind, job, _, _, _ = event
        if t_ms != self._now_ms:
            if t_ms < self._now_ms:
                self._break("gang", event, "is written after later events")
            self._settle()
            while self._ahead and self._ahead[-1].start_ms - world.EPOCH_MS < t_ms:
                self._begin(self._ahead.pop())
            self._now_ms = t_ms
        if kind is Kind.START:
            self._start(event)
        elif kind is Kind.SUBMIT:
            if job.id in self._submitted:
                self._break("gang", event, "is submitted twice")
            self._submitted.add(job.id)
        else:
            self._end(event)

    def close(self) -> None:
        """Check what the last instant left open."""
        self._settle()

    def _start(self, event: Event) -> None:
        t_ms, _, job, site, gpus, nodes = event
        legs = self._legs.setdefault(job.id, {})
        if job.id not in self._submitted or t_ms < job.submit_ms:
            self._break("gang", event, "starts before it is submitted")
        if legs and (job.id not in self._starting or site in legs):
            self._break("gang", event, "starts while it runs")
            return
        legs[site] = nodes
        self._starting[job.id] = job
        if self._ahead:
            self._job[job.id] = job
        flavor = self._flavor.get(site)
        if flavor is None or (job.allowed and site not in job.allowed) or (job.gang and site not in job.gang):
            self._break("territory", event, "may not run there")
        elif job.flavors and flavor not in job.flavors:
            self._break("territory", event, f"does not accept {flavor}")
        if (
            gpus != job.gpus
            or sum(nodes.values()) != gpus
            or any(n < 1 or n % job.gpus_per_worker for n in nodes.values())
        ):
            self._break("gang", event, f"gets {dict(nodes)} for {job.gpus} GPUs in workers of {job.gpus_per_worker}")
        if self._states.closed(site, t_ms) or self._set_aside(event):
            self._break("capacity", event, "starts where nothing may start now")
        self._take(event)
        self._quotas.change(job.account, flavor or "", sum(nodes.values()))

    def _take(self, event: Event) -> None:
        _, _, job, site, _, nodes = event
        free = self._free.get(site, {})
        over = False
        for node, gpus in nodes.items():
            left = free.get(node, 0) - gpus
            over = over or left < 0
            free[node] = left
        if over:
            self._break("capacity", event, "takes GPUs that are not free")
        if site in self._shared:
            tenant = job.partner if self._shared[site] is Cotenancy.PARTNER else job.id
            for node in nodes:
                self._tenants[node][tenant] += 1
            if any(len(self._tenants[node]) > 1 for node in nodes):
                self._break("capacity", event, f"shares a node against the rule {self._shared[site].value}")

    def _end(self, event: Event) -> None:
        _, _, job, site, _, nodes = event
        legs = self._legs.get(job.id, {})
        if legs.get(site) != nodes or job.id in self._starting:
            self._break("gang", event, "ends what it did not start")
            return
        del legs[site]
        free = self._free.get(site, {})
        for node, gpus in nodes.items():
            free[node] = free.get(node, 0) + gpus
        if site in self._shared:
            tenant = job.partner if self._shared[site] is Cotenancy.PARTNER else job.id
            for node in nodes:
                self._tenants[node] -= Counter((tenant,))
        self._quotas.change(job.account, self._flavor.get(site, ""), -sum(nodes.values()))

    def _settle(self) -> None:
        """Judge what started at one instant as a whole."""
        for name, job in self._starting.items():
            if job.gang and set(self._legs[name]) != set(job.gang):
                self._note("gang", f"{name} starts at {sorted(self._legs[name])} of {sorted(job.gang)}")
            elif not job.gang and len(self._legs[name]) != 1:
                self._note("gang", f"{name} starts at {sorted(self._legs[name])} and not at one site")
        touched = {
            (job.account, self._flavor.get(site, ""))
            for name, job in self._starting.items()
            for site in self._legs[name]
        }
        for account, flavor in sorted(touched):
            if self._quotas.broken(account, flavor):
                self._note("quota", f"{account} holds more {flavor} than it may at {self._now_ms / 1000:g} s")
        self._starting = {}

    def _begin(self, window: Window) -> None:
        """A window has begun: who may not use its nodes must be gone."""
        for name, legs in self._legs.items():
            nodes = legs.get(window.site, {})
            taken = [node for node in nodes if not window.nodes or node in window.nodes]
            if taken and not _reserved_for(window, self._job[name]):
                self._note("capacity", f"{name} still runs on {taken[0]} when {window.id} begins")

    def _set_aside(self, event: Event) -> bool:
        """Whether a window keeps the job from one of its nodes at this instant."""
        t_ms, _, job, site, _, nodes = event
        return any(
            window.site == site
            and window.start_ms <= world.EPOCH_MS + t_ms < window.end_ms
            and (not window.nodes or not nodes.keys().isdisjoint(window.nodes))
            and not _reserved_for(window, job)
            for window in self._windows
        )

    def _break(self, rule: str, event: Event, what: str) -> None:
        self._note(rule, f"{event.job.id} {what}: {event.kind.value} at {event.site} at {event.t_ms / 1000:g} s")

    def _note(self, rule: str, what: str) -> None:
        self.violations[rule] += 1
        if len(self.found) < 100:
            self.found.append(f"{rule}: {what}")


class _States:
    """When each site takes no new legs, from the scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self._changes: dict[str, list[tuple[int, SiteState]]] = defaultdict(list)
        for change in sorted(scenario.changes.values(), key=lambda item: item.at_h):
            self._changes[change.site].append((round(change.at_h * MS_PER_HOUR), change.state))

    def closed(self, site: str, t_ms: int) -> bool:
        state = SiteState.ACTIVE
        for at_ms, became in self._changes.get(site, ()):
            if at_ms <= t_ms:
                state = became
        return state is not SiteState.ACTIVE


def _reserved_for(window: Window, job: Job) -> bool:
    account = window.account
    return window.kind is WindowKind.RESERVATION and (job.account == account or job.account.startswith(f"{account}/"))
