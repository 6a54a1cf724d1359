"""Values and errors through isolates that are processes of their own."""

from __future__ import annotations

import asyncio
from typing import Any

from real_tenants import real_tenant

CODE = """
import asyncio, collections, dataclasses, enum, importlib, json, pathlib, pkgutil, subprocess
import importlib.resources
import pydantic
import plugins
from dynamic_workflows import WorkflowEntrypoint

class Colour(enum.Enum):
    RED = "r"

@dataclasses.dataclass
class Cat:
    name: str

@dataclasses.dataclass
class Dog:
    name: str

class Login(pydantic.BaseModel):
    word: pydantic.SecretStr
    url: pydantic.HttpUrl
    pets: list[Cat | Dog]
    home: pathlib.Path

async def make() -> Login:
    return Login(word="s3cret", url="https://a.b", pets=[Dog("rex")], home="/x")

async def queue() -> collections.deque[Colour]:
    return collections.deque([Colour.RED], 3)

async def bad(): return json.loads("{")
async def called(): raise subprocess.CalledProcessError(3, ["ls"], b"o")
async def invalid(): return Login.model_validate({})
class Stop(Exception): pass

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        login, colours = await step.do("a", make), await step.do("b", queue)
        seen = [login == await make(), login.word.get_secret_value(), colours == await queue()]
        for work in (bad, called, invalid):
            try:
                await step.do(work.__name__, work, config={"retries": {"limit": 0}})
            except pydantic.ValidationError as error:
                seen.append(error.error_count())
            except ValueError as error:
                seen.append([type(error).__name__, error.doc])
            except subprocess.CalledProcessError as error:
                seen.append([error.returncode, error.cmd])
        found = [one.name for one in pkgutil.iter_modules(plugins.__path__)]
        seen.append([importlib.import_module("plugins." + name).NAME for name in found])
        seen.append(importlib.resources.files(plugins).joinpath("hello.txt").read_text())
        await step.wait_for_event("go", type="go")
        return seen
"""
FILES: dict[str, Any] = {
    "index.py": CODE,
    "plugins/__init__.py": "",
    "plugins/one.py": "NAME = 1",
    "plugins/two.py": "NAME = 2",
    "plugins/hello.txt": "hello",
}


async def test_values_errors_and_files_are_the_same_in_every_lifetime() -> None:
    async with real_tenant(FILES) as tenant:
        instance = await tenant.workflows.create(params={})
        async with asyncio.timeout(120):
            while (await instance.status()).status != "waiting":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        # Paused and resumed, it is replayed in another lifetime.
        await instance.pause()
        await instance.resume()
        await instance.send_event("go")
        assert await instance.result(timeout=120) == [
            True, "s3cret", True, ["JSONDecodeError", "{"], [3, ["ls"]], 4, [1, 2], "hello",
        ]  # fmt: skip
