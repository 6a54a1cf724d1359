"""Services: each tenant meets its own, one object for all that it runs, by async methods alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real_tenants import real_tenant

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.loaders.bundles.bundle import Bundle, bundle_of
from dynamic_workflows.loaders.protocol.calls import DeployCode

CODE = """
from dynamic_workflows import Request, WorkerEntrypoint


class Default(WorkerEntrypoint):
    async def call(self, method, *args, **named):
        return await getattr(self.env.VAULT, method)(*args, **named)

    async def end(self):
        import os
        os._exit(1)
"""


class Vault(dw.Service):
    """Holds what is one tenant's, in its own attributes and not in props."""

    def __init__(self, owner: Any) -> None:
        super().__init__()
        self.owner = owner
        self.asked = 0

    async def whose(self) -> Any:
        return self.owner

    async def count(self) -> int:
        self.asked += 1
        return self.asked

    def key(self) -> str:
        return "s3cr3t"

    async def sign(self, text: str) -> str:
        return f"{text} by {self.key()[:1]}"

    @staticmethod
    async def ping() -> str:
        return "pong"

    @classmethod
    async def kind(cls) -> str:
        return cls.__name__

    async def numbers(self) -> Any:
        yield 1


VAULT = {"VAULT": Vault("acme")}


class Slotted(dw.Service):
    """Holds something beside its attributes' dict."""

    __slots__ = ("owner",)

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner


class Reducing(dw.Service):
    """Says itself how it is pickled."""

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner

    def __reduce__(self) -> Any:
        return Reducing, (self.owner,)


def local(owner: str) -> dw.Service:
    """A class of its own that knows the tenant by its closure."""

    class Local(dw.Service):
        async def whose(self) -> str:
            return owner

    return Local()


def bundle(service: dw.Service) -> Bundle:
    return bundle_of(dw.WorkerCode("index.py", {"index.py": CODE}, {"VAULT": service}))[0]


@pytest.mark.parametrize("make", [Vault, Slotted, Reducing, local, lambda owner: Vault({owner})])
def test_services_that_hold_different_things_never_share_a_stored_object(
    make: Callable[[str], dw.Service],
) -> None:
    assert bundle(make("acme")).content_hash != bundle(make("globex")).content_hash
    assert bundle(make("acme")).content_hash == bundle(make("acme")).content_hash


def test_a_class_that_travels_by_value_has_one_name_in_every_process(tmp_path: Path) -> None:
    script = """
import dynamic_workflows as dw
from dynamic_workflows.loaders.bundles.bundle import bundle_of
class Mine(dw.Service):
    def __init__(self, client):
        super().__init__(props={"a": 1})
        self.client = client
    async def ask(self, what="ANSWER"):
        return [what, self.client]
class Client: pass
for held in (1, Client()):
    code = dw.WorkerCode("a.py", {"a.py": ""}, {"MINE": Mine(held)})
    print(bundle_of(code)[0].content_hash)
"""
    path = tmp_path / "platform.py"

    def names(text: str) -> str:
        path.write_text(text)
        command = [sys.executable, "-P", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert names(script) == names(script)
    changed = names(script.replace("ANSWER", "OTHER")).splitlines()
    assert not set(changed) & set(names(script).splitlines()), "other code is another service"


async def test_tenants_with_equal_code_meet_each_their_own_service() -> None:
    def load(tenant_id: str) -> dw.WorkerCode:
        return dw.WorkerCode("index.py", {"index.py": CODE}, {"VAULT": Vault(tenant_id)})

    async with testing.connect(load=load) as platform:
        whose = [
            await platform.tenant(name).entrypoint().call("whose") for name in ("acme", "globex")
        ]
    assert whose == ["acme", "globex"]


async def test_what_a_service_remembers_outlives_isolates_and_versions() -> None:
    async with real_tenant({"index.py": CODE}) as tenant:
        stub = tenant.entrypoint()
        for version, count in (("1", 1), ("2", 3)):
            code = dw.WorkerCode("index.py", {"index.py": CODE, "version": version}, VAULT)
            stored = bundle_of(code)[0].stored()
            await tenant.shell.call(DeployCode(bundle=stored))
            assert await stub.call("count") == count
            with pytest.raises(dw.WorkflowsError):
                await stub.end()
            assert await stub.call("count") == count + 1


def platform_of() -> dw.Platform:
    def load(tenant_id: str) -> dw.WorkerCode:
        return dw.WorkerCode("index.py", {"index.py": CODE}, VAULT)

    return testing.connect(load=load)


@pytest.mark.parametrize("method", ["key", "numbers", "asked", "props", "owner", "nothing"])
async def test_what_is_no_public_async_method_is_the_services_own(method: str) -> None:
    async with platform_of() as platform:
        with pytest.raises(dw.InvalidError, match=f"no public async method '{method}'"):
            await platform.tenant("acme").entrypoint().call(method)


@pytest.mark.parametrize(
    ("method", "answer"), [("sign", "x by s"), ("ping", "pong"), ("kind", "Vault")]
)
async def test_async_methods_of_every_kind_can_be_called(method: str, answer: str) -> None:
    async with platform_of() as platform:
        given = ["x"] if method == "sign" else []
        assert await platform.tenant("acme").entrypoint().call(method, *given) == answer
