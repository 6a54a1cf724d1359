"""Config: how a step is to be retried and timed, as tenants write it and as it is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import msgspec

from ..protocol.contract import RETRIES_MAX
from . import durations
from .attr_view import AttrView
from .durations import Duration
from .entrypoints import WorkflowFatalError

BackoffName: TypeAlias = Literal["constant", "linear", "exponential"]
Delay: TypeAlias = Duration | Callable[[Any, Exception], Any]

_BACKOFFS = ("constant", "linear", "exponential")
_DEFAULT = {
    "retries": {"limit": 5, "delay": "10 seconds", "backoff": "exponential"},
    "timeout": "10 minutes",
}


@dataclass(frozen=True, kw_only=True)
class Retries:
    """`limit` retries after the first attempt, `delay` apart, growing by `backoff`."""

    limit: int = 5
    delay: Delay = "10 seconds"
    """A duration, or a function of (ctx, error) that answers one."""
    backoff: BackoffName = "exponential"


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What `config=` of a step takes; a dict with the same keys does as well."""

    retries: Retries | Mapping[str, Any] | None = None
    timeout: Duration | None = None
    """How long one attempt may take; 10 minutes unless set."""
    sensitive: Literal["output"] | None = None
    """`"output"` keeps the result out of logs, views and streams."""
    lost: Literal["retry", "fail"] | None = None
    """What becomes of an attempt that a failure of the platform cut off; `fail`: at most once."""


class _RecordedRetries(msgspec.Struct):
    limit: int
    delay_ms: int | None
    backoff: str


class WireConfig(msgspec.Struct, omit_defaults=True):
    """The config as the wire and the log hold it; `delay_ms` is None for a function."""

    retries: _RecordedRetries
    timeout_ms: int
    sensitive: str | None = None
    lost: str = "retry"


class NormalizedConfig:
    """A step's config, checked: its text for the wire, its delay function, and what `ctx` shows."""

    __slots__ = ("delay", "limit", "shown", "text")

    def __init__(self, recorded: WireConfig, delay: Any, shown: Mapping[str, Any]) -> None:
        self.text = msgspec.json.encode(recorded)
        self.limit = recorded.retries.limit
        self.delay = delay
        """The delay function, or None."""
        self.shown = shown

    def view(self) -> AttrView:
        """A copy for `ctx.config`; a callback may do with it what it likes."""
        view = AttrView(self.shown)
        view["retries"] = AttrView(view["retries"])
        return view

    def as_recorded(self, text: bytes | None) -> NormalizedConfig:
        """This config, or what was recorded for the step before: the first sight wins."""
        if text is None or text == self.text:
            return self
        try:
            recorded = msgspec.json.decode(text, type=WireConfig)
        except msgspec.MsgspecError:
            return self
        shown = {
            "retries": {"limit": recorded.retries.limit, "backoff": recorded.retries.backoff},
            "timeout": recorded.timeout_ms,
        }
        is_dynamic = recorded.retries.delay_ms is None
        if not is_dynamic:
            shown["retries"]["delay"] = recorded.retries.delay_ms  # type: ignore[index]
        if recorded.sensitive:
            shown["sensitive"] = recorded.sensitive
        return NormalizedConfig(recorded, self.delay if is_dynamic else None, shown)


def normalize(config: Any) -> NormalizedConfig:
    """Check a step's config and fill in what it leaves out, or raise WorkflowFatalError."""
    if config is None:
        return DEFAULT
    key = _key(config)
    if key is None:
        return _settle(config)
    settled = _settled.get(key)
    if settled is None:
        settled = _settle(config)
        if len(_settled) < _SETTLED_MAX:
            _settled[key] = settled
    return settled


_settled: dict[tuple[Any, ...], NormalizedConfig] = {}
_SETTLED_MAX = 256


def _key(config: Any) -> tuple[Any, ...] | None:
    """What tells apart the usual dicts of plain values; None for everything else."""
    if type(config) is not dict or len(config) > 4:
        return None
    parts: list[Any] = []
    for name, value in config.items():
        kind = type(value)
        if kind is dict and len(value) <= 4:
            parts += (name, len(value))
            for inner, fact in value.items():
                if type(inner) is not str or type(fact) not in _PLAIN:
                    return None
                parts += (name, inner, type(fact), fact)
        elif type(name) is str and kind in _PLAIN:
            parts += (name, kind, value)
        else:
            return None
    return tuple(parts)


_PLAIN = frozenset({str, int, float})


def _settle(config: Any) -> NormalizedConfig:
    given = _as_dict(config, "config", StepConfig)
    retries = _as_dict(given.get("retries"), "config.retries", Retries)
    if "retries" in given and isinstance(given["retries"], Mapping):
        _require(retries, "limit")
    limit = retries.get("limit", 5)
    # What is wrong is told before what is missing.
    if type(limit) is not int or not 0 <= limit <= RETRIES_MAX:
        raise _bad(f"config.retries.limit is a number from 0 to {RETRIES_MAX}, not {limit!r:.80}")
    if "retries" in given and isinstance(given["retries"], Mapping) and limit != 0:
        _require(retries, "delay")
    backoff = retries.get("backoff", "exponential")
    if backoff not in _BACKOFFS:
        raise _bad(f"config.retries.backoff is one of {', '.join(_BACKOFFS)}, not {backoff!r:.80}")
    delay = retries.get("delay", "10 seconds")
    delay_ms = None if callable(delay) else _ms(delay, "config.retries.delay")
    timeout_ms = _ms(given.get("timeout", "10 minutes"), "config.timeout")
    if timeout_ms == 0:
        raise _bad("config.timeout is a duration above 0")
    sensitive, lost = given.get("sensitive"), given.get("lost", "retry")
    if sensitive not in (None, "output"):
        raise _bad(f'config.sensitive is "output" or absent, not {sensitive!r:.80}')
    if lost not in ("retry", "fail"):
        raise _bad(f'config.lost is "retry" or "fail", not {lost!r:.80}')
    recorded = WireConfig(_RecordedRetries(limit, delay_ms, backoff), timeout_ms, sensitive, lost)
    shown = {
        **_DEFAULT,
        **given,
        "retries": {**_DEFAULT["retries"], **retries},  # type: ignore[dict-item]
    }
    if delay_ms is None:
        del shown["retries"]["delay"]
    return NormalizedConfig(recorded, delay if delay_ms is None else None, shown)


def _as_dict(given: Any, what: str, kind: type[Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    if given is None:
        return {}
    if isinstance(given, kind):
        # Fields that were left alone do not count as given.
        found = {name: getattr(given, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}
    if not isinstance(given, Mapping):
        raise _bad(f"{what} is a dict or a {kind.__name__}, not a {type(given).__name__}")
    for name in given:
        if name not in names:
            raise _bad(f"{what} has no key {name!r:.80}: it takes {', '.join(sorted(names))}")
    return {name: value for name, value in given.items() if value is not None}


def _require(retries: Mapping[str, Any], name: str) -> None:
    if name not in retries:
        raise _bad(
            f"config.retries lacks {name!r}: limit and delay go together, unless the limit is 0"
        )


def _ms(duration: Any, what: str) -> int:
    try:
        return durations.parse_ms(duration)
    except ValueError as error:
        raise _bad(f"{what}: {error}") from None


def _bad(message: str) -> WorkflowFatalError:
    return WorkflowFatalError(message)


DEFAULT = _settle({})
