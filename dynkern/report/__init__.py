"""report.html: results as one page that needs no network and no other file.

A command fills a `Report` (document.py) with sentences, charts (charts.py), tables, texts and
conditions; `write_report` (page.py) makes the page of it. This room knows no command.
"""

from __future__ import annotations

from dynkern.report.charts import Chart, Histogram, Lines, Pair, Pairs, Point, Series, Shares
from dynkern.report.command import command_line, given
from dynkern.report.conditions import conditions
from dynkern.report.document import Answer, Column, Facts, Figure, Report, Sample, Section, Table
from dynkern.report.page import FILE_NAME, write_report

__all__ = [
    "FILE_NAME",
    "Answer",
    "Chart",
    "Column",
    "Facts",
    "Figure",
    "Histogram",
    "Lines",
    "Pair",
    "Pairs",
    "Point",
    "Report",
    "Sample",
    "Section",
    "Series",
    "Shares",
    "Table",
    "command_line",
    "conditions",
    "given",
    "write_report",
]
