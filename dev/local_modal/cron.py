"""When does a schedule fire next? Periods are calendar-aware (dateutil), cron lines are read in their time
zone (croniter).

Where the clocks change, a time that doesn't exist fires when the gap is over, and one that exists twice fires
twice. What the cloud does then isn't documented; this is the harder case for a function that must run once.
"""

from __future__ import annotations

from datetime import datetime, timezone
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dateutil.relativedelta import relativedelta
from modal_proto import api_pb2 as api

try:
    from croniter import croniter
except ImportError:  # it isn't one of the SDK's own dependencies
    croniter = None


class ScheduleError(ValueError):
    """A schedule that can't be kept; the message says why."""


def check(schedule: api.Schedule) -> None:
    """Accept a schedule (or none) that `next_fire` can handle.

    Raises:
        ScheduleError: a malformed cron line, an unknown time zone, a period that isn't positive, or no
        croniter.
    """
    kind = schedule.WhichOneof("schedule_oneof")
    if kind == "cron":
        if croniter is None:
            raise ScheduleError(
                "modal.Cron schedules need the package 'croniter' where the local Modal server runs: "
                "pip install croniter, or use modal.Period"
            )
        if not croniter.is_valid(schedule.cron.cron_string) or len(schedule.cron.cron_string.split()) != 5:
            raise ScheduleError(f"invalid cron line {schedule.cron.cron_string!r}: five fields are expected")
        _zone(schedule.cron.timezone)
    elif kind == "period":
        start = datetime(2000, 1, 1, tzinfo=timezone.utc)
        if start + _delta(schedule.period) <= start:
            raise ScheduleError("a modal.Period must be longer than nothing")


def next_fire(schedule: api.Schedule, after: float) -> float | None:
    """Epoch seconds of the first firing later than `after`, for a period one period later; None without a
    schedule.
    """
    kind = schedule.WhichOneof("schedule_oneof")
    if kind == "cron":
        start = datetime.fromtimestamp(after, _zone(schedule.cron.timezone))
        moment: datetime = croniter(schedule.cron.cron_string, start).get_next(datetime)
        return moment.timestamp()
    if kind == "period":
        return (datetime.fromtimestamp(after, timezone.utc) + _delta(schedule.period)).timestamp()
    return None


def following(schedule: api.Schedule, due: float, now: float) -> float | None:
    """The firing after the one at `due`, counted from there so that a period doesn't drift; but later than
    `now`: what has been missed is not made up.
    """
    moment = next_fire(schedule, due)
    if moment is not None and moment <= now:
        return next_fire(schedule, now)
    return moment


def _delta(period: api.Schedule.Period) -> relativedelta:
    return relativedelta(
        years=period.years,
        months=period.months,
        weeks=period.weeks,
        days=period.days,
        hours=period.hours,
        minutes=period.minutes,
        seconds=int(period.seconds),
        microseconds=round(period.seconds % 1 * 1e6),
    )


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        raise ScheduleError(f"unknown time zone {name!r}") from None
