"""The code that the loader hands to a slot is used once, in time, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from dynamic_workflows.actors.code.code_resolver import Resolved
from dynamic_workflows.actors.rpc import reconnecting
from dynamic_workflows.actors.rpc.reconnecting import LoaderCodeSource, ReconnectingRef
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.loaders.bundles.bundle import WorkerCode, bundle_of


class Loader:
    """A loader that answers with the code it has now, and counts who asks."""

    name = "loader"

    def __init__(self) -> None:
        self.asked = 0

    async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
        if op == "code_current":
            self.asked += 1
            return Resolved("asked")
        return None


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def codes(loader: Loader) -> LoaderCodeSource:
    async def find() -> Loader:
        return loader

    return LoaderCodeSource(ReconnectingRef("the loader", find, timeout_s=1.0), MemoryStore())


async def test_code_that_was_handed_over_is_used_once(
    codes: LoaderCodeSource, loader: Loader
) -> None:
    code = WorkerCode(main_module="index.py", modules={"index.py": "x = 1"})
    bundle, _ = bundle_of(code, own_binding=True)
    codes.expect()
    codes.take((Resolved(bundle.content_hash), bundle.stored()))
    assert (await codes.current("acme")).code_hash == bundle.content_hash
    assert await codes.bundle(bundle.content_hash) == bundle, "though the store does not have it"
    assert loader.asked == 0
    assert (await codes.current("acme")).code_hash == "asked"


async def test_code_that_comes_before_it_is_expected_is_used(
    codes: LoaderCodeSource, loader: Loader
) -> None:
    codes.take((Resolved("handed"), None))
    codes.expect()
    assert (await codes.current("acme")).code_hash == "handed"
    assert loader.asked == 0


async def test_code_that_comes_too_late_is_never_used(
    codes: LoaderCodeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnecting, "_HANDED_WITHIN_S", 0.0)
    codes.expect()
    assert (await codes.current("acme")).code_hash == "asked"
    codes.take((Resolved("stale"), None))
    assert (await codes.current("acme")).code_hash == "asked"


async def test_code_that_was_to_be_forgotten_is_never_used(codes: LoaderCodeSource) -> None:
    codes.expect()
    codes.take((Resolved("stale"), None))
    await codes.forget("acme")
    assert (await codes.current("acme")).code_hash == "asked"
