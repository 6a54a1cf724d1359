"""Serving: what clients and the processes of tenants agree on about calls."""

from __future__ import annotations

from dynamic_workflows.eventlog.errors import WorkflowsError


class NotServedHere(WorkflowsError):
    """The tenant is not served here (any more): ask the loader again."""

    default_code = "tenant.moved"
