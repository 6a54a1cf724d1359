"""Tenants: who there is, the code that they run, and the tenants' own `fetch`."""

from __future__ import annotations

import asyncio
import base64
import io
import zipfile
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..loaders.bundles.bundle import WorkerCode
from ..loaders.sdk import http
from .access import Access
from .bodies import plain_of, read_bytes, read_object, respond_json, value_of
from .errors import HttpError
from .keys import DEPLOY, READ, RUN

FILES_MAX = 10_000
_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding "
    "upgrade host content-length".split()
)
_NOT_TOLD = frozenset({"authorization", "cookie"})
"""Headers of the caller that are none of the tenant's business."""
_TENANTS = """
SELECT tenant_id AS id, count(*) AS instances,
    count(*) FILTER (status IN ('queued', 'running', 'waiting', 'waitingForPause')) AS open,
    count(*) FILTER (status = 'paused' AND reason IS NOT NULL) AS parked,
    count(*) FILTER (status = 'errored') AS errored,
    max(greatest(created_at, started_at, ended_at)) AS newest_at
FROM instances GROUP BY tenant_id ORDER BY newest_at DESC, id
"""
_CODE = """
SELECT code_hash AS hash, count(*) AS instances,
    count(*) FILTER (ended_at IS NULL) AS open, max(created_at) AS newest_at
FROM instances WHERE tenant_id = $tenant GROUP BY code_hash ORDER BY newest_at DESC
"""


async def listed(request: Request) -> Response:
    """GET /v1/tenants: the tenants that have instances, those with the newest activity first."""
    access = Access(request, READ)

    async def work() -> dict[str, object]:
        table = await asyncio.to_thread(access.platform.query, _TENANTS)
        return {"items": table.to_pylist(), "cursor": None}

    return respond_json(await access.while_asked(work))


async def code(request: Request) -> Response:
    """GET …/code: the versions that a tenant's instances run on, newest first."""
    access = Access(request, READ)

    async def work() -> dict[str, object]:
        params = {"tenant": access.tenant_id}
        table = await asyncio.to_thread(access.platform.query, _CODE, params)
        return {"items": table.to_pylist(), "cursor": None}

    return respond_json(await access.while_asked(work))


async def deploy(request: Request) -> Response:
    """PUT …/code: deploy a tenant's code, as JSON or as a zip.

    JSON: `{"main_module", "modules": {path: text or {"base64": …}}, "env"?, "packages"?}`. A zip
    (`application/zip`) holds the modules; `main_module` in the query (index.py) names the first.
    """
    access = Access(request, DEPLOY)
    bytes_max = access.service.body_bytes_max
    if request.headers.get("content-type", "").partition(";")[0] == "application/zip":
        body = await read_bytes(request, bytes_max)
        modules = await asyncio.to_thread(_unzipped, body, bytes_max)
        worker = WorkerCode(request.query_params.get("main_module", "index.py"), modules)
    else:
        fields = await read_object(request, bytes_max, "main_module", "modules", "env", "packages")
        worker = _worker(fields)
    code_hash = await access.tenant.deploy(worker)
    access.audit("deploy", hash=code_hash)
    return respond_json({"hash": code_hash})


def _worker(fields: dict[str, msgspec.Raw]) -> WorkerCode:
    given = plain_of(fields.get("modules"), dict[str, str | dict[str, str]], "modules")
    if not given:
        raise HttpError('the body is {"main_module": …, "modules": {path: text}}')
    modules: dict[str, Any] = {}
    for path, content in given.items():
        modules[path] = content if isinstance(content, str) else _data(path, content)
    more: dict[str, Any] = {}
    if "env" in fields:
        more["env"] = value_of(fields["env"])
    if "packages" in fields:
        more["packages"] = plain_of(fields["packages"], list[str], "packages")
    main = plain_of(fields.get("main_module"), str, "main_module") or "index.py"
    return WorkerCode(main, modules, **more)


def _data(path: str, content: dict[str, str]) -> bytes:
    try:
        return base64.b64decode(content["base64"], validate=True)
    except (KeyError, ValueError):
        raise HttpError(f'the module {path[:200]!r} is text, or {{"base64": …}}') from None


def _unzipped(body: bytes, bytes_max: int) -> dict[str, object]:
    """The files of a zip; refused where they would be more, or larger, than a body may be."""
    modules: dict[str, object] = {}
    left = bytes_max
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = [one for one in archive.infolist() if not one.is_dir()]
            if len(entries) > FILES_MAX:
                raise HttpError(f"a zip may hold {FILES_MAX:,} files", code="request.too_large")
            for entry in entries:
                with archive.open(entry) as file:
                    data = file.read(left + 1)
                left -= len(data)
                if left < 0:
                    raise HttpError(
                        f"what a zip holds may have {bytes_max:,} bytes", code="request.too_large"
                    )
                modules[entry.filename] = _module(entry.filename, data)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise HttpError(f"the body is no zip that can be read: {error}") from None
    return modules


def _module(name: str, data: bytes) -> str | bytes:
    if not name.endswith((".py", ".txt", ".json")):
        return data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


async def fetch(request: Request) -> Response:
    """ANY …/fetch/{path}: the tenant's own `fetch` answers; it is not told the caller's key."""
    access = Access(request, RUN)
    body = await read_bytes(request, access.service.body_bytes_max)
    path = request.path_params.get("path", "")
    url = f"https://{_host(request)}/{path}"
    if request.url.query:
        url += f"?{request.url.query}"
    headers = {
        name: text
        for name, text in request.headers.items()
        if name not in _HOP_BY_HOP and name not in _NOT_TOLD
    }
    asked = http.Request(request.method, url, headers=headers, body=body or None)

    async def work() -> Response:
        answer = await access.tenant.entrypoint().fetch(asked)
        data = await answer.body()
        told = {n: t for n, t in answer.headers.items() if n.lower() not in _HOP_BY_HOP}
        # A page of a tenant's is no page of the platform's: nothing of it may act in its name.
        told["content-security-policy"] = "sandbox"
        told.setdefault("x-content-type-options", "nosniff")
        told.pop("set-cookie", None)
        return Response(data, answer.status, told)

    return await access.while_asked(work)


def _host(request: Request) -> str:
    return request.headers.get("host", "tenant.invalid")
