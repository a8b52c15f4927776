"""The charts of docs/performance.md, drawn from results (see `quote`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

__all__ = ["draw"]

Figure = dict[str, Any]
Figures = Sequence[Figure]
_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" role="img">
<title>{title}</title>
<style>.bg{{fill:#fff}} text{{fill:#333}} .grid{{stroke:#ddd}} .range{{stroke:#333}} .a{{fill:#2a6f97;stroke:#2a6f97}}
.b{{fill:#bc6c25;stroke:#bc6c25}} .c{{fill:#6a994e;stroke:#6a994e}} .none{{fill:none;stroke-width:2}}
@media (prefers-color-scheme:dark){{.bg{{fill:#16191d}} text{{fill:#ddd}} .grid{{stroke:#3a3f45}} .range{{stroke:#ddd}}}}</style>
<rect class="bg" width="{width}" height="{height}"/>
<text x="12" y="22" font-size="14" font-weight="bold">{title}</text>
"""


def _bars(title: str, rows: Sequence[tuple[str, Figure, bool]]) -> str:
    """A bar a row, as long as the median, with a line from min to max; marked rows in the second colour."""
    left, width, step = 190, 760, 26
    most = max(figure["max"] for _, figure, _ in rows)
    scale = (width - left - 120) / most
    made = [_HEAD.format(width=width, height=44 + step * len(rows), title=escape(title))]
    for n, (name, figure, marked) in enumerate(rows):
        y = 38 + n * step
        low, middle, high = (left + figure[key] * scale for key in ("min", "median", "max"))
        made.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="{"b" if marked else "a"}" x="{left}" y="{y}" width="{middle - left:.1f}" height="18"/>'
            f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 9}" y2="{y + 9}"/>'
            f'<text x="{max(high, middle) + 8:.1f}" y="{y + 13}">{figure["median"]:,.0f}</text>'
        )
    return "\n".join([*made, "</svg>\n"])


def _lines(title: str, below: str, series: dict[str, list[tuple[float, Figure]]], *, logarithmic: bool = True) -> str:
    """A line a series through the medians, with a stroke from min to max at each point."""
    left, right, top, bottom, width, height = 60, 600, 46, 250, 760, 290
    xs = sorted({x for points in series.values() for x, _ in points})
    step = _step(max(figure["max"] for points in series.values() for _, figure in points))
    most = 4 * step
    place: Callable[[float], float] = math.log10 if logarithmic and xs[0] > 0 else float
    span = place(xs[-1]) - place(xs[0]) or 1.0

    def at(x: float, value: float) -> tuple[float, float]:
        return left + (place(x) - place(xs[0])) / span * (right - left), bottom - value / most * (bottom - top)

    made = [_HEAD.format(width=width, height=height, title=escape(title))]
    for tick in (n * step for n in range(5)):
        y = at(xs[0], tick)[1]
        made.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        made.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    made += [f'<text x="{at(x, 0)[0]:.1f}" y="{bottom + 18}" text-anchor="middle">{x:,g}</text>' for x in xs]
    made.append(f'<text x="{(left + right) / 2}" y="{bottom + 36}" text-anchor="middle">{escape(below)}</text>')
    for colour, (name, points) in zip("abc", series.items(), strict=False):
        path = " ".join(f"{at(x, f['median'])[0]:.1f},{at(x, f['median'])[1]:.1f}" for x, f in points)
        made.append(f'<polyline class="{colour} none" points="{path}"/>')
        for x, figure in points:
            (across, low), (_, high) = at(x, figure["min"]), at(x, figure["max"])
            made.append(f'<line class="{colour}" x1="{across:.1f}" x2="{across:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        end = at(points[-1][0], points[-1][1]["median"])
        made.append(f'<text x="{end[0] + 8:.1f}" y="{end[1] + 4:.1f}">{escape(name)}</text>')
    return "\n".join([*made, "</svg>\n"])


def _step(most: float) -> float:
    """The smallest round number of which four reach `most`."""
    power = 10.0 ** math.floor(math.log10(most / 4 or 1))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if 4 * factor * power >= most)


def _race(figures: Figures) -> str:
    rates = [
        (figure["name"][len("race_") : -len("_events_per_s")], figure)
        for figure in figures
        if figure["name"].endswith("_events_per_s") and "published" not in figure["name"]
    ]
    rows = sorted(rates, key=lambda row: -row[1]["median"])
    return _bars("Events into the table, a second", [(n, f, n.startswith("caudal")) for n, f in rows])


def _growth(curve: str, title: str, below: str, *, logarithmic: bool = True) -> Callable[[Figures], str]:
    def made(figures: Figures) -> str:
        series: dict[str, list[tuple[float, Figure]]] = {}
        for figure in figures:
            if figure["curve"] == curve and figure["unit"] == "µs":
                series.setdefault(figure["name"].split("_")[-2], []).append((figure["x"], figure))
        return _lines(title, below, series, logarithmic=logarithmic)

    return made


def _latency(of: str, title: str) -> Callable[[Figures], str]:
    def made(figures: Figures) -> str:
        series: dict[str, list[tuple[float, Figure]]] = {}
        for figure in figures:
            for p in ("p50", "p99"):
                if figure["name"] == f"{of}_latency_{p}_ms":
                    series.setdefault(p, []).append((figure["rate"], figure))
        return _lines(title, "a second", series)

    return made


def _memory(figures: Figures) -> str:
    rows = [(f["name"].removeprefix("memory_").removesuffix("_mb"), f, False) for f in figures if f["unit"] == "MB"]
    return _bars("Peak memory of each process, MB", rows)


_LENGTH = _growth(
    "log_length", "Processor time for an event, µs, by length of the log", "events in the log", logarithmic=False
)
_CHARTS: dict[str, tuple[str, Callable[[Figures], str]]] = {
    "race": ("race", _race),
    "growth-log-length": ("growth", _LENGTH),
    "growth-customers": (
        "growth",
        _growth("customers", "Processor time for an event, µs, by customers", "customers known"),
    ),
    "growth-conditions": (
        "growth",
        _growth("conditions", "PostgreSQL's time for a customer's memberships, µs", "conditions of segments"),
    ),
    "latency-project": ("rates", _latency("project", "Event on customer.changes to row visible, ms")),
    "latency-end-to-end": ("rates", _latency("end_to_end", "Delivery sent to row pushed, ms")),
    "memory": ("rates", _memory),
}


def draw(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Every chart that the results have figures for, by its file's name."""
    return {
        f"{name}.svg": made(results[benchmark]["figures"])
        for name, (benchmark, made) in _CHARTS.items()
        if benchmark in results
    }
