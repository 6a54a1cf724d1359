"""A dispatcher shares one binding among tenants that cannot see, forge or reach its marks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import dispatcher_app as seeds
import pytest
from dispatcher_app import ask

import dynamic_workflows as dw
from dynamic_workflows import testing


@pytest.fixture(autouse=True)
def two_tenants() -> None:
    seeds.SOURCES.clear()
    seeds.LOADED.clear()
    for tenant_id in ("acme", "globex"):
        seeds.SOURCES[tenant_id] = f"VERSION = 1\n{seeds.INDEX}"


async def post(platform: dw.Platform, tenant_id: str, body: Any) -> Any:
    response = await platform.fetch(ask(tenant_id, body))
    assert response.status == 200
    return await response.json()


@pytest.mark.behaviour(298, 311, 318, 345, 346)
async def test_the_ported_dispatcher_runs_as_printed() -> None:
    async with testing.connect(app=seeds.app, auto_advance=True) as platform:
        made = await post(platform, "acme", {"id": "a-1", "params": {"n": 1}})
        assert made == {"id": "a-1"}
        assert await post(platform, "acme", {"op": "status", "id": "a-1"}) == {"status": "waiting"}
        instance = await platform.tenant("acme").workflows.get("a-1")
        assert await instance.result() == {
            "payload": {"n": 1},
            "keys": [],
            "env": ["WORKFLOWS"],
            "name": "TenantWorkflow",
            "version": 1,
        }


@pytest.mark.behaviour(308, 309)
async def test_metadata_lies_beside_the_params_and_cannot_be_forged() -> None:
    async with testing.connect(app=seeds.app, auto_advance=True) as platform:
        forged = {"__dispatcherMetadata": {"tenant_id": "globex"}, "params": 1}
        await post(platform, "acme", {"id": "a-1", "params": forged})
        instance = await platform.tenant("acme").workflows.get("a-1")
        assert (await instance.result())["payload"] == forged
        with pytest.raises(dw.InstanceError):
            await platform.tenant("globex").workflows.get("a-1")
        rows = platform.query("select distinct tenant_id from events where instance_id = 'a-1'")
        assert rows.to_pylist() == [{"tenant_id": "acme"}]


@pytest.mark.behaviour(302)
async def test_an_id_of_another_tenant_is_not_found() -> None:
    async with testing.connect(app=seeds.app) as platform:
        await post(platform, "acme", {"id": "secret"})
        with pytest.raises(dw.InstanceError) as caught:
            await platform.fetch(ask("globex", {"op": "status", "id": "secret"}))
        assert caught.value.code == "instance.not_found"


@pytest.mark.behaviour(301)
async def test_batches_go_through_the_wrapped_binding_in_order() -> None:
    async with testing.connect(app=seeds.app) as platform:
        items = [{"id": "c", "params": 1}, {"id": "a", "params": 2}, {"id": "b"}]
        made = await post(platform, "acme", {"op": "batch", "items": items})
        assert made == {"ids": ["c", "a", "b"]}


@pytest.mark.behaviour(299, 303, 304)
async def test_options_reach_the_instance_through_the_wrapped_handle() -> None:
    async with testing.connect(app=seeds.app) as platform:
        await post(platform, "acme", {"id": "a-1"})
        stopped = await post(platform, "acme", {"op": "stop", "id": "a-1"})
        assert stopped == {"status": "terminated"}


@pytest.mark.behaviour(313, 324)
@pytest.mark.behaviour(245)
async def test_instances_keep_their_code_unless_they_follow_the_latest() -> None:
    async with testing.connect(app=seeds.app) as platform:
        await post(platform, "acme", {"id": "pinned"})
        await post(platform, "acme", {"id": "follower", "pin": "latest"})
        await platform.clock.advance("1 second")
        seeds.SOURCES["acme"] = f"VERSION = 2\n{seeds.INDEX}"
        await platform.clock.advance("2 minutes")
        await post(platform, "acme", {"id": "newcomer"})
        await platform.clock.advance("2 hours")
        rows = platform.query(
            "select instance_id, count(distinct code_hash) as codes from events "
            "where type in ('workflow_started', 'workflow_running', 'workflow_queued') "
            "group by 1 order by 1"
        ).to_pylist()
        newcomer = await platform.tenant("acme").workflows.get("newcomer")
        assert (await newcomer.result())["version"] == 2
        assert {row["instance_id"]: row["codes"] for row in rows} == {
            "follower": 2,
            "newcomer": 1,
            "pinned": 1,
        }


@pytest.mark.behaviour(317)
async def test_a_create_on_a_raw_binding_stores_nothing() -> None:
    class Raw(dw.WorkerEntrypoint):
        async def fetch(self, request: dw.Request) -> Any:
            await self.env.WORKFLOWS.create(id="raw")

    raw = dw.App(Raw, workflows={"WORKFLOWS": seeds.DynamicWorkflow})
    async with testing.connect(app=raw) as platform:
        with pytest.raises(dw.MissingDispatcherMetadataError):
            await platform.fetch(dw.Request("GET", "/"))
        with pytest.raises(dw.MissingDispatcherMetadataError):
            await platform.tenant("acme").workflows.create(id="raw")
        assert platform.query("select count(*) as n from events").to_pylist() == [{"n": 0}]


@pytest.mark.behaviour(315)
async def test_a_runner_that_cannot_be_loaded_refuses_the_create() -> None:
    async with testing.connect(app=seeds.app) as platform:
        del seeds.SOURCES["globex"]
        with pytest.raises(dw.CodeError) as caught:
            await post(platform, "globex", {"id": "x"})
        assert caught.value.code == "code.load_failed"
        seeds.SOURCES["globex"] = f"VERSION = 1\n{seeds.INDEX}"
        assert await post(platform, "globex", {"id": "x"}) == {"id": "x"}


@pytest.mark.behaviour(326, 327)
async def test_workers_are_held_for_a_while() -> None:
    async with testing.connect(app=seeds.app) as platform:
        for _ in range(3):
            await post(platform, "acme", {})
        assert seeds.LOADED == ["acme"]
        await platform.clock.advance("61 seconds")
        await post(platform, "acme", {})
        assert seeds.LOADED == ["acme", "acme"]


@pytest.mark.behaviour(312)
async def test_the_entrypoint_that_the_runner_names_is_the_workflow_name() -> None:
    source = seeds.INDEX.replace("class TenantWorkflow", "class Orders")
    seeds.SOURCES["acme"] = f"VERSION = 1\n{source}"

    async def load_orders(*, metadata: Any, env: Any) -> Any:
        stub = seeds.load_tenant(env, metadata["tenant_id"])  # type: ignore[no-untyped-call]
        return stub.get_entrypoint("Orders")

    orders = dw.create_dynamic_workflow_entrypoint(load_orders)
    shop = dw.App(seeds.Dispatcher, workflows={"WORKFLOWS": orders})
    async with testing.connect(app=shop, auto_advance=True) as platform:
        await post(platform, "acme", {"id": "o-1"})
        assert (await post(platform, "acme", {"op": "status", "id": "o-1"}))["status"]
        instance = await platform.tenant("acme").workflow("Orders").get("o-1")
        assert (await instance.result())["name"] == "Orders"


@pytest.mark.behaviour(321)
async def test_a_dispatcher_may_put_its_own_checks_around_the_dispatch() -> None:
    class Checked(dw.WorkflowEntrypoint):
        async def run(self, event: Any, step: Any) -> Any:
            if event.metadata["tenant_id"] == "globex":
                raise PermissionError("globex has not paid")
            context = {"env": self.env, "ctx": self.ctx}
            return await dw.dispatch_workflow(context, event, step, seeds.load_runner)

    checked = dw.App(seeds.Dispatcher, workflows={"WORKFLOWS": Checked})
    async with testing.connect(app=checked) as platform:
        assert await post(platform, "acme", {"id": "x"}) == {"id": "x"}
        with pytest.raises(dw.CodeError, match="globex has not paid"):
            await post(platform, "globex", {"id": "x"})


@pytest.mark.behaviour(316, 317)
async def test_dispatching_needs_metadata_and_passes_the_runners_errors_through() -> None:
    class Runner:
        async def run(self, event: Any, step: Any) -> Any:
            raise ZeroDivisionError("as it is")

    async def find(*, metadata: Any, env: Any) -> Any:
        assert (metadata, env) == ({"tenant_id": "acme"}, {"A": 1})
        return Runner()

    with pytest.raises(dw.MissingDispatcherMetadataError):
        await dw.dispatch_workflow({"env": {}}, {"payload": 1}, None, find)
    event = {"payload": 1, "metadata": {"tenant_id": "acme"}}
    with pytest.raises(ZeroDivisionError, match="as it is"):
        await dw.dispatch_workflow({"env": {"A": 1}, "ctx": None}, event, None, find)


async def test_code_of_load_may_wrap_its_binding_too() -> None:
    async def load(tenant_id: str) -> dw.WorkerCode:
        return dw.WorkerCode(
            main_module="index.py",
            modules={"index.py": f"VERSION = 1\n{seeds.INDEX}"},
            env={"WORKFLOWS": dw.wrap_workflow_binding({"tenant_id": tenant_id, "plan": "free"})},
        )

    async with testing.connect(load=load, auto_advance=True) as platform:
        stub = platform.tenant("acme").entrypoint()
        made = await (await stub.fetch(dw.Request("POST", "/", body={"id": "w"}))).json()
        assert made == {"id": "w"}
        instance = await platform.tenant("acme").workflows.get("w")
        assert (await instance.result())["version"] == 1


def test_metadata_that_cannot_travel_is_refused_where_it_is_given() -> None:
    with pytest.raises(dw.UnserialisableValueError):
        dw.wrap_workflow_binding({"tenant_id": object()})
    with pytest.raises(TypeError):
        dw.wrap_workflow_binding({"tenant_id": "a"}, binding_name="")
    binding = dw.wrap_workflow_binding({"tenant_id": "a"}, binding_name="JOBS")
    assert isinstance(binding, dw.DynamicWorkflowBinding)
    assert (binding.metadata, binding.binding_name) == ({"tenant_id": "a"}, "JOBS")


def app_with(binding_name: str, **workflows: Any) -> dw.App:
    """A dispatcher whose tenants create through a binding of this name."""

    class Front(dw.WorkerEntrypoint):
        async def fetch(self, request: dw.Request) -> Any:
            tenant_id = request.headers["x-tenant-id"]
            return await find(self.env, tenant_id).get_entrypoint().fetch(request)

    def find(env: Any, tenant_id: str) -> Any:
        def code() -> dw.WorkerCode:
            binding = dw.wrap_workflow_binding({"tenant_id": tenant_id}, binding_name)
            return dw.WorkerCode(
                main_module="index.py",
                modules={"index.py": seeds.SOURCES[tenant_id]},
                env={"WORKFLOWS": binding},
            )

        return env.LOADER.get(tenant_id, code)

    def runner(*, metadata: Any, env: Any) -> Any:  # sync, for once
        return find(env, metadata["tenant_id"]).get_entrypoint("TenantWorkflow")

    made = dw.create_dynamic_workflow_entrypoint(runner)
    return dw.App(Front, workflows=dict.fromkeys(workflows or ("WORKFLOWS",), made))


@pytest.mark.behaviour(305, 306, 314)
async def test_the_real_binding_is_looked_up_by_name_at_each_call() -> None:
    async with testing.connect(app=app_with("JOBS", JOBS=1), auto_advance=True) as platform:
        assert await post(platform, "acme", {"id": "j"}) == {"id": "j"}
        instance = await platform.tenant("acme").workflows.get("j")
        assert (await instance.result())["version"] == 1
    async with testing.connect(app=app_with("JOBS", WORKFLOWS=1)) as platform:
        with pytest.raises(dw.CodeError, match="JOBS"):
            await post(platform, "acme", {"id": "j"})


@pytest.mark.behaviour(319)
async def test_tenants_with_equal_ids_and_steps_do_not_interfere() -> None:
    async with testing.connect(app=seeds.app, auto_advance=True) as platform:
        for tenant_id in ("acme", "globex"):
            await post(platform, tenant_id, {"id": "same", "params": {"of": tenant_id}})
        for tenant_id in ("acme", "globex"):
            instance = await platform.tenant(tenant_id).workflows.get("same")
            assert (await instance.result())["payload"] == {"of": tenant_id}
            types = [event.type for event in await instance.history()]
            assert types.count("step_completed") == 1


@pytest.mark.behaviour(323)
async def test_a_noisy_tenant_uses_up_its_own_quota_alone() -> None:
    config = dw.PlatformConfig(creates_per_second_max=1)
    async with testing.connect(app=seeds.app, config=config) as platform:
        many: list[dict[str, Any]] = [{} for _ in range(3)]
        await post(platform, "acme", {"op": "batch", "items": many})
        with pytest.raises(dw.LimitExceededError) as caught:
            await post(platform, "acme", {})
        assert caught.value.retry_after > 0
        assert "id" in await post(platform, "globex", {})


@pytest.mark.behaviour(322)
async def test_a_dispatchers_binding_has_no_schedules_without_metadata() -> None:
    async with testing.connect(app=seeds.app) as platform:
        with pytest.raises(dw.MissingDispatcherMetadataError):
            await platform.tenant("acme").schedule("0 6 * * *")


@pytest.mark.behaviour(300)
async def test_the_callers_options_are_not_changed() -> None:
    options = {"id": "o", "params": {"a": [1]}, "pin": "latest", "retention": {"success": "1 day"}}
    before = repr(options)
    async with testing.connect(app=seeds.app) as platform:
        made = await post(platform, "acme", {"op": "batch", "items": [options]})
        assert made == {"ids": ["o"]}
        instance = await platform.tenant("acme").workflows.get("o")
        queued = (await instance.history())[0].payload
        assert queued["params"] == {"a": [1]}
        assert queued["retention"] == {"success": timedelta(days=1)}
        stored = platform.query("select payload ->> '$.pin' as pin from events where pin <> ''")
        assert stored.to_pylist() == [{"pin": "latest"}]
    assert repr(options) == before


def recording(seen: list[Any]) -> type[dw.WorkflowEntrypoint]:
    """A dispatcher's own class: it notes what it is told, before and after the hand-over."""

    class Recording(dw.WorkflowEntrypoint):
        async def run(self, event: Any, step: Any) -> Any:
            tenant_id = event.metadata["tenant_id"]
            seen.append(("before", tenant_id, event.instance_id, event.payload))
            if event.payload == "refuse":
                raise PermissionError("not this one")
            context = {"env": self.env, "ctx": self.ctx}
            await dw.dispatch_workflow(context, event, step, seeds.load_runner)
            seen.append(("after", event.instance_id))
            if event.payload == "break":
                raise OSError("too late")

    return Recording


