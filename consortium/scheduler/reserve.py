"""Reservations: when a blocked job fits at the latest, and the picture of that instant."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from consortium.scheduler.board import Board, Layer, Shadow, running_leg
from consortium.scheduler.fit import find_legs
from consortium.scheduler.types import LegPlacement, PendingJob


def earliest_fit(board: Board, job: PendingJob, sites: Sequence[str], ahead: Sequence[Shadow]) -> Shadow | None:
    """Return when and where the job fits first if every held leg ends by its walltime, with the job in the picture.

    `sites` are those the job may use (all of them, where it names its sites). Jobs `ahead` that hold reservations
    count against quota from now on. None: it does not fit even when all legs have ended.
    """
    at_t = Layer({site: board.sites[site].copy() for site in sites}, board.quota.copy())
    for shadow in ahead:
        for placed in shadow.legs:
            at_t.quota.charge(shadow.job.account, placed.flavor, placed.gpus)
    flavors = {board.views[site].site.flavor.id for site in sites}
    if (legs := find_legs(job, sites, (at_t,))) is not None:
        return _shadow(at_t, job, board.now_ms, legs)
    ending = (leg for leg in board.running if leg.flavor in flavors)
    for ends_ms, group in groupby(ending, key=lambda leg: leg.ends_ms):
        for leg in group:
            at_t.release(leg)
        if (legs := find_legs(job, sites, (at_t,))) is not None:
            return _shadow(at_t, job, ends_ms, legs)
    return None


def _shadow(layer: Layer, job: PendingJob, start_ms: int, legs: tuple[LegPlacement, ...]) -> Shadow:
    kept = Layer({leg.site: layer.sites[leg.site] for leg in legs}, layer.quota)
    for placed in legs:
        kept.take(running_leg(job, placed, start_ms))
    return Shadow(kept, job, start_ms, legs)
