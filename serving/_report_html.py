"""A report as one page of HTML: no script, nothing from the network; each chart has a table of the same values below it."""

from __future__ import annotations

from html import escape

from caudal.projections.reports import Result
from caudal.serving._charts import Dot, Drawing, Rect, Shape, Text, Trail, drawings
from caudal.serving._report_words import asked, cell, summary

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-size: 14px; } caption { text-align: left; font-weight: bold; padding: .5em 0; }
th, td { text-align: right; padding: .2em .8em; border-bottom: 1px solid #ddd; white-space: nowrap; }
th.text, td.text, th.date, td.date { text-align: left; } tr.odd td { background: #fbe6d9; } tr.partial td { color: #666; }
svg { width: 100%; min-width: 600px; height: auto; } svg text { font: 12px system-ui, sans-serif; } .scroll { overflow-x: auto; }
figure { margin: 1.5em 0; } figcaption { font-weight: bold; } @media print { .scroll { overflow: visible; } }
"""


def page(result: Result) -> str:
    """The page; every value is escaped."""
    report = result.report
    charts = "".join(
        f'<figure><figcaption>{escape(d.title)}</figcaption><div class="scroll">{svg(d)}</div></figure>'
        for d in drawings(result)
    )
    said = "".join(f"<li>{escape(line)}</li>" for line in summary(result))
    head = "".join(f'<th scope="col" class="{c.type}">{escape(c.title)}</th>' for c in report.columns)
    rows = "".join(_row(result, row) for row in result.rows)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,"><title>{escape(report.title)}</title><style>{_STYLE}</style></head>
<body><h1>{escape(report.title)}</h1>
<p>{escape(report.about)}</p>
<p>{escape(asked(result))}</p>
{charts}
{f"<ul>{said}</ul>" if said else ""}
<div class="scroll"><table><caption>{escape(report.title)}, in figures</caption>
<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>
</body></html>
"""


def _row(result: Result, row: dict[str, object]) -> str:
    marks = row.get("marks")
    odd = isinstance(marks, dict) and any(mark["anomaly"] for mark in marks.values())
    kind = " ".join(name for name, so in (("odd", odd), ("partial", "partial" in row)) if so)
    cells = "".join(f'<td class="{c.type}">{escape(cell(row[c.name], c, row))}</td>' for c in result.report.columns)
    return f'<tr class="{kind}">{cells}</tr>' if kind else f"<tr>{cells}</tr>"


def svg(drawing: Drawing) -> str:
    """A chart as SVG."""
    shapes = "".join(map(_shape, drawing.shapes))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width:g} {drawing.height:g}" role="img"'
        f' aria-label="{escape(drawing.title)}">{shapes}</svg>'
    )


def _shape(shape: Shape) -> str:
    match shape:
        case Rect():
            size = f'x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}"'
            faint = f' fill-opacity="{shape.opacity:.2f}"' if shape.opacity < 1 else ""
            return f'<rect {size} fill="{shape.colour}"{faint}>{_about(shape.about)}</rect>'
        case Dot():
            size = f'cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:g}"'
            return f'<circle {size} fill="{shape.colour}">{_about(shape.about)}</circle>'
        case Trail():
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            return f'<polyline points="{points}" fill="none" stroke="{shape.colour}" stroke-width="{shape.width:g}"/>'
        case Text():
            place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" text-anchor="{shape.anchor}" fill="{shape.colour}"'
            return f"<text {place}>{escape(shape.text)}</text>"


def _about(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
