"""Checks: what a call of `step` has to be like; misuse is WorkflowFatalError, with what to do."""

from __future__ import annotations

import re

from ..sdk import durations
from ..sdk.entrypoints import WorkflowFatalError
from ..sdk.step_config import NormalizedConfig, normalize

NAME_CHARACTERS_MAX = 256
_UNFIT = re.compile("[\x00-\x1f\ud800-\udfff]")


def check_rollback(name: object, rollback: object, config: object) -> NormalizedConfig:
    """The config of a rollback, checked."""
    if not callable(rollback):
        raise WorkflowFatalError(f"the rollback of step {shown(name)} is no function")
    return normalize(config)


def check_name(name: object) -> None:
    """Raise WorkflowFatalError for what is no name of a step."""
    if type(name) is not str:
        raise WorkflowFatalError(f"the name of a step is text, not a {type(name).__name__}")
    if len(name) > NAME_CHARACTERS_MAX:
        raise WorkflowFatalError(
            f"the name of a step has at most {NAME_CHARACTERS_MAX} characters, not {len(name)}"
        )
    if _UNFIT.search(name):
        raise WorkflowFatalError(f"the name of step {name!a} holds a control character")


def check_direct(name: str, required: tuple[str, ...]) -> None:
    """Raise TypeError for a callback of the direct form that takes more than `ctx`."""
    others = [parameter for parameter in required if parameter != "ctx"]
    if others:
        raise TypeError(
            f"the callback of step {shown(name)} takes {', '.join(others)}: a callback passed to"
            " step.do gets nothing but ctx; use the decorator form to depend on other steps"
        )


def ms(duration: object, what: str) -> int:
    """A duration in milliseconds, or WorkflowFatalError."""
    try:
        return durations.parse_ms(duration)
    except ValueError as error:
        raise WorkflowFatalError(f"{what}: {error}") from None


def shown(name: object) -> str:
    """A name as it may stand in a message."""
    return repr(name)[:80] if isinstance(name, str) else type(name).__name__
