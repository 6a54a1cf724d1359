"""The way out of a real isolate."""

from __future__ import annotations

import pytest
from egress_tenants import SECRET
from real_tenants import real_tenant
from upstream import upstream

import dynamic_workflows as dw


class Rewriting(dw.AllowList):
    """Sends every request to one host, with a key."""

    async def fetch(self, request: dw.Request) -> dw.Response:
        path = request.url.partition("://")[2].partition("/")[2]
        if path.startswith("private"):
            raise dw.EgressDeniedError(f"/{path} is not for tenants")
        sent = dw.Request(request.method, f"{self.props['hosts'][0]}/{path}")
        return await super().fetch(sent)


RAW = """
import socket, urllib.request
from dynamic_workflows import WorkerEntrypoint, fetch

class Default(WorkerEntrypoint):
    async def around(self, host, port):
        try:
            socket.create_connection((host, port), 5).close()
        except OSError as error:
            return type(error).__name__
        return "connected"

    async def through(self, url):
        try:
            return (await fetch(url)).status
        except Exception as error:
            return [type(error).__name__, str(error)]
"""


@pytest.mark.behaviour(342)
async def test_from_a_real_isolate_the_gateway_is_the_only_way_out() -> None:
    with upstream() as server:
        gateway = Rewriting(server.host, headers={server.host: {"x-key": SECRET}})
        bundle = dw.WorkerCode("index.py", {"index.py": RAW}, global_outbound=gateway)
        async with real_tenant(bundle) as tenant:
            stub = tenant.entrypoint()
            assert await stub.around("127.0.0.1", server.port) != "connected"
            assert await stub.through("https://anything.example/a?b=1") == 200
            denied = await stub.through("https://anything.example/private/x")
            assert denied == ["EgressDeniedError", "/private/x is not for tenants"]
        async with real_tenant({"index.py": RAW}) as tenant:
            stub = tenant.entrypoint()
            name, _ = await stub.through("https://anything.example/")
            assert name == "EgressDeniedError"
            assert await stub.around("127.0.0.1", server.port) != "connected"
    [asked] = server.seen
    assert asked["line"] == "GET /a?b=1 HTTP/1.1"
    assert asked["headers"]["x-key"] == SECRET
