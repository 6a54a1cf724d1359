"""InstanceKeys: which instance a call is about."""

from __future__ import annotations

from dynamic_workflows.eventlog.errors import InstanceError

from ..core.tenant_core import TenantCore
from ..instances import identifiers
from ..instances.decisions import Key


class InstanceKeys:
    """Finds the instances of a tenant by workflow and id, or by id alone."""

    def __init__(self, core: TenantCore) -> None:
        self._core = core
        self._workflows: dict[str, None] = {}

    def add_workflow(self, name: str) -> None:
        """Record that there may be instances of this workflow class."""
        self._workflows[name] = None

    def find(self, workflow: object, instance_id: object) -> Key:
        """Return the instance that is meant, which may not exist if the workflow is given.

        `workflow` is None for a binding that a dispatcher wrapped, which knows no class. Raises
        InvalidError, `instance.invalid_id` and, without a workflow, `instance.not_found`.
        """
        if workflow is not None:
            return identifiers.check_workflow_name(workflow), identifiers.check_id(instance_id)
        checked = identifiers.check_id(instance_id)
        for name in self._workflows:
            if self._core.exists((name, checked)):
                return name, checked
        raise not_found(self._core.tenant_id, checked)

    def check_exists(self, key: Key) -> None:
        """Raise `instance.not_found` unless the instance exists."""
        if not self._core.exists(key):
            raise not_found(self._core.tenant_id, key[1])


def not_found(tenant_id: str, instance_id: str) -> InstanceError:
    """Return the error for an instance that does not exist."""
    return InstanceError(
        f"tenant {tenant_id!r} has no instance {instance_id!r}: it was never created, or it was "
        "deleted",
        code="instance.not_found",
    )
