"""One concrete change after which a blocked job would start now. A change is only named after it was tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from consortium.scheduler.board import Board, Layer, Shadow
from consortium.scheduler.fit import find_legs, quota_for, rooms_at
from consortium.scheduler.types import PendingJob


def suggest(board: Board, job: PendingJob, sites: Sequence[str], layers: Sequence[Layer]) -> str:
    """Name a change of the job that lets it start at its turn in this cycle; empty where none was found.

    Tried in this order: a shorter walltime, fewer GPUs, any flavor.
    """
    for changed, text, places, beside in _changes(board, job, sites, layers):
        legs = find_legs(changed, places, beside) if places else None
        if legs is not None:
            return f"{text}: it would start now at {', '.join(leg.site for leg in legs)}"
    return ""


_Change = tuple[PendingJob, str, Sequence[str], Sequence[Layer]]


def _changes(board: Board, job: PendingJob, sites: Sequence[str], layers: Sequence[Layer]) -> Iterator[_Change]:
    shadows = sorted((item for item in layers if isinstance(item, Shadow)), key=lambda item: -item.start_ms)
    for shadow in shadows:
        shorter_s = (shadow.start_ms - board.now_ms) // 60_000 * 60
        if shorter_s:
            beside = [layer for layer in layers if not isinstance(layer, Shadow) or layer.start_ms < shadow.start_ms]
            yield replace(job, walltime_s=shorter_s), f"ask for walltime_s={shorter_s}", sites, beside
    fewer = _fewer(board, job, sites, layers)
    if fewer:
        yield replace(job, gpus=fewer), f"ask for gpus={fewer}", sites, layers
    if job.flavors and not job.sites:
        others = [
            site
            for site, view in board.views.items()
            if board.open(site)
            and site not in job.denied
            and site not in job.unfit
            and view.site.flavor.id not in job.flavors
        ]
        for site in others:
            flavor = board.views[site].site.flavor.id
            yield replace(job, flavors=(*job.flavors, flavor)), f"accept {flavor} as well", (site,), layers


def _fewer(board: Board, job: PendingJob, sites: Sequence[str], layers: Sequence[Layer]) -> int:
    """The most GPUs per leg that quota and free nodes allow now; 0 where not one worker fits."""
    legs_per_flavor: dict[str, int] = {}
    for site in job.sites:
        flavor = board.views[site].site.flavor.id
        legs_per_flavor[flavor] = legs_per_flavor.get(flavor, 0) + 1
    most = []
    for site in sites:
        flavor = board.views[site].site.flavor.id
        quota = quota_for(job, flavor, layers) // legs_per_flavor.get(flavor, 1)
        room = min(sum(rooms_at(job, site, layers).values()), quota, job.gpus)
        most.append(room - room % job.gpus_per_worker)
    return (min(most) if job.sites else max(most)) if most else 0
