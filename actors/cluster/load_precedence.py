"""Load rules: whose `load` a platform follows when its drivers disagree, and who is told."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import replace

from dynamic_workflows.eventlog.errors import LoadReplacedWarning

from ..rpc.actor_settings import Rule

_log = logging.getLogger("dynamic_workflows.load")
_NUMBERS = re.compile(r"(\d+)")


def version_key(version: str) -> list[tuple[int, int, str]]:
    """What versions are compared by: text as text, and numbers in it as numbers."""
    parts = _NUMBERS.split(version)
    return [(0, int(one), "") if one.isdecimal() else (1, 0, one) for one in parts if one]


def may_replace(new: Rule, old: Rule) -> bool:
    """Whether the driver of `new` may replace that of `old`: by its version, where none counts as
    lower than any, and among equal ones by when each connected first."""
    if not old.has_callbacks:
        return True
    mine, theirs = _rank(new.load_version), _rank(old.load_version)
    if mine != theirs:
        return mine > theirs
    # The fingerprint settles one microsecond alike for both, or they would replace each other.
    return (new.connected_at_us, new.fingerprint) > (old.connected_at_us, old.fingerprint)


def later_than(rule: Rule, mine: Rule) -> Rule:
    """`mine` as it connects while `rule` is in effect, whatever the clock of its machine says."""
    if mine.fingerprint == rule.fingerprint and mine.driver == rule.driver:
        return mine
    return replace(mine, connected_at_us=max(mine.connected_at_us, rule.connected_at_us + 1))


def tell_not_used(root: str, rule: Rule, mine: Rule) -> None:
    """Tell this driver that the platform goes on with another's `load`, and why."""
    theirs = rule.load_version
    if _rank(mine.load_version) == _rank(theirs):
        alike = "neither has a load_version" if theirs is None else "their load_versions are equal"
        why = f"that driver connected later, and {alike}"
        remedy = "restart this program, or connect with a higher load_version"
    else:
        why = (
            "this driver has no load_version, which counts as lower than any"
            if mine.load_version is None
            else f"its load_version {mine.load_version!r} is lower"
        )
        remedy = f"connect with load_version {theirs!r} or a higher one"
    _tell(
        f"the load of this driver is not used: the platform on {root} follows that of "
        f"{_whose(rule)}; {why}. To replace it, {remedy}"
    )


def tell_replacing(root: str, rule: Rule, mine: Rule) -> None:
    """Tell this driver that it has replaced another's `load`."""
    hint = ""
    if mine.load_version is None:
        hint = ". Give each driver a connect(load_version=...) to settle whose is followed"
    _tell(
        f"the platform on {root} follows the load of this driver ({_version(mine)}) now, for every "
        f"driver; before, it followed that of {_whose(rule)}{hint}"
    )


def tell_replaced(root: str, rule: Rule, mine: Rule) -> None:
    """Tell this driver that its `load` was replaced."""
    _tell(
        f"the load of this driver ({_version(mine)}) was replaced: the platform on {root} follows "
        f"that of {_whose(rule)} now"
    )


def _tell(text: str) -> None:
    _log.warning("%s", text)
    try:
        warnings.warn(text, LoadReplacedWarning, stacklevel=2)
    except LoadReplacedWarning:
        pass  # warnings that are errors here end no platform: the line in the log stands


def _whose(rule: Rule) -> str:
    return f"{rule.driver or 'another driver'} ({_version(rule)})"


def _version(rule: Rule) -> str:
    version = rule.load_version
    return "without a load_version" if version is None else f"load_version {version!r}"


def _rank(version: str | None) -> tuple[bool, list[tuple[int, int, str]]]:
    return version is not None, version_key(version or "")