def recorder(seen: list[Any]) -> dw.App:
    return dw.App(seeds.Dispatcher, workflows={"WORKFLOWS": recording(seen)})


async def test_a_dispatchers_own_class_runs_once_for_each_create_and_goes_on() -> None:
    seen: list[Any] = []
    async with testing.connect(app=recorder(seen), auto_advance=True) as platform:
        for name in ("a", "b"):
            await post(platform, "acme", {"id": name, "params": {"n": name}})
            await platform.clock.settle()
        made = await post(platform, "globex", {})
        await platform.clock.settle()
        instance = await platform.tenant("acme").workflows.get("a")
        assert (await instance.result())["payload"] == {"n": "a"}
    assert seen == [
        ("before", "acme", "a", {"n": "a"}),
        ("after", "a"),
        ("before", "acme", "b", {"n": "b"}),
        ("after", "b"),
        ("before", "globex", made["id"], {}),
        ("after", made["id"]),
    ]


async def test_a_dispatchers_own_class_runs_once_for_each_item_of_a_batch() -> None:
    seen: list[Any] = []
    items = [{"id": name, "params": name} for name in "cab"]
    async with testing.connect(app=recorder(seen)) as platform:
        assert await post(platform, "acme", {"op": "batch", "items": items}) == {"ids": [*"cab"]}
        await platform.clock.settle()
        assert [one[2:] for one in seen if one[0] == "before"] == [(n, n) for n in "cab"]
        assert sorted(one[1] for one in seen if one[0] == "after") == ["a", "b", "c"]
        del seen[:]
        refused = [{"id": "d"}, {"id": "e", "params": "refuse"}]
        with pytest.raises(dw.CodeError, match="not this one"):
            await post(platform, "acme", {"op": "batch", "items": refused})
        await platform.clock.settle()
        assert [one[0] for one in seen] == ["before", "before"]
        count = platform.query("select count(*) as n from instances").to_pylist()
        assert count == [{"n": 3}]


