"""Random federations and workloads for the properties of the scheduler, drawn by Hypothesis."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Priority
from consortium.domain.partner import Cotenancy, Site, SiteState
from consortium.domain.quota import Account
from consortium.scheduler import History, PendingJob, Settings, SiteView, Snapshot, Window, WindowKind, apply, schedule
from tests.builders import NOW_MS, account, new_id, site
from tests.scheduler.worlds import A100, H100, job

few = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)  # fmt: skip
"""What a property of whole federations may cost: about two seconds."""

EARLIER_MS = 400_000
"""How long ago the legs of a drawn federation started."""
_LIMIT = st.one_of(st.none(), st.integers(0, 12))


@st.composite
def accounts_of(draw: st.DrawFn, partners: tuple[str, ...]) -> tuple[Account, ...]:
    names = [*partners, *(f"{partner}/lab" for partner in partners if draw(st.booleans()))]
    made = []
    for name in names:
        quotas: dict[str, int | tuple[int, int | None, int | None]] = {}
        for flavor in (H100, A100):
            if draw(st.integers(0, 9)):
                nominal = draw(st.integers(0, 12))
                lending = draw(st.one_of(st.none(), st.integers(0, nominal)))
                quotas[flavor] = (nominal, draw(_LIMIT), lending)
        made.append(account(name, quotas, weight=draw(st.sampled_from((1, 1, 2)))))
    return tuple(made)


@st.composite
def pending_jobs(
    draw: st.DrawFn,
    accounts: tuple[str, ...],
    sites: tuple[Site, ...],
    least: int = 1,
    most: int = 14,
    *,
    lasting: bool = True,
) -> list[PendingJob]:
    """Jobs; `lasting` obstacles (nodes to avoid, what is outside the scheduler) among them or not."""
    names = tuple(item.id for item in sites)
    no = {name: Reason(code=ReasonCode.POLICY, message=f"{name}: not for this purpose", site=name) for name in names}
    after = Reason(code=ReasonCode.DEPENDENCY, message="comes after another job", numbers={"after": "job-x"})
    jobs = []
    for number in range(draw(st.integers(least, most))):
        worker = draw(st.sampled_from((1, 1, 1, 2, 4)))
        named = draw(st.sampled_from((0, 0, 0, 1, 2, 3)))
        walltime_s = draw(st.sampled_from((60, 300, 900, 3600)))
        seldom = draw(st.integers(0, 15)) if lasting else 9
        jobs.append(
            job(
                number,
                account=draw(st.sampled_from(accounts)),
                created_ms=NOW_MS - draw(st.sampled_from((0, 100_000, 1_000_000))) + number,
                priority=draw(st.sampled_from(tuple(Priority))),
                gpus=worker * draw(st.sampled_from((1, 1, 2, 3, 4, 8))),
                gpus_per_worker=worker,
                flavors=draw(st.sampled_from(((), (), (H100,), (A100,), (A100, H100)))),
                walltime_s=walltime_s,
                expected_s=draw(st.sampled_from((0, walltime_s // 4))),
                checkpoint_every_s=draw(st.sampled_from((0, 50, 600))),
                preemptible=draw(st.sampled_from((True, True, True, False))),
                sites=tuple(sorted(draw(st.permutations(names))[: min(named, len(names))])),
                denied={name: no[name] for name in draw(st.permutations(names))[: draw(st.sampled_from((0, 0, 0, 1)))]},
                avoid=((draw(st.sampled_from(names)), "n0"),) if seldom < 3 else (),
                waits_for=after if seldom == 3 else None,
                not_before_ms=NOW_MS + 30_000 if seldom == 4 else 0,
            )
        )
    return jobs


@st.composite
def windows_of(draw: st.DrawFn, sites: tuple[Site, ...], accounts: tuple[str, ...]) -> tuple[Window, ...]:
    made = []
    for number in range(draw(st.sampled_from((0, 0, 1, 2)))):
        kind = draw(st.sampled_from(tuple(WindowKind)))
        start_s = draw(st.sampled_from((-300, 100, 400, 1500)))
        made.append(
            Window(
                id=f"win-{number}",
                kind=kind,
                site=draw(st.sampled_from(sites)).id,
                nodes=draw(st.sampled_from(((), ("n0",)))),
                start_ms=NOW_MS + start_s * 1000,
                end_ms=NOW_MS + (start_s + draw(st.sampled_from((200, 1000)))) * 1000,
                account=draw(st.sampled_from(accounts)) if kind is WindowKind.RESERVATION else "",
            )
        )
    return tuple(made)


@st.composite
def rules(draw: st.DrawFn) -> Settings:
    """Settings under which much happens within minutes."""
    return Settings(
        preemption=draw(st.sampled_from((True, True, True, False))),
        min_run_s=draw(st.sampled_from((60, 300))),
        stop_s=draw(st.sampled_from((5, 60))),
        disruption_percent=draw(st.sampled_from((100, 200))),
        ageing_s=draw(st.sampled_from((600, 172_800))),
        reservations=draw(st.sampled_from((1, 2, 8))),
    )


@st.composite
def federations(draw: st.DrawFn, least: int = 1, flavors: tuple[str, ...] = (H100, H100, A100)) -> tuple[Site, ...]:
    """Up to three states with up to two sites each, small nodes, every cotenancy."""
    sites = []
    for partner in ("de", "fr", "uy")[: draw(st.integers(least, 3))]:
        for number in range(1, draw(st.sampled_from((1, 1, 2))) + 1):
            nodes = tuple(draw(st.lists(st.sampled_from((1, 2, 4, 8)), min_size=1, max_size=3)))
            flavor, rule = draw(st.sampled_from(flavors)), draw(st.sampled_from(tuple(Cotenancy)))
            sites.append(site(f"{partner}-{number}", flavor, nodes, rule))
    return tuple(sites)


@st.composite
def owners(draw: st.DrawFn, sites: tuple[Site, ...]) -> tuple[Account, ...]:
    """Every partner's nominal is what its own sites have, some of it a project's; all of it may be lent."""
    made = []
    for partner in sorted({item.partner for item in sites}):
        own = {flavor: 0 for flavor in (H100, A100)}
        for item in sites:
            if item.partner == partner:
                own[item.flavor.id] += item.gpus
        if draw(st.booleans()):
            part = {flavor: gpus * draw(st.integers(0, 4)) // 4 for flavor, gpus in own.items()}
            made.append(account(f"{partner}/lab", part))
            own = {flavor: gpus - part[flavor] for flavor, gpus in own.items()}
        made.append(account(partner, own))
    return tuple(made)


@st.composite
def lent_out(draw: st.DrawFn) -> Snapshot:
    """A federation whose GPUs are in everybody's hands since an earlier cycle, and owners who wait."""
    sites = draw(federations(least=2, flavors=(H100, H100, H100, H100, A100)))
    accounts = draw(owners(sites))
    names = tuple(item.id for item in accounts)
    before = draw(pending_jobs(names, sites, least=8, lasting=False))
    held = [replace(item, denied={}, walltime_s=item.walltime_s * 10, priority=Priority.NORMAL) for item in before]
    waiting = draw(pending_jobs(names, sites, least=3, most=8, lasting=False))
    first = Snapshot(
        now_ms=NOW_MS - EARLIER_MS,
        sites=tuple(SiteView(site=item, state=SiteState.ACTIVE) for item in sites),
        accounts=accounts,
        held=(),
        pending=tuple(held),
    )
    after = apply(first, schedule(first))
    return replace(
        after,
        now_ms=NOW_MS,
        held=tuple(leg for leg in after.held if leg.ends_ms > NOW_MS),
        pending=tuple(replace(item, id=new_id("job", 500 + number)) for number, item in enumerate(waiting)),
        settings=replace(draw(rules()), preemption=True),
    )


