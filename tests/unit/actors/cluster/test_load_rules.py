"""Whose `load` rules: a lower version never replaces a higher one, and who is concerned is told."""

from __future__ import annotations

import logging
import re
import warnings

import pytest

import dynamic_workflows as dw
from dynamic_workflows.actors.cluster import load_precedence
from dynamic_workflows.actors.rpc.actor_settings import Rule

RULE = Rule("print", "1.9", "process 7 on far", has_callbacks=True, connected_at_us=50)


def rule(version: str | None, at_us: int, *, load: str = "other", driver: str = "me") -> Rule:
    return Rule(load, version, driver, has_callbacks=True, connected_at_us=at_us)


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
    late, early = rule(lower, 9), rule(higher, 1)
    assert load_precedence.may_replace(early, late)
    assert not load_precedence.may_replace(late, early)


@pytest.mark.parametrize("version", [None, "", "2.1"])
def test_among_equal_versions_the_connect_time_decides_not_who_comes_back_first(
    version: str | None,
) -> None:
    old_guest, restarted_owner = rule(version, 1, load="old"), rule(version, 2, load="new")
    assert load_precedence.may_replace(restarted_owner, old_guest)
    assert not load_precedence.may_replace(old_guest, restarted_owner)


def test_of_two_in_one_microsecond_exactly_one_gives_way() -> None:
    a, b = rule("1", 5, load="a"), rule("1", 5, load="b")
    assert load_precedence.may_replace(a, b) != load_precedence.may_replace(b, a)


def test_a_platform_without_a_load_is_replaced_by_any() -> None:
    command = Rule("none", None, "a command", has_callbacks=False, connected_at_us=9)
    assert load_precedence.may_replace(rule(None, 1), command)


def test_who_connects_just_now_is_later_though_its_clock_is_behind() -> None:
    mine = load_precedence.later_than(RULE, rule("1.9", 3))
    assert load_precedence.may_replace(mine, RULE)
    assert load_precedence.later_than(RULE, rule("1.9", 99)).connected_at_us == 99
    own = rule("1.9", 50, load="print", driver=RULE.driver)
    assert load_precedence.later_than(RULE, own) == own


@pytest.mark.parametrize(
    ("version", "why"),
    [
        (None, "this driver has no load_version, which counts as lower than any. To replace it, "),
        ("1.8", "its load_version '1.8' is lower. To replace it, connect with load_version '1.9'"),
        ("1.9", "that driver connected later, and their load_versions are equal. To replace it, "),
    ],
)
def test_a_driver_whose_load_is_not_used_is_told_why_and_what_to_do(
    version: str | None, why: str
) -> None:
    with pytest.warns(dw.LoadReplacedWarning, match=re.escape(why)):
        load_precedence.tell_not_used("/log", RULE, rule(version, 1))
    with pytest.warns(dw.LoadReplacedWarning, match="later, and neither has a load_version"):
        load_precedence.tell_not_used("/log", rule(None, 2), rule(None, 1))


def test_all_three_are_told_by_a_warning_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for tell in (
        load_precedence.tell_not_used,
        load_precedence.tell_replacing,
        load_precedence.tell_replaced,
    ):
        with pytest.warns(dw.LoadReplacedWarning, match="process 7 on far .load_version '1.9'"):
            tell("/log", RULE, rule("1.8", 1))
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 3


def test_a_program_whose_warnings_are_errors_goes_on() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_precedence.tell_replaced("/log", RULE, rule(None, 1))
