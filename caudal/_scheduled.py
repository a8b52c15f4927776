"""Reports that are written to a folder when a day, a week or a month is over: `[[reports]]` in `caudal.toml`.

```toml
[[reports]]
report = "sales"
every = "month"
format = "pdf"
folder = "reports"
where = 'city = "Recife"'
```

Every worker looks now and then whether one is due, and whoever gets an advisory lock writes it. The name of a file holds the period; a
file that is there is not written again, so nobody needs to remember what was done.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caudal import postgres, sources
from caudal._periodic import Periodic
from caudal.errors import BadSettings, CaudalError, Fatal
from caudal.telemetry import Log, logger

if TYPE_CHECKING:
    from caudal.projections.reports import Asked
    from caudal.settings import Settings

__all__ = ["Due", "Reporting", "Scheduled", "due", "load", "run_due"]

_LOCK = postgres.Lock.REPORTS


class Scheduled(BaseModel):
    """A report that is written whenever a period is over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    report: str = Field(description="Which one; `caudal report list` shows them.")
    every: Literal["day", "week", "month"] = Field(description="Written when such a period is over.")
    folder: Path = Field(description="Where to; from the folder of `caudal.toml` on.")
    format: Literal["html", "pdf", "csv", "json"] = "html"
    where: str | None = Field(None, description="Criteria in the text form.")
    by: Literal["day", "week", "month"] | None = Field(
        None, description="As `--by`. Unset: as `every`, where it can be."
    )
    currency: str | None = None
    segment: str | None = None
    limit: int | None = None
    time_zone: str = Field("UTC", description="Whose midnight ends a day.")
    hour: int = Field(1, ge=0, le=23, description="Not before this hour there: what came late is in it.")


@dataclass(frozen=True)
class Due:
    """A report whose time has come, and the file it is written to."""

    scheduled: Scheduled
    file: Path
    first: date
    last: date


def load(settings: Settings) -> list[Scheduled]:
    """What is scheduled.

    Raises:
        BadSettings: it can't be read; the message names the entry.
    """
    from caudal.projections.reports import BadReport, zone_of

    path = settings.config_file
    entries = sources.read(path).get("reports", [])
    if not isinstance(entries, list):
        raise BadSettings(f"{path}: reports: not a list of tables", hint="write [[reports]]")
    found: list[Scheduled] = []
    for number, entry in enumerate(entries, 1):
        try:
            found.append(Scheduled.model_validate(entry))
            zone_of(found[-1].time_zone)
        except ValidationError as exc:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}"
                for e in exc.errors(include_input=False, include_url=False)
            )
            raise BadSettings(f"{path}: reports, entry {number}: {faults}") from None
        except BadReport as exc:
            raise BadSettings(f"{path}: reports, entry {number}: time_zone: {exc}") from None
    names = [(each.report, each.every, each.format, each.folder) for each in found]
    if len(set(names)) < len(names):
        raise BadSettings(f"{path}: reports: two entries would write the same files", hint="give one another folder")
    return found


def due(settings: Settings, now: datetime) -> Iterator[Due]:
    """What is to be written: of each entry the last period that is over, unless its file is there.

    Raises:
        BadSettings: what is scheduled can't be read.
    """
    for each in load(settings):
        today = (now.astimezone(ZoneInfo(each.time_zone)) - timedelta(hours=each.hour)).date()
        match each.every:
            case "day":
                last = today - timedelta(days=1)
                first, name = last, last.isoformat()
            case "week":
                last = today - timedelta(days=today.isoweekday())
                first, name = last - timedelta(days=6), last.strftime("%G-W%V")
            case "month":
                last = today.replace(day=1) - timedelta(days=1)
                first, name = last.replace(day=1), last.strftime("%Y-%m")
        file = settings.config_file.parent / each.folder / f"{each.report}-{name}.{each.format}"
        if not file.exists():
            yield Due(each, file, first, last)


def run_due(settings: Settings, now: datetime) -> list[Path]:
    """Write what is due, unless another process does; what was written.

    Raises:
        CaudalError: the first fault; the reports after it were made all the same.
    """
    if not any(True for _ in due(settings, now)):
        return []
    written, faults = [], []
    with postgres.translated(), postgres.connect(settings.postgres, role="reports") as conn:
        if conn.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone() != (True,):
            return []
        for each in due(settings, now):  # again: whoever had the lock before has written some
            try:
                content = asyncio.run(_made(settings, each, now))
                _write(each.file, content)
            except CaudalError as exc:
                logger().warning(Log.REPORT_FAILED, report=each.scheduled.report, code=exc.code)
                faults.append(exc)
            else:
                logger().info(Log.REPORT_WRITTEN, report=each.scheduled.report, file=each.file.name)
                written.append(each.file)
    if faults:
        raise faults[0]
    return written


async def _made(settings: Settings, what: Due, now: datetime) -> bytes:
    from caudal.serving._report_files import encoded
    from caudal.serving._reports import Reports, found

    report = found(what.scheduled.report)
    asked = _asked(what, now, report.by)
    async with postgres.opened(settings.postgres, role="reports") as pool:
        made = await Reports(pool).make(report, asked)
    return await asyncio.to_thread(encoded, made, what.scheduled.format)


def _asked(what: Due, now: datetime, possible: tuple[str, ...]) -> Asked:
    """A series tells of the usual number of periods up to the last day, so that the last one can be compared; a list of this one."""
    from caudal.projections import criteria
    from caudal.projections.reports import Asked

    each = what.scheduled
    by: Any = each.by or (each.every if each.every in possible else None)
    return Asked(
        criteria=criteria.parse(each.where) if each.where else None, first=None if possible else what.first, last=what.last, by=by,
        currency=each.currency, segment=each.segment, limit=each.limit, zone=each.time_zone, now=now,
    )  # fmt: skip


def _write(file: Path, content: bytes) -> None:
    """Make the file at once: whoever reads it sees all of it or nothing."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        mode = (
            file.stat().st_mode & 0o777 if file.exists() else 0o600
        )  # who may read it besides is the operator's to say
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(content)
                out.flush()
                os.fsync(handle)
            part.chmod(mode)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    except OSError as exc:
        raise Fatal(f"{file}: {exc.strerror}") from None


class Reporting(Periodic):
    """Writes what is due."""

    step = "reports"
    every_s = 300.0

    def __init__(self, settings: Settings) -> None:
        """Nothing is connected before something is due."""
        super().__init__()
        self._settings = settings

    def look(self, now: datetime) -> object:
        """Write what is due, see `run_due`."""
        return run_due(self._settings, now)