@st.composite
def snapshots(draw: st.DrawFn, *, all_active: bool = False, lasting: bool = True) -> Snapshot:
    """A federation, jobs waiting, and legs held since an earlier cycle.

    `lasting` obstacles: cordoned nodes, nodes to be avoided, jobs that wait for something else.
    """
    sites = draw(federations())
    partners = tuple(sorted({item.partner for item in sites}))
    states = tuple(SiteState) if not all_active else (SiteState.ACTIVE,)
    views = tuple(
        SiteView(
            site=item,
            state=SiteState.ACTIVE if draw(st.integers(0, 3)) else draw(st.sampled_from(states)),
            cordoned=("n0",) if lasting and not draw(st.integers(0, 7)) else (),
        )
        for item in sites
    )
    accounts = draw(accounts_of(partners))
    names = tuple(item.id for item in accounts)
    jobs = draw(pending_jobs(names, sites, lasting=lasting))
    early = draw(st.integers(0, len(jobs)))
    first = Snapshot(
        now_ms=NOW_MS - EARLIER_MS,
        sites=tuple(SiteView(site=item, state=SiteState.ACTIVE) for item in sites),
        accounts=accounts,
        held=(),
        pending=tuple(jobs[:early]),
    )
    after = apply(first, schedule(first))
    borrowed = st.integers(0, 10**10)
    return replace(
        after,
        now_ms=NOW_MS,
        sites=views,
        held=tuple(leg for leg in after.held if leg.ends_ms > NOW_MS),
        pending=after.pending + tuple(jobs[early:]),
        windows=draw(windows_of(sites, names)),
        history=tuple(History(account=name, borrowed=draw(borrowed)) for name in names if not draw(st.integers(0, 3))),
        settings=draw(rules()),
    )
