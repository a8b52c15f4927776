"""A report as PDF, on A4: the same charts and table as the page, drawn by ReportLab."""

from __future__ import annotations

import io
from functools import cache
from html import escape
from typing import Any

from caudal.projections.reports import Result
from caudal.serving._charts import Dot, Drawing, Rect, Shape, Text, Trail, drawings
from caudal.serving._report_words import asked, cell, summary

__all__ = ["document"]

MOST_ROWS = 1_000
"""So many rows are printed: a PDF of more is for nobody, and laying them out takes long."""
_ACROSS = 8
"""More columns than this are printed across."""


def document(result: Result) -> bytes:
    """The document. Its letters are those of Bitstream Vera, which ReportLab brings: Latin; others print as boxes."""
    from reportlab.lib import colors, enums, pagesizes, styles
    from reportlab.platypus import Paragraph, SimpleDocTemplate, Spacer, Table

    plain, bold = _fonts()
    body = styles.ParagraphStyle("body", fontName=plain, fontSize=9, leading=12, spaceAfter=6)
    title = styles.ParagraphStyle("title", fontName=bold, fontSize=16, leading=20, spaceAfter=6)
    left, right = (
        styles.ParagraphStyle("cell", body, fontSize=7, leading=9, spaceAfter=0, alignment=side)
        for side in (enums.TA_LEFT, enums.TA_RIGHT)
    )
    columns = result.report.columns
    paper = pagesizes.landscape(pagesizes.A4) if len(columns) > _ACROSS else pagesizes.A4
    buffer = io.BytesIO()
    template = SimpleDocTemplate(
        buffer, pagesize=paper, leftMargin=40, rightMargin=40, topMargin=40, bottomMargin=46, title=result.report.title, invariant=1,
    )  # fmt: skip
    side = [left if c.type in {"text", "date"} else right for c in columns]
    parts: list[Any] = [Paragraph(escape(result.report.title), title)]
    parts += [Paragraph(escape(text), body) for text in (result.report.about, asked(result))]
    for drawing in drawings(result):
        parts += [Paragraph(escape(drawing.title), body), _flowable(drawing, template.width, plain)]
    parts += [Paragraph(escape(line), body) for line in summary(result)]
    if result.rows:
        rows = [[Paragraph(escape(c.title), s) for c, s in zip(columns, side, strict=True)]]
        rows += [
            [Paragraph(escape(cell(row[c.name], c, row)), s) for c, s in zip(columns, side, strict=True)]
            for row in result.rows[:MOST_ROWS]
        ]
        lines = ("LINEBELOW", (0, 0), (-1, -1), 0.3, colors.HexColor("#cccccc"))
        tight = [("TOPPADDING", (0, 0), (-1, -1), 1), ("BOTTOMPADDING", (0, 0), (-1, -1), 1)]
        widths = [template.width / len(columns)] * len(columns)
        parts += [Spacer(1, 8), Table(rows, repeatRows=1, style=[lines, *tight], colWidths=widths)]
    if len(result.rows) > MOST_ROWS:
        parts.append(Paragraph(f"There are {len(result.rows):,} rows; the other formats have all of them.", body))

    def number(canvas: Any, _template: Any) -> None:
        canvas.setFont(plain, 7)
        canvas.drawRightString(paper[0] - 40, 26, str(canvas.getPageNumber()))

    template.build(parts, onFirstPage=number, onLaterPages=number)
    return buffer.getvalue()


@cache
def _fonts() -> tuple[str, str]:
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    names = ("Vera", "VeraBd")
    for name in names:
        pdfmetrics.registerFont(TTFont(name, f"{name}.ttf"))
    return names


def _flowable(drawing: Drawing, width: float, font: str) -> Any:
    from reportlab.platypus import Flowable

    scale = width / drawing.width

    class Chart(Flowable):  # type: ignore[misc]  # ReportLab has no types
        def wrap(self, *_available: float) -> tuple[float, float]:
            return width, drawing.height * scale

        def draw(self) -> None:
            self.canv.scale(scale, scale)
            for shape in drawing.shapes:
                _draw(self.canv, shape, drawing.height, font)

    return Chart()


def _draw(canvas: Any, shape: Shape, height: float, font: str) -> None:
    """A shape; a PDF's y grows upwards."""
    from reportlab.lib.colors import HexColor

    canvas.setFillColor(HexColor(shape.colour))
    match shape:
        case Rect():
            canvas.setFillAlpha(shape.opacity)
            canvas.rect(shape.x, height - shape.y - shape.height, shape.width, shape.height, stroke=0, fill=1)
            canvas.setFillAlpha(1)
        case Dot():
            canvas.circle(shape.x, height - shape.y, shape.radius, stroke=0, fill=1)
        case Trail():
            canvas.setStrokeColor(HexColor(shape.colour))
            canvas.setLineWidth(shape.width)
            path = canvas.beginPath()
            path.moveTo(shape.points[0][0], height - shape.points[0][1])
            for x, y in shape.points[1:]:
                path.lineTo(x, height - y)
            canvas.drawPath(path)
        case Text():
            canvas.setFont(font, 10)
            draw = {"start": canvas.drawString, "middle": canvas.drawCentredString, "end": canvas.drawRightString}
            draw[shape.anchor](shape.x, height - shape.y, shape.text)
