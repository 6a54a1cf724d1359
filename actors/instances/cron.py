"""Cron: when a schedule fires next, in UTC; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

from dynamic_workflows.eventlog.clock import from_datetime, to_datetime
from dynamic_workflows.eventlog.errors import CodeError, InvalidError

CRON_MAX = 256
_MISSED_MAX = 10_000


def check_cron(cron: object) -> str:
    """Check that a cron expression is valid and fires some day. Raises InvalidError
    `schedule.invalid`."""
    if isinstance(cron, str) and 0 < len(cron) <= CRON_MAX:
        try:
            if next_us(cron, from_datetime(datetime(2000, 1, 1, tzinfo=UTC))) is not None:
                return cron
        except CronSimError:
            pass
    raise InvalidError(
        f"{str(cron)[:80]!r} is no cron expression that ever fires: five fields (minute, hour, "
        "day, month, weekday), or six with seconds first",
        code="schedule.invalid",
    )


def is_cron(cron: object) -> bool:
    """Return whether a text is a cron expression that fires some day."""
    try:
        check_cron(cron)
    except InvalidError:
        return False
    return True


def check_declared(schedules: Mapping[str, Iterable[str]]) -> None:
    """Check that the schedules that code declares can fire. Raises CodeError `code.invalid`."""
    for workflow, crons in sorted(schedules.items()):
        for cron in crons:
            try:
                check_cron(cron)
            except InvalidError as error:
                raise CodeError(f"schedules of {workflow!r}: {error.message}") from None


def next_us(cron: str, after_us: int) -> int | None:
    """Return the first firing after `after_us`, or None if there is none within fifty years."""
    try:
        return from_datetime(next(CronSim(cron, to_datetime(after_us))))
    except StopIteration:
        return None


def missed(cron: str, due_us: int, now_us: int) -> tuple[int, int]:
    """What a schedule that was due at `due_us` owes at `now_us`: (the latest firing due, how many
    before it are left out). Counts to 10,000 at most."""
    latest_us = due_us
    left_out = 0
    while left_out < _MISSED_MAX:
        following_us = next_us(cron, latest_us)
        if following_us is None or following_us > now_us:
            return latest_us, left_out
        latest_us = following_us
        left_out += 1
    back = CronSim(cron, to_datetime(now_us) + timedelta(seconds=1), reverse=True)
    return from_datetime(next(back)), left_out


def firing_id(cron: str, scheduled_us: int) -> str:
    """Return the id of the instance that a firing creates."""
    return f"{cron}-{scheduled_us // 1_000}"
