"""The ready-made gateway lets requests through to named hosts, and to nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle
import pytest
from egress_tenants import SECRET, tenant
from hypothesis import given
from hypothesis import strategies as st
from upstream import upstream

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.loaders.sdk import http, ip_ranges


@contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """A server that answers one request with these bytes; yields where it listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                while not connection.recv(65536).endswith(b"\r\n\r\n"):
                    pass
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            thread.join(10)


@pytest.mark.behaviour(342)
async def test_a_named_host_is_reached_with_headers_that_the_tenant_never_sees() -> None:
    with upstream() as server:
        gateway = dw.AllowList(server.host, headers={server.host: {"Authorization": SECRET}})
        async with tenant(gateway) as acme:
            stub = acme.entrypoint()
            status, headers, text = await stub.go(
                f"{server.host}/v1?q=1",
                "POST",
                {"authorization": "mine", "x-mine": "yes", "Host": "evil", "Connection": "close"},
                {"a": 1},
            )
            assert (status, text) == (200, '{"ok": true}')
            assert SECRET not in str(headers)
    [asked] = server.seen
    assert asked["line"] == "POST /v1?q=1 HTTP/1.1"
    assert asked["body"] == b'{"a":1}'
    told = {name.lower(): value for name, value in asked["headers"].items()}
    assert told["authorization"] == SECRET
    assert told["x-mine"] == "yes"
    assert told["host"] == f"localhost:{server.port}"
    assert "connection" not in told


async def test_a_step_asks_through_the_gateway() -> None:
    with upstream() as server:
        async with tenant(dw.AllowList(server.host)) as acme:
            instance = await acme.workflows.create(params={"url": f"{server.host}/"})
            assert await instance.result() == {"ok": True}


@pytest.mark.behaviour(341)
async def test_a_query_and_json_are_written_for_the_tenant() -> None:
    source = """
from dynamic_workflows import Request, WorkerEntrypoint, fetch

class Default(WorkerEntrypoint):
    async def go(self, url, **more):
        return (await fetch(url, **more)).status

    async def twice(self, url):
        try:
            await fetch(Request("GET", url), headers={"a": "b"})
        except TypeError as error:
            return str(error)
"""
    with upstream() as server:
        code = dw.WorkerCode(
            "index.py", {"index.py": source}, global_outbound=dw.AllowList(server.host)
        )
        async with testing.connect(load=lambda tenant_id: code) as platform:
            stub = platform.tenant("acme").entrypoint()
            url = f"{server.host}/find?a=1#top"
            await stub.go(url, params={"q": "tea & co", "n": [1, 2]})
            await stub.go(server.host, method="POST", json="text")
            await stub.go(server.host, method="POST", json=[1], headers={"Content-Type": "a/b"})
            assert "nothing beside it" in await stub.twice(url)
            with pytest.raises(TypeError, match="one body"):
                await stub.go(url, body="a", json=1)
    lines = [asked["line"] for asked in server.seen]
    assert lines[0] == "GET /find?a=1&q=tea+%26+co&n=1&n=2 HTTP/1.1"
    assert [asked["body"] for asked in server.seen[1:]] == [b'"text"', b"[1]"]
    kinds = [asked["headers"]["content-type"] for asked in server.seen[1:]]
    assert kinds == ["application/json", "a/b"]


async def test_without_a_gateway_there_is_no_network() -> None:
    async with tenant(None) as acme:
        name, text = await acme.entrypoint().caught("https://api.example.com/")
        assert name == "EgressDeniedError"
        assert "global_outbound" in text


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com.evil.test/",
        "https://evil.test/#https://api.example.com/",
        "https://api.example.com@evil.test/",
        "https://evil.test\\@api.example.com/",
        "https://user:word@api.example.com/",
        "http://api.example.com/",
        "https://api.example.com:444/",
        "https://example.org/",
        "https://xexample.org/",
        "https://api.example.com/\r\nHost: evil",
        "https://ap\u0456.example.com/",
        "file:///etc/passwd",
        "//api.example.com/",
        "https:///",
        "https://[::1/",
        "https://api.example.com:99999/",
        "",
    ],
)
async def test_whatever_is_not_named_is_denied_with_the_reason(url: str) -> None:
    gateway = dw.AllowList("api.example.com", "*.example.org")
    with pytest.raises(dw.EgressDeniedError) as caught:
        await gateway.fetch(dw.Request("GET", url))
    assert len(str(caught.value)) > 20


