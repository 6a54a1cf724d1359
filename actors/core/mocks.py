"""Mocks: outcomes that a test puts in the place of a tenant's callbacks, sleeps and events.

A mocked outcome writes the same rows as a real one. Mocks live in memory only; they outlast
restarts of an instance and go with its deletion."""

from __future__ import annotations

import copy
from collections import deque
from typing import TYPE_CHECKING

from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.loaders.protocol.messages import Error

if TYPE_CHECKING:
    from ..instances.decisions import Key
    from ..instances.step_state import StepState

Named = tuple[str, int]
"""(name, occurrence)"""


class InstanceMocks:
    """The mocks of one instance, or of every instance of a workflow that is created from now on."""

    def __init__(self) -> None:
        self._sleeps: set[Named] | None = set()
        self._delays: set[Named] | None = set()
        self._results: dict[Named, bytes] = {}
        self._errors: dict[Named, deque[tuple[Error, int | None]]] = {}
        self._timeouts: dict[Named, int | None] = {}
        self._events: dict[str, deque[bytes]] = {}
        self._event_timeouts: set[Named] = set()

    # --- set by the test -------------------------------------------------------------------------

    def disable_sleeps(self, steps: list[Named] | None = None) -> None:
        """These sleeps (None: all) take no time."""
        self._sleeps = _joined(self._sleeps, steps)

    def disable_retry_delays(self, steps: list[Named] | None = None) -> None:
        """After a failed attempt of these steps (None: all) the next starts at once."""
        self._delays = _joined(self._delays, steps)

    def mock_step_result(self, step: Named, value: bytes) -> None:
        """The step is not run; its result is this codec text. Raises InvalidError where it has
        one."""
        if step in self._results:
            raise InvalidError(f"step {step[0]!r} ({step[1]}) has a mock result already")
        self._results[step] = value

    def mock_step_error(self, step: Named, error: Error, times: int | None = None) -> None:
        """The next `times` attempts (None: every attempt) fail with this error."""
        self._refuse_after_result(step)
        self._errors.setdefault(step, deque()).append((error, _times(times)))

    def force_step_timeout(self, step: Named, times: int | None = None) -> None:
        """The next `times` attempts (None: every attempt) time out at once."""
        self._refuse_after_result(step)
        before = self._timeouts.get(step, 0)
        more = _times(times)
        self._timeouts[step] = None if more is None or before is None else before + more

    def mock_event(self, event_type: str, payload: bytes) -> None:
        """The next wait for this type gets this payload (codec text)."""
        self._events.setdefault(event_type, deque()).append(payload)

    def force_event_timeout(self, step: Named) -> None:
        """This wait times out at once."""
        self._event_timeouts.add(step)

    def _refuse_after_result(self, step: Named) -> None:
        if step in self._results:
            raise InvalidError(f"step {step[0]!r} ({step[1]}) has a mock result: it cannot fail")

    # --- asked by the core -----------------------------------------------------------------------

    def skips_sleep(self, step: StepState) -> bool:
        """Whether this sleep takes no time."""
        return self._sleeps is None or (step.name, step.count) in self._sleeps

    def skips_delay(self, step: StepState) -> bool:
        """Whether the delay before the next attempt is left out."""
        return self._delays is None or (step.name, step.count) in self._delays

    def result(self, step: StepState) -> bytes | None:
        """The result that stands for the callback."""
        return self._results.get((step.name, step.count))

    def take_error(self, step: StepState) -> Error | None:
        """The error that this attempt fails with; counts it."""
        queue = self._errors.get((step.name, step.count))
        if not queue:
            return None
        error, times = queue[0]
        if times is not None:
            queue.popleft()
            if times > 1:
                queue.appendleft((error, times - 1))
        return error

    def take_timeout(self, step: StepState) -> bool:
        """Whether this attempt times out at once; counts it."""
        key = (step.name, step.count)
        times = self._timeouts.get(key, 0)
        if times is None:
            return True
        if times > 0:
            self._timeouts[key] = times - 1
        return times > 0

    def take_event(self, event_type: str | None) -> bytes | None:
        """The payload for a wait of this type, once."""
        queue = self._events.get(event_type or "")
        return queue.popleft() if queue else None

    def times_out(self, step: StepState) -> bool:
        """Whether this wait times out at once."""
        return (step.name, step.count) in self._event_timeouts


class Mocks:
    """Every mock of a tenant; empty outside tests."""

    def __init__(self) -> None:
        self._instances: dict[Key, InstanceMocks] = {}
        self._workflows: dict[str, InstanceMocks] = {}
        self.were_set = False
        """There was a mock once: outside tests the core need not look for any."""

    def take_over(self, other: Mocks) -> None:
        """Have the mocks of the core that this tenant had before a crash."""
        self._instances, self._workflows = other._instances, other._workflows
        self.were_set = other.were_set

    def of_instance(self, key: Key) -> InstanceMocks:
        """The mocks of this instance, which need not exist yet."""
        self.were_set = True
        return self._instances.setdefault(key, InstanceMocks())

    def of_workflow(self, workflow: str) -> InstanceMocks:
        """The mocks that every instance of this workflow starts with that is created from now
        on."""
        self.were_set = True
        return self._workflows.setdefault(workflow, InstanceMocks())

    def forget(self, key: Key) -> None:
        """Drop the mocks of an instance that is deleted, or whose session is over."""
        self._instances.pop(key, None)

    def forget_workflow(self, workflow: str) -> None:
        """The session over this workflow is over; instances keep what they have."""
        self._workflows.pop(workflow, None)

    def created(self, key: Key) -> None:
        """An instance was created: it starts with its workflow's mocks, unless it has its own."""
        template = self._workflows.get(key[0])
        if template is not None and key not in self._instances:
            self._instances[key] = copy.deepcopy(template)

    def get(self, key: Key) -> InstanceMocks | None:
        """The mocks that apply to this instance, if there are any."""
        return self._instances.get(key)


def _joined(before: set[Named] | None, steps: list[Named] | None) -> set[Named] | None:
    return None if before is None or steps is None else before | set(steps)


def _times(times: int | None) -> int | None:
    if times is not None and times < 1:
        raise InvalidError(f"times is at least 1, not {times}")
    return times
