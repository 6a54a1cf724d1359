"""What crosses the wall beside steps: env, services, entrypoints, fetch, logs, loading."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from guest_world import World, flow
from paths import ROOT
from real_tenants import until

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import InstanceError, InvalidError
from dynamic_workflows.loaders.guest import logs as logs_module
from dynamic_workflows.loaders.guest.logs import DROPPED
from dynamic_workflows.loaders.protocol import calls, messages
from dynamic_workflows.loaders.sdk import http
from dynamic_workflows.loaders.sdk.entrypoints import EgressDeniedError


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.close()


# --- loading --------------------------------------------------------------------------------------


async def test_loading_tells_what_the_code_exports(world: World) -> None:
    loaded = await world.load(
        {
            "index.py": (
                "from dynamic_workflows import WorkflowEntrypoint, WorkerEntrypoint\n"
                "from shared import Imported\n"
                "class Base(WorkerEntrypoint):\n"
                "    async def inherited(self): ...\n"
                "class Default(Base):\n"
                "    attribute = 5\n"
                "    async def fetch(self, request): ...\n"
                "    def plain(self): ...\n"
                "    async def _hidden(self): ...\n"
                "class _Private(WorkerEntrypoint): ...\n"
                "class Flow(WorkflowEntrypoint): ...\n"
            ),
            "shared.py": (
                "from dynamic_workflows import WorkflowEntrypoint\n"
                "class Imported(WorkflowEntrypoint): ...\n"
            ),
        }
    )
    assert {(export.name, export.kind, tuple(export.methods)) for export in loaded.exports} == {
        ("Imported", "workflow", ("run",)),
        ("Base", "entrypoint", ("inherited",)),
        ("Default", "entrypoint", ("fetch", "inherited", "plain")),
        ("Flow", "workflow", ("run",)),
    }


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("def (", "code.invalid", "index.py:1"),
        ("import nothing_like_this", "code.import_failed", "nothing_like_this"),
        ("1 / 0", "code.import_failed", "division"),
        ("raise SystemExit(3)", "code.import_failed", "3"),
        ("raise KeyboardInterrupt", "code.import_failed", ""),
    ],
)
async def test_code_that_cannot_be_loaded_says_why(
    world: World, code: str, kind: str, message: str
) -> None:
    loaded = await world.load(code)
    assert loaded.code == kind
    assert loaded.error is not None
    assert message in loaded.error.message


def test_the_guest_is_light() -> None:
    code = (
        "import sys, asyncio, dynamic_workflows.loaders.guest.guest\n"
        "import dynamic_workflows.loaders.sdk.binding\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"ray", "pyarrow", "duckdb", "pydantic", "obstore", "typer", "rich", "cloudpickle"}
    assert not heavy & set(done.stdout.split())


# --- env ------------------------------------------------------------------------------------------


async def test_env_holds_what_was_granted_and_nothing_else(world: World) -> None:
    code = flow("""
    self.env.LIST.append(2)
    missing = []
    for look in (lambda: self.env.NOPE, lambda: self.env["NOPE"]):
        try:
            look()
        except (AttributeError, KeyError) as error:
            missing.append(type(error).__name__)
    try:
        self.env.NEW = 1
    except AttributeError:
        missing.append("read only")
    return [self.env.LIST, self.env["WHEN"], missing, sorted(self.env), "LIST" in self.env]
    """)
    await world.load(code, env={"LIST": [1], "WHEN": (1, {2})})
    for _ in range(2):  # What one lifetime does to a value is not there in the next.
        world.start()
        assert await world.until_ended() == [
            [1, 2], (1, {2}), ["AttributeError", "KeyError", "read only"], ["LIST", "WHEN"], True,
        ]  # fmt: skip


async def test_a_service_is_called_and_its_errors_keep_their_class(world: World) -> None:
    code = flow("""
    answers = [await self.env.SVC.add(1, by={2}), await self.env.SVC.make()]
    try:
        await self.env.SVC.fail()
    except KeyError as error:
        answers.append(error.args[0])
    try:
        self.env.SVC._private
    except AttributeError:
        answers.append("private")
    answers[1] = [answers[1].status, await answers[1].text()]
    return answers
    """)

    def serve(call: messages.CallRequest) -> messages.Reply:
        assert call.target == "SVC"
        args, kwargs = values.decode(call.args), values.decode(call.kwargs)
        if call.method == "add":
            return messages.Reply(call.call, values.encode([args, kwargs]))
        if call.method == "make":
            answer = http.to_plain(http.Response("hello", 201))
            return messages.Reply(call.call, values.encode(answer))
        return messages.Reply(call.call, error=messages.Error("KeyError", "'k'", args=b'["k"]'))

    world.on_call = serve
    await world.load(code, env={"SVC": messages.EnvEntry("SVC", "service")})
    world.start()
    assert await world.until_ended() == [
        [[1], {"by": {2}}], [201, "hello"], "k", "private",
    ]  # fmt: skip


async def test_the_workflow_binding_is_the_drivers_own(world: World) -> None:
    code = flow("""
    instance = await self.env.WORKFLOWS.create(id="child", params={"n": 1})
    try:
        await self.env.WORKFLOWS.get("nobody")
    except Exception as error:
        problem = [type(error).__name__, error.code]
    return [instance.id, (await instance.status()).status, problem]
    """)

    def serve(call: messages.CallRequest) -> messages.Reply:
        asked = calls.unpack_tenant_call(call.method, call.args)
        if isinstance(asked, calls.CreateBatch):
            assert asked.workflow == "Flow"
            return messages.Reply(call.call, calls.pack_answer([asked.items[0].id]))
        if isinstance(asked, calls.GetStatus):
            answer = calls.pack_answer(calls.StatusData(status="queued"))
            return messages.Reply(call.call, answer)
        missing = InstanceError("there is none", code="instance.not_found")
        return messages.Reply(call.call, error=world.guest.to_wire(missing))

    world.on_call = serve
    await world.load(code, env={"WORKFLOWS": messages.EnvEntry("WORKFLOWS", "workflows", b"Flow")})
    world.start()
    assert await world.until_ended() == [
        "child", "queued", ["InstanceError", "instance.not_found"],
    ]  # fmt: skip


# --- entrypoints ----------------------------------------------------------------------------------

ENTRYPOINTS = """
from dynamic_workflows import WorkerEntrypoint, Response

