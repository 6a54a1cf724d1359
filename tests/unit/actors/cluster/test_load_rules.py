"""Whose `load` rules: a lower version never replaces a higher one, and who is concerned is told."""

from __future__ import annotations

import logging
import warnings

import pytest

import dynamic_workflows as dw
from dynamic_workflows.actors.cluster import load_precedence
from dynamic_workflows.actors.rpc.actor_settings import Rule

RULE = Rule("print", "1.9", "process 7 on far", has_callbacks=True)


def driver(version: str | None, *, at: int = 0, again: bool = False) -> Rule:
    """What a driver brings that connected at a time."""
    return Rule("print", version, "process 8", True, connected_at_us=at, is_joining_again=again)


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("1.9", "1.10"),
        ("2026-05-01", "2026-05-01.1"),
        ("2026-05-01T09:00:00Z", "2026-05-01T10:00:00Z"),
        ("v2", "v10"),
        ("a", "b"),
        ("007", "8"),
        ("", "1"),
        (None, "0"),
        (None, ""),
    ],
)
def test_a_lower_version_never_replaces_a_higher_one(lower: str | None, higher: str) -> None:
    for again in (False, True):
        high, low = driver(higher, again=again), driver(lower, again=again)
        assert load_precedence.may_replace(high, low)
        assert not load_precedence.may_replace(low, high)


@pytest.mark.parametrize("version", [None, "", "1.9"])
def test_of_equal_versions_the_driver_that_connects_rules(version: str | None) -> None:
    # Its clock may be behind that of another machine.
    assert load_precedence.may_replace(driver(version, at=1), driver(version, at=2))


@pytest.mark.parametrize("version", [None, "", "1.9"])
def test_a_driver_that_joins_again_by_itself_is_as_old_as_it_was(version: str | None) -> None:
    assert not load_precedence.may_replace(driver(version, at=1, again=True), driver(version, at=2))
    assert load_precedence.may_replace(driver(version, at=2, again=True), driver(version, at=1))


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (driver("1.8"), "this driver's load_version '1.8' is lower"),
        (driver(None), "this driver has no load_version"),
        (driver("1.9", again=True), "connected later than this driver"),
    ],
)
def test_who_is_not_used_is_told_the_reason(mine: Rule, said: str) -> None:
    with pytest.warns(dw.LoadReplacedWarning, match=said):
        load_precedence.tell_not_used("/log", RULE, mine)


def test_all_three_are_told_by_a_warning_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for tell in (
        load_precedence.tell_not_used,
        load_precedence.tell_replacing,
        load_precedence.tell_replaced,
    ):
        with pytest.warns(dw.LoadReplacedWarning, match="process 7 on far .load_version '1.9'"):
            tell("/log", RULE, driver("1.8"))
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 3


def test_a_program_whose_warnings_are_errors_goes_on() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_precedence.tell_replaced("/log", RULE, driver(None))
