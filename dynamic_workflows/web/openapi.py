"""OpenAPI: the interface as a document that programs read."""

from __future__ import annotations

import re
from typing import Any

_INSTANCES = "/v1/tenants/{tenant}/workflows/{workflow}/instances"
_INSTANCE = _INSTANCES + "/{id}"
_ANY: dict[str, Any] = {}
_TEXT = {"type": "string"}
_ITEM = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string", "description": "A random UUID where it is left out."},
        "params": {"description": "Any value, as the JSON of the codec."},
        "retention": {
            "type": "object",
            "properties": {"success": {"type": ["string", "number"]},
                           "error": {"type": ["string", "number"]}},
        },
        "pin": {"enum": ["hash", "latest"]},
    },
}  # fmt: skip
_QUERY = {
    "type": "object",
    "required": ["sql"],
    "properties": {"sql": _TEXT, "params": {"type": ["array", "object"]}},
}
_CODE = {
    "type": "object",
    "required": ["modules"],
    "properties": {
        "main_module": _TEXT,
        "modules": {"type": "object", "additionalProperties": {"type": ["string", "object"]}},
        "env": _ANY,
        "packages": {"type": "array", "items": _TEXT},
    },
}
_STEER = {
    "type": "object",
    "required": ["status"],
    "properties": {
        "status": {"enum": ["pause", "resume", "restart", "terminate"]},
        "from": {"type": ["string", "object"]},
        "rollback": {"type": "boolean"},
    },
}
_CREATE = {"oneOf": [_ITEM, {
    "type": "object",
    "required": ["instances"],
    "properties": {"instances": {"type": "array", "items": _ITEM}},
}]}  # fmt: skip
_FILTERS = "status created_after created_before ended_after ended_before text limit cursor".split()

# (method, path, summary, status of success, schema of the body, names in the query)
ROUTES: list[tuple[str, str, str, int, Any, list[str]]] = [
    ("post", _INSTANCES, "Create an instance, or a batch", 201, _CREATE, []),
    ("get", _INSTANCES, "List instances, newest first", 200, None, list(_FILTERS)),
    ("get", _INSTANCE, "Show an instance with its steps, and why it stands there", 200, None, []),
    ("patch", _INSTANCE, "Pause, resume, restart or terminate", 200, _STEER, []),
    ("delete", _INSTANCE, "Delete an instance and everything of it", 204, None, []),
    ("post", _INSTANCE + "/events/{type}", "Send an event", 202, _ANY, []),
    ("get", _INSTANCE + "/result", "Wait for the end", 200, None, ["timeout"]),
    ("get", _INSTANCE + "/stream", "Server-sent events", 200, None, ["cursor", "access_token"]),
    ("get", _INSTANCE + "/steps/{step}", "Show one step's whole output", 200, None, ["count"]),
    ("get", "/v1/tenants", "List tenants by activity", 200, None, []),
    ("get", "/v1/tenants/{tenant}/code", "List versions and who runs on them", 200, None, []),
    ("put", "/v1/tenants/{tenant}/code", "Deploy", 200, _CODE, ["main_module"]),
    ("post", "/v1/tenants/{tenant}/query", "SQL over one tenant", 200, _QUERY, []),
    ("post", "/v1/query", "SQL over all tenants", 200, _QUERY, []),
    ("get", "/v1/tenants/{tenant}/fetch/{path}", "The tenant's fetch, any method", 200, None, []),
    ("get", "/healthz", "This process answers", 200, None, []),
    ("get", "/readyz", "The platform is open", 200, None, []),
    ("get", "/metrics", "Metrics for Prometheus", 200, None, []),
    ("get", "/openapi.json", "This document", 200, None, []),
]  # fmt: skip


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes."""
    from importlib.metadata import version

    paths: dict[str, Any] = {}
    for method, path, summary, status, body, query in ROUTES:
        paths.setdefault(path, {})[method] = _operation(method, path, summary, status, body, query)
    error = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": _TEXT, "message": _TEXT},
        }},
    }  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "dynamic-workflows", "version": version("dynamic-workflows")},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": error},
        },
    }


def _operation(
    method: str, path: str, summary: str, status: int, body: object, query: list[str]
) -> dict[str, object]:
    parameters: list[dict[str, object]] = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    parameters += [{"name": name, "in": "query", "schema": _TEXT} for name in query]
    if method == "post":
        parameters.append({"name": "Idempotency-Key", "in": "header", "schema": _TEXT})
    failure = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, object] = {
        "summary": summary,
        "operationId": re.sub(r"\W+", "_", f"{method} {path}").strip("_"),
        "parameters": parameters,
        "responses": {
            str(status): {"description": "It was done."},
            "default": {"description": "It was refused, or failed.", "content": failure},
        },
    }
    if body is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": body}}}
    if not path.startswith("/v1") and path != "/metrics":
        operation["security"] = []
    return operation
