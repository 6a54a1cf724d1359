"""Durable, multi-tenant workflows whose code is loaded at run time.

The names below are the promise. Each is imported when it is first used, so that importing the
package costs next to nothing, in a driver and in an isolate alike.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .eventlog.query import tenant_engine as _tenant_engine

if TYPE_CHECKING:
    from .actors.settings.platform_config import PlatformConfig as PlatformConfig
    from .eventlog.errors import CodeError as CodeError
    from .eventlog.errors import Corrupt as Corrupt
    from .eventlog.errors import Fenced as Fenced
    from .eventlog.errors import InstanceError as InstanceError
    from .eventlog.errors import InvalidError as InvalidError
    from .eventlog.errors import LimitExceededError as LimitExceededError
    from .eventlog.errors import LoadReplacedWarning as LoadReplacedWarning
    from .eventlog.errors import MissingDispatcherMetadataError as MissingDispatcherMetadataError
    from .eventlog.errors import PlatformBusy as PlatformBusy
    from .eventlog.errors import PlatformClosed as PlatformClosed
    from .eventlog.errors import QueryError as QueryError
    from .eventlog.errors import SandboxUnavailable as SandboxUnavailable
    from .eventlog.errors import Unavailable as Unavailable
    from .eventlog.errors import UnserialisableValueError as UnserialisableValueError
    from .eventlog.errors import ValueTooLargeError as ValueTooLargeError
    from .eventlog.errors import WorkflowFailedError as WorkflowFailedError
    from .eventlog.errors import WorkflowsError as WorkflowsError
    from .eventlog.errors import WorkflowTerminatedError as WorkflowTerminatedError
    from .loaders.bundles.bundle import WorkerCode as WorkerCode
    from .loaders.bundles.sources import from_folder as from_folder
    from .loaders.bundles.sources import from_git as from_git
    from .loaders.bundles.sources import from_mapping as from_mapping
    from .loaders.bundles.worker import WorkerLoader as WorkerLoader
    from .loaders.bundles.worker import WorkerStub as WorkerStub
    from .loaders.guest.env import fetch as fetch
    from .loaders.sdk.attr_view import WorkflowEvent as WorkflowEvent
    from .loaders.sdk.binding import WorkflowBinding as WorkflowBinding
    from .loaders.sdk.binding import WorkflowInstance as WorkflowInstance
    from .loaders.sdk.egress import AllowList as AllowList
    from .loaders.sdk.entrypoints import EgressDeniedError as EgressDeniedError
    from .loaders.sdk.entrypoints import NonRetryableDelayError as NonRetryableDelayError
    from .loaders.sdk.entrypoints import NonRetryableError as NonRetryableError
    from .loaders.sdk.entrypoints import StepError as StepError
    from .loaders.sdk.entrypoints import WorkerEntrypoint as WorkerEntrypoint
    from .loaders.sdk.entrypoints import WorkflowEntrypoint as WorkflowEntrypoint
    from .loaders.sdk.entrypoints import WorkflowFatalError as WorkflowFatalError
    from .loaders.sdk.entrypoints import WorkflowInternalError as WorkflowInternalError
    from .loaders.sdk.entrypoints import WorkflowTimeoutError as WorkflowTimeoutError
    from .loaders.sdk.http import Request as Request
    from .loaders.sdk.http import Response as Response
    from .loaders.sdk.records import Event as Event
    from .loaders.sdk.records import Status as Status
    from .loaders.sdk.service import App as App
    from .loaders.sdk.service import DynamicWorkflowBinding as DynamicWorkflowBinding
    from .loaders.sdk.service import Service as Service
    from .loaders.sdk.service import (
        create_dynamic_workflow_entrypoint as create_dynamic_workflow_entrypoint,
    )
    from .loaders.sdk.service import dispatch_workflow as dispatch_workflow
    from .loaders.sdk.service import wrap_workflow_binding as wrap_workflow_binding
    from .loaders.sdk.step_config import StepConfig as StepConfig
    from .platform import Platform as Platform
    from .platform import Tenant as Tenant
    from .platform import connect as connect

_HOMES = {
    "actors.settings.platform_config": "PlatformConfig",
    "eventlog.errors": """
        CodeError Corrupt Fenced InstanceError InvalidError LimitExceededError
        LoadReplacedWarning MissingDispatcherMetadataError PlatformBusy PlatformClosed QueryError
        SandboxUnavailable Unavailable UnserialisableValueError ValueTooLargeError
        WorkflowFailedError WorkflowTerminatedError WorkflowsError
    """,
    "loaders.sdk.attr_view": "WorkflowEvent",
    "loaders.sdk.binding": "WorkflowBinding WorkflowInstance",
    "loaders.guest.env": "fetch",
    "loaders.bundles.bundle": "WorkerCode",
    "loaders.sdk.step_config": "StepConfig",
    "loaders.sdk.entrypoints": """
        EgressDeniedError NonRetryableDelayError NonRetryableError StepError WorkerEntrypoint
        WorkflowEntrypoint WorkflowFatalError WorkflowInternalError WorkflowTimeoutError
    """,
    "loaders.sdk.egress": "AllowList",
    "loaders.sdk.http": "Request Response",
    "loaders.sdk.records": "Event Status",
    "loaders.sdk.service": """
        App DynamicWorkflowBinding Service create_dynamic_workflow_entrypoint dispatch_workflow
        wrap_workflow_binding
    """,
    "loaders.bundles.sources": "from_folder from_git from_mapping",
    "loaders.bundles.worker": "WorkerLoader WorkerStub",
    "platform": "Platform Tenant connect",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        value: Any = [one for one in sorted(_HOME_OF) if _is_here(one)]
    elif name in _HOME_OF:
        value = getattr(_home(name), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def _home(name: str) -> Any:
    return import_module(f".{_HOME_OF[name]}", __name__)


def _is_here(name: str) -> bool:
    """Whether the name can be had: where tenants' code runs, the platform's own side is not."""
    try:
        _home(name)
    except ModuleNotFoundError:
        return False
    return True


def _make_sql_engine(*args: Any, **options: Any) -> Any:
    from .loaders.sql.engine import SqlEngine

    return SqlEngine(*args, **options)


_tenant_engine.provide(_make_sql_engine)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
