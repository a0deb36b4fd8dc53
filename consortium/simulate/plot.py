"""A picture of a replay: who used how many GPUs over time, who borrowed from whom, and how much work waited."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from consortium.config import Scenario
from consortium.domain.units import MS_PER_HOUR
from consortium.errors import UsageError
from consortium.simulate.figures import Meter, Moment

_BINS = 720
_DAYS_FROM_H = 96
"""Longer replays are drawn over days, shorter ones over hours."""


class Averages:
    """Moments averaged over bins of equal length; columns are per partner."""

    def __init__(self, moments: list[Moment], partners: int, bins: int = _BINS) -> None:
        end_ms = moments[-1].t_ms if moments else 0
        self.width_ms = max(1.0, end_ms / bins)
        self.starts_h = [at * self.width_ms / MS_PER_HOUR for at in range(bins)]
        self.held = [[0.0] * bins for _ in range(partners)]
        self.borrowed = [[0.0] * bins for _ in range(partners)]
        self.lent = [[0.0] * bins for _ in range(partners)]
        self.queued = [0.0] * bins
        for moment, following in pairwise(moments):
            self._spread(moment, following.t_ms, bins)

    def _spread(self, moment: Moment, until_ms: int, bins: int) -> None:
        for at in range(int(moment.t_ms / self.width_ms), bins):
            start_ms, end_ms = max(moment.t_ms, at * self.width_ms), min(until_ms, (at + 1) * self.width_ms)
            if start_ms >= end_ms:
                break
            part = (end_ms - start_ms) / self.width_ms
            self.queued[at] += part * moment.queued
            for partner, held in enumerate(moment.held):
                self.held[partner][at] += part * held
                self.borrowed[partner][at] += part * moment.borrowed[partner]
                self.lent[partner][at] += part * moment.lent[partner]


def draw(path: Path, scenario: Scenario, meter: Meter) -> None:
    """Write the picture as SVG or PNG, by the file's ending. Raises UsageError where it cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "consortium"  # the same picture is the same bytes
    import matplotlib.pyplot as plt

    seen = Averages(meter.moments, len(meter.partners))
    unit, scale = ("days", 24.0) if seen.starts_h[-1] >= _DAYS_FROM_H else ("hours", 1.0)
    times = [hour / scale for hour in seen.starts_h]
    figure, (use, lending, queue) = plt.subplots(
        3, 1, sharex=True, figsize=(11, 8.5), height_ratios=(3, 2, 1.2), layout="constrained"
    )
    palette = matplotlib.colormaps["tab10" if len(meter.partners) <= 10 else "tab20"]
    colours = [palette(at % palette.N) for at in range(len(meter.partners))]
    below, lent_below, borrowed_below = [0.0] * len(times), [0.0] * len(times), [0.0] * len(times)
    for at, (partner, colour) in enumerate(zip(meter.partners, colours, strict=True)):
        top = _added(below, seen.held[at])
        own = _added(top, seen.borrowed[at], sign=-1)
        use.fill_between(times, below, own, color=colour, step="post", linewidth=0, label=partner)
        use.fill_between(times, own, top, facecolor=colour, hatch="////", edgecolor="white", step="post", linewidth=0)
        below = top
        above = _added(borrowed_below, seen.borrowed[at])
        lending.fill_between(times, borrowed_below, above, color=colour, step="post", linewidth=0)
        borrowed_below = above
        beneath = _added(lent_below, seen.lent[at], sign=-1)
        lending.fill_between(times, lent_below, beneath, color=colour, alpha=0.55, step="post", linewidth=0)
        lent_below = beneath
    use.axhline(meter.capacity, color="black", linewidth=0.8, linestyle="--")
    use.set_ylabel("GPUs in use\n(hatched: borrowed)")
    use.set_title(
        f"{scenario.name}{f', {scenario.variant}' if scenario.variant else ''}: {scenario.about}", fontsize=11
    )
    use.legend(ncols=min(10, len(meter.partners)), loc="upper center", bbox_to_anchor=(0.5, -0.02), fontsize=8)
    lending.axhline(0, color="black", linewidth=0.8)
    lending.set_ylabel("GPUs lent (below 0)\nand borrowed")
    queue.fill_between(times, seen.queued, color="dimgray", step="post", linewidth=0)
    queue.set_ylabel("GPUs that\nwaiting jobs ask for")
    queue.set_ylim(bottom=0)
    queue.set_xlabel(unit)
    queue.set_xlim(0, times[-1])
    try:
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as fault:
        raise UsageError(f"cannot write the plot: {fault.strerror}", where=str(path)) from fault
    finally:
        plt.close(figure)


def _added(base: list[float], values: list[float], sign: int = 1) -> list[float]:
    """Return `base` plus `values`, element by element; minus, with `sign` -1."""
    return [low + sign * value for low, value in zip(base, values, strict=True)]
