"""Bundles are code by content: equal code has one name, and nothing granted is in it to be read."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import dynamic_workflows as dw
from dynamic_workflows.actors.code.code_resolver import Bundles
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.loaders.bundles.bundle import bundle_of, code_key, from_stored


class Mail(dw.Service):
    """Granted to tenants."""

    async def send(self, to: str) -> str:
        return f"{self.props['from']} -> {to}"


class Other(dw.Service):
    """Another class with the same props."""


def code(**changes: Any) -> dw.WorkerCode:
    given: dict[str, Any] = {
        "main_module": "index.py",
        "modules": {"index.py": "x = 1\n", "data.json": {"a": [1, None]}, "logo": b"\x00\xff"},
        "env": {"MAIL": Mail(props={"from": "acme"}), "LIMIT": 3},
    }
    return dw.WorkerCode(**(given | changes))


def name(**changes: Any) -> str:
    return bundle_of(code(**changes))[0].content_hash


@pytest.mark.behaviour(335)
def test_what_is_stored_comes_back_as_it_was() -> None:
    bundle, grants = bundle_of(code(tails=(Mail(props=1),), limits={"steps": 7}))
    again = from_stored(bundle.stored(), bundle.content_hash)
    assert again == bundle
    assert set(grants) == {"env:MAIL", "tail:0"}
    revived = again.unpickle()
    assert set(revived) == set(grants)
    assert revived["env:MAIL"].props == {"from": "acme"}


def test_equal_code_has_one_name_in_every_process() -> None:
    assert name() == name()
    reordered = {"logo": b"\x00\xff", "data.json": {"a": [1, None]}, "index.py": "x = 1\n"}
    assert name(modules=reordered) == name()
    script = (
        "import dynamic_workflows as dw\n"
        "from dynamic_workflows.loaders.bundles.bundle import bundle_of\n"
        "code = dw.WorkerCode(main_module='a.py', modules={'a.py': 'x', 'b': b'y'},\n"
        "                     env={'S': {1, 'two', (3,)}, 'T': dw.Service(props={'k': 'v'})})\n"
        "print(bundle_of(code)[0].content_hash)\n"
    )
    names = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(names) == 1


@pytest.mark.behaviour(332, 337)
@pytest.mark.parametrize(
    "changes",
    [
        {"modules": {"index.py": "x = 2\n"}},
        {"modules": {"index.py": "x = 1\n", "data.json": {"a": [1, None]}}},
        {"main_module": "logo"},
        {"env": {"MAIL": Mail(props={"from": "acme"}), "LIMIT": 4}},
        {"env": {"MAIL": Mail(props={"from": "globex"}), "LIMIT": 3}},
        {"env": {"MAIL": Other(props={"from": "acme"}), "LIMIT": 3}},
        {"env": {"LIMIT": 3}},
        {"env": {"LIMIT": 3, "MAIL": dw.wrap_workflow_binding({"tenant_id": "a"})}},
        {"limits": {"steps": 7}},
        {"global_outbound": Mail(props=None)},
        {"tails": (Mail(props=None),)},
        {"compatibility_date": "2026-01-01"},
        {"schedules": {"TenantWorkflow": "0 6 * * *"}},
    ],
)
def test_whatever_shapes_what_the_code_can_do_is_in_its_name(changes: dict[str, Any]) -> None:
    assert name(**changes) != name()


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.binary(max_size=32), max_size=4))
def test_different_modules_never_share_a_name(modules: dict[str, bytes]) -> None:
    base = {"index.py": b"x"}
    one = bundle_of(dw.WorkerCode(main_module="index.py", modules=base | modules))[0]
    assert from_stored(one.stored(), one.content_hash) == one
    if base | modules != base:
        assert one.content_hash != bundle_of(
            dw.WorkerCode(main_module="index.py", modules=base)
        )[0].content_hash  # fmt: skip


@pytest.mark.behaviour(339)
def test_an_isolate_is_told_names_and_values_and_nothing_of_the_grants() -> None:
    wrapped = dw.wrap_workflow_binding({"tenant_id": "s3cr3t"})
    bundle, _ = bundle_of(code(env={"MAIL": Mail(props="s3cr3t"), "WORKFLOWS": wrapped, "N": 1}))
    load = bundle.load_message(packages=(), options={})
    assert [(entry.name, entry.kind, entry.value) for entry in load.env] == [
        ("MAIL", "service", None),
        ("N", "value", b"1"),
        ("WORKFLOWS", "workflows", None),
    ]
    assert "s3cr3t" not in repr(load)


def test_the_own_binding_is_there_unless_the_code_says_otherwise() -> None:
    def kinds(own_binding: bool, **env: Any) -> dict[str, str]:
        bundle, _ = bundle_of(code(env=env), own_binding=own_binding)
        return {entry.name: entry.kind for entry in bundle.env}

    assert kinds(True) == {"WORKFLOWS": "workflows"}
    assert kinds(False) == {}
    assert kinds(True, WORKFLOWS=1) == {"WORKFLOWS": "value"}


@pytest.mark.behaviour(336, 338)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"main_module": "missing.py"}, "missing.py"),
        ({"modules": {"index.py": "ok", "odd": {1, 2}}}, "odd"),
        ({"modules": {"index.py": "\ud800"}}, "index.py"),
        ({"modules": {"index.py": "ok", "nan": float("nan")}}, "nan"),
        ({"modules": {"index.py": "ok", "\udcff.py": "x"}}, "udcff"),
        ({"modules": {"index.py": "ok", "": "x"}}, "not empty"),
        ({"env": {"no name": 1}}, "no name"),
        ({"env": {"_hidden": 1}}, "_hidden"),
        ({"env": {"F": lambda: 1}}, "env.F"),
        ({"env": {"S": Mail(props=(x for x in "ab"))}}, "S cannot travel"),
        ({"limits": {"steps": 0}}, "positive"),
        ({"limits": {"wishes": 3}}, "wishes"),
        ({"modules": {"index.py": "x" * (64 * 1024 * 1024 + 1)}}, "bytes"),
    ],
)
def test_what_cannot_be_a_bundle_is_refused_with_its_place(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(dw.CodeError, match=message) as caught:
        bundle_of(code(**changes))
    assert caught.value.code == "code.invalid"


def test_misspelt_fields_are_refused() -> None:
    with pytest.raises(ValidationError):
        dw.WorkerCode(main_module="a.py", modules={}, environment={})


@pytest.mark.parametrize("env", [["s3cr3t"], "s3cr3t", {1: "s3cr3t"}])
def test_no_error_and_no_text_about_code_shows_what_its_env_holds(env: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        code(env=env)
    assert "s3cr3t" not in str(caught.value)
    assert "s3cr3t" not in repr(code(env={"KEY": "s3cr3t"}))


async def test_stored_code_that_was_changed_is_noticed() -> None:
    store = MemoryStore()
    bundle, _ = bundle_of(code())
    code_hash = await Bundles(store).put(bundle)
    assert await Bundles(store).put(bundle) == code_hash
    assert await Bundles(store).get(code_hash) == bundle
    other, _ = bundle_of(code(env={}))
    store.objects[code_key(code_hash)] = other.stored()
    with pytest.raises(dw.Corrupt, match=code_hash):
        await Bundles(store).get(code_hash)
    stored = bundle.stored()
    for place in range(len(stored)):
        damaged = bytearray(stored)
        damaged[place] ^= 1
        with pytest.raises(dw.Corrupt, match=code_hash):
            from_stored(bytes(damaged), code_hash)
    store.objects[code_key(code_hash)] = b"\xc1"
    with pytest.raises(dw.Corrupt, match=code_hash):
        await Bundles(store).get(code_hash)
    del store.objects[code_key(code_hash)]
    with pytest.raises(dw.CodeError) as caught:
        await Bundles(store).get(code_hash)
    assert caught.value.code == "code.load_failed"
