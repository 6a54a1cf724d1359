"""Load rules: whose `load` a platform follows when its drivers disagree, and who is told."""

from __future__ import annotations

import logging
import re
import warnings

from dynamic_workflows.eventlog.errors import LoadReplacedWarning

from ..rpc.actor_settings import Rule

_log = logging.getLogger("dynamic_workflows.load")
_NUMBERS = re.compile(r"(\d+)")


def version_key(version: str) -> list[tuple[int, int, str]]:
    """What versions are compared by: text as text, and numbers in it as numbers."""
    parts = _NUMBERS.split(version)
    return [(0, int(one), "") if one.isdecimal() else (1, 0, one) for one in parts if one]


def may_replace(new: Rule, old: Rule) -> bool:
    """Whether a driver may make its `load` rule where that of another rules.

    A lower version never replaces a higher one, and none counts as lower than any. Of equal ones
    the driver that connected later rules: one that joins again by itself is not newer for it.
    """
    mine, other = _rank(new.load_version), _rank(old.load_version)
    return mine > other or (mine == other and _is_newer(new, old))


def _rank(version: str | None) -> tuple[bool, list[tuple[int, int, str]]]:
    return version is not None, version_key(version or "")


def _is_newer(new: Rule, old: Rule) -> bool:
    return not new.is_joining_again or new.connected_at_us > old.connected_at_us


def tell_not_used(root: str, rule: Rule, mine: Rule) -> None:
    """Tell this driver that the platform goes on with another's `load`."""
    if _rank(mine.load_version) == _rank(rule.load_version):
        reason = "which connected later than this driver"
    elif mine.load_version is None:
        reason = "and this driver has no load_version"
    else:
        reason = f"and this driver's load_version {mine.load_version!r} is lower"
    _tell(
        f"the platform on {root} goes on with the load of {_whose(rule)}, {reason}: connect with a "
        "load_version that is as high to make this one rule"
    )


def tell_replacing(root: str, rule: Rule, mine: Rule) -> None:
    """Tell this driver that it has replaced another's `load`."""
    hint = "" if mine.load_version else ". Give connect(load_version=...) to settle whose rules"
    _tell(
        f"the platform on {root} followed the load of {_whose(rule)}; it follows this one "
        f"({_version(mine.load_version)}) now, for every driver{hint}"
    )


def tell_replaced(root: str, rule: Rule, mine: Rule) -> None:
    """Tell this driver that its `load` was replaced."""
    _tell(
        f"the load of this driver ({_version(mine.load_version)}) was replaced: the platform on "
        f"{root} follows that of {_whose(rule)} now"
    )


def _tell(text: str) -> None:
    _log.warning("%s", text)
    try:
        warnings.warn(text, LoadReplacedWarning, stacklevel=2)
    except LoadReplacedWarning:
        pass  # warnings that are errors here end no platform: the line in the log stands


def _whose(rule: Rule) -> str:
    return f"{rule.driver or 'another driver'} ({_version(rule.load_version)})"


def _version(version: str | None) -> str:
    return "without a load_version" if version is None else f"load_version {version!r}"
