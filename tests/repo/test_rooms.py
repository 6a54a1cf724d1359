"""The rooms: which may import which, that neither they nor their modules form a circle, and that a
name means one thing.

A room is a folder of a floor; files that lie in a floor itself form the room of its name. The table
is the whole permission: a new import between two rooms is a change of this table, which a reviewer
sees.
"""

from __future__ import annotations

import ast
import pickle
from collections import Counter, defaultdict
from graphlib import TopologicalSorter

import pytest
from paths import ROOT
from tree import FACE, FLOORS, imported, room_of, rooms, sources

import dynamic_workflows as dw

FILES_MAX = 25

MAY_IMPORT = {
    "eventlog": "",
    "eventlog.codec": "eventlog",
    "eventlog.store": "eventlog",
    "eventlog.wal": "eventlog eventlog.store",
    "eventlog.segments": "eventlog eventlog.codec eventlog.store",
    "eventlog.log": "eventlog eventlog.segments eventlog.store eventlog.wal",
    "eventlog.query": "eventlog eventlog.segments eventlog.store eventlog.wal",
    "loaders.sandbox": "eventlog",
    "loaders.protocol": "eventlog loaders.sandbox",
    "loaders.values": "eventlog eventlog.codec",
    "loaders.sdk": "eventlog eventlog.codec loaders.protocol",
    "loaders.bundles": "eventlog eventlog.codec loaders.protocol loaders.sdk",
    "loaders.guest": "eventlog eventlog.codec loaders.protocol loaders.sdk loaders.values",
    "loaders.isolates": "eventlog loaders.guest loaders.protocol loaders.sandbox",
    "loaders.sql": """eventlog eventlog.codec eventlog.query eventlog.segments eventlog.store
        loaders.isolates loaders.protocol loaders.sandbox""",
    "actors.instances": "eventlog loaders.protocol",
    "actors.core": "actors.instances eventlog eventlog.codec loaders.guest loaders.protocol",
    "actors.code": """actors.instances eventlog eventlog.codec eventlog.store loaders.bundles
        loaders.protocol loaders.sdk""",
    "actors.settings": """actors.instances eventlog eventlog.query loaders.bundles loaders.isolates
        loaders.sandbox loaders.sdk""",
    "actors": "eventlog eventlog.store",
    "actors.hosting": """actors actors.code actors.instances actors.settings eventlog eventlog.codec
        loaders.bundles loaders.guest loaders.isolates loaders.protocol loaders.sdk""",
    "actors.tenant": """actors actors.code actors.core actors.hosting actors.instances
        actors.settings eventlog eventlog.codec eventlog.log eventlog.segments eventlog.store
        loaders.bundles loaders.guest loaders.isolates loaders.protocol""",
    "actors.rpc": """actors actors.code actors.settings eventlog eventlog.store loaders.bundles
        loaders.protocol""",
    "actors.timers": "actors actors.rpc eventlog eventlog.store",
    "actors.placement": """actors actors.code actors.rpc actors.settings actors.tenant actors.timers
        eventlog eventlog.log eventlog.store eventlog.wal loaders.bundles loaders.isolates
        loaders.protocol""",
    "actors.diagnosis": """actors actors.core actors.instances actors.rpc actors.settings
        actors.tenant actors.timers eventlog eventlog.log eventlog.store loaders.protocol
        loaders.sdk""",
    "actors.in_process": """actors.code actors.core actors.settings actors.tenant eventlog
        eventlog.store loaders.guest loaders.isolates loaders.protocol loaders.sdk""",
    "actors.cluster": """actors actors.diagnosis actors.placement actors.rpc actors.settings
        eventlog eventlog.store loaders.sandbox""",
}


def neighbours() -> dict[str, set[str]]:
    """The rooms that each room imports, annotation-only imports included."""
    known = rooms()
    found: dict[str, set[str]] = defaultdict(set)
    for floor in FLOORS:
        for path in sources(floor):
            if path.name == "__init__.py":
                continue  # What it hands out is its floor's face, and loaded when asked for.
            for name in imported(path):
                parts = name.removeprefix(f"{FACE}.").split(".")
                if name.startswith(f"{FACE}."):
                    room = ".".join(parts[:2])
                    found[room_of(path)].add(room if room in known else parts[0])
    return {room: others - {room} for room, others in found.items()}


