"""A report as a file: JSON, CSV, a page, PDF."""

from __future__ import annotations

import orjson
from caudal.serving._export import csv_cell, csv_lines
from caudal.serving._report_html import page
from caudal.serving._reports import Made, document

__all__ = ["MEDIA_TYPES", "encoded"]

MEDIA_TYPES = {
    "json": "application/json", "csv": "text/csv; charset=utf-8", "html": "text/html; charset=utf-8", "pdf": "application/pdf",
}  # fmt: skip
"""Format → media type."""


def encoded(made: Made, format_: str) -> bytes:
    """The report in a format of `MEDIA_TYPES`."""
    match format_:
        case "csv":
            names = [column.name for column in made.result.report.columns]
            return csv_lines([names, *([csv_cell(row[name]) for name in names] for row in made.result.rows)])
        case "html":
            return page(made.result).encode()
        case "pdf":
            from caudal.serving._report_pdf import document as printed

            return printed(made.result)
        case _:
            return orjson.dumps(document(made))
