"""Line charts as geometry: what the template `chart.html` draws as SVG.

Contract: pure functions of numbers. Coordinates are those of a picture of `WIDTH` x `HEIGHT`; values that are not
finite are left out, and a series of many points is averaged in at most `MAX_POINTS` pieces, which the chart says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 360
HEIGHT: Final = 190
MAX_POINTS: Final = 240
LINES: Final = 8
"""So many lines are told apart by colour and dashes; the next ones look like the first again."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 24
_DOTS: Final = 30  # up to so many points are drawn as dots too


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One series: its path, dots with what they stand for, and its first and last value in words."""

    name: str
    style: int
    path: str
    dots: tuple[tuple[float, float, str], ...]
    told: str


@dataclass(frozen=True)
class Chart:
    """A chart whose lines share axes."""

    title: str
    x_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    note: str

    @property
    def alt(self) -> str:
        """What the chart shows, for those who do not see it."""
        return f"{self.title} by {self.x_label}. " + "; ".join(f"{line.name}: {line.told}" for line in self.lines)


Points = Sequence[tuple[float, float]]


def line_chart(title: str, series: Mapping[str, Points], x_label: str) -> Chart | None:
    """The chart of (x, y) by series name, or None where no value is finite."""
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    kept = {name: points for name, points in finite.items() if points}
    if not kept:
        return None
    each = {name: -(-len(points) // MAX_POINTS) for name, points in kept.items()}
    drawn = {name: _averaged(points, each[name]) for name, points in kept.items()}
    x_range, x_ticks = _axis([x for points in drawn.values() for x, _ in points], whole=True)
    y_range, y_ticks = _axis([y for points in drawn.values() for _, y in points], whole=False)

    def x_at(value: float) -> float:
        return _scaled(value, x_range, _LEFT, WIDTH - _RIGHT)

    def y_at(value: float) -> float:
        return _scaled(value, y_range, HEIGHT - _BOTTOM, _TOP)

    lines = []
    for name, points in drawn.items():
        places = [(x_at(x), y_at(y), f"{x:g}: {number(y)}") for x, y in points]
        lines.append(
            Line(
                name=name,
                style=list(series).index(name) % LINES,
                path="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places),
                dots=tuple(places) if len(places) <= _DOTS else (),
                told=f"{number(kept[name][0][1])} first, {number(kept[name][-1][1])} last",
            )
        )
    return Chart(
        title,
        x_label,
        tuple(lines),
        tuple(Tick(x_at(value), f"{value:g}") for value in x_ticks),
        tuple(Tick(y_at(value), number(value)) for value in y_ticks),
        "; ".join(f"{name}: means of {number} points" for name, number in each.items() if number > 1),
    )


def number(value: float) -> str:
    """A number for people, about three digits of it."""
    if value == 0 or 0.001 <= abs(value) < 10000:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.1e}"


def _averaged(points: Points, each: int) -> Points:
    pieces = [points[first : first + each] for first in range(0, len(points), each)]
    return [(_mean(x for x, _ in piece), _mean(y for _, y in piece)) for piece in pieces]


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def _axis(values: Sequence[float], whole: bool) -> tuple[tuple[float, float], list[float]]:
    """(low, high) of an axis, and its ticks: about four, at round numbers; `whole` numbers on an axis of steps."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    step = _round_step((high - low) / 4)
    if whole:
        step = max(1.0, step)
        return (low, high), _multiples(step, math.ceil(low / step), math.floor(high / step))
    first, last = math.floor(low / step), math.ceil(high / step)
    return (first * step, last * step), _multiples(step, first, last)


def _multiples(step: float, first: int, last: int) -> list[float]:
    return [round(count * step, 12) for count in range(first, last + 1)]


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _scaled(value: float, between: tuple[float, float], start: float, end: float) -> float:
    low, high = between
    return start + (value - low) / (high - low) * (end - start)
