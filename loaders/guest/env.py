"""Bindings of the guest: `env`, the services behind it, and `fetch`.

A tenant holds names; what they stand for lives on the platform's side, and each use is a message.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.ids import SystemIds

from ..protocol import calls, messages
from ..sdk import http
from ..sdk.entrypoints import EgressDeniedError
from .quiescence import CURRENT


class BindingCalls(Protocol):
    """The guest, as `env` and the services behind it see it."""

    async def call(self, target: str, method: str, args: bytes, kwargs: bytes) -> bytes:
        """Call a method of a binding on the platform's side; raises what it raised."""
        ...


class Env(Mapping[str, Any]):
    """What the platform granted, by attribute or key. Values are new in every lifetime."""

    def __init__(self, guest: BindingCalls, entries: Mapping[str, messages.EnvEntry]) -> None:
        self.__dict__["_guest"] = guest
        self.__dict__["_entries"] = entries
        self.__dict__["_made"] = {}

    def __getitem__(self, name: str) -> Any:
        made = self.__dict__["_made"]
        if name not in made:
            made[name] = _make(self.__dict__["_guest"], self.__dict__["_entries"][name])
        return made[name]

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"env has no {name!r}: the platform did not grant it") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("env is what the platform granted: it cannot be changed")

    def __iter__(self) -> Any:
        return iter(self.__dict__["_entries"])

    def __len__(self) -> int:
        return len(self.__dict__["_entries"])

    def __repr__(self) -> str:
        return f"Env({', '.join(self)})"


def _make(guest: BindingCalls, entry: messages.EnvEntry) -> object:
    if entry.kind == "value":
        return values.decode(entry.value or b"null")
    if entry.kind == "workflows":
        from ..sdk.binding import WorkflowBinding

        workflow = None if entry.value is None else entry.value.decode("utf-8")
        return WorkflowBinding(EnvCalls(guest, entry.name), workflow, ids=SystemIds())
    return ServiceProxy(guest, entry.name)


class ServiceProxy:
    """A service of the platform: its public methods, as coroutines."""

    __slots__ = ("_guest", "_name")

    def __init__(self, guest: BindingCalls, name: str) -> None:
        self._guest = guest
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., Coroutine[Any, Any, object]]:
        if method.startswith("_"):
            raise AttributeError(f"{self._name}.{method} is not public")

        async def call(*args: object, **kwargs: object) -> object:
            plain = [http.to_plain(argument) for argument in args]
            named = {name: http.to_plain(argument) for name, argument in kwargs.items()}
            text = await self._guest.call(
                self._name, method, values.encode(plain), values.encode(named)
            )
            return http.from_plain(values.decode(text))

        call.__name__ = method
        return call

    def __repr__(self) -> str:
        return f"<service {self._name}>"


class EnvCalls:
    """The tenant's own operations, through the wall."""

    def __init__(self, guest: BindingCalls, name: str) -> None:
        self._guest = guest
        self._name = name

    async def call(self, call: calls.TenantCall[calls.AnswerT]) -> calls.AnswerT:
        """Carry out one operation; raises WorkflowsError."""
        body = calls.pack_call(call)
        answer = await self._guest.call(self._name, calls.op_of(call), body, b"")
        return calls.unpack_answer(call, answer)


async def fetch(
    request: http.Request | str,
    *,
    method: str = "GET",
    params: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
    body: object = None,
    json: object = None,
) -> http.Response:
    """Send a request through the platform's gateway, the only way out.

    `request` is a Request, or a URL to which the other arguments belong. `params` become its query,
    lists as repeated names; a body that is neither text nor bytes goes as JSON, and so does `json`,
    whatever it is. Raises EgressDeniedError when the code has no network, or the gateway refuses.
    """
    scope = CURRENT.get()
    if scope is None or not scope.guest.has_network:
        raise EgressDeniedError(
            "this code has no network: the platform has to grant a global_outbound"
        )
    if not isinstance(request, http.Request):
        url = request if not params else http.with_query(request, params)
        request = http.Request(method, url, headers, body, json=json)
    elif method != "GET" or any(given is not None for given in (params, headers, body, json)):
        raise TypeError("a Request says all there is to say: give fetch nothing beside it")
    plain = values.encode([http.request_to_plain(request)])
    return http.response_from_plain(
        values.decode(await scope.guest.call("", "fetch", plain, b"{}"))
    )
