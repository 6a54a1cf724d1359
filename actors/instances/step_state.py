"""Step state: what is known of one step, its config, and when its next attempt is."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from dynamic_workflows.eventlog.clock import to_datetime
from dynamic_workflows.loaders.protocol.contract import (
    OPEN,
    RETRIES_MAX,
    SLEEP,
    WAIT,
    YEAR_MS,
)
from dynamic_workflows.loaders.protocol.messages import Error, ProtocolViolation, RecordedStep

from .row_payloads import own_error

if TYPE_CHECKING:
    from .deadlines import Deadline

StepKey: TypeAlias = tuple[str, str, int]
"""(kind, name, count)"""


CONFIG_BYTES_MAX = 16 * 1024
NULL = b"null"


class RetryPolicy(msgspec.Struct, frozen=True, gc=False):
    """How often and when a failed step is tried again."""

    limit: int = 5
    delay_ms: float | None = 10_000
    """None: a function of the tenant's answers it with each failure."""
    backoff: str = "exponential"


class RecordedConfig(msgspec.Struct, frozen=True, gc=False):
    """A step's config as the guest normalised it."""

    retries: RetryPolicy = RetryPolicy()
    timeout_ms: float = 600_000
    sensitive: str | None = None
    lost: str = "retry"


_CONFIG = msgspec.json.Decoder(RecordedConfig)


@lru_cache(maxsize=1024)
def parse_config(text: bytes) -> RecordedConfig:
    """Decode and check a config from a guest; raises ProtocolViolation for an invalid one."""
    if len(text) > CONFIG_BYTES_MAX:
        raise ProtocolViolation(f"step config of {len(text)} bytes")
    try:
        config = _CONFIG.decode(text)
    except msgspec.MsgspecError as error:
        raise ProtocolViolation(f"step config: {error}") from None
    retries = config.retries
    sound = (
        0 <= retries.limit <= RETRIES_MAX
        and (retries.delay_ms is None or 0 <= retries.delay_ms)
        and retries.backoff in ("constant", "linear", "exponential")
        and config.timeout_ms > 0
        and config.sensitive in (None, "output")
        and config.lost in ("retry", "fail")
    )
    if not sound:
        raise ProtocolViolation("step config out of range")
    return config


DEFAULT_CONFIG = RecordedConfig()


class StepState(msgspec.Struct, eq=False):
    """One step of a run. The fields up to `until_us` are a fold of the log; the rest is live."""

    kind: str
    name: str
    count: int
    index: int
    """Order of start within the run, in one count with `ended`."""
    ended: int = 0
    outcome: int = OPEN
    value: bytes | None = None
    error: Error | None = None
    at: str | None = None
    config: RecordedConfig = DEFAULT_CONFIG
    config_text: bytes | None = None
    attempt: int = 0
    """Number of the last attempt."""
    in_flight: bool = False
    failures: int = 0
    """Attempts that used up a retry (the first one included)."""
    lost_in_a_row: int = 0
    sensitive: bool = False
    has_rollback: bool = False
    rollback_config: bytes | None = None
    event_type: str | None = None
    event_seq: int = 0
    """Of the event that a wait took."""
    timeout_ms: int = 0
    """Of a wait; an attempt's is in the config."""
    undo: StepState | None = None
    """The rollback of this step, once it has begun."""
    until_us: int | None = None
    """When a sleep ends, a wait times out, or the next attempt is due."""
    token: int | None = None
    """What the present lifetime calls it; None until the lifetime has asked for it."""
    timer: Deadline | None = None
    said: int = 0
    """The last attempt whose end the guest has told, or that ended before the present lifetime."""

    @property
    def key(self) -> StepKey:
        """(kind, name, count)"""
        return self.kind, self.name, self.count

    def known(self) -> RecordedStep:
        """Return what a replay receives of the step."""
        return RecordedStep(
            self.kind, self.name, self.count, self.outcome, self.value, self.error, self.at,
            self.index, self.ended,
        )  # fmt: skip

    def waits_for(self, now_us: int = 0) -> str:
        """Return a sentence part: what this unfinished step waits for, or has waited for."""
        until = (
            "" if self.until_us is None else to_datetime(self.until_us).isoformat(" ", "seconds")
        )
        name = f"{self.name!r}" if self.count == 1 else f"{self.name!r} ({self.count})"
        if self.kind == SLEEP:
            is_due = self.until_us is not None and self.until_us <= now_us
            if is_due:
                return f"its sleep in {name} was due at {until}"
            return f"it sleeps in {name} until {until}"
        if self.kind == WAIT:
            return f"it waits in {name} for an event of type {self.event_type!r} until {until}"
        if self.in_flight:
            return f"attempt {self.attempt} of step {name} runs"
        return f"step {name} is tried again (attempt {self.attempt + 1}) " + (
            f"at {until}" if until else "as soon as its lifetime goes on"
        )

    def facts(self) -> tuple[object, ...]:
        """Return everything that the log holds of the step, for comparing folds."""
        return (
            *self.key, self.index, self.ended, self.outcome, self.value, self.error, self.at,
            self.config_text,
            self.attempt, self.in_flight, self.failures, self.lost_in_a_row, self.sensitive,
            self.has_rollback, self.rollback_config, self.event_type, self.event_seq,
            self.timeout_ms,
            self.until_us, self.undo and self.undo.facts(),
        )  # fmt: skip


def retry_delay_ms(config: RecordedConfig, failures: int, answered_ms: float | None) -> int:
    """Return the delay after so many failures; `answered_ms` is the result of a delay function."""
    base = answered_ms if config.retries.delay_ms is None else config.retries.delay_ms
    if base is None:
        base = 1_000  # The code has no delay function any more.
    match config.retries.backoff:
        case "linear":
            factor = float(failures)
        case "exponential":
            factor = 2.0 ** min(failures - 1, 60)
        case _:
            factor = 1.0
    return round(min(base * factor, YEAR_MS))


def is_final(error: Error) -> bool:
    """Return whether the error is never retried, whatever retries are left."""
    return error.fatal or error.name == "NonRetryableError"


def timeout_error(step: StepState) -> Error:
    """Return the error of an attempt, or a wait, that exceeded its time limit."""
    if step.kind == WAIT:
        return own_error(
            "WorkflowTimeoutError",
            f"no event of type {step.event_type!r} came within {step.timeout_ms} ms",
        )
    timeout_ms = round(step.config.timeout_ms)
    return own_error(
        "WorkflowTimeoutError",
        f"attempt {step.attempt} of step {step.name!r} timed out after {timeout_ms} ms",
    )
