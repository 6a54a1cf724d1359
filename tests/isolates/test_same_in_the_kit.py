"""One program gives the same on the testing kit as in isolates that are processes of their own."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

from real_tenants import real_tenant

import dynamic_workflows as dw
from dynamic_workflows import testing

CODE = """
import collections, dataclasses, datetime, decimal, enum, importlib, logging, pathlib, uuid
from typing import Any, NamedTuple
import pydantic
from dynamic_workflows import WorkflowEntrypoint, WorkflowEvent

class Colour(enum.Enum):
    RED = "r"

@dataclasses.dataclass
class Order:
    id: str
    colour: Any = Colour.RED

class Model(pydantic.BaseModel):
    orders: list[Order]
    word: pydantic.SecretStr

class Point(NamedTuple):
    x: int

class Odd: pass

VALUES = {
    "plain": {"a": [1, 2.5, None, True, "x"]},
    "tagged": (1, {2}, b"x", decimal.Decimal("1.50"), uuid.UUID(int=1), float("-inf")),
    "time": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
    "int": 2**127,
    "keys": {1: "a", "$x": 2, (1, 2): 3},
    "order": Order("1"),
    "deep": {"orders": [Order("1", Point(2))], "deque": collections.deque([Colour.RED], 3)},
    "model": Model(orders=[Order("2")], word="s"),
    "path": pathlib.PurePosixPath("/x"),
    "odd": Odd(),
    "lambda": [lambda: 1],
    "surrogate": "\\ud800",
    "cycle": [],
    "large": "x" * (2 << 20),
    "bytes": b"x" * 900_000,
}
VALUES["cycle"].append(VALUES["cycle"])
MODULES = ["json", "asyncio", "pydantic", "msgspec", "ray", "duckdb", "pyarrow", "ctypes",
           "multiprocessing", "sqlite3", "dynamic_workflows.platform", "nowhere", "other"]

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Order], step):
        print("begun", type(event.payload).__name__)
        seen = {"params": repr(event.payload)}
        for name, value in VALUES.items():
            try:
                got = await step.do(name, lambda: value)
                seen[name] = [type(got) is type(value), repr(got)[:300]]
            except Exception as error:
                seen[name] = [type(error).__name__, getattr(error, "code", None), str(error)[:500]]
        for name in MODULES:
            try:
                __import__(name)
                seen["import " + name] = "is there"
            except Exception as error:
                seen["import " + name] = [type(error).__name__, str(error)]
        got = await step.wait_for_event("w", type="go", payload_type=Order)
        logging.warning("got %s", got.payload)
        seen["event"] = repr(got.payload)
        return seen
"""
FILES: dict[str, Any] = {"index.py": CODE, "other.py": "import index"}


def _timeless(payload: Any) -> Any:
    return {name: item for name, item in payload.items() if not isinstance(item, datetime.datetime)}


async def drive(tenant: Any) -> Any:
    instance = await tenant.workflows.create(id="i", params={"id": "7", "colour": (1, 2)})
    async with asyncio.timeout(120):
        while (await instance.status()).status != "waiting":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await instance.pause()
    await instance.resume()
    await instance.send_event("go", {"id": "8"})
    result = await instance.result(timeout=120)
    shown = [
        (event.type, event.step, event.count, event.attempt, _timeless(event.payload))
        for event in await instance.history()
        if event.type.startswith(("step_", "attempt_", "wait_", "workflow_completed"))
    ]
    return result, shown


async def test_the_testing_kit_and_isolates_answer_alike() -> None:
    async def load(tenant_id: str) -> dw.WorkerCode:
        return dw.WorkerCode(main_module="index.py", modules=FILES)

    config = dw.PlatformConfig(value_bytes_max=1 << 20)
    async with testing.connect(load=load, config=config) as platform:
        kit, kit_shown = await drive(platform.tenant("acme"))
    async with real_tenant(FILES, value_bytes_max=1 << 20) as tenant:
        real, real_shown = await drive(tenant)
    assert kit == real
    assert kit_shown == real_shown
    assert kit["order"] == [True, "Order(id='1', colour=<Colour.RED: 'r'>)"]
    assert kit["large"][1] == "value.too_large"
