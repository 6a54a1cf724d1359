"""App: the routes of a platform over HTTP, as one ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TypeAlias
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..eventlog.errors import WorkflowsError
from ..platform import Platform
from . import instances, queries, streams, tenants
from .access import Access, AppState
from .bodies import respond_json
from .errors import explain, respond
from .keys import READ, Key, Keys
from .openapi import document

_INSTANCES = "/v1/tenants/{tenant}/workflows/{workflow}/instances"
_INSTANCE = _INSTANCES + "/{id}"
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

BODY_BYTES_MAX = 16 * 1024 * 1024
STREAMS_MAX = 1_000


def create_app(
    platform: Platform,
    *,
    keys: Keys | Mapping[str, str | Key | Mapping[str, object]] | Collection[str] | None = None,
    body_bytes_max: int = BODY_BYTES_MAX,
    streams_max: int = STREAMS_MAX,
) -> ASGIApp:
    """An ASGI application over a platform that its caller has opened, and closes.

    `keys` says who may call (`Authorization: Bearer …`): from each key to its role (`viewer`,
    `operator`, `deployer`, `admin`) or to `{"role", "tenants", "name"}`. None: programs of this
    machine need no key, and requests from elsewhere or through a proxy are refused.
    `body_bytes_max` bounds a request's body, `streams_max` the event streams that are open at once.
    Raises InvalidError for keys that grant nothing known.
    """
    held = keys if isinstance(keys, Keys) or keys is None else Keys(keys)
    if held is not None:
        held.accept(platform.web_secret)
    app = Starlette(
        routes=_routes(),
        exception_handlers={
            WorkflowsError: explain,
            TimeoutError: explain,
            TypeError: explain,
            ValueError: explain,
            HTTPException: _explain_route,
            Exception: explain,
        },
    )
    app.state.service = AppState(platform, held, body_bytes_max, streams_max)
    return _RawPaths(app)


def _routes() -> list[Route]:
    tenant = "/v1/tenants/{tenant}"
    fetch = dict.fromkeys(_METHODS, tenants.fetch)
    return [
        _route("/healthz", GET=_health),
        _route("/readyz", GET=_ready),
        _route("/metrics", GET=_metrics),
        _route("/openapi.json", GET=_openapi),
        _route("/v1/query", POST=queries.over_all),
        _route("/v1/tenants", GET=tenants.listed),
        _route(f"{tenant}/query", POST=queries.over_tenant),
        _route(f"{tenant}/code", GET=tenants.code, PUT=tenants.deploy),
        _route(f"{tenant}/fetch", **fetch),
        _route(f"{tenant}/fetch/{{path:path}}", **fetch),
        _route(_INSTANCES, GET=instances.listed, POST=instances.create),
        _route(_INSTANCE, GET=instances.shown, PATCH=instances.steer, DELETE=instances.delete),
        _route(f"{_INSTANCE}/result", GET=instances.result),
        _route(f"{_INSTANCE}/stream", GET=streams.stream),
        _route(f"{_INSTANCE}/events/{{type}}", POST=instances.send_event),
        _route(f"{_INSTANCE}/steps/{{step}}", GET=instances.step),
    ]


def _route(path: str, **endpoints: Endpoint) -> Route:
    """A route that answers each method by an endpoint of its own."""

    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await (endpoints.get(request.method) or endpoints[method])(request)

    return Route(path, endpoint, methods=list(endpoints))


class _RawPaths:
    """Routes by the path as it was sent, so that an id may hold `/` as `%2F`."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self.state = app.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raw = scope.get("raw_path")
            path = raw.decode("latin-1") if raw else quote(scope["path"])
            root = quote(scope.get("root_path", ""))
            # Servers differ in whether it holds the path that the application is mounted at.
            path = path if path.startswith(root) else root + path
            scope = {**scope, "path": path, "root_path": root}
        await self._app(scope, receive, send)


async def _explain_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        answer = respond("route.method_not_allowed", f"this path takes {allowed}")
        answer.headers["Allow"] = allowed
        return answer
    return respond("route.not_found", "there is no such path: see /openapi.json")


async def _health(request: Request) -> Response:
    """GET /healthz: this process answers."""
    return respond_json({"status": "ok"})


async def _ready(request: Request) -> Response:
    """GET /readyz: the platform is open."""
    service: AppState = request.app.state.service
    service.platform.loader  # noqa: B018 (raises PlatformClosed)
    return respond_json({"status": "ok"})


async def _metrics(request: Request) -> Response:
    """GET /metrics: of this process, in Prometheus' text form."""
    access = Access(request, READ)
    lines = [
        "# HELP dynamic_workflows_http_streams Event streams that are open.",
        "# TYPE dynamic_workflows_http_streams gauge",
        f"dynamic_workflows_http_streams {access.service.streams}",
    ]
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


async def _openapi(request: Request) -> Response:
    """GET /openapi.json: this interface as an OpenAPI document."""
    return respond_json(document())
