"""Where a job fits: nodes within a site, legs across sites. All or nothing; the first layer is the present."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from consortium.domain import ids
from consortium.scheduler.board import NOBODY, Board, Layer
from consortium.scheduler.types import LegPlacement, PendingJob


def lay_out(rooms: dict[str, int], gpus: int) -> dict[str, int] | None:
    """Choose nodes for `gpus`: the fewest nodes, fullest rooms first, and the tightest node for what remains.

    `rooms` and `gpus` are multiples of the worker's size, so every layout of them is one of whole workers.
    """
    if sum(rooms.values()) < gpus:
        return None
    fitting = [(room, node) for node, room in rooms.items() if room >= gpus]
    if fitting:
        return {min(fitting)[1]: gpus}
    taken: dict[str, int] = {}
    left = gpus
    for node, room in sorted(rooms.items(), key=lambda item: (-item[1], item[0])):
        if room >= left:
            _, tightest = min((free, name) for name, free in rooms.items() if free >= left and name not in taken)
            taken[tightest] = left
            break
        taken[node] = room
        left -= room
    return dict(sorted(taken.items()))


def rooms_at(
    job: PendingJob,
    site: str,
    layers: Iterable[Layer],
    *,
    cotenancy: bool = True,
    barred: frozenset[str] = NOBODY,
) -> dict[str, int]:
    """GPUs per node the job's workers could take in every layer that shows the site, `barred` nodes left out."""
    rooms: dict[str, int] | None = None
    partner = ids.partner_of(job.account)
    for layer in layers:
        if (use := layer.use(site)) is None:
            continue
        tenant = use.tenant(job.id, partner) if cotenancy else None
        here = use.rooms(tenant, job.gpus_per_worker)
        rooms = here if rooms is None else {node: min(rooms[node], here[node]) for node in rooms if node in here}
    if rooms and barred:
        rooms = {node: room for node, room in rooms.items() if node not in barred}
    return rooms or {}


def nodes_at(
    job: PendingJob,
    site: str,
    layers: Sequence[Layer],
    *,
    cotenancy: bool = True,
    barred: frozenset[str] = NOBODY,
) -> dict[str, int] | None:
    """The nodes for the job's leg at `site`, or None."""
    for layer in layers:
        if (use := layer.use(site)) is None:
            continue
        if use.free_total < job.gpus:
            return None
        tenant = use.tenant(job.id, ids.partner_of(job.account)) if cotenancy else None
        if use.room(tenant, job.gpus_per_worker) < job.gpus:
            return None
    return lay_out(rooms_at(job, site, layers, cotenancy=cotenancy, barred=barred), job.gpus)


def quota_for(job: PendingJob, flavor: str, layers: Iterable[Layer]) -> int:
    """GPUs of the flavor the job's account may take in every layer."""
    trees = (layer.limits() for layer in layers)
    return min(tree.available(job.account, flavor).gpus for tree in trees if tree is not None)


def quota_allows(job: PendingJob, flavor: str, gpus: int, layers: Iterable[Layer]) -> bool:
    """Whether the job's account may take `gpus` of the flavor in every layer."""
    for layer in layers:
        tree = layer.limits()
        if tree is not None and tree.available(job.account, flavor).gpus < gpus:
            return False
    return True


def demand(job: PendingJob, flavors: dict[str, str]) -> dict[str, int]:
    """GPUs the job takes per flavor; `flavors` maps each of its sites to the site's flavor."""
    need: dict[str, int] = {}
    for flavor in flavors.values():
        need[flavor] = need.get(flavor, 0) + job.gpus
    return need


def find_legs(
    board: Board, job: PendingJob, sites: Sequence[str], layers: Sequence[Layer], spoken_for: Container[str] = ()
) -> tuple[LegPlacement, ...] | None:
    """Place the job at all of `sites` (where it names its sites) or at the best one of them; None if it does not fit.

    Best: not borrowing, then a site that no other waiting job depends on (`spoken_for`), then a site of the account's
    own partner, then the flavor it prefers, then the fewest nodes, then the least room left over on them, then the
    site's id. For a nominated job its partner's sites come before what others depend on: where room was made for it at
    home, it stays at home, and whoever made room has no right against it there.
    """
    if job.sites:
        return _everywhere(board, job, sites, layers)
    return _best(board, job, sites, layers, spoken_for)


def on_loan(board: Board, job: PendingJob, site: str, gpus: int) -> bool:
    """Whether the job would run there on what is not its account's: above nominal, or on another partner's GPUs."""
    guest = board.sites[site].site.partner != ids.partner_of(job.account)
    return guest or board.quota.borrowed(job.account, board.flavors[site], gpus) > 0


def _everywhere(
    board: Board, job: PendingJob, sites: Sequence[str], layers: Sequence[Layer]
) -> tuple[LegPlacement, ...] | None:
    if any(board.sites[site].free_total < job.gpus for site in sites):
        return None
    flavors = {site: board.flavors[site] for site in sites}
    need = demand(job, flavors)
    for flavor, gpus in need.items():
        if not quota_allows(job, flavor, gpus, layers):
            return None
    legs = []
    for site in sites:
        if site in board.claimed and on_loan(board, job, site, need[flavors[site]]):
            return None
        nodes = nodes_at(job, site, layers, barred=board.barred(job, site, board.now_ms))
        if nodes is None:
            return None
        legs.append(LegPlacement(site=site, flavor=flavors[site], nodes=nodes))
    return tuple(legs)


def _best(
    board: Board, job: PendingJob, sites: Sequence[str], layers: Sequence[Layer], spoken_for: Container[str]
) -> tuple[LegPlacement, ...] | None:
    present = layers[0]
    partner = ids.partner_of(job.account)
    allowed: dict[str, bool] = {}
    borrows: dict[str, bool] = {}
    best: tuple[tuple[object, ...], LegPlacement] | None = None
    for site in sites:
        use = present.sites[site]
        if use.free_total < job.gpus:
            continue
        flavor = board.flavors[site]
        if flavor not in allowed:
            allowed[flavor] = quota_allows(job, flavor, job.gpus, layers)
            borrows[flavor] = board.quota.borrowed(job.account, flavor, job.gpus) > 0
        if not allowed[flavor]:
            continue
        guest = use.site.partner != partner
        if site in board.claimed and (borrows[flavor] or guest):
            continue
        first = (borrows[flavor], job.nominated and guest, site in spoken_for, guest)
        if best is not None and first > best[0][:4]:
            continue
        nodes = nodes_at(job, site, layers, barred=board.barred(job, site, board.now_ms))
        if nodes is None:
            continue
        rank = (
            *first,
            job.flavors.index(flavor) if job.flavors else 0,
            len(nodes),
            sum(use.free[node] for node in nodes) - job.gpus,
            site,
        )
        if best is None or rank < best[0]:
            best = rank, LegPlacement(site=site, flavor=flavor, nodes=nodes)
    return None if best is None else (best[1],)
