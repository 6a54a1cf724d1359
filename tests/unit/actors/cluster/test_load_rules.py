"""Whose `load` rules: a lower version never replaces a higher one, and who is concerned is told."""

from __future__ import annotations

import logging
import warnings

import pytest

import dynamic_workflows as dw
from dynamic_workflows.actors.cluster import load_precedence
from dynamic_workflows.actors.rpc.actor_settings import Rule

RULE = Rule("print", "1.9", "process 7 on far", has_callbacks=True)


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
    assert load_precedence.may_replace(higher, lower)
    assert not load_precedence.may_replace(lower, higher)
    assert load_precedence.may_replace(higher, higher)


def test_without_versions_the_newest_driver_rules() -> None:
    assert load_precedence.may_replace(None, None)


def test_all_three_are_told_by_a_warning_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for tell in (
        load_precedence.tell_not_used,
        load_precedence.tell_replacing,
        load_precedence.tell_replaced,
    ):
        with pytest.warns(dw.LoadReplacedWarning, match="process 7 on far .load_version '1.9'"):
            tell("/log", RULE, "1.8")
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 3


def test_a_program_whose_warnings_are_errors_goes_on() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_precedence.tell_replaced("/log", RULE, None)
