"""Charts as inline SVG: a few lines of markup each, in the colours of the page, light or dark.

A series has a colour, a dash pattern and a marker of its own, so that it can be told apart without the colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .curves import Band
from .markup import Html, join, tag

WIDTH, HEIGHT = 360, 232
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 40
DASHES = (None, "7 4", "2 3", "10 3 2 3", "1 5", "12 5", "5 2 1 2 1 2", "3 6")
MARKERS = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M-4-4h8v8h-8z", "M0-5L5 4H-5z", "M0-5.5L5.5 0 0 5.5-5.5 0z")
STYLES = len(DASHES)
STAR = "M0-8l2.2 5.1 5.5.5-4.2 3.6 1.3 5.4L0 3.7l-4.8 2.9 1.3-5.4-4.2-3.6 5.5-.5z"


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels, and its ticks."""

    low: float
    high: float
    log: bool
    ticks: list[float]

    def __call__(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def linear(low: float, high: float, count: int = 4) -> Axis:
    """An axis with round ticks."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, False, [i * step for i in range(first, last + 1)])


def logarithmic(low: float, high: float) -> Axis:
    """An axis over decades, or over parts of one if the values lie close together."""
    if high / low < 3:
        return linear(low, high)
    span = math.log10(high / low)
    factors = (1,) if span > 3 else (1, 3) if span > 1.2 else (1, 2, 5)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    ticks = [f * 10.0**d for d in decades for f in factors]
    below = [t for t in ticks if t <= low * 1.0001]
    above = [t for t in ticks if t >= high * 0.9999]
    lowest, highest = below[-1], above[0]
    return Axis(lowest, highest, True, [t for t in ticks if lowest <= t <= highest])


def number(value: float) -> str:
    """A number as an axis or a table shows it."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        mantissa, _, power = f"{value:.3g}".partition("e")
        return f"{value:,.0f}" if not power and abs(value) >= 1 else f"{mantissa}e{int(power)}" if power else mantissa
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


@dataclass(frozen=True)
class Line:
    """One series of a chart."""

    name: str
    band: Band
    style: int
    """Its colour, dashes and marker: the same in all charts of a report."""


def line_chart(
    title: str, across: str, lines: Sequence[Line], log: bool, unit: Callable[[float], str] = number
) -> Html:
    """Mean lines with their bands of one standard error. The chart says in words what it shows."""
    bands = [line.band for line in lines]
    lows = [m - (0 if math.isnan(e) else e) for b in bands for m, e in zip(b.mean, b.error, strict=True)]
    highs = [m + (0 if math.isnan(e) else e) for b in bands for m, e in zip(b.mean, b.error, strict=True)]
    smallest = min(m for b in bands for m in b.mean)
    log = log and smallest > 0
    low = max(min(lows), smallest / 3) if log else min(lows)
    y = logarithmic(low, max(highs)) if log else linear(min(0.0, low) if low < max(highs) / 2 else low, max(highs))
    end = max(b.steps[-1] for b in bands)
    x = Axis(0, end, False, [t for t in linear(0, end).ticks if t <= end])

    def at(step: float, value: float) -> tuple[float, float]:
        value = max(value, y.low)
        across, up = x(step) * (WIDTH - LEFT - RIGHT), y(value) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    parts = [_frame(x, y, across, unit)]
    for line in lines:
        parts.append(_series(line, at))
    words = "; ".join(
        f"{line.name or 'this run'}: from {unit(line.band.mean[0])} to {unit(line.band.mean[-1])}" for line in lines
    )
    return tag(
        "svg",
        tag("title", f"{title} over the outer steps. {words}."),
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart",
    )


def _series(line: Line, at: Callable[[float, float], tuple[float, float]]) -> Html:
    b, k = line.band, line.style % STYLES
    shown = []
    if b.seeds > 1:
        there = [at(s, m + e) for s, m, e in zip(b.steps, b.mean, b.error, strict=True)]
        back = [at(s, m - e) for s, m, e in zip(b.steps, b.mean, b.error, strict=True)]
        shown.append(tag("path", d=_path([*there, *reversed(back)]) + "z", class_=f"band k{k}"))
    points = [at(s, m) for s, m in zip(b.steps, b.mean, strict=True)]
    shown.append(tag("path", d=_path(points), class_=f"line k{k}", stroke_dasharray=DASHES[k]))
    few = points[:: max(1, math.ceil(len(points) / 7))]
    last = points[-1:] if points[-1] not in few else []
    shown += [marker(px, py, k) for px, py in [*few, *last]]
    return tag("g", *shown)


def marker(x: float, y: float, style: int) -> Html:
    """The mark of a series."""
    return tag(
        "path", d=MARKERS[style % len(MARKERS)], transform=f"translate({x:.1f} {y:.1f})", class_=f"mark k{style}"
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _frame(x: Axis, y: Axis, across: str, unit: Callable[[float], str]) -> Html:
    parts = []
    for t in y.ticks:
        py = HEIGHT - BOTTOM - y(t) * (HEIGHT - TOP - BOTTOM)
        parts.append(tag("path", d=f"M{LEFT} {py:.1f}H{WIDTH - RIGHT}", class_="grid"))
        parts.append(tag("text", unit(t), x=LEFT - 8, y=f"{py + 4:.1f}", class_="tick end"))
    for t in x.ticks:
        px = LEFT + x(t) * (WIDTH - LEFT - RIGHT)
        parts.append(tag("path", d=f"M{px:.1f} {HEIGHT - BOTTOM}v4", class_="axis"))
        parts.append(tag("text", f"{t:,.0f}", x=f"{px:.1f}", y=HEIGHT - BOTTOM + 18, class_="tick middle"))
    parts.append(tag("path", d=f"M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}", class_="axis"))
    parts.append(tag("text", across, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, class_="label middle"))
    return tag("g", *parts, aria_hidden="true")


def legend(names: Mapping[str, int]) -> Html:
    """Name -> style, with a piece of each line."""
    items = []
    for name, style in names.items():
        k = style % STYLES
        piece = tag(
            "svg",
            tag("path", d="M1 8H35", class_=f"line k{k}", stroke_dasharray=DASHES[k]),
            marker(18, 8, k),
            viewBox="0 0 36 16",
            aria_hidden="true",
        )
        items.append(tag("li", piece, name))
    return tag("ul", *items, class_="legend")


def scatter_chart(real: Tensor, targets: Tensor, labels: Tensor, what: str, gallery: str) -> Html:
    """Real representations as dots, targets as stars, and the number of each class at the middle of its dots."""
    size, pad = 440, 16  # pixels of the longer side, and of the margin
    low, high = real.min(0).values.minimum(targets.min(0).values), real.max(0).values.maximum(targets.max(0).values)
    width, height = (high - low).tolist()
    scale = (size - 2 * pad) / max(width, height, 1e-30)
    tall = max(size * 0.4, height * scale + 2 * pad)
    middle = (low + high) / 2

    def at(p: Tensor) -> tuple[float, float]:
        return size / 2 + float(p[0] - middle[0]) * scale, tall / 2 - float(p[1] - middle[1]) * scale

    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in map(at, real))
    parts = [tag("path", d=dots, class_="dots")]
    for i, p in enumerate(targets):
        x, y = at(p)
        place = f"translate({x:.1f} {y:.1f}) scale({0.6 if len(targets) > 200 else 1})"
        star = tag("path", d=STAR, transform=place, class_="star", data_star=f"{gallery}-{i}")
        parts.append(star)
    classes = labels.unique().tolist() if len(labels) else []
    for c in classes if len(classes) <= 20 else []:
        x, y = at(real[labels == c].median(0).values)
        parts.append(tag("text", str(c), x=f"{x:.1f}", y=f"{y + 6:.1f}", class_="class middle"))
    text = f"{what}: {len(real):,} real representations as dots and {len(targets):,} distilled targets as stars."
    return tag("svg", tag("title", text), *parts, viewBox=f"0 0 {size} {tall:.0f}", role="img", class_="chart cover")


def difference_chart(rows: Sequence[tuple[str, float, float]], better: str) -> Html:
    """Paired differences (name, mean, standard error) with two standard errors each, beside a line at zero."""
    left, step, width = 168, 32, 400
    height = step * len(rows) + 52
    ends = [m + sign * (0 if math.isnan(e) else 2 * e) for _, m, e in rows for sign in (-1, 1)]
    axis = linear(min(0.0, *ends), max(0.0, *ends))

    def at(value: float) -> float:
        return left + axis(value) * (width - left - 16)

    parts = []
    for t in axis.ticks:
        parts.append(tag("path", d=f"M{at(t):.1f} 8V{height - 40}", class_="zero" if abs(t) < 1e-12 else "grid"))
        parts.append(tag("text", number(t), x=f"{at(t):.1f}", y=height - 24, class_="tick middle"))
    for i, (name, mean, error) in enumerate(rows):
        y = 8 + step * (i + 0.5)
        sure = not math.isnan(error) and abs(mean) > 2 * error
        short = name if len(name) <= 26 else f"{name[:25]}…"
        parts.append(tag("text", short, x=left - 12, y=f"{y + 4:.1f}", class_="name end"))
        if not math.isnan(error):
            whisker = f"M{at(mean - 2 * error):.1f} {y - 5:.1f}v10m0-5H{at(mean + 2 * error):.1f}m0-5v10"
            parts.append(tag("path", d=whisker, class_="whisker"))
        parts.append(
            tag("circle", cx=f"{at(mean):.1f}", cy=f"{y:.1f}", r=5, class_="point sure" if sure else "point unsure")
        )
    parts.append(tag("text", better, x=(left + width) / 2, y=height - 5, class_="label middle"))
    words = join((f"{name}: {number(m)}" for name, m, _ in rows), "; ")
    return tag(
        "svg",
        tag("title", f"{better}. {words}"),
        *parts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        class_="chart differences",
    )
