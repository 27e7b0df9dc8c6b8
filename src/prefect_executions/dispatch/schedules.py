"""Schedules as an operator writes them: every so often, a cron line, or an iCalendar rule."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from pydantic import ValidationError

from prefect_executions.errors import RequestError

if TYPE_CHECKING:
    from prefect.client.schemas.schedules import SCHEDULE_TYPES

_EVERY = re.compile(r"(\d+)\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def schedule_of(text: str, timezone: str | None = None) -> SCHEDULE_TYPES:
    """Return the schedule that *text* means: ``15m``, ``0 6 * * *`` or ``RRULE:…``, in *timezone* or UTC.

    Raises:
        RequestError: If it means none.
    """
    text = text.strip()
    zone = timezone or "UTC"
    try:
        if every := _EVERY.fullmatch(text):
            return IntervalSchedule(interval=timedelta(**{_UNITS[every[2]]: int(every[1])}), timezone=zone)
        if text.upper().startswith(("RRULE:", "DTSTART")):
            return RRuleSchedule(rrule=text, timezone=zone)
        return CronSchedule(cron=text, timezone=zone)
    except (ValidationError, ValueError, OverflowError) as error:
        raise RequestError(
            f"'{text}' in {zone} is no schedule: write 15m, 2h or 1d, a cron line as '0 6 * * *', or 'RRULE:FREQ=…'"
        ) from error