class Default(WorkerEntrypoint):
    async def fetch(self, request):
        body = await request.json()
        return {"method": request.method, "x": request.headers["X-Thing"], "n": body["n"]}
    async def ask(self, a, *, b=(1,)):
        return [a, b, self.ctx.props]
    def plain(self): return {"sync"}
    async def fail(self): raise ValueError("no")
    async def unfit(self): return object()
    async def _hidden(self): return "hidden"
    secret = 5

class Other(WorkerEntrypoint):
    def __init__(self, ctx, env):
        super().__init__(ctx, env)
        self.made = ctx.props["n"]
    async def fetch(self, request):
        return Response("text", 404, {"X-Made": str(self.made)})
"""


async def invoke(
    world: World, entrypoint: str | None, method: str, *args: Any, **kwargs: Any
) -> Any:
    if world.loaded is None:
        await world.load(ENTRYPOINTS)
    number = len(world.log) + 1
    props = values.encode({"n": 7})
    world.send(
        messages.Invoke(
            number, entrypoint, method, values.encode(list(args)), values.encode(kwargs), props
        )
    )

    def replies() -> list[messages.Reply]:
        return [m for _, m in world.log if type(m) is messages.Reply and m.call == number]

    await world.until(lambda: bool(replies()))
    (reply,) = replies()
    if reply.error is not None:
        raise world.guest.from_wire(reply.error)
    assert reply.value is not None
    return values.decode(reply.value)


async def test_public_methods_can_be_called(world: World) -> None:
    assert await invoke(world, None, "ask", 1, b={2}) == [1, {2}, {"n": 7}]
    assert await invoke(world, "Default", "plain") == {"sync"}
    with pytest.raises(ValueError, match="no"):
        await invoke(world, None, "fail")


@pytest.mark.parametrize("method", ["_hidden", "__init__", "env", "ctx", "secret", "missing", ""])
async def test_nothing_else_can_be_called(world: World, method: str) -> None:
    with pytest.raises(InvalidError, match="no public method"):
        await invoke(world, None, method)


@pytest.mark.parametrize("name", ["Nobody", "_Private", "WorkerEntrypoint", "Response"])
async def test_only_exported_entrypoints_can_be_called(world: World, name: str) -> None:
    with pytest.raises(InvalidError, match="no entrypoint"):
        await invoke(world, name, "fetch")


async def test_fetch_gets_a_request_and_answers_a_response(world: World) -> None:
    request = http.Request("post", "https://x/y", {"x-thing": "v"}, {"n": 3})
    plain = await invoke(world, None, "fetch", http.request_to_plain(request))
    response = http.response_from_plain(plain)
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    assert await response.json() == {"method": "POST", "x": "v", "n": 3}
    other = http.response_from_plain(
        await invoke(world, "Other", "fetch", http.request_to_plain(request))
    )
    assert (other.status, other.headers["x-made"], await other.text()) == (404, "7", "text")


async def test_an_answer_that_cannot_travel_is_an_error(world: World) -> None:
    with pytest.raises(Exception, match="object"):
        await invoke(world, None, "unfit")


# --- fetch ----------------------------------------------------------------------------------------


FETCH = flow("""
response = await fetch("https://example.test/a", method="PUT", headers={"A": "b"}, body={"n": 1})
return [response.status, response.ok, await response.text(), response.headers["server"]]
""").replace("EgressDeniedError,", "EgressDeniedError, fetch,")


async def test_without_a_gateway_nothing_leaves(world: World) -> None:
    with pytest.raises(EgressDeniedError):
        await world.run(FETCH)
    assert world.of(messages.CallRequest) == []


async def test_the_gateway_gets_every_request(world: World) -> None:
    def serve(call: messages.CallRequest) -> messages.Reply:
        assert (call.target, call.method) == ("", "fetch")
        request = http.request_from_plain(values.decode(call.args)[0])
        assert (request.method, request.url) == ("PUT", "https://example.test/a")
        assert request.headers["a"] == "b"
        answer = http.Response("fine", 200, {"Server": "gate"})
        return messages.Reply(call.call, values.encode(http.response_to_plain(answer)))

    world.on_call = serve
    await world.load(FETCH, network=True)
    world.start()
    assert await world.until_ended() == [200, True, "fine", "gate"]


# --- logs -----------------------------------------------------------------------------------------


async def test_lines_carry_step_and_attempt(world: World) -> None:
    code = flow("""
    print("a", 1, sep="-", end="!\\n")
    async def work(ctx):
        print("in", ctx.attempt)
        await asyncio.create_task(inner())
        if ctx.attempt == 1:
            raise ValueError("no")
    async def inner(): print("task\\nsecond line", file=sys.stderr)
    await step.do("s", work)
    """).replace("import asyncio", "import asyncio, sys")
    await world.run(code)
    logs = [m for _, m in world.log if type(m) is messages.Log]
    assert [(m.level, m.text, m.step, m.attempt) for m in logs if "Trace" not in m.text] == [
        ("info", "a-1!", None, 0),
        ("info", "in 1", "s", 1), ("error", "task", "s", 1), ("error", "second line", "s", 1),
        ("info", "in 2", "s", 2), ("error", "task", "s", 2), ("error", "second line", "s", 2),
    ]  # fmt: skip
    (trace,) = [m for m in logs if "Trace" in m.text]
    assert trace.level == "error"
    assert trace.text.endswith("ValueError: no")
    assert str(ROOT) not in trace.text


async def test_a_flood_is_cut_and_counted(world: World) -> None:
    code = flow("""
    for i in range(event.payload):
        print(i)
    print("x" * 100_000, "\\udcff")
    await step.sleep("refill", 1)
    print("after")
    """)
    await world.load(code)
    world.start(params=5_000)
    await world.until_idle()
    logs = [m for _, m in world.log if type(m) is messages.Log]
    assert 1_000 <= len(logs) < 4_000
    world.guest.logs._rate._at_us -= 60_000_000
    world.finish("refill")
    await world.until_ended()
    logs = [m for _, m in world.log if type(m) is messages.Log]
    assert logs[-1].text == "after"
    lines = [m for m in logs if m.level != DROPPED]
    assert len(lines) + sum(m.dropped for m in logs) == 5_002
    assert max(len(m.text.encode()) for m in logs) <= 8 * 1024


async def test_a_count_of_dropped_lines_needs_no_line_to_travel_with(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs_module, "TOLD_S", 0.0)
    await world.load(flow("for i in range(event.payload): print(i)\nawait step.sleep('s', 1)"))
    world.start(params=3_000)

    def logs() -> list[messages.Log]:
        return [message for _, message in world.log if type(message) is messages.Log]

    await until(lambda: logs() and logs()[-1].level == DROPPED, "the count")
    lines = [message for message in logs() if message.level != DROPPED]
    assert len(lines) + sum(message.dropped for message in logs()) == 3_000


# --- requests and responses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "plain",
    [None, 5, [], {}, {"http": "response"}, {"http": "response", "status": 200, "headers": {}},
     {"http": "response", "status": 7, "headers": {}, "body": b""},
     {"http": "response", "status": "200", "headers": {}, "body": b""},
     {"http": "response", "status": 200, "headers": {"a": 1}, "body": b""},
     {"http": "response", "status": 200, "headers": {"a": "b\r\nc: d"}, "body": b""},
     {"http": "response", "status": 200, "headers": {"transfer-encoding ": "x"}, "body": b""}],
)  # fmt: skip
def test_what_is_no_response_is_refused(plain: Any) -> None:
    with pytest.raises(InvalidError):
        http.response_from_plain(plain)


async def test_messages_survive_the_way(world: World) -> None:
    request = http.Request("get", "https://x", {"A": "1", "b-1": "2"}, b"\xff")
    again = http.from_plain(values.decode(values.encode(http.to_plain(request))))
    assert (again.method, dict(again.headers), await again.body()) == (
        "GET", {"a": "1", "b-1": "2"}, b"\xff",
    )  # fmt: skip
    with pytest.raises(ValueError, match="no JSON"):
        await again.json()
    assert http.from_plain({"http": "response", "mine": 1}) == {"http": "response", "mine": 1}
