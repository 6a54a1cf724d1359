"""Bundle: a tenant's code as it is stored and loaded, and WorkerCode, the public form of it.

A bundle is everything that one isolate needs: modules, what `env` holds, limits. Its content hash
is its name, for ever: `code/<sha256>` under the log's root. What is granted (services, the gateway,
tails) is stored beside the modules as cloudpickle, is never shown to an isolate, and is unpickled
in the platform's processes alone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import cloudpickle
import msgspec
from pydantic import BaseModel, ConfigDict, Field

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import CodeError, Corrupt, UnserialisableValueError

from ..protocol.messages import EnvEntry, Load, Module
from ..sdk.service import DynamicWorkflowBinding, Service
from .service_identity import identity_of

FORMAT = 1
MODULES_BYTES_MAX = 64 * 1024 * 1024
LIMITS = frozenset({"memory_mb", "cpu_ms", "steps", "subrequests"})

Grants: TypeAlias = dict[str, Service]
"""The services that a bundle grants, by where they are: "env:NAME", "outbound", "tail:0"."""


class WorkerCode(BaseModel):
    """A tenant's code, with the values and services that it may use.

    `modules` maps a path to Python source, text, bytes or JSON; `main_module` is one of the paths.
    `env` holds values that the codec takes, services and wrapped workflow bindings.
    `global_outbound` is the service that answers `fetch`; None: no network at all. `limits` may
    hold memory_mb, cpu_ms, steps and subrequests; the lower of these and the platform's holds.
    `tails` are services with `tail(records)`. `schedules` maps a workflow class to its cron
    expressions.
    """

    # Neither its text nor an error about it shows what a tenant is given: it may be secret.
    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    main_module: str
    modules: dict[str, Any] = Field(repr=False)
    env: dict[str, Any] = Field(default_factory=dict, repr=False)
    compatibility_date: str | None = None
    global_outbound: Service | None = None
    limits: dict[str, int] | None = None
    tails: tuple[Service, ...] = ()
    schedules: dict[str, tuple[str, ...] | str] = Field(default_factory=dict)

    def __init__(
        self,
        main_module: str,
        modules: dict[str, Any],
        env: dict[str, Any] | None = None,
        compatibility_date: str | None = None,
        global_outbound: Service | None = None,
        limits: dict[str, int] | None = None,
        tails: Sequence[Service] = (),
        **more: Any,
    ) -> None:
        super().__init__(
            main_module=main_module,
            modules=modules,
            env={} if env is None else env,
            compatibility_date=compatibility_date,
            global_outbound=global_outbound,
            limits=limits,
            tails=tails,
            **more,
        )


class Granted(msgspec.Struct, array_like=True):
    """One name in `env`, or a service beside it, that the code may use."""

    name: str
    kind: str  # "value" | "service" | "workflows"
    value: bytes | None = None
    """Codec text of the value."""
    pickle: bytes | None = None
    """The service."""
    identity: str | None = None
    """What tells the service apart, for the hash: two pickles of one object may differ."""
    metadata: bytes | None = None
    """Codec text of a wrapped binding's metadata; None: the tenant's own binding, unwrapped."""
    binding_name: str | None = None

    def revived(self) -> Service:
        """Return a new object of the service; to be called in the platform's processes alone."""
        service: Service = cloudpickle.loads(self.pickle or b"")
        return service


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's code, named by the hash of its content."""

    format: int = FORMAT
    main_module: str
    modules: list[Module]
    env: list[Granted] = []
    outbound: Granted | None = None
    tails: list[Granted] = []
    limits: dict[str, int] = {}
    schedules: dict[str, list[str]] = {}
    compatibility_date: str | None = None
    hash_key: bytes | None = None
    """What keys the content hash, where the platform has a key (see `code_keys`)."""

    def __repr__(self) -> str:
        """Return a text without what the tenant is given, which may be secret."""
        return f"Bundle({self.main_module!r}, {len(self.modules)} modules, {len(self.env)} in env)"

    def stored(self) -> bytes:
        """Return the bytes to store at `code/<content hash>`, with their own SHA-256 at the end.

        The content hash leaves out the pickles, since two pickles of one object may differ.
        """
        data = _ENCODER.encode(self)
        return data + hashlib.sha256(data).digest()

    @property
    def content_hash(self) -> str:
        """The SHA-256 of everything that shapes what the code can see and do; keyed, with a key."""
        shape = _ENCODER.encode(
            [
                self.format,
                self.main_module,
                self.modules,
                [_shape(entry) for entry in self.env],
                None if self.outbound is None else _shape(self.outbound),
                [_shape(tail) for tail in self.tails],
                sorted(self.limits.items()),
                sorted(self.schedules.items()),
                self.compatibility_date,
            ]
        )
        if self.hash_key is not None:
            return hmac.digest(self.hash_key, shape, "sha256").hex()
        return hashlib.sha256(shape).hexdigest()

    def load_message(self, *, packages: tuple[str, ...], options: dict[str, Any]) -> Load:
        """Return the message for an isolate: modules and the shape of `env`, without the grants."""
        entries = [EnvEntry(entry.name, entry.kind, entry.value) for entry in self.env]
        return Load(self.main_module, self.modules, entries, list(packages), options)

    def granted(self, name: str) -> Granted | None:
        """Return what `env` holds under the name, or None."""
        return next((entry for entry in self.env if entry.name == name), None)

    def services(self) -> dict[str, Granted]:
        """Return the granted services by place, still pickled."""
        places = {f"env:{entry.name}": entry for entry in self.env if entry.pickle is not None}
        if self.outbound is not None:
            places["outbound"] = self.outbound
        return places | {f"tail:{i}": tail for i, tail in enumerate(self.tails)}

    def unpickle(self) -> Grants:
        """Return the granted services; to be called in the platform's processes alone."""
        return {place: granted.revived() for place, granted in self.services().items()}


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Bundle)
_CHECK_BYTES = hashlib.sha256().digest_size


