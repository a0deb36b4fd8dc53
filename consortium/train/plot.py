"""Pictures of a training: loss per site and language over tokens, and what each site did when. SVG or PNG."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from consortium.domain.training import Round, RoundPhase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Form = Literal["svg", "png"]
FORMS: tuple[Form, ...] = ("svg", "png")
_LONGEST_S = 1e9
"""A span above it is none that a leg measured: nobody checks what a site's programs log."""
_TIMES = ("training_s", "waiting_s", "sending_s", "fetching_s")
_MOST_DRAWN = 1_000
"""Spans above which bars are narrower than a point: an SVG then holds them as an image, not as megabytes of paths."""
_UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A closed round."""

    round: int
    tokens: int
    """Of all contributions that counted."""
    losses: dict[str, float]
    """Mean training loss by site, nats per token, of contributions that counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What a site did in a round, as its leg measured it."""

    site: str
    round: int
    end_ms: int
    training_s: float
    waiting_s: float
    """All that is not training: sending, judging, fetching, and waiting for others."""
    sending_s: float = 0.0
    fetching_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A held-out loss that an `evaluate` job measured, nats per token."""

    language: str
    round: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """What the pictures show."""

    job: str
    name: str
    languages: dict[str, tuple[str, ...]]
    """Of the inputs, by site."""
    points: tuple[Point, ...]
    spans: tuple[Span, ...] = ()
    held_out: tuple[Measured, ...] = ()


def points(rounds: Iterable[Round]) -> tuple[Point, ...]:
    """Return the closed rounds that counted anything, in order."""
    found = []
    for one in sorted(rounds, key=lambda one: one.number):
        if one.phase is not RoundPhase.CLOSED or one.certificate is None or not one.certificate.contributions:
            continue
        counted = {part.site: part.digest for part in one.certificate.contributions}
        losses = {
            commit.site: loss
            for commit in one.commits
            if counted.get(commit.site) == commit.digest and (loss := commit.mean_loss) is not None
        }
        tokens = sum(part.tokens for part in one.certificate.contributions)
        found.append(Point(round=one.number, tokens=tokens, losses=dict(sorted(losses.items()))))
    return tuple(found)


def spans(site: str, history: Mapping[str, Sequence[tuple[int, int, float]]]) -> tuple[Span, ...]:
    """Return a site's spans from what its leg logged: metric to rows of (round, when in Unix ms, value).

    A round that was logged twice, by a leg that was started anew, counts as it was logged last. What is no time is left
    out.
    """
    values: dict[int, dict[str, float]] = {}
    ends: dict[int, int] = {}
    for name in _TIMES:
        for number, at_ms, value in sorted(history.get(name, ())):
            if not 0 <= value <= _LONGEST_S:
                continue
            values.setdefault(number, {})[name] = value
            ends[number] = max(ends.get(number, 0), at_ms)
    whole = {number: row for number, row in values.items() if "training_s" in row and "waiting_s" in row}
    return tuple(Span(site=site, round=number, end_ms=ends[number], **row) for number, row in sorted(whole.items()))


