"""Who may call: roles, tenants, tokens, and requests that no key could make good."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openapi_spec_validator
import pytest
from local_world import until
from web_world import INSTANCES, bearer, served

import dynamic_workflows as dw
from dynamic_workflows.web import Keys, create_app
from dynamic_workflows.web.openapi import ROUTES, document

OPEN = {"/healthz", "/readyz", "/openapi.json"}
KEYS = {
    "look": "viewer",
    "work": "operator",
    "ship": "deployer",
    "all": "admin",
    "theirs": {"role": "admin", "tenants": ["globex"], "name": "globex"},
}
CHANGING = {"post", "patch", "delete", "put"}


def place(path: str) -> str:
    """A path with names in it."""
    names = {"tenant": "acme", "workflow": "TenantWorkflow", "id": "o1", "type": "go", "step": "s"}
    return path.format(path="x", **names)


@pytest.mark.parametrize(("method", "path"), [route[:2] for route in ROUTES])
async def test_no_route_is_reachable_without_a_key_or_with_anothers(method: str, path: str) -> None:
    async with served(KEYS) as (platform, client):
        token = platform.web_token("globex", role="admin")
        one = platform.web_token("acme", workflow="TenantWorkflow", instance="o2")
        for headers, status in [
            ({}, 401),
            (bearer("wrong"), 401),
            ({"Authorization": "Basic look"}, 401),
            (bearer("dwt_e30.e30"), 401),
            (bearer("theirs"), 403),
            (bearer(token), 403),
            (bearer(one), 403),
        ]:
            answer = await client.request(method, place(path), headers=headers)
            assert answer.status_code == (200 if path in OPEN else status), (headers, answer.text)


@pytest.mark.parametrize(
    ("method", "path"), [route[:2] for route in ROUTES if route[0] in CHANGING]
)
async def test_a_viewer_changes_nothing(method: str, path: str) -> None:
    async with served(KEYS) as (_, client):
        answer = await client.request(method, place(path), headers=bearer("look"))
        if path.endswith("/query"):  # SQL only reads.
            assert answer.status_code == 400
        else:
            assert answer.json()["error"]["code"] == "key.forbidden"


async def test_roles_may_what_they_are_for() -> None:
    async with served(KEYS) as (_, client):
        for key, create, deploy in [("look", 403, 403), ("work", 201, 403), ("ship", 403, 422)]:
            made = await client.post(INSTANCES, json={}, headers=bearer(key))
            code = {"modules": {"index.py": "def ("}}
            put = await client.put("/v1/tenants/acme/code", json=code, headers=bearer(key))
            assert (made.status_code, put.status_code) == (create, deploy)


async def test_a_token_shows_one_instance_until_it_expires() -> None:
    now = [0]
    keys = Keys({"all": "admin"}, now_us=lambda: now[0])
    async with served(keys) as (_, client):
        await client.post(INSTANCES, json={"id": "o1"}, headers=bearer("all"))
        token = keys.token("acme", workflow="TenantWorkflow", instance="o1", seconds=60)
        shown = await client.get(f"{INSTANCES}/o1", headers=bearer(token))
        assert shown.status_code == 200
        assert (await client.get(INSTANCES, headers=bearer(token))).status_code == 403
        forged = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
        assert (await client.get(f"{INSTANCES}/o1", headers=bearer(forged))).status_code == 401
        now[0] += 60_000_000
        assert (await client.get(f"{INSTANCES}/o1", headers=bearer(token))).status_code == 401


async def test_without_keys_only_this_machine_is_served_and_no_proxy() -> None:
    async with served() as (_, client):
        assert (await client.get("/v1/tenants")).status_code == 200
        for headers in (
            {"X-Forwarded-For": "10.0.0.1"},
            {"Forwarded": "for=10.0.0.1"},
            {"Host": "evil.example"},
            {"Origin": "https://evil.example"},
        ):
            assert (await client.get("/v1/tenants", headers=headers)).status_code == 401


@pytest.mark.parametrize("client", [("10.0.0.9", 1), ("2001:db8::1", 1)])
async def test_without_keys_another_machine_is_refused(client: tuple[str, int]) -> None:
    async with served() as (platform, _):
        transport = httpx.ASGITransport(app=create_app(platform), client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as other:
            assert (await other.get("/v1/tenants")).status_code == 401


@pytest.mark.parametrize("name", ["../globex", "..%2fglobex", "a%00b", "%ff", "x" * 257, "%c2%85"])
async def test_odd_names_in_a_path_reach_no_other_tenant(name: str) -> None:
    async with served({"mine": {"role": "admin", "tenants": ["acme"]}}) as (_, client):
        path = f"/v1/tenants/{name}/workflows/TenantWorkflow/instances"
        answer = await client.post(path, json={}, headers=bearer("mine"))
        assert answer.status_code in (400, 403, 404)


async def test_a_tenant_may_have_a_slash_in_its_name() -> None:
    async with served() as (platform, client):
        path = INSTANCES.replace("acme", "a%2Fb")
        assert (await client.post(path, json={"id": "o1"})).status_code == 201
        assert (await platform.tenant("a/b").workflows.get("o1")).id == "o1"


async def test_a_body_is_bounded() -> None:
    async with served(body_bytes_max=1_000) as (_, client):
        for body in (b'"' + b"x" * 1_000 + b'"', b"[" * 999, b"\xff", b"{", b"[1]"):
            answer = await client.post(INSTANCES, content=body)
            assert answer.status_code == (413 if len(body) > 1_000 else 400)

        async def without_length() -> Any:
            for _ in range(100):
                yield b"x" * 100

        answer = await client.post(INSTANCES, content=without_length())
        assert answer.status_code == 413


async def test_streams_are_bounded_and_told_when_to_come_again() -> None:
    async with served(streams_max=0) as (_, client):
        await client.post(INSTANCES, json={"id": "o1"})
        answer = await client.get(f"{INSTANCES}/o1/stream")
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_request_that_hangs_up_cancels_what_it_asked_for() -> None:
    async with served() as (_, client):
        await client.post(INSTANCES, json={"id": "o1"})

        def waiting() -> list[asyncio.Task[Any]]:
            return [one for one in asyncio.all_tasks() if "result.<locals>.work" in repr(one)]

        asked = asyncio.ensure_future(client.get(f"{INSTANCES}/o1/result?timeout=60"))
        await until(lambda: len(waiting()) == 1)
        asked.cancel()
        await until(lambda: not waiting())


async def test_a_tenants_page_is_none_of_the_platforms() -> None:
    async with served({"work": "operator"}) as (_, client):
        answer = await client.get("/v1/tenants/acme/fetch/a?b=1", headers=bearer("work"))
        assert answer.json()["url"] == "https://localhost/a?b=1"
        assert "authorization" not in answer.json()["headers"]
        assert answer.headers["content-security-policy"] == "sandbox"


async def test_the_document_describes_every_route() -> None:
    made = document()
    openapi_spec_validator.validate(made)
    async with served() as (_, client):
        assert (await client.get("/openapi.json")).json() == json.loads(json.dumps(made))
        for method, path, *_rest in ROUTES:
            answer = await client.request(method, place(path))
            assert answer.status_code not in (405, 501), (method, path)
            assert answer.json() if answer.content[:1] == b"{" else True


def test_a_key_is_a_text_and_grants_a_role() -> None:
    for odd in ({"": "admin"}, {"k": "king"}, {"k": {"rights": 1}}, {"dwt_x": "admin"}):
        with pytest.raises(dw.InvalidError):
            Keys(odd)
    assert Keys(["k"]).find("k") is not None
    assert len(Keys.generate()) >= 43