async def test_the_denial_reaches_the_tenant_and_names_what_it_may_reach() -> None:
    async with tenant(dw.AllowList("api.example.com")) as acme:
        name, text = await acme.entrypoint().caught("https://evil.test/secret?key=1")
        assert name == "EgressDeniedError"
        assert "https://evil.test is not among" in text
        assert "https://api.example.com" in text


async def test_methods_that_are_not_allowed_are_denied() -> None:
    with upstream() as server:
        gateway = dw.AllowList(server.host, methods=["get"])
        answer = await gateway.fetch(dw.Request("GET", server.host))
        assert answer.status == 200
        with pytest.raises(dw.EgressDeniedError, match="DELETE"):
            await gateway.fetch(dw.Request("DELETE", server.host))
    assert len(server.seen) == 1


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    with upstream() as server:
        answer = await dw.AllowList(server.host).fetch(dw.Request("GET", f"{server.host}/moved"))
    assert answer.status == 302
    assert answer.headers["location"] == "http://elsewhere.example/"


async def test_answers_and_requests_have_a_size() -> None:
    with upstream() as server:
        gateway = dw.AllowList(server.host, body_bytes_max=100)
        fits = await gateway.fetch(dw.Request("GET", f"{server.host}/size/100"))
        assert len(await fits.body()) == 100
        with pytest.raises(dw.EgressDeniedError, match="answer"):
            await gateway.fetch(dw.Request("GET", f"{server.host}/size/101"))
        with pytest.raises(dw.EgressDeniedError, match="request"):
            await gateway.fetch(dw.Request("POST", server.host, body=b"x" * 101))


async def test_a_wildcard_reaches_no_private_address() -> None:
    with upstream() as server:
        gateway = dw.AllowList(f"http://*.localhost:{server.port}")
        # The name resolves to this machine, or not at all: both are no way in.
        with pytest.raises((dw.EgressDeniedError, ConnectionError)):
            await gateway.fetch(dw.Request("GET", f"http://a.localhost:{server.port}/"))
        metadata = dw.AllowList("http://*.0.0.1:80")
        with pytest.raises(dw.EgressDeniedError, match="private"):
            await metadata.fetch(dw.Request("GET", "http://127.0.0.1/"))
    assert server.seen == []


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::", "::1",
     "::127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe",
     "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1", "fe80::1%lo", "fec0::1", "fd00::1", "ff0e::1"],
)  # fmt: skip
async def test_a_wildcard_does_not_take_a_private_address_in_any_notation(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A resolver that answers what an attacker's zone would.
    def resolve(host: str, port: int, **more: Any) -> list[Any]:
        return [(0, 0, 0, "", (address, port))]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    with pytest.raises(dw.EgressDeniedError, match="private"):
        await dw.AllowList("*.example.com").fetch(dw.Request("GET", "https://a.example.com/"))


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "2606:2800:21f:cb07::1", "64:ff9b::5db8:d70e", "2002:5db8:d70e::1"]
)
def test_addresses_of_the_internet_at_large_are_public(address: str) -> None:
    assert ip_ranges.is_public(address)


async def test_a_host_that_does_not_answer_is_a_connection_error() -> None:
    with upstream() as server:
        host = server.host
    with pytest.raises(ConnectionError, match="cannot be asked"):
        await dw.AllowList(host).fetch(dw.Request("GET", host))


async def test_it_travels_and_shows_no_secret() -> None:
    with upstream() as server:
        gateway = dw.AllowList(server.host, headers={server.host: {"x-key": SECRET}})
        await gateway.fetch(dw.Request("GET", server.host))
        travelled = cloudpickle.loads(cloudpickle.dumps(gateway))
        await travelled.fetch(dw.Request("GET", server.host))
        assert SECRET not in repr(travelled)
    assert [asked["headers"]["x-key"] for asked in server.seen] == [SECRET, SECRET]