def test_a_room_imports_what_the_table_allows_and_no_more() -> None:
    allowed = {room: set(text.split()) for room, text in MAY_IMPORT.items()}
    assert allowed.keys() == rooms()
    assert {room: found for room, found in neighbours().items() if found != allowed[room]} == {}


def test_the_rooms_form_no_circle() -> None:
    TopologicalSorter({room: text.split() for room, text in MAY_IMPORT.items()}).prepare()


def modules(room: str) -> dict[str, set[str]]:
    """The modules of a room that each module of it imports, annotation-only imports included."""
    folder = ROOT / room.replace(".", "/")
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    package = FACE if room == FACE else f"{FACE}.{room}"
    found: dict[str, set[str]] = {name: set() for name in names}
    for name in names:
        for other in imported(folder / f"{name}.py"):
            if other.startswith(f"{package}."):
                module = other.removeprefix(f"{package}.").partition(".")[0]
                found[name] |= {module} & names - {name}
    return found


@pytest.mark.parametrize("room", [FACE, *sorted(MAY_IMPORT)])
def test_the_modules_of_a_room_form_no_circle(room: str) -> None:
    TopologicalSorter(modules(room)).prepare()


@pytest.mark.parametrize("room", ["core", "tenant"])
def test_the_parts_of_a_tenant_are_held_and_not_inherited(room: str) -> None:
    bases = {
        f"{node.name}({ast.unparse(base)})"
        for path in (ROOT / "actors" / room).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    }
    assert {base for base in bases if not base.endswith("(Protocol)")} == set()


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_is_small_and_says_what_it_is_for(room: str) -> None:
    folder = ROOT / room.replace(".", "/")
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= FILES_MAX
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


def test_a_class_name_stands_for_one_class() -> None:
    names = Counter(
        node.name
        for folder in [FACE, *FLOORS]
        for path in sources(folder)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


STORED_PATHS = {
    "AllowList": "loaders.sdk.egress",
    "App": "loaders.sdk.service",
    "DynamicWorkflowBinding": "loaders.sdk.service",
    "EgressDeniedError": "loaders.sdk.entrypoints",
    "InvalidError": "eventlog.errors",
    "LimitExceededError": "eventlog.errors",
    "NonRetryableError": "loaders.sdk.entrypoints",
    "Request": "loaders.sdk.http",
    "Response": "loaders.sdk.http",
    "Service": "loaders.sdk.service",
    "StepConfig": "loaders.sdk.step_config",
    "StepError": "loaders.sdk.entrypoints",
    "WorkflowBinding": "loaders.sdk.binding",
    "WorkflowEntrypoint": "loaders.sdk.entrypoints",
    "WorkflowInstance": "loaders.sdk.binding",
    "WorkflowsError": "eventlog.errors",
}
"""Where the classes are found that a platform's service names or is derived from."""


@pytest.mark.parametrize("name", sorted(STORED_PATHS))
def test_stored_bundles_find_what_services_are_made_of(name: str) -> None:
    """A bundle in a log pickles services, with such classes by path: the paths stay."""
    pickled = f"c{FACE}.{STORED_PATHS[name]}\n{name}\n.".encode()
    assert pickle.loads(pickled) is getattr(dw, name)


STORED_ALLOW_LIST = bytes.fromhex(
    "800495ef000000000000008c2464796e616d69635f776f726b666c6f77732e6c6f61646572732e73646b2e65"
    "6772657373948c09416c6c6f774c6973749493942981947d948c0570726f7073947d94288c05686f73747394"
    "5d948c0f6170692e6578616d706c652e636f6d94618c076d6574686f6473945d948c0347455494618c076865"
    "6164657273947d9468097d948c0158948c01799473738c0f74696d656f75745f7365636f6e64739447403e00"
    "00000000008c0f726571756573745f7365636f6e64739447405e0000000000008c0e626f64795f6279746573"
    "5f6d6178944a000000018c0b61745f6f6e63655f6d6178944b107573622e"
)
"""As a bundle in a log has it: AllowList("api.example.com", methods=["GET"], headers=...)."""


def test_an_allow_list_of_a_stored_bundle_is_read() -> None:
    gateway = pickle.loads(STORED_ALLOW_LIST)
    assert isinstance(gateway, dw.AllowList)
    assert gateway.props["hosts"] == ["api.example.com"]