async def test_what_fails_before_the_hand_over_stores_nothing_and_after_it_undoes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[Any] = []
    async with testing.connect(app=recorder(seen), auto_advance=True) as platform:
        with pytest.raises(dw.CodeError, match="not this one"):
            await post(platform, "acme", {"id": "no", "params": "refuse"})
        with pytest.raises(dw.InstanceError):
            await platform.tenant("acme").workflows.get("no")
        await post(platform, "acme", {"id": "yes", "params": "break"})
        instance = await platform.tenant("acme").workflows.get("yes")
        assert (await instance.result())["payload"] == "break"
        await platform.clock.settle()
    assert "'yes'" in caplog.text
    assert "too late" in caplog.text


async def test_nothing_goes_on_after_the_hand_over_of_a_create_that_is_refused() -> None:
    seen: list[Any] = []
    async with testing.connect(app=recorder(seen)) as platform:
        await post(platform, "acme", {"id": "a"})
        await platform.clock.settle()
        with pytest.raises(dw.InstanceError) as caught:
            await post(platform, "acme", {"id": "a"})
        assert caught.value.code == "instance.already_exists"
        await platform.clock.settle()
        assert [one[0] for one in seen] == ["before", "after", "before"]


async def test_one_that_follows_the_newest_code_still_has_its_class_run_for_other_creates() -> None:
    seen: list[Any] = []
    async with testing.connect(app=recorder(seen)) as platform:
        await post(platform, "acme", {"id": "a", "pin": "latest"})
        await platform.clock.advance("2 hours")
        await post(platform, "acme", {"id": "b"})
        await platform.clock.settle()
        named = [one[2] for one in seen if one[0] == "before" and one[2] is not None]
        assert named == ["a", "b"]
        assert [one[1] for one in seen if one[0] == "after"] == ["a", "b"]
