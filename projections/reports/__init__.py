"""Reports: what each tells, as one SELECT over facts and views.

- sales.py, customers.py, feedback.py, support.py: the reports.
- marks.py: trend and anomalies of a series.
- _report.py: what a report is; _ask.py: what can be asked of it; _result.py: what comes of it.
"""

from collections.abc import Mapping

from caudal.projections.reports._ask import Asked, BadReport, Plan, plan, zone_of
from caudal.projections.reports._report import PERIODS, Chart, Column, Period, Report
from caudal.projections.reports._result import Result, finished
from caudal.projections.reports.customers import CUSTOMERS
from caudal.projections.reports.feedback import FEEDBACK
from caudal.projections.reports.sales import SALES
from caudal.projections.reports.support import SUPPORT

__all__ = [
    "PERIODS",
    "REPORTS",
    "Asked",
    "BadReport",
    "Chart",
    "Column",
    "Period",
    "Plan",
    "Report",
    "Result",
    "finished",
    "plan",
    "zone_of",
]

REPORTS: Mapping[str, Report] = {report.name: report for report in (*SALES, *CUSTOMERS, *FEEDBACK, *SUPPORT)}
"""Name → report."""
