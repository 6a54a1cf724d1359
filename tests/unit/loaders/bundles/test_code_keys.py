"""Stored code with a key: nobody reads it, nobody guesses it, and keys can be changed."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from pydantic import SecretStr

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.actors.code.code_resolver import Bundles
from dynamic_workflows.actors.rpc.actor_settings import Setup
from dynamic_workflows.eventlog.errors import CodeError, Corrupt, InvalidError
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.loaders.bundles.bundle import Bundle, WorkerCode, bundle_of, code_key
from dynamic_workflows.loaders.bundles.code_keys import CodeKeys, check_stored, new_key

OLD, NEW, OTHER = (base64.urlsafe_b64encode(bytes([n]) * 32).decode() for n in (1, 2, 3))


class Vault(dw.Service):
    async def open(self) -> Any:
        return self.props["pin"]


def code(pin: str = "4711-very-secret") -> WorkerCode:
    return WorkerCode(
        main_module="index.py",
        modules={"index.py": "x = 'only-in-the-module'"},
        env={"PIN": pin, "VAULT": Vault(props={"pin": pin})},
    )


def bundle(pin: str = "4711-very-secret") -> Bundle:
    return bundle_of(code(pin))[0]


async def test_nothing_of_a_bundle_can_be_read_where_it_lies() -> None:
    store = MemoryStore()
    code_hash = await Bundles(store, CodeKeys([NEW])).put(bundle())
    data = await store.get(code_key(code_hash))
    assert b"very-secret" in bundle().stored()
    for text in (b"very-secret", b"only-in-the-module", b"Vault", b"index.py", NEW.encode()):
        assert text not in data
    found = await Bundles(store, CodeKeys([NEW])).get(code_hash)
    assert found.services().keys() == {"env:VAULT"}
    vault: Any = found.unpickle()["env:VAULT"]
    assert await vault.open() == "4711-very-secret"


async def test_a_secret_cannot_be_guessed_from_the_hash_and_the_hash_is_stable() -> None:
    with_key, again, without = CodeKeys([NEW]), CodeKeys([NEW]), bundle().content_hash
    keyed = with_key.keyed(bundle()).content_hash
    assert keyed == again.keyed(bundle()).content_hash
    assert keyed != with_key.keyed(bundle("4712-very-secret")).content_hash
    assert keyed not in (without, CodeKeys([OTHER]).keyed(bundle()).content_hash)
    assert hashlib.sha256(bundle().stored()).hexdigest() not in (keyed, without)


async def test_two_stores_of_the_same_code_are_one_bundle() -> None:
    store = MemoryStore()
    first = await Bundles(store, CodeKeys([NEW])).put(bundle())
    assert await Bundles(store, CodeKeys([NEW])).put(bundle()) == first
    assert len(await store.list("code/")) == 1


async def test_a_new_key_in_front_reads_what_the_old_one_wrote_and_keeps_the_hash() -> None:
    store = MemoryStore()
    old = await Bundles(store, CodeKeys([OLD])).put(bundle())
    both = Bundles(store, CodeKeys([NEW, OLD]))
    assert (await both.get(old)).env == bundle().env
    assert await both.put(bundle()) == old
    fresh = await both.put(bundle("another"))
    with pytest.raises(CodeError, match="with another key than the 1 in code_keys") as caught:
        await Bundles(store, CodeKeys([OLD])).get(fresh)
    assert caught.value.code == "code.load_failed"
    # The old key is gone: what the new one wrote is read, whatever keyed its hash.
    assert (await Bundles(store, CodeKeys([NEW])).get(fresh)).content_hash == fresh
    with pytest.raises(CodeError, match="with another key"):
        await Bundles(store, CodeKeys([NEW])).get(old)


async def test_code_that_was_stored_without_a_key_is_still_loaded() -> None:
    store = MemoryStore()
    plain = await Bundles(store).put(bundle())
    assert (await Bundles(store, CodeKeys([NEW])).get(plain)).env == bundle().env


async def test_a_missing_key_is_named_and_not_taken_for_damage() -> None:
    store = MemoryStore()
    code_hash = await Bundles(store, CodeKeys([NEW])).put(bundle())
    with pytest.raises(CodeError, match="is encrypted, and this platform has no key"):
        await Bundles(store).get(code_hash)
    check_stored(await store.get(code_key(code_hash)), code_hash)


async def test_damage_is_seen_without_the_key_and_another_bundle_with_it() -> None:
    store, keys = MemoryStore(), CodeKeys([NEW])
    one = await Bundles(store, keys).put(bundle())
    two = await Bundles(store, keys).put(bundle("another"))
    data = await store.get(code_key(one))
    for at in (0, 20, len(data) // 2, len(data) - 1):
        broken = bytearray(data)
        broken[at] ^= 1
        with pytest.raises(Corrupt):
            check_stored(bytes(broken), one)
        with pytest.raises(Corrupt):
            keys.open(bytes(broken), one)
    with pytest.raises(Corrupt, match="another content"):
        keys.open(await store.get(code_key(two)), one)


def test_a_key_is_in_no_text() -> None:
    config = dw.PlatformConfig(code_keys=(NEW, SecretStr(OLD)))  # type: ignore[arg-type]
    keyed = config.keys().keyed(bundle())
    raw = str(keyed.hash_key)
    for text in (repr(config), str(config), config.model_dump_json(), repr(config.keys())):
        assert NEW not in text
        assert OLD not in text
    assert raw not in repr(keyed)
    assert "very-secret" not in repr(keyed)
    assert new_key() != new_key()


@pytest.mark.parametrize(
    "given", ["short", b"short", ["short"], [NEW, "short"], [7], 7, [NEW + "A" * 8], [None], {1: 2}]
)
def test_what_is_no_key_is_refused_and_not_repeated(given: Any) -> None:
    with pytest.raises(InvalidError) as caught:
        dw.PlatformConfig(code_keys=given)
    assert "short" not in str(caught.value)
    assert NEW not in str(caught.value)


def test_drivers_with_other_keys_are_told_apart() -> None:
    def fingerprint(*keys: str) -> str:
        config = dw.PlatformConfig(code_keys=keys)  # type: ignore[arg-type]
        return Setup(log_root="/x", config=config, namespace="n").fingerprint

    assert len({fingerprint(), fingerprint(NEW), fingerprint(NEW, OLD), fingerprint(OLD, NEW)}) == 4
    assert fingerprint(NEW) == fingerprint(NEW)


FLOW = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        async def ask():
            return await self.env.VAULT.open()
        await step.sleep("rest", "1 hour")
        return await step.do("ask", ask) + self.env.PIN
"""


@pytest.mark.parametrize("crash", [False, True])
async def test_a_platform_with_a_key_runs_deploys_and_replays(crash: bool) -> None:
    kept: list[Vault] = [Vault(props={"pin": "a"})]
    given = WorkerCode(
        main_module="index.py",
        modules={"index.py": FLOW},
        env={"PIN": "b", "VAULT": kept[0]},
    )
    config = dw.PlatformConfig(code_keys=(NEW,))  # type: ignore[arg-type]
    async with testing.connect(
        load=lambda tenant_id: given, config=config, crash_at_every_step=crash, auto_advance=True
    ) as platform:
        for name in ("loaded", "deployed"):
            tenant = platform.tenant(name)
            if name == "deployed":
                await tenant.deploy(given)
            instance = await tenant.workflows.create()
            assert await instance.result() == "ab"
        backend: Any = platform._backend
        entries = await backend.store.list("code/")
        assert len(entries) == 1
        assert (await backend.store.get(entries[0].key)).startswith(b"DWSEALED1")