def _shape(entry: Granted) -> list[Any]:
    return [
        entry.name,
        entry.kind,
        entry.value,
        entry.identity,
        entry.metadata,
        entry.binding_name,
    ]


def from_stored(data: bytes, content_hash: str) -> Bundle:
    """Return the bundle of these bytes; raises Corrupt when they are not what the name says."""
    end = len(data) - _CHECK_BYTES
    if end < 0 or hashlib.sha256(data[:end]).digest() != data[end:]:
        raise Corrupt(f"the stored code {content_hash} is damaged: restore it from a copy")
    try:
        bundle = decode(data)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the stored code {content_hash} does not decode: {error}") from None
    if bundle.content_hash != content_hash:
        raise Corrupt(f"the stored code {content_hash} has another content: restore it from a copy")
    return bundle


def decode(data: bytes) -> Bundle:
    """Return the bundle that `stored` wrote; the bytes must come from a trusted source."""
    return _DECODER.decode(data[:-_CHECK_BYTES])


def code_key(content_hash: str) -> str:
    """Return the key of a bundle under the log's root."""
    return f"code/{content_hash}"


def bundle_of(code: WorkerCode, *, own_binding: bool = False) -> tuple[Bundle, Grants]:
    """Return the bundle of some code, and the live services that it grants.

    `own_binding`: `env` gets WORKFLOWS, the tenant's own, unless the code says otherwise. Raises
    CodeError `code.invalid`.
    """
    if not isinstance(code, WorkerCode):
        raise CodeError(f"code is a WorkerCode, not {type(code).__name__}: see load()")
    modules = _modules(code)
    grants: Grants = {}
    env = [_granted(name, value, grants) for name, value in sorted(code.env.items())]
    if own_binding and "WORKFLOWS" not in code.env:
        env.append(Granted("WORKFLOWS", "workflows", value=b"TenantWorkflow"))
    outbound = None
    if code.global_outbound is not None:
        outbound = _service("outbound", code.global_outbound, grants, place="outbound")
    tails = [_service(str(i), tail, grants, place=f"tail:{i}") for i, tail in enumerate(code.tails)]
    bundle = Bundle(
        main_module=code.main_module,
        modules=modules,
        env=env,
        outbound=outbound,
        tails=tails,
        limits=checked_limits(code.limits),
        schedules={
            name: [crons] if isinstance(crons, str) else list(crons)
            for name, crons in code.schedules.items()
        },
        compatibility_date=code.compatibility_date,
    )
    return bundle, grants


