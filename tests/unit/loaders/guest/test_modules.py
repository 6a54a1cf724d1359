"""A bundle's modules: found by plain names, apart from everything else in the process."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dynamic_workflows.loaders.guest.module_importer import InvalidModule, Modules
from dynamic_workflows.loaders.protocol.messages import Module

numbers = itertools.count()
Load = Callable[..., Any]


@pytest.fixture
def load() -> Iterator[Load]:
    made: list[Modules] = []

    def make(files: dict[str, str | bytes], *, main: str = "index.py", **options: Any) -> Any:
        modules = Modules(
            [_module(path, data) for path, data in files.items()],
            prefix=f"tenant_test_{next(numbers)}",
            **{"is_alone": False, **options},
        )
        made.append(modules)
        return modules.load(main)

    before = set(sys.modules)
    yield make
    for modules in made:
        modules.close()
    left = {name for name in set(sys.modules) - before if name.startswith("tenant_test_")}
    assert not left


def _module(path: str, data: str | bytes) -> Module:
    kind = {"py": "py", "json": "json", "txt": "text"}.get(path.rpartition(".")[2], "data")
    return Module(path, kind, data.encode() if isinstance(data, str) else data)


def test_modules_import_each_other_by_plain_and_relative_names(load: Load) -> None:
    main = load(
        {
            "index.py": (
                "import helper\nfrom helper import value as v\nimport package.inner as inner\n"
                "import package.deep.leaf\nfrom package import inner as again, top\n"
                "from . import helper as relative\nfrom .package.deep import leaf\n"
            ),
            "helper.py": "value = 1\n",
            "package/__init__.py": "from .inner import number\ntop = number\n",
            "package/inner.py": "from ..helper import value\nnumber = value + 1\n",
            "package/deep/leaf.py": "from helper import value\nfrom ..inner import number\n",
        }
    )
    assert (main.v, main.top, main.inner.number, main.leaf.number) == (1, 2, 2, 2)
    assert main.helper is main.relative
    assert main.again is main.inner
    assert main.package.deep.leaf is main.leaf


def test_a_bundle_goes_before_the_standard_library_and_only_for_itself(load: Load) -> None:
    import json

    main = load(
        {"index.py": "import json, string\nfrom random import roll", "json.py": "mine = True\n",
         "random.py": "def roll(): return 4\n"}
    )  # fmt: skip
    assert main.json.mine
    assert main.roll() == 4
    assert main.string.digits
    assert sys.modules["json"] is json
    assert not hasattr(json, "mine")


def test_two_bundles_with_the_same_names_do_not_meet(load: Load) -> None:
    first, second = (
        load(
            {
                "index.py": (
                    "from state import values\nimport dataclasses\n"
                    "@dataclasses.dataclass\nclass D:\n    x: 'int'\n"
                ),
                "state.py": f"values = [{n}]\n",
            }
        )
        for n in (1, 2)
    )
    first.values.append(5)
    assert (first.values, second.values) == ([1, 5], [2])
    assert first.D is not second.D


def test_other_packages_are_refused_unless_granted(load: Load) -> None:
    for name in ("duckdb", "dynamic_workflows.loaders.guest.guest", "hypothesis"):
        with pytest.raises(ModuleNotFoundError, match="grants"):
            load({"index.py": f"import {name}"})
    assert load({"index.py": "import hypothesis.errors as e"}, packages=["hypothesis"]).e
    assert load({"index.py": "from dynamic_workflows import WorkflowEntrypoint as w"}).w


def test_what_a_granted_package_imports_is_its_own_affair(load: Load) -> None:
    granted = load({"index.py": "import pydantic"}, packages=["pydantic"])
    assert granted.pydantic.BaseModel
    with pytest.raises(ModuleNotFoundError, match="annotated_types"):
        load({"index.py": "import annotated_types"}, packages=["pydantic"])


def test_models_find_the_types_that_their_text_annotations_name(load: Load) -> None:
    main = load(
        {
            "index.py": (
                "from __future__ import annotations\nimport pydantic\n"
                "class Line(pydantic.BaseModel):\n    sku: str\n"
                "class Order(pydantic.BaseModel):\n    lines: list[Line]\n"
                "order = Order(lines=[{'sku': 'tea'}])\n"
            )
        },
        packages=["pydantic"],
    )
    assert main.order.lines[0].sku == "tea"


def test_text_bytes_and_json_are_imported_and_read(load: Load) -> None:
    main = load(
        {
            "index.py": (
                "import pkgutil\nimport prompts.welcome\nfrom settings import default as settings\n"
                "import logo\ntext = prompts.welcome.default\nimage = logo.default\n"
                "raw = pkgutil.get_data(__package__, 'prompts/welcome.txt')\n"
            ),
            "prompts/welcome.txt": "Grüezi",
            "settings.json": '{"a": [1]}',
            "logo.bin": b"\x00\xff",
        }
    )
    assert (main.text, main.settings, main.image) == ("Grüezi", {"a": [1]}, b"\x00\xff")
    assert main.raw == "Grüezi".encode()


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ({"index.py": "x = (\n"}, "index.py:1"),
        ({"index.py": "", "b.py": "ok = 1\ndef :\n"}, "b.py:2"),
        ({"index.py": b"\xff\xfe"}, "index.py"),
        ({"index.py": "x = '\x00'"}, "index.py"),
        ({"index.py": "", "c.json": "{"}, "c.json"),
        ({"other.py": ""}, "index.py"),
        ({"index.txt": "text"}, "index.py"),
    ],
)
def test_what_cannot_be_parsed_is_told_with_its_place(
    load: Load, files: dict[str, str | bytes], place: str
) -> None:
    with pytest.raises(InvalidModule, match=place):
        load(files)


def test_code_that_nests_too_deeply_is_bad_and_not_deadly(load: Load) -> None:
    with pytest.raises(InvalidModule):
        load({"index.py": "x = " + "(" * 5_000 + ")" * 5_000})


def test_what_an_import_raises_comes_through(load: Load) -> None:
    with pytest.raises(ZeroDivisionError):
        load({"index.py": "import b", "b.py": "1 / 0"})
    with pytest.raises(ImportError):
        load({"index.py": "from b import missing", "b.py": ""})


def test_print_goes_where_it_was_told_to(load: Load) -> None:
    lines: list[Any] = []
    load(
        {"index.py": "print(1, 2)\nimport b", "b.py": "print(3)"}, print=lambda *v: lines.append(v)
    )
    assert lines == [(1, 2), (3,)]


def test_plain_names_are_found_from_anywhere_where_the_bundle_is_alone(load: Load) -> None:
    main = load(
        {
            "index.py": (
                "import importlib, b_only_here\n"
                "same = importlib.import_module('b_only_here') is b_only_here\n"
            ),
            "b_only_here.py": "x = 1",
        },
        is_alone=True,
    )
    assert main.same
    sys.modules.pop("b_only_here")


def test_no_module_takes_the_place_of_one_that_a_library_imports(load: Load) -> None:
    # `pdb` and `cmd` are loaded by nobody here, so that the bundle's is asked for first.
    forgotten = {name: sys.modules.pop(name, None) for name in ("pdb", "cmd")}
    try:
        main = load(
            {
                "index.py": "import cmd, pdb\nown, theirs = cmd.mine, pdb.cmd.Cmd\n",
                "cmd.py": "mine = 1",
            },
            is_alone=True,
        )
        assert (main.own, main.theirs.__name__) == (1, "Cmd")
    finally:
        sys.modules.update({name: found for name, found in forgotten.items() if found})


def test_objects_of_the_bundles_classes_can_be_pickled(load: Load) -> None:
    main = load(
        {
            "index.py": (
                "import pickle\nfrom tenant import Thing\n"
                "again = pickle.loads(pickle.dumps(Thing(3)))\n"
            ),
            "tenant.py": "class Thing:\n    def __init__(self, n):\n        self.n = n\n",
        },
        is_alone=True,
    )
    assert (type(main.again), main.again.n) == (main.Thing, 3)


def test_tracebacks_show_the_tenants_lines(load: Load) -> None:
    import traceback

    main = load({"index.py": "def fail():\n    raise ValueError('no')  # the very line\n"})
    with pytest.raises(ValueError, match="no") as caught:
        main.fail()
    text = "".join(traceback.format_exception(caught.value))
    assert "# the very line" in text


def test_a_class_is_found_by_the_plain_name_of_its_module(load: Load) -> None:
    modules = Modules(
        [
            Module("index.py", "py", b"import a.b"),
            Module("a/b.py", "py", b"class X:\n  class Y: pass"),
        ],
        prefix="tenant_find",
        is_alone=False,
    )
    main = modules.load("index.py")
    kind = main.a.b.X.Y
    assert modules.module_of(kind) == "a.b"
    assert modules.find_class("a.b", "X.Y") is kind
    assert modules.find_class("a.b", "X.Z") is None
    assert modules.find_class("json", "JSONDecodeError") is None
    modules.close()
    assert modules.find_class("a.b", "X.Y") is None


PLUGINS: dict[str, str | bytes] = {
    "plugins/__init__.py": "",
    "plugins/one.py": "NAME = 'one'",
    "plugins/two/__init__.py": "import helper\n",
    "plugins/two/leaf.py": "",
    "plugins/three/loose.py": "",
    "plugins/readme.txt": "no module",
    "plugins/not-a-name.py": "",
    "plugins/data/logo.bin": b"\x00\xff",
    "helper.py": "",
    "root.txt": "Grüezi",
}


@pytest.mark.parametrize("is_alone", [True, False])
def test_pkgutil_finds_the_modules_of_a_folder(load: Load, is_alone: bool) -> None:
    code = (
        "import pkgutil, plugins\n"
        "found = [(m.name, m.ispkg) for m in pkgutil.iter_modules(plugins.__path__, 'x.')]\n"
        "deep = [m.name for m in pkgutil.walk_packages(plugins.__path__, 'plugins.')]\n"
        "start = plugins.__name__ + '.'\n"
        "private = [m.name for m in pkgutil.walk_packages(plugins.__path__, start)]\n"
        "top = sorted(m.name for m in pkgutil.iter_modules(__import__(__package__).__path__))\n"
    )
    main = load({"index.py": code, **PLUGINS}, is_alone=is_alone)
    assert main.found == [("x.one", False), ("x.two", True)]
    assert main.deep == ["plugins.one", "plugins.two", "plugins.two.leaf"]
    start = main.plugins.__name__ + "."
    assert main.private == [start + "one", start + "two", start + "two.leaf"]
    assert main.top == ["helper", "index", "plugins"]
    for name in ("plugins", "plugins.two"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("is_alone", [True, False])
def test_importlib_resources_reads_the_files_of_a_bundle(load: Load, is_alone: bool) -> None:
    code = (
        "import importlib.resources as r, plugins, plugins.two\n"
        "here = r.files(plugins)\n"
        "names = sorted(one.name for one in here.iterdir())\n"
        "text = here.joinpath('readme.txt').read_text()\n"
        "logo = (here / 'data' / 'logo.bin').read_bytes()\n"
        "by_name = r.files('plugins').joinpath('data/logo.bin').read_bytes()\n"
        "root = r.files(__package__).joinpath('root.txt').open().read()\n"
        "loose = r.files('plugins.three').joinpath('loose.py').is_file()\n"
        "data = here / 'data'\n"
        "kinds = [here.is_dir(), here.is_file(), (here / 'x').is_file(), data.is_dir()]\n"
    )
    main = load({"index.py": code, **PLUGINS}, is_alone=is_alone)
    assert main.names == [
        "__init__.py", "data", "not-a-name.py", "one.py", "readme.txt", "three", "two",
    ]  # fmt: skip
    assert (main.text, main.logo, main.by_name) == ("no module", b"\x00\xff", b"\x00\xff")
    assert (main.root, main.loose, main.kinds) == ("Grüezi", True, [True, False, False, True])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        (main.here / "nowhere.txt").read_bytes()
    with pytest.raises(IsADirectoryError):
        (main.here / "data").read_text()
    with pytest.raises(ValueError, match="down only"):
        main.here / "../index.py"
    for name in ("plugins", "plugins.three"):
        sys.modules.pop(name, None)


ASKS = (
    "import importlib, pkgutil\nfrom importlib import import_module\n"
    "def ask(name): return import_module(name).VALUE, importlib.import_module(name).VALUE\n"
    "def resolve(name): return pkgutil.resolve_name(name + ':VALUE')\n"
    "def again(name): return [__import__('importlib').import_module(name).VALUE, resolve(name)]\n"
)


def test_bundles_that_share_a_process_import_their_own_modules_by_plain_names(load: Load) -> None:
    real = __import__("importlib").import_module
    first, second = (
        load({"index.py": ASKS, "handlers/card.py": f"VALUE = {n}", "json.py": "VALUE = 0"})
        for n in (1, 2)
    )
    assert (first.ask("handlers.card"), second.ask("handlers.card")) == ((1, 1), (2, 2))
    assert (first.resolve("handlers.card"), second.resolve("handlers.card")) == (1, 2)
    assert (second.again("handlers.card"), first.again("handlers.card")) == ([2, 2], [1, 1])
    assert not [name for name in sys.modules if name.startswith("handlers")]
    # Whoever is no bundle finds none of their modules.
    with pytest.raises(ModuleNotFoundError):
        __import__("importlib").import_module("handlers.card")
    with pytest.raises(ModuleNotFoundError):
        real("handlers.card")


def test_libraries_import_plain_names_for_the_bundle_that_calls_them(load: Load) -> None:
    code = (
        "from unittest import mock\n"
        "def patched():\n"
        "    with mock.patch('handlers.card.VALUE', 9):\n"
        "        from handlers.card import VALUE\n"
        "        return VALUE\n"
    )
    bundles = [load({"index.py": code, "handlers/card.py": f"VALUE = {n}"}) for n in (1, 2)]
    assert [one.patched() for one in bundles] == [9, 9]
    names = [f"{one.__package__}.handlers.card" for one in bundles]
    assert [sys.modules[name].VALUE for name in names] == [1, 2]
