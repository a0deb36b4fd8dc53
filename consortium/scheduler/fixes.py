"""One concrete change after which a blocked job would start now. A change is only named after it was tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from consortium.scheduler.board import Board, Layer, Shadow
from consortium.scheduler.fit import find_legs, quota_for, rooms_at
from consortium.scheduler.types import LegPlacement, PendingJob


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change that was tried: the job with it, and what to tell its owner."""

    fix: str
    changed: PendingJob


def suggest(board: Board, job: PendingJob, sites: Sequence[str], layers: Sequence[Layer]) -> str:
    """Name a change of the job that lets it start at its turn in this cycle; empty where none was found."""
    found = next(suggestions(board, job, sites, layers), None)
    return found.fix if found else ""


def suggestions(board: Board, job: PendingJob, sites: Sequence[str], layers: Sequence[Layer]) -> Iterator[Suggestion]:
    """Yield changes for which there is room at the job's turn: a shorter walltime, fewer GPUs, one more flavor.

    A changed job may get another turn, and others before it other places: who promises a start schedules anew.
    """
    for text, changed, legs in _changes(board, job, sites, layers):
        if legs is not None:
            yield Suggestion(f"{text}: it would start now at {', '.join(leg.site for leg in legs)}", changed)


_Tried = tuple[str, PendingJob, tuple[LegPlacement, ...] | None]


def _changes(board: Board, job: PendingJob, sites: Sequence[str], layers: Sequence[Layer]) -> Iterator[_Tried]:
    if len(layers) > 1:
        yield _shorter(board, job, sites, layers)
    if fewer := _fewer(board, job, sites, layers):
        changed = replace(job, gpus=fewer)
        yield f"ask for gpus={fewer}", changed, find_legs(board, changed, sites, layers)
    if job.flavors and not job.sites:
        for site, view in board.views.items():
            flavor = view.site.flavor.id
            barred = site in job.denied or site in job.unfit or not board.open(site)
            if not barred and flavor not in job.flavors:
                changed = replace(job, flavors=(*job.flavors, flavor))
                yield f"accept {flavor} as well", changed, find_legs(board, changed, (site,), layers)


def _shorter(board: Board, job: PendingJob, sites: Sequence[str], layers: Sequence[Layer]) -> _Tried:
    """The longest walltime, in whole minutes, with which the job ends before what it would delay."""
    legs = find_legs(board, job, sites, layers[:1])
    if legs is None:  # reservations are not what keeps it
        return "", job, None
    shadows = sorted((item for item in layers if isinstance(item, Shadow)), key=lambda item: item.start_ms)
    none, some = 0, len(shadows)  # it fits beside the first `none` reservations, not beside the first `some`
    while some - none > 1:
        middle = (none + some) // 2
        tried = find_legs(board, job, sites, (layers[0], *shadows[:middle]))
        if tried is None:
            some = middle
        else:
            none, legs = middle, tried
    walltime_s = (shadows[none].start_ms - board.now_ms) // 60_000 * 60
    return f"ask for walltime_s={walltime_s}", replace(job, walltime_s=walltime_s), legs if walltime_s else None


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
