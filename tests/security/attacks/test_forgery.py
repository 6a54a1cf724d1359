"""What no guest sends is refused by the supervisor, whatever it names, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import dynamic_workflows as dw
from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.loaders.protocol import calls, messages
from dynamic_workflows.loaders.protocol.messages import Error

from .forging import Forger, Vault, code, forger

# --- services: the supervisor itself knows what is public -----------------------------------------

PRIVATE = (
    """
_private __init__ __call__ __aenter__ __class__ __reduce__ __getstate__ __dict__ __repr__ props
public_errors sync lazy Inner asynchronous opened ping.__func__ ping.__globals__ Inner.ping
props.clear __class__.ping Ping pinɡ ping\0 nothing mro
""".split()
    + ["", " ping", "ping ", "x" * 100_000]
)


@pytest.mark.parametrize("method", PRIVATE, ids=range(len(PRIVATE)))
async def test_a_forged_call_of_what_is_not_public_is_refused(method: str) -> None:
    Vault.opened.clear()
    async with forger() as forged:
        reply = await forged.call("VAULT", method)
        assert reply.error is not None
        assert reply.error.name == "InvalidError"
        assert "no public async method" in reply.error.message
        assert (await forged.call("VAULT", "ping")).value == b'"pong"'
    assert Vault.opened == []


@pytest.mark.parametrize(
    "target",
    [
        "VALUE",
        "OTHER",
        "vault",
        "env:VAULT",
        "VAULT.ping",
        "tail:0",
        "outbound",
        "props",
        "\0",
        "*",
    ],
)
async def test_a_forged_call_of_what_was_not_granted_is_refused(target: str) -> None:
    async with forger() as forged:
        for method in ("ping", "tail", "fetch", "status"):
            reply = await forged.call(target, method)
            assert reply.error is not None
            assert "nothing to call" in reply.error.message


@pytest.mark.parametrize("method", ["fetch", "ping", "tail", "", "_send"])
async def test_without_a_gateway_no_call_of_it_goes_out(method: str) -> None:
    async with forger() as forged:
        reply = await forged.call("", method, values.encode(["https://example.com/"]))
        assert reply.error is not None
        assert reply.error.name in ("EgressDeniedError", "InvalidError")


@pytest.mark.parametrize("name", [1, None, ["ping"], {"a": 1}, b"\xff", 1.5, True])
async def test_a_name_that_is_no_text_ends_the_isolate(name: Any) -> None:
    async with forger() as forged:
        body = msgspec.msgpack.encode([1, "VAULT", name, b"[]", b"{}"])
        forged.host.on_frames([(25, forged.life, body)])
        assert [more["kind"] for _, more in forged.kills] == ["protocol"]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [(b"1", b"{}"), (b"", b"{}"), (b"[", b"{}"), (b"[]", b"[]"), (b"\xff", b""), (b"[]", b"{"),
     (b"[1]", b"{}"), (b"[]", b'{"self":1}'), (b'[{"$":"x"}]', b"{}"), (b"[" * 100_000, b"{}")],
)  # fmt: skip
async def test_arguments_that_are_none_are_an_answer(args: bytes, kwargs: bytes) -> None:
    async with forger() as forged:
        reply = await forged.call("VAULT", "ping", args, kwargs)
        assert reply.error is not None
        assert "reference" not in reply.error.message, "it is the caller's mistake, and no failure"
        assert not forged.kills


# --- workflow bindings: every operation with every argument of every wrong kind -------------------

ODD: list[Any] = [
    None, True, 0, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.5, float("-inf"),
    float("nan"), "", "x" * 300, "a\0b", "\u0301e", "../x", "'; drop", b"", b"null", b'{"$":"x"}',
    [], ["honest"], [None], [["x"]], {}, {"id": "honest"}, [{}], [{"params": b"1"}],
    [{"params": b"1", "id": "new", "pin": [1]}], [{"params": b"1", "tenant_id": "globex"}],
    [{"params": b"1", "metadata": b"{}"}], [{"params": b"1", "code_hash": "0" * 64}],
    [{"params": b"1", "id": "late", "retention": {"success_us": 2**62}}],
    {"name": "first", "count": 2**64 - 1, "type": "do"}, {"name": 1, "count": 1, "type": "do"},
    {"name": "first", "count": 1, "type": ["do"]},
]  # fmt: skip
OPERATIONS: dict[str, dict[str, Any]] = {
    "create_batch": {"items": [{"params": b"1"}], "strict": False, "token": None, "pin": None},
    "get": {},
    "status": {},
    "result": {"timeout_s": 0},
    "pause": {},
    "resume": {},
    "terminate": {"rollback": False},
    "restart": {"from": None},
    "send_event": {"type": "other", "payload": b"1"},
    "delete": {},
    "delete_batch": {"ids": ["nobody"]},
    "list": {"status": None, "limit": 1, "cursor": None},
    "history": {"all_runs": False},
    "events": {"cursor": 0, "wait_s": 0},
    "why": {},
}


def test_every_operation_of_tenants_is_tried() -> None:
    assert OPERATIONS.keys() == calls.TENANT_CALLS.keys()


@pytest.mark.parametrize("workflow", ["TenantWorkflow", None])
@pytest.mark.parametrize("op", OPERATIONS)
async def test_whatever_an_operation_is_asked_it_is_an_answer(
    op: str, workflow: str | None
) -> None:
    base = {"workflow": workflow, "id": "nobody"} | OPERATIONS[op]
    async with forger() as forged:
        for name in [*base, "metadata", "binding", "tenant_id", "code_hash"]:
            for odd in ODD:
                if name in ("timeout_s", "wait_s") and (
                    odd is None or odd > 0 if isinstance(odd, int | float) else False
                ):
                    continue  # these wait, as they should
                reply = await forged.ask(op, base | {name: odd})
                if reply.error is not None:
                    told = reply.error
                    assert told.module == "dynamic_workflows" or told.name == "TimeoutError", told
                    assert "reference" not in told.message, (name, odd)
        assert not forged.kills


@pytest.mark.parametrize(
    "op", ["invoke", "deploy", "reload", "schedule", "call", "", "_load", "close", "mock_event"]
)
async def test_what_is_no_tenants_operation_is_none(op: str) -> None:
    async with forger() as forged:
        reply = await forged.ask(op, {"workflow": "TenantWorkflow", "id": "honest"})
        assert reply.error is not None
        assert "no operation" in reply.error.message


FORGED = values.encode({"tenant_id": "globex"})


@pytest.mark.parametrize(
    "more",
    [{"metadata": FORGED}, {"metadata": FORGED, "binding": "WORKFLOWS"}, {"tenant_id": "globex"},
     {"tenant": "globex"}, {"token": "t"}, {"code_hash": "0" * 64}],
)  # fmt: skip
async def test_whatever_a_create_says_it_lands_with_the_tenant_that_asked(
    more: dict[str, Any],
) -> None:
    envelope = values.encode({"__dispatcherMetadata": {"tenant_id": "globex"}, "params": 1})
    items = [{"id": "forged", "params": envelope}]
    async with forger() as forged:
        reply = await forged.ask(
            "create_batch", {"workflow": None, "items": items, "strict": False} | more
        )
        assert reply.error is None, reply.error
        globex, acme = forged.platform.tenant("globex"), forged.platform.tenant("acme")
        with pytest.raises(dw.InstanceError):
            await globex.workflows.get("forged")
        found = await acme.workflows.get("forged")
        (row,) = [row for row in await found.history() if row.type == "workflow_queued"]
        assert "__dispatcherMetadata" in str(row.payload), "params are params"


@pytest.mark.parametrize("op", ["get", "status", "terminate", "delete", "history", "events"])
async def test_the_instances_of_others_are_not_there(op: str) -> None:
    async with forger() as forged:
        await forged.platform.tenant("globex").workflows.create(id="theirs")
        for id in ("theirs", "globex/theirs", "globex:theirs", "../globex/theirs"):
            for workflow in ("TenantWorkflow", None, "globex", "../globex"):
                args = {"workflow": workflow, "id": id} | OPERATIONS[op]
                reply = await forged.ask(op, args)
                assert reply.error is not None, (id, workflow)
        assert await forged.platform.tenant("globex").workflows.get("theirs")


SECRET = "postgres://admin:hunter2@10.0.0.7/code"


class Stuck(dw.Service):
    """Cannot be pickled, and says why in words that are no tenant's business."""

    def __reduce__(self) -> Any:
        raise OSError(SECRET)


