"""Instances over HTTP: what each route answers, and that it says what the Python API says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from web_world import INSTANCES, served

from dynamic_workflows.web import create_app


async def created(client: Any, **item: Any) -> str:
    answer = await client.post(INSTANCES, json=item)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def test_an_instance_is_created_shown_steered_and_ends() -> None:
    async with served() as (platform, client):
        made = await client.post(INSTANCES, json={"id": "o1", "params": {"sku": 7}})
        assert made.status_code == 201
        assert made.headers["location"] == f"{INSTANCES}/o1"
        await platform.tenant("acme").workflows.create(id="beside")
        waiting = await client.get(f"{INSTANCES}/o1/result", params={"timeout": "0"})
        assert waiting.status_code == 202
        sent = await client.post(f"{INSTANCES}/o1/events/approval", json={"by": "Ines"})
        assert sent.status_code == 202
        ended = await client.get(f"{INSTANCES}/o1/result")
        priced = {"amount": {"$decimal": "1.50"}, "asked": {"sku": 7}}
        assert ended.json() == {
            "id": "o1", "status": "complete", "output": [priced, {"by": "Ines"}]
        }  # fmt: skip
        shown = (await client.get(f"{INSTANCES}/o1")).json()
        assert shown["status"] == "complete"
        assert shown["params"] == {"sku": 7}
        assert shown["created_at"].endswith("Z")
        assert [(one["name"], one["kind"], one["status"]) for one in shown["steps"]] == [
            ("price", "do", "complete"), ("approval", "wait_for_event", "complete")
        ]  # fmt: skip
        assert shown["steps"][0]["attempts"][0]["status"] == "complete"
        step = (await client.get(f"{INSTANCES}/o1/steps/price")).json()
        assert step["output"] == priced


async def test_an_error_has_the_code_of_the_python_api_and_a_fitting_status() -> None:
    async with served() as (_, client):
        await created(client, id="o1")
        cases: list[tuple[str, str, Any, int, str]] = [
            ("GET", f"{INSTANCES}/none", None, 404, "instance.not_found"),
            ("POST", INSTANCES, {"id": "o1"}, 409, "instance.already_exists"),
            ("POST", INSTANCES, {"id": "a/b"}, 400, "instance.invalid_id"),
            ("POST", INSTANCES, {"od": "o2"}, 400, "request.invalid"),
            ("POST", INSTANCES, {"instances": []}, 400, "batch.invalid"),
            ("POST", f"{INSTANCES}/o1/events/a b", {}, 400, "workflow.invalid_event_type"),
            ("PATCH", f"{INSTANCES}/o1", {"status": "fly"}, 400, "request.invalid"),
            ("GET", f"{INSTANCES}?status=odd", None, 400, "status.invalid"),
            ("GET", f"{INSTANCES}/o1/steps/none", None, 404, "step.not_found"),
            ("PUT", INSTANCES, None, 405, "route.method_not_allowed"),
            ("GET", "/v2", None, 404, "route.not_found"),
            ("POST", "/v1/query", {"sql": "drop view steps"}, 400, "query.invalid"),
        ]
        for method, path, body, status, code in cases:
            answer = await client.request(method, path, json=body)
            said = answer.json()["error"]
            assert (answer.status_code, said["code"]) == (status, code), (method, path, said)
            assert said["message"]


async def test_a_failed_instance_shows_its_error_and_its_attempts() -> None:
    async with served() as (_, client):
        failing = INSTANCES.replace("TenantWorkflow", "Failing")
        await client.post(failing, json={"id": "f"})
        ended = (await client.get(f"{failing}/f/result")).json()
        assert (ended["status"], ended["error"]["name"]) == ("errored", "ValueError")
        [step] = (await client.get(f"{failing}/f")).json()["steps"]
        assert [one["status"] for one in step["attempts"]] == ["errored", "errored"]


async def test_a_repeated_create_with_its_key_creates_once() -> None:
    async with served() as (_, client):
        key = {"Idempotency-Key": "k1"}
        answers = await asyncio.gather(
            *(client.post(INSTANCES, json={"params": 1}, headers=key) for _ in range(5))
        )
        assert len({answer.json()["id"] for answer in answers}) == 1
        other = await client.post(INSTANCES, json={"params": 2}, headers=key)
        assert other.json()["error"]["code"] == "idempotency.mismatch"
        assert len((await client.get(INSTANCES)).json()["items"]) == 1


async def test_a_create_that_an_earlier_process_answered_is_known_again() -> None:
    async with served() as (platform, client):
        import httpx

        key = {"Idempotency-Key": "k1"}
        first = await client.post(INSTANCES, json={"params": 1}, headers=key)
        transport = httpx.ASGITransport(app=create_app(platform))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as later:
            second = await later.post(INSTANCES, json={"params": 1}, headers=key)
        assert (first.status_code, second.status_code) == (201, 201)
        assert first.json() == second.json()


async def test_pages_lead_to_every_instance_once_whatever_the_filter() -> None:
    async with served() as (_, client):
        items = [{"id": f"o{n}"} for n in range(7)]
        await client.post(INSTANCES, json={"instances": items})
        for filters in ({}, {"text": "o"}, {"created_after": "2020-01-01"}):
            found: list[str] = []
            cursor: dict[str, str] = {}
            while True:
                params = {"limit": "3", **filters, **cursor}
                page = (await client.get(INSTANCES, params=params)).json()
                found += [one["id"] for one in page["items"]]
                if page["cursor"] is None:
                    break
                cursor = {"cursor": page["cursor"]}
            assert sorted(found) == [f"o{n}" for n in range(7)]


async def test_a_stream_goes_on_after_the_last_event_that_its_client_has() -> None:
    async with served() as (_, client):
        await created(client, id="o1")
        await client.post(f"{INSTANCES}/o1/events/approval", json=True)
        whole = (await client.get(f"{INSTANCES}/o1/stream")).text
        frames = [frame for frame in whole.split("\n\n") if frame.startswith("id: ")]
        assert "event: workflow_completed" in frames[-1]
        for place, frame in enumerate(frames[:-1]):
            seq = frame.split("\n")[0].removeprefix("id: ")
            rest = (await client.get(f"{INSTANCES}/o1/stream", headers={"Last-Event-ID": seq})).text
            left = [one for one in rest.split("\n\n") if one.startswith("id: ")]
            assert left == frames[place + 1 :]


@pytest.mark.parametrize(("what", "status"), [("pause", "paused"), ("terminate", "terminated")])
async def test_an_instance_is_steered(what: str, status: str) -> None:
    async with served() as (_, client):
        await created(client, id="o1")
        answer = await client.patch(f"{INSTANCES}/o1", json={"status": what})
        assert answer.json()["status"] == status
        assert (await client.delete(f"{INSTANCES}/o1")).status_code == 204
        assert (await client.get(f"{INSTANCES}/o1")).status_code == 404
