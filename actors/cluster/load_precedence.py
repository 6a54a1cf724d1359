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


def may_replace(new: str | None, old: str | None) -> bool:
    """Whether a driver of the version `new` may replace `old`: a lower one never does, and one
    that has none counts as lower than any that has one."""
    if old is None:
        return True
    return new is not None and version_key(new) >= version_key(old)


def tell_not_used(root: str, rule: Rule, mine: str | None) -> None:
    """Tell this driver that the platform goes on with another's `load`."""
    _tell(
        f"the platform on {root} goes on with the load of {_whose(rule)}; this one "
        f"({_version(mine)}) is lower and is not used: connect with a load_version that is as high"
    )


def tell_replacing(root: str, rule: Rule, mine: str | None) -> None:
    """Tell this driver that it has replaced another's `load`."""
    hint = "" if mine is not None else ". Give connect(load_version=...) to settle whose rules"
    _tell(
        f"the platform on {root} followed the load of {_whose(rule)}; it follows this one "
        f"({_version(mine)}) now, for every driver{hint}"
    )


def tell_replaced(root: str, rule: Rule, mine: str | None) -> None:
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
    return f"{rule.driver or 'another driver'} ({_version(rule.load_version)})"


def _version(version: str | None) -> str:
    return "without a load_version" if version is None else f"load_version {version!r}"
