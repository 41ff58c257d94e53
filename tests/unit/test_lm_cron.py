"""When schedules fire."""

from __future__ import annotations

from datetime import datetime, timezone
from zoneinfo import ZoneInfo

import pytest
from modal_proto import api_pb2 as api

from local_modal import cron


def moment(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def cron_line(line: str, zone: str = "") -> api.Schedule:
    return api.Schedule(cron=api.Schedule.Cron(cron_string=line, timezone=zone))


def period(**fields: float) -> api.Schedule:
    return api.Schedule(period=api.Schedule.Period(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "zone", "after", "expected"),
    [
        ("0 6 * * 1", "", "2026-01-01T00:00", "2026-01-05T06:00"),
        ("*/15 * * * *", "", "2026-01-01T00:15", "2026-01-01T00:30"),
        ("0 6 * * *", "Europe/Berlin", "2026-07-01T00:00", "2026-07-01T06:00"),
        # The night when the clocks go forward has no 02:30.
        ("0 6 * * *", "Europe/Berlin", "2026-03-29T01:30", "2026-03-29T06:00"),
    ],
)
def test_cron_fires_in_its_time_zone(line: str, zone: str, after: str, expected: str) -> None:
    fired = cron.next_fire(cron_line(line, zone), moment(after, zone or "UTC"))
    assert fired == moment(expected, zone or "UTC")


@pytest.mark.parametrize(
    ("line", "after", "expected"),
    [
        # The night when the clocks go forward has no 02:30: it fires when the gap is over.
        ("30 2 * * *", "2026-03-29T00:00+01:00", ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
        ("0 * * * *", "2026-03-29T01:00+01:00", ["2026-03-29T03:00+02:00", "2026-03-29T04:00+02:00"]),
        # The night when they go back has 02:30 twice, and both fire.
        (
            "30 2 * * *",
            "2026-10-25T00:00+02:00",
            ["2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00", "2026-10-26T02:30+01:00"],
        ),
        ("0 * * * *", "2026-10-25T02:00+02:00", ["2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"]),
    ],
)
def test_cron_when_the_clocks_change(line: str, after: str, expected: list[str]) -> None:
    now = datetime.fromisoformat(after).timestamp()
    for text in expected:
        fired = cron.next_fire(cron_line(line, "Europe/Berlin"), now)
        assert fired == datetime.fromisoformat(text).timestamp()
        now = fired


def test_periods_follow_the_calendar() -> None:
    assert cron.next_fire(period(months=1), moment("2026-01-31T12:00")) == moment("2026-02-28T12:00")
    assert cron.next_fire(period(days=1, hours=2), moment("2026-01-01T00:00")) == moment("2026-01-02T02:00")
    assert cron.next_fire(period(seconds=1.5), 100.0) == pytest.approx(101.5)


def test_what_was_missed_is_not_made_up() -> None:
    hourly = period(hours=1)
    due = moment("2026-01-01T12:00")
    assert cron.following(hourly, due, due + 5) == moment("2026-01-01T13:00"), "a late firing doesn't drift"
    assert cron.following(hourly, due, moment("2026-01-03T00:30")) == moment("2026-01-03T01:30")
    daily = cron_line("0 6 * * *")
    assert cron.following(daily, moment("2026-01-01T06:00"), moment("2026-01-03T05:00")) == moment(
        "2026-01-03T06:00"
    )
    assert cron.following(api.Schedule(), due, due) is None


def test_no_schedule_never_fires() -> None:
    assert cron.next_fire(api.Schedule(), datetime.now(timezone.utc).timestamp()) is None


@pytest.mark.parametrize(
    ("schedule", "complaint"),
    [
        (cron_line("every day"), "every day"),
        (cron_line("* * * * * *"), "five fields"),
        (cron_line("0 0 * * *", "Mars/Olympus"), "Mars/Olympus"),
        (period(), "longer than nothing"),
    ],
)
def test_bad_schedules_are_refused(schedule: api.Schedule, complaint: str) -> None:
    with pytest.raises(cron.ScheduleError, match=complaint):
        cron.check(schedule)


def test_cron_without_croniter_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cron, "croniter", None)
    with pytest.raises(cron.ScheduleError, match="pip install croniter"):
        cron.check(cron_line("0 0 * * *"))
    cron.check(period(seconds=1))