@pytest.mark.parametrize(
    "host",
    ["", "a b", "*", "a.*.b", "*.*.a", "https://a/path", "ftp://a", "a:port", "http://", "ü.de"],
)
def test_a_host_that_is_none_is_refused_at_once(host: str) -> None:
    with pytest.raises(ValueError, match="is no host|stands at the beginning|has a path"):
        dw.AllowList(host)


def test_headers_are_for_allowed_hosts_and_can_be_sent() -> None:
    with pytest.raises(ValueError, match="no name of a header"):
        dw.AllowList("a.example", headers={"a.example": {"x y": "z"}})
    with pytest.raises(ValueError, match="beyond Latin-1") as caught:
        dw.AllowList("a.example", headers={"a.example": {"x": f"{SECRET} ✓"}})
    assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match="not allowed"):
        dw.AllowList("a.example", headers={"b.example": {"x": "y"}})
    with pytest.raises(ValueError, match="line break"):
        dw.AllowList("a.example", headers={"a.example": {"x": "y\r\nz: 1"}})


@pytest.mark.parametrize("name", ["transfer-encoding ", "host\t", "authorization ", "", "a:b", "é"])
async def test_no_header_is_said_twice_by_a_name_that_is_none(name: str) -> None:
    # As a guest that was tampered with would send it; the SDK refuses it at once.
    plain = http.request_to_plain(dw.Request("GET", "https://a.example/"))
    with pytest.raises(dw.InvalidError, match="no name of a header"):
        http.request_from_plain(plain | {"headers": {name: "chunked"}})
    with pytest.raises(ValueError, match="no name of a header"):
        dw.Request("GET", "https://a.example/", {name: "chunked"})


@pytest.mark.parametrize("odd", ["GET / HTTP/1.1\r\nX: y\r\n\r\nGET", "", "G T", "GET\x00", "GÉT"])
def test_no_gateway_is_handed_a_method_that_could_be_a_request(odd: str) -> None:
    plain = http.request_to_plain(dw.Request("GET", "https://a.example/"))
    with pytest.raises(dw.InvalidError, match="no method"):
        http.request_from_plain(plain | {"method": odd})


def test_the_headers_of_the_closest_name_are_added_however_it_is_written() -> None:
    more, most = "*.b.example", "a.b.example"
    gateway = dw.AllowList(
        "*.example", more, most, f"https://{most}:443/",
        headers={"*.example": {"x": "1"}, more: {"x": "2"}, most: {"x": SECRET}},
    )  # fmt: skip
    added = [
        gateway._added[gateway._allowed(dw.Request("GET", f"https://{host}/"))[2]]
        for host in ("c.example", "b.example", "c.b.example", "a.b.example", "c.a.b.example")
    ]
    assert [headers["x"] for headers in added] == ["1", "1", "2", SECRET, "2"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"200 OK\r\nContent-Length: 50\r\n\r\ncut", None),
        (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\ncut", None),
        (b"\x1b[2J\r\n\r\n", None),
        (b"200 OK\r\nX-A: one\r\n two\r\nX-B: \x1b[2J\r\n\r\nok", {"x-a": "one two"}),
    ],
)
async def test_what_an_upstream_says_amiss_is_an_error_or_left_out(
    answer: bytes, expected: dict[str, str] | None
) -> None:
    with saying(b"HTTP/1.1 " + answer) as host:
        fetched = dw.AllowList(host).fetch(dw.Request("GET", host))
        if expected is None:
            with pytest.raises(ConnectionError, match="cannot be asked"):
                await fetched
        else:
            response = await fetched
            assert (dict(response.headers), await response.text()) == (expected, "ok")


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_url_leads_to_a_host_that_was_not_named(before: str, after: str) -> None:
    gateway = dw.AllowList("api.example.com")
    try:
        url, place, _ = gateway._allowed(
            dw.Request("GET", f"https://{before}api.example.com{after}")
        )
    except dw.EgressDeniedError:
        return
    assert (place.host, place.port, url.scheme) == ("api.example.com", 443, "https")