def _raise(error: Exception) -> dw.WorkerCode:
    raise error


@pytest.mark.parametrize(
    "then",
    [
        lambda: _raise(RuntimeError(SECRET)),
        lambda: _raise(dw.Unavailable(SECRET)),
        lambda: _raise(dw.QueryError(SECRET, path=SECRET)),
        lambda: _raise(dw.CodeError(SECRET, code="code.load_failed")),
        lambda: dw.WorkerCode("index.py", {"index.py": ""}, {"STUCK": Stuck()}),
    ],
)
async def test_what_load_fails_with_is_no_tenants_business(
    then: Callable[[], dw.WorkerCode],
) -> None:
    failing: list[Callable[[], dw.WorkerCode]] = []
    async with forger(lambda tenant_id: failing[0]() if failing else code(tenant_id)) as forged:
        failing.append(then)
        await forged.shell.call(calls.ReloadCode())
        args = {"workflow": None, "items": [{"params": b"1"}], "strict": False}
        told = (await forged.ask("create_batch", args)).error
        assert told is not None
        assert "hunter2" not in repr(told)


# --- lifetimes: who speaks for whom, and of what --------------------------------------------------

NUMBERS = [0, -1, 2, 2**53, 2**63, 2**64 - 1, -(2**63)]
MESSAGES: list[msgspec.Struct] = [
    *(messages.Done(token, 1, b"1") for token in NUMBERS),
    *(messages.Done(1, attempt, b"1") for attempt in NUMBERS),
    *(messages.AttemptFailed(token, 1, Error("E", "m"), token) for token in NUMBERS),
    *(messages.AttemptEnded(token, 1) for token in NUMBERS),
    *(messages.CancellationIgnored(token, 1) for token in NUMBERS),
    *(messages.StepRequest(token, "first", 1, b"{}") for token in NUMBERS),
    *(messages.StepRequest(9, "x", count, b"{}") for count in NUMBERS),
    *(messages.Sleep(9, "s", 1, duration_ms=ms) for ms in NUMBERS),
    *(messages.Sleep(9, "s", 1, until_us=us) for us in NUMBERS),
    *(messages.Wait(9, "w", 1, "go", ms) for ms in NUMBERS),
    *(messages.Idle(seen) for seen in NUMBERS),
    *(messages.Reply(call, b"1") for call in NUMBERS),
    *(messages.Mismatch("do", "n", count, None, None, None, count, None) for count in NUMBERS),
    *(
        messages.StepRequest(9, "y", 1, config)
        for config in (b"", b"[]", b'{"timeout_ms":-1}', b"\xff")
    ),
    *(messages.StepRequest(9, name, 1, b"{}") for name in ("", "a\0b", "x" * 100_000)),
    *(messages.Wait(9, "w", 1, kind, 10) for kind in ("", "a\0b", "x" * 100_000)),
    *(messages.End(value) for value in (b"", b"{", b"\xff", b'{"$":"x"}', b"[" * 100_000)),
    messages.End(b"1", Error("E", "m")),
    messages.CodeLoaded(),
    messages.CodeLoaded([], Error("E", "m"), "odd"),
    messages.Ended(),
    messages.Log("odd\n", "text\x1b[2J", "step\n", -1, -1),
    messages.CallRequest(1, "VAULT", "ping", b"[]", b"{}"),
]
LIVES: dict[str, Callable[[int], int]] = {
    "nobody's": lambda life: 0,
    "a negative": lambda life: -1,
    "another tenant's": lambda life: life + 1_000,
    "a call's": lambda life: messages.CALLS_FROM + 1,
    "too large a": lambda life: 2**63,
}


async def _died(forged: Forger) -> list[str]:
    await asyncio.sleep(0)
    return [more["kind"] for _, more in forged.kills]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
async def test_no_message_about_ones_own_lifetime_is_a_mistake_of_ours(
    message: msgspec.Struct,
) -> None:
    async with forger() as forged:
        forged.say(message)
        assert await _died(forged) in ([], ["protocol"])
        await forged.platform._local.settle()


@pytest.mark.parametrize("whose", LIVES)
async def test_nobody_speaks_for_a_lifetime_that_is_elsewhere(whose: str) -> None:
    for message in MESSAGES[::6]:
        async with forger() as forged:
            forged.say(message, LIVES[whose](forged.life))
            assert await _died(forged) == ["protocol"], message
