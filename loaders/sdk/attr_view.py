"""Views: small facts for tenant code, read by attribute or by key."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from dynamic_workflows.eventlog.codec.encode import EncodedRecord


class AttrView(EncodedRecord):
    """A dict whose keys are attributes too; `aliases` are second names of keys."""

    aliases: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}") from None

    def __missing__(self, key: str) -> Any:
        known = self.aliases.get(key)
        if known is None:
            raise KeyError(key)
        return self[known]

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self, self.aliases.get(key, key) if isinstance(key, str) else key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key or alias, or the default."""
        try:
            return self[key]
        except KeyError:
            return default


Payload = TypeVar("Payload")


class WorkflowEvent(AttrView, Generic[Payload]):
    """What `run` is told: `payload`, `timestamp`, `instance_id`, `workflow_name`, `schedule`.

    With `event: WorkflowEvent[Order]` the payload is an Order.
    """

    payload: Payload

    aliases = {"instanceId": "instance_id", "workflowName": "workflow_name"}


class ScheduleView(AttrView):
    """The firing that made the instance: `cron`, `scheduled_time`, `scheduled_us`, `missed`."""

    aliases = {"scheduledTime": "scheduled_time"}


class Received(AttrView):
    """What `wait_for_event` returns: `payload`, `timestamp`, `type`."""
