"""A report's charts as plain shapes, which the page draws as SVG and the PDF as lines and areas: both show the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from caudal.projections.reports import Chart, Column, Result
from caudal.serving._report_words import cell

__all__ = ["Dot", "Drawing", "Rect", "Shape", "Text", "Trail", "drawings"]

WIDTH, HEIGHT = 760, 300
MOST = 12
"""Most charts of a report; the table has the rest."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 86, 12, 26, 42
_LETTER = 8
"""More than a digit is wide."""
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
"""Told apart by all readers (Okabe and Ito, Color Universal Design, 2008)."""
ODD, GREY, PALE = "#d55e00", "#666666", "#dddddd"


@dataclass(frozen=True)
class Rect:
    """A filled area; `about` is told when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    about: str = ""
    opacity: float = 1.0


@dataclass(frozen=True)
class Trail:
    """A line along points."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: float = 1.0


@dataclass(frozen=True)
class Dot:
    """A value on a line."""

    x: float
    y: float
    radius: float
    colour: str
    about: str = ""


@dataclass(frozen=True)
class Text:
    """Words; `anchor` is the part of them that stands at the place."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    colour: str = "#222222"


Shape = Rect | Trail | Dot | Text


@dataclass(frozen=True)
class Drawing:
    """A chart: its heading and shapes, y growing downwards."""

    title: str
    shapes: tuple[Shape, ...]
    width: float = WIDTH
    height: float = HEIGHT


def drawings(result: Result) -> list[Drawing]:
    """The charts of a report; none without rows."""
    chart = result.report.chart
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in result.rows:
        groups.setdefault(row[chart.split] if chart.split else None, []).append(row)
    made = []
    for key, rows in list(groups.items())[:MOST]:
        title = ", ".join(_column(result, name).title for name in chart.y) + (f": {key}" if key is not None else "")
        draw: Callable[[Result, list[dict[str, Any]], str], Drawing] = {
            "line": _over, "bars": _over, "list": _list, "grid": _grid,
        }[chart.kind]  # fmt: skip
        made.append(draw(result, rows, title))
    return made


def _column(result: Result, name: str) -> Column:
    return next(column for column in result.report.columns if column.name == name)


def _over(result: Result, rows: list[dict[str, Any]], title: str) -> Drawing:
    """Values over the rows, as stacked bars or as lines with what was to be expected behind them."""
    chart = result.report.chart
    stacked = chart.kind == "bars"
    low, high = _bounds(chart, rows, stacked=stacked)
    step = (WIDTH - _LEFT - _RIGHT) / len(rows)
    scale = (HEIGHT - _TOP - _BOTTOM) / (high - low)

    def place(number: int) -> float:
        return _LEFT + (number + 0.5) * step

    def level(value: float) -> float:
        return _TOP + (high - value) * scale

    shapes: list[Shape] = list(_axis(low, high, level, _column(result, chart.y[0]), rows[0]))
    labels = [cell(row[chart.x], _column(result, chart.x), row) for row in rows]
    if result.parameters.get("by") == "month":
        labels = [label.removesuffix("-01") for label in labels]
    room = max(map(len, labels)) * _LETTER
    every = math.ceil(len(rows) * (room + 12) / (WIDTH - _LEFT - _RIGHT))
    for number, label in list(enumerate(labels))[::every]:
        x = min(place(number), WIDTH - len(label) * _LETTER / 2)
        shapes.append(Text(x, HEIGHT - _BOTTOM + 16, label, "middle", GREY))
    if not stacked:
        shapes += _ranges(chart, rows, place, level)
    for turn, name in enumerate(chart.y):
        column, colour = _column(result, name), COLOURS[turn % len(COLOURS)]
        if len(chart.y) > 1:
            shapes += [
                Rect(_LEFT + 150 * turn, HEIGHT - 18, 10, 10, colour),
                Text(_LEFT + 150 * turn + 16, HEIGHT - 8, column.title),
            ]
        if stacked:
            for number, row in enumerate(rows):
                base = sum(row[before] or 0 for before in chart.y[:turn])
                value = row[name] or 0
                top, bottom = level(max(base + value, base)), level(min(base + value, base))
                shown = ODD if _odd(row, name) else colour
                shapes.append(
                    Rect(place(number) - 0.4 * step, top, 0.8 * step, bottom - top, shown, _about(result, row, column))
                )
            continue
        for part in _runs(
            [(place(n), level(row[name])) if row[name] is not None else None for n, row in enumerate(rows)]
        ):
            shapes.append(Trail(part, colour, 1.8))
        shapes += [
            Dot(place(n), level(row[name]), 5 if _odd(row, name) else 2.5, ODD if _odd(row, name) else colour, _about(result, row, column))
            for n, row in enumerate(rows) if row[name] is not None
        ]  # fmt: skip
    return Drawing(title, tuple(shapes))


def _bounds(chart: Chart, rows: list[dict[str, Any]], *, stacked: bool) -> tuple[float, float]:
    if stacked:
        tops = [sum(max(row[name] or 0, 0) for name in chart.y) for row in rows]
        bottoms = [min(row[name] or 0, 0) for row in rows for name in chart.y]
        values: list[float] = [*tops, *bottoms]
    else:
        values = [row[name] for row in rows for name in (*chart.y, *(chart.band or ())) if row[name] is not None]
    low, high = min([0, *values]), max([0, *values])
    return (low, high) if low != high else (low, low + 1)


def _axis(
    low: float, high: float, level: Callable[[float], float], column: Column, row: dict[str, Any]
) -> Iterator[Shape]:
    rough = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * by for by in (1, 2, 5, 10) if size * by >= rough)
    if column.type in {"integer", "money"}:
        step = max(step, 1)
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        value = number * step
        yield Trail(((_LEFT, level(value)), (WIDTH - _RIGHT, level(value))), GREY if number == 0 else PALE)
        told = round(value) if column.type in {"integer", "money"} else value
        yield Text(_LEFT - 6, level(value) + 4, cell(told, column, row), "end", GREY)


def _ranges(
    chart: Chart, rows: list[dict[str, Any]], place: Callable[[int], float], level: Callable[[float], float]
) -> Iterator[Shape]:
    """The interval around each value."""
    if chart.band is None:
        return
    first, second = chart.band
    for number, row in enumerate(rows):
        if row[first] is not None:
            x = place(number)
            yield Rect(x - 4, level(row[second]), 8, level(row[first]) - level(row[second]), COLOURS[0], opacity=0.25)


def _runs(points: Sequence[tuple[float, float] | None]) -> Iterator[tuple[tuple[float, float], ...]]:
    """The stretches without a gap."""
    run: list[tuple[float, float]] = []
    for point in (*points, None):
        if point is not None:
            run.append(point)
        elif run:
            yield tuple(run)
            run = []


def _odd(row: dict[str, Any], name: str) -> bool:
    return bool(row.get("marks", {}).get(name, {}).get("anomaly"))


def _about(result: Result, row: dict[str, Any], column: Column) -> str:
    where = cell(row[result.report.chart.x], _column(result, result.report.chart.x), row)
    return f"{where}: {column.title} {cell(row[column.name], column, row)}"


def _list(result: Result, rows: list[dict[str, Any]], title: str) -> Drawing:
    chart = result.report.chart
    column, label = _column(result, chart.y[0]), _column(result, chart.x)
    most = max([abs(row[column.name] or 0) for row in rows] + [1e-9])
    negative = any((row[column.name] or 0) < 0 for row in rows)
    zero = 490.0 if negative else 200.0
    longest = 190.0 if negative else 470.0
    shapes: list[Shape] = []
    for number, row in enumerate(rows[:50]):
        y, value = 24.0 + number * 22, row[column.name] or 0
        length = abs(value) / most * longest
        words = cell(row[chart.x], label, row)
        shapes += [
            Text(190, y + 12, words if len(words) <= 28 else f"{words[:27]}…", "end"),
            Rect(zero if value >= 0 else zero - length, y, length, 16, COLOURS[0], _about(result, row, column)),
            Text(zero + (length if value >= 0 else 0) + 6, y + 12, cell(row[column.name], column, row), colour=GREY),
        ]
    return Drawing(title, tuple(shapes), height=34 + 22 * min(len(rows), 50))


def _grid(result: Result, rows: list[dict[str, Any]], title: str) -> Drawing:
    chart = result.report.chart
    column, side, along = _column(result, chart.y[0]), _column(result, chart.rows or ""), _column(result, chart.x)
    sides, across = list(dict.fromkeys(row[side.name] for row in rows)), sorted({row[along.name] for row in rows})
    width = min((WIDTH - 120) / len(across), 90.0)
    # the first month of a cohort is all of it: the others would be pale beside it
    most = max([row[column.name] or 0 for row in rows if row[along.name] != 0 or column.type != "share"] + [1e-9])
    shapes: list[Shape] = [Text(110, 14, side.title, "end", GREY)]
    shapes += [
        Text(120 + (n + 0.5) * width, 14, cell(each, along, {}), "middle", GREY) for n, each in enumerate(across)
    ]
    shapes += [Text(110, 38 + n * 24, cell(each, side, {}), "end", GREY) for n, each in enumerate(sides)]
    for row in rows:
        x, y = 120 + across.index(row[along.name]) * width, 22 + sides.index(row[side.name]) * 24
        strength = min((row[column.name] or 0) / most, 1.0)
        words = cell(row[column.name], column, row)
        about = f"{side.title} {cell(row[side.name], side, row)}, {along.title} {_about(result, row, column)}"
        shapes.append(Rect(x, y, width - 2, 22, COLOURS[0], about, 0.06 + 0.94 * strength))
        if width >= 36:
            # on the strongest only is white easier to read than black (WCAG's contrast, 4.5 at least)
            shapes.append(Text(x + width / 2, y + 15, words, "middle", "#ffffff" if strength > 0.92 else "#000000"))
    return Drawing(f"{title}: {along.title} across", tuple(shapes), height=30 + 24 * len(sides))
