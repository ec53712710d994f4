"""Curves as HTML: an SVG that stretches with the page, and text beside it that does not.

No script runs in it, and its colours are the page's variables, so it is light or dark with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

# (step, value) pairs in the order of their steps; values are finite.
Points = Sequence[tuple[int, float]]

# Of the drawing, which the page then stretches.
_SIDE = 1000

# A longer curve is drawn by the extremes of this many parts of it, so that no spike is lost.
_PARTS = 400

# A curve of more points than this is smoothed; one of fewer is drawn with a dot at each.
_FEW = 40

# Part of a curve that its smoothing averages over.
_SMOOTH_SHARE = 0.05

# A range of more than this, greatest over least, is drawn by its logarithm.
_LOG_RANGE = 5.0


@dataclass(frozen=True)
class Mark:
    """A vertical line in a chart.

    Attributes:
        step: Where.
        text: Shown beside it, or where the pointer rests on it for an event.
        event: Whether it is something that happened, and not only a boundary.
    """

    step: int
    text: str
    event: bool = False


@dataclass(frozen=True)
class Axis:
    """Values to places on one side of a chart.

    Attributes:
        low: Value at the beginning.
        high: Value at the end, above `low`.
        ticks: Values that are labelled.
        log: Whether places go by the value's logarithm.
    """

    low: float
    high: float
    ticks: list[float] = field(default_factory=list)
    log: bool = False

    def place(self, value: float) -> float:
        """0 at the beginning of the side, 1 at its end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def value_axis(values: Sequence[float], *, allow_log: bool = False) -> Axis:
    """An axis with room above and below the values, and ticks at round numbers.

    Args:
        values: Finite; at least one.
        allow_log: Whether values of a wide range go by their logarithms.
    """
    low, high = min(values), max(values)
    if allow_log and low > 0 and high / low > _LOG_RANGE:
        room = (high / low) ** 0.05
        return Axis(low / room, high * room, _log_ticks(low / room, high * room), log=True)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    # What is never negative does not get an axis that is.
    bottom = max(low - room, 0.0) if low >= 0 else low - room
    return Axis(bottom, high + room, round_ticks(bottom, high + room))


