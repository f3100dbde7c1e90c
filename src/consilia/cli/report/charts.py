"""Line plots and bars as SVG text, drawn once for both languages, coloured by the page's style sheet.

Text comes in pairs marked `lang`, of which the style sheet shows one. No style attribute is written: the
page's content security policy would refuse it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

from consilia.cli.report.results import Interval, Text

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 46


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, with (value, label) ticks; `log2` spaces doublings evenly."""

    title: Text
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log2: bool = False

    def fraction(self, value: float) -> float:
        """Where `value` lies on the axis, 0 to 1; values outside are put on the edge."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log2:
            low, high, value = math.log2(low), math.log2(high), math.log2(value)
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Line:
    """A curve through (x, y) points; `css` is its colour class, `marked` puts a dot on every point."""

    name: Text
    points: tuple[tuple[float, float], ...]
    css: str
    marked: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal reference line."""

    name: Text
    value: float
    css: str


def both(text: Text, tag: str = "span", attributes: str = "") -> Markup:
    """The text in both languages, in elements of which the page shows one."""
    parts = (("en", text.en), ("zh-CN", text.zh))
    return Markup("").join(
        Markup('<{0} lang="{1}"{2}>{3}</{0}>').format(tag, lang, Markup(attributes), words)
        for lang, words in parts
    )


def plot(title: Text, x: Axis, y: Axis, lines: tuple[Line, ...], levels: tuple[Level, ...] = ()) -> Markup:
    """A line plot with grid, axes and reference levels; the legend is the page's business (`legend`)."""
    parts = [*_grid(x, y)]
    for level in levels:
        height = _y(y, level.value)
        parts.append(f'<path class="level {level.css}" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>')
    for line in lines:
        spots = [(_x(x, px), _y(y, py)) for px, py in line.points]
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in spots)
        parts.append(f'<path class="curve {line.css}" d="M{path}"/>')
        if line.marked:
            parts += [
                f'<circle class="dot {line.css}" cx="{px:.1f}" cy="{py:.1f}" r="3.5"/>' for px, py in spots
            ]
    label = escape(f"{title.en} / {title.zh}")
    body = Markup("").join(Markup(part) for part in parts)
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, body
    )


def legend(lines: tuple[Line, ...], levels: tuple[Level, ...] = ()) -> Markup:
    """The keys of a plot: one entry a name, so that four thin curves of one kind take one entry."""
    entries: dict[str, Markup] = {}
    named: tuple[Line | Level, ...] = (*lines, *levels)
    for entry in named:
        kind = "level" if isinstance(entry, Level) else "curve"
        swatch = Markup(
            '<svg class="key" viewBox="0 0 24 8" aria-hidden="true"><path class="{} {}" d="M0 4H24"/></svg>'
        ).format(kind, entry.css)
        entries.setdefault(entry.name.en, Markup("<li>{}{}</li>").format(swatch, both(entry.name)))
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(entries.values()))


def bar(
    value: float, full: float, css: str, mark: float | None = None, interval: Interval | None = None
) -> Markup:
    """A bar for a table's cell: `value` of `full`, a tick at `mark`, a whisker over `interval`.

    The number stands beside it.
    """
    share = 100 * min(max(value / full, 0.0), 1.0) if full > 0 else 0.0
    drawn = ""
    if interval is not None and full > 0:
        low, high = (100 * min(max(edge / full, 0.0), 1.0) for edge in (interval.low, interval.high))
        drawn += f'<line class="whisker" x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"/>'
    if mark is not None and full > 0:
        at = 100 * min(mark / full, 1.0)
        drawn += f'<line class="mark" x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="100%"/>'
    return Markup(
        '<svg class="bar" aria-hidden="true"><rect class="track" width="100%" height="100%" rx="2"/>'
        f'<rect class="fill {css}" width="{share:.2f}%" height="100%" rx="2"/>{drawn}</svg>'
    )


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.fraction(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.fraction(value) * (HEIGHT - TOP - BOTTOM)


def _grid(x: Axis, y: Axis) -> list[str]:
    foot = HEIGHT - BOTTOM
    parts = []
    for value, label in y.ticks:
        height = _y(y, value)
        parts.append(f'<path class="grid" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    for value, label in x.ticks:
        parts.append(
            f'<text x="{_x(x, value):.1f}" y="{foot + 18}" text-anchor="middle">{escape(label)}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT} {foot}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    title = f' class="axis-title" x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle"'
    return [*parts, both(x.title, "text", title)]