def _modules(code: WorkerCode) -> list[Module]:
    if code.main_module not in code.modules:
        raise CodeError(
            f"the main module {code.main_module!r} is not one of the modules: "
            f"{', '.join(sorted(code.modules)) or 'there are none'}"
        )
    modules = [_module(path, code.modules[path]) for path in sorted(code.modules)]
    size = sum(len(module.data) for module in modules)
    if size > MODULES_BYTES_MAX:
        raise CodeError(f"the modules have {size:,} bytes, more than {MODULES_BYTES_MAX:,}")
    return modules


def _module(path: str, content: Any) -> Module:
    if not path or any("\ud800" <= letter <= "\udfff" for letter in path):
        raise CodeError(f"the path of a module is text in Unicode, and not empty: {path!r} is not")
    is_python = path.endswith(".py")
    if isinstance(content, bytes | bytearray):
        return Module(path, "py" if is_python else "data", bytes(content))
    if isinstance(content, str):
        try:
            return Module(path, "py" if is_python else "text", content.encode())
        except UnicodeEncodeError as error:
            raise CodeError(f"the module {path!r} is not Unicode text: {error}") from None
    if is_python:
        raise CodeError(
            f"the module {path!r} is Python source, as text or bytes, not {type(content).__name__}"
        )
    try:
        return Module(path, "json", json.dumps(content, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise CodeError(f"the module {path!r} is neither text, bytes nor JSON: {error}") from None


def _granted(name: str, value: Any, grants: Grants) -> Granted:
    if not name.isidentifier() or name.startswith("_"):
        raise CodeError(f"a name in env is an identifier without leading underscore, not {name!r}")
    if isinstance(value, DynamicWorkflowBinding):
        return Granted(
            name,
            "workflows",
            metadata=values.encode(value.metadata),
            binding_name=value.binding_name,
        )
    if isinstance(value, Service):
        return _service(name, value, grants, place=f"env:{name}")
    try:
        return Granted(name, "value", value=values.encode(value))
    except UnserialisableValueError as error:
        raise CodeError(
            f"env.{name} can be neither copied nor called by a tenant: {error.message}. "
            "Wrap what a tenant may call in a Service, and workflows in wrap_workflow_binding()"
        ) from None


def _service(name: str, service: Service, grants: Grants, *, place: str) -> Granted:
    grants[place] = service
    try:
        data = cloudpickle.dumps(service)
    except Exception as error:  # whatever a user's __reduce__ raises
        # Tenants may read this: pickle says what it cannot take, and others say whatever they like.
        is_pickles = isinstance(error, TypeError | AttributeError | pickle.PicklingError)
        reason = error if is_pickles else type(error).__name__
        raise CodeError(f"the service {name} cannot travel: {reason}") from error
    return Granted(name, "service", pickle=data, identity=identity_of(service, data))


def checked_limits(limits: Mapping[str, int] | None) -> dict[str, int]:
    """Return the limits; raises CodeError for one that does not exist."""
    if not limits:
        return {}
    unknown = limits.keys() - LIMITS
    if unknown:
        raise CodeError(
            f"unknown limit {', '.join(sorted(unknown))}: use {', '.join(sorted(LIMITS))}"
        )
    if any(value <= 0 for value in limits.values()):
        raise CodeError("a limit is a positive number")
    return dict(limits)