def draw(curves: Curves, form: Form) -> bytes:
    """Return the picture: losses above, the timeline below where there is one. The same curves give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    sites = sorted({site for point in curves.points for site in point.losses} | {span.site for span in curves.spans})
    ratios = (3.0, 0.5 + 0.45 * len(sites)) if curves.spans else (3.0,)
    figure = Figure(figsize=(11, 1.8 + 1.6 * sum(ratios)), layout="constrained")
    axes = figure.subplots(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    axes[0].set_title(f"{curves.name}  {curves.job}", fontsize=11)
    _losses(axes[0], curves, {site: f"C{at}" for at, site in enumerate(sites)})
    if curves.spans:
        _timeline(axes[1], curves.spans, sites)
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "consortium"}):
        figure.savefig(out, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)
    return out.getvalue()


def _losses(axes: Axes, curves: Curves, colours: Mapping[str, str]) -> None:
    """Draw training losses as lines and held-out losses as marks, over the tokens that counted so far."""
    from matplotlib.ticker import EngFormatter

    total, at = 0, {0: 0.0}
    for point in curves.points:
        total += point.tokens
        at[point.round] = float(total)
    for site, colour in colours.items():
        own = [point for point in curves.points if site in point.losses]
        spoken = "+".join(curves.languages.get(site, ()))
        axes.plot(
            [at[point.round] for point in own],
            [point.losses[site] for point in own],
            color=colour,
            marker="." if len(own) < 50 else None,
            label=f"{site} {f'({spoken})' if spoken else ''} training".replace("  ", " "),
        )
    known = sorted(at)
    for number, language in enumerate(sorted({item.language for item in curves.held_out})):
        own_marks = sorted(
            (at[max(one for one in known if one <= item.round)], item.loss)
            for item in curves.held_out
            if item.language == language
        )
        homes = [site for site in colours if curves.languages.get(site) == (language,)]
        axes.plot(
            [x for x, _ in own_marks],
            [y for _, y in own_marks],
            color=colours[homes[0]] if homes else f"C{(len(colours) + number) % 10}",
            marker="x",
            linestyle=":",
            label=f"{language} held out",
        )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(f"tokens, all sites ({len(curves.points):,} rounds)")
    axes.set_ylabel("loss, nats per token")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    if axes.lines:
        for text in axes.legend(fontsize=8).get_texts():
            text.set_parse_math(False)  # languages are what sites call them


def _timeline(axes: Axes, found: Sequence[Span], sites: Sequence[str]) -> None:
    """Draw a lane per site: computing, waiting, and below it what crossed its border meanwhile."""
    start_ms = min(_begin_ms(span) for span in found)
    length_s = max(span.end_ms - start_ms for span in found) / 1000
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if length_s >= 2 * scale), _UNITS[-1])
    fine = len(found) > _MOST_DRAWN
    for lane, site in enumerate(sites):
        own = [span for span in found if span.site == site]
        computing = [((_begin_ms(s) - start_ms) / 1000 / scale, s.training_s / scale) for s in own]
        waiting = [(left + width, s.waiting_s / scale) for (left, width), s in zip(computing, own, strict=True)]
        crossing = [_crossing(s, left, width, scale) for (left, width), s in zip(computing, own, strict=True)]
        labels: list[Any] = ["compute", "wait", "communicate"] if lane == 0 else [None] * 3
        axes.broken_barh(computing, (lane - 0.3, 0.42), facecolors="tab:blue", label=labels[0], rasterized=fine)
        axes.broken_barh(waiting, (lane - 0.3, 0.42), facecolors="lightgray", label=labels[1], rasterized=fine)
        axes.broken_barh(crossing, (lane + 0.14, 0.18), facecolors="tab:orange", label=labels[2], rasterized=fine)
    axes.set_yticks(range(len(sites)), list(sites))
    axes.invert_yaxis()
    axes.set_xlim(0, length_s / scale or 1)
    axes.set_xlabel(unit)
    computed, all_s = sum(s.training_s for s in found), sum(s.training_s + s.waiting_s for s in found)
    axes.set_title(f"computing {computed / all_s:.1%} of the time" if all_s else "", fontsize=9, loc="left")
    axes.legend(fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)


def _begin_ms(span: Span) -> float:
    return span.end_ms - 1000 * (span.training_s + span.waiting_s)


def _crossing(span: Span, left: float, width: float, scale: float) -> tuple[float, float]:
    """Where communication stands: after the training, or, where it was longer than the waiting, from the beginning.

    Only how long it took is known, not when. What takes longer than the waiting went on beside the training.
    """
    took_s = span.sending_s + span.fetching_s
    return (left + width if took_s <= span.waiting_s else left, took_s / scale)