def step_axis(last: int) -> Axis:
    """From 0 to the last step, which is at least 1."""
    return Axis(0, max(last, 1), [t for t in round_ticks(0, max(last, 1)) if t == int(t)])


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` + 1 round numbers, evenly from `low` to `high`."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    # Multiplied, not added up, and rounded: 0.3 and not 0.30000000000000004.
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, or fewer of them where that would be too many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, math.ceil(len(exponents) / 6))
    for factors in ((1, 2, 5), (1,)):
        ticks = [float(f"{f}e{e}") for e in exponents[::every] for f in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 7:
            return ticks
    return ticks


def number_text(value: float) -> str:
    """A figure as short as it stays clear: `5,300`, `0.25`, `1.5e-4`."""
    if value and not 1e-3 <= abs(value) < 1e7:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.4f}".rstrip("0").rstrip(".")


def _step_text(step: float) -> str:
    """A number of steps that stays short: `5,000`, `200k`, `1.5M`."""
    if step >= 1e6:
        return f"{step / 1e6:g}M"
    return f"{step / 1e3:g}k" if step >= 1e4 else f"{step:,.0f}"


def thinned(points: Points) -> Points:
    """The same, or the least and the greatest of each of a few hundred parts of it."""
    if len(points) <= 2 * _PARTS:
        return points
    kept = []
    for i in range(_PARTS):
        start, stop = i * len(points) // _PARTS, (i + 1) * len(points) // _PARTS
        part = points[start:stop]
        extremes = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(extremes)
    return [points[0], *kept, points[-1]]


def smoothed(points: Points) -> tuple[Points, int]:
    """Means over a window around each point, and how many points the window has.

    At the beginning, where losses fall fast, the window is no longer on one side of a point than
    on the other, so that the curve begins where it did; at the end it is cut off.
    """
    half = int(len(points) * _SMOOTH_SHARE / 2) if len(points) > _FEW else 0
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    means = []
    for i, (step, _) in enumerate(points):
        reach = min(half, i)
        stop = min(i + reach + 1, len(points))
        means.append((step, (sums[stop] - sums[i - reach]) / (stop - i + reach)))
    return means, 2 * half + 1


def chart(
    title: str,
    points: Points,
    *,
    unit: str = "",
    last_step: int,
    marks: Sequence[Mark] = (),
    allow_log: bool = False,
    smooth: bool = False,
    wide: bool = False,
) -> str:
    """A curve over the steps, as an HTML figure; nothing without points.

    Args:
        title: What is shown.
        points: The curve.
        unit: Of the values.
        last_step: Where the step axis ends.
        marks: Vertical lines.
        allow_log: Whether values of a wide range go by their logarithms.
        smooth: Whether a long curve is smoothed; it is shown as it is too, and says so.
        wide: Whether the figure takes the page's whole width.
    """
    if not points:
        return ""
    y = value_axis([value for _, value in points], allow_log=allow_log)
    x = step_axis(max(last_step, points[-1][0]))
    curve, window = smoothed(points) if smooth else (points, 1)
    notes = [unit, "log scale" if y.log else ""]
    notes.append(f"thick: mean of {window:,} lines" if window > 1 else "")
    note = " · ".join(escape(text) for text in notes if text)
    raw = _path(points, x, y, "raw") if window > 1 else ""
    dots = _dots(points, x, y) if len(points) <= _FEW else ""
    said = f"{title}: {number_text(points[0][1])} at first, {number_text(points[-1][1])} at last"
    return (
        f'<figure class="chart{" wide" if wide else ""}"><figcaption><b>{escape(title)}</b>'
        f'<span class="note">{note}</span></figcaption><div class="area">'
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(said)}">{_grid(y)}{_lines(marks, x)}{raw}'
        f"{_path(curve, x, y, 'curve')}{dots}</svg>"
        f"{_labels(x, y)}{_mark_labels(marks, x)}</div></figure>\n"
    )


def _at(x: Axis, y: Axis, point: tuple[int, float]) -> str:
    return f"{_SIDE * x.place(point[0]):.1f} {_SIDE * (1 - y.place(point[1])):.1f}"


def _path(points: Points, x: Axis, y: Axis, name: str) -> str:
    places = " ".join(_at(x, y, point) for point in thinned(points))
    return f'<path class="{name}" d="M{places}"/>'


def _dots(points: Points, x: Axis, y: Axis) -> str:
    # A line of no length with round ends stays round where the drawing is stretched.
    return "".join(
        f'<path class="dot" d="M{_at(x, y, point)}h0"><title>step {point[0]:,}: '
        f"{number_text(point[1])}</title></path>"
        for point in points
    )


def _grid(y: Axis) -> str:
    heights = [_SIDE * (1 - y.place(tick)) for tick in y.ticks]
    return "".join(f'<path class="grid" d="M0 {h:.1f}H{_SIDE}"/>' for h in heights)


def _lines(marks: Sequence[Mark], x: Axis) -> str:
    return "".join(
        f'<path class="{"event" if mark.event else "mark"}" '
        f'd="M{_SIDE * x.place(mark.step):.1f} 0V{_SIDE}"><title>{escape(mark.text)}</title></path>'
        for mark in marks
    )


def _labels(x: Axis, y: Axis) -> str:
    sides = [
        f'<span class="y" style="top:{100 * (1 - y.place(t)):.2f}%">{number_text(t)}</span>'
        for t in y.ticks
    ]
    sides += [
        f'<span class="x" style="left:{100 * x.place(t):.2f}%">{_step_text(t)}</span>'
        for t in x.ticks
    ]
    return "".join(sides) + '<span class="steps">step</span>'


def _mark_labels(marks: Sequence[Mark], x: Axis) -> str:
    """Names of the parts between boundaries; what happened is told in the list of events."""
    places = [(100 * x.place(mark.step), escape(mark.text)) for mark in marks if not mark.event]
    return "".join(f'<span class="part" style="left:{p:.2f}%">{text}</span>' for p, text in places)
