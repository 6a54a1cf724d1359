"""Modules: a bundle's modules, imported under a name of their own.

Each bundle lives below a package with a private name (`tenant`), so a module called `json.py`
takes nobody's place and two bundles in one process cannot meet. Within the bundle its modules have
plain names: `import helper`, `from .helper import x`, `importlib.import_module("helper")`. Imports
look in the bundle first, then in the standard library, then among the packages that the platform
grants. What these import in turn is theirs: none of them meets a module of the bundle in the place
of one of their own.

A module of text, bytes or JSON is imported by its path without the ending; `default` holds it. As
in any package, `pkgutil.get_data(__package__, "prompt.txt")` and `importlib.resources` read a file
of the bundle, and `pkgutil.iter_modules(__path__)` finds the modules of a folder.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, FrameType, ModuleType
from typing import Any

import msgspec

from ..protocol.messages import Module
from . import plain_imports
from .bundle_resources import BundleFolder, FolderImporter

_FACE = "dynamic_workflows"
# What annotated values are made with is always there, as the values themselves are.
_ALWAYS = frozenset({"pydantic", "typing_extensions"})
_FRAMES_MAX = 50

OF_PROCESS = dict(vars(builtins))
"""Built-in names for the one bundle of a process, made before it forks: a copy made later would
write to the page of each of them."""


class InvalidModule(Exception):
    """A module that cannot be parsed, or a main module that is not there."""


class Modules:
    """The modules of one bundle; `prefix` is the private package they live in."""

    def __init__(
        self,
        modules: Iterable[Module],
        *,
        prefix: str = "tenant",
        packages: Sequence[str] = (),
        print: Callable[..., None] | None = None,
        is_alone: bool = True,
        builtins: dict[str, object] | None = None,
        stand_ins: Mapping[str, ModuleType] | None = None,
    ) -> None:
        """`is_alone`: no other bundle in this process, so all code may find plain names.
        `builtins`: what to build in, to be changed; None: a copy. `stand_ins`: modules that the
        bundle's imports give in the place of those of the standard library.
        """
        self.prefix = prefix
        self._dot = f"{prefix}."
        self._slash = f"{prefix}/"
        self._packages = frozenset(name.partition(".")[0] for name in packages)
        self._by_path = {module.path: module for module in modules}
        self._by_name = _names(self._by_path.values())
        self._folders = {
            name.rpartition(".")[0] for name in _with_parents(self._by_name) if "." in name
        }
        self._tops = {name.partition(".")[0] for name in self._by_name}
        self._codes: dict[str, CodeType] = {}
        self._stand_ins = stand_ins or {}
        self._builtins = dict(OF_PROCESS) if builtins is None else builtins
        self._builtins["__import__"] = self._import
        if print is not None:
            self._builtins["print"] = print
        self._finder = _Finder(self, is_alone=is_alone)
        self._is_alone = is_alone
        self._folders_shown: set[str] = set()
        """Entries of `__path__` for which an importer is known."""

    def compile(self) -> None:
        """Parse every module of Python, or raise BadModule with the place."""
        for path, module in self._by_path.items():
            if module.kind == "py":
                try:
                    self._codes[path] = compile(
                        module.data, self._slash + path, "exec", dont_inherit=True
                    )
                except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                    raise InvalidModule(_syntax(path, error)) from None
            elif module.kind == "json":
                try:
                    msgspec.json.decode(module.data)
                except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                    raise InvalidModule(f"{path} is no JSON: {error}") from None

    def load(self, main_module: str) -> ModuleType:
        """Import the main module, by path; raises BadModule, or whatever its code raises."""
        main = self._by_path.get(main_module)
        if main is None or main.kind != "py":
            raise InvalidModule(
                f"the main module {main_module!r} is not among the modules of Python:"
                f" {', '.join(sorted(self._by_path)) or 'none'}"
            )
        self.compile()
        root = ModuleType(self.prefix)
        root.__path__ = [self._show_folder("")]
        root.__file__ = f"{self._slash}__init__.py"
        root.__spec__ = ModuleSpec(self.prefix, self._finder, is_package=True)
        sys.modules[self.prefix] = root
        sys.meta_path.insert(0, self._finder)
        if not self._is_alone:
            plain_imports.share(self)
        return self.get(_name(main_module))

    def get(self, name: str) -> ModuleType:
        """The module of that plain name, imported if it is not yet."""
        __import__(self._dot + name)
        return sys.modules[self._dot + name]

    def close(self) -> None:
        """Take the bundle out of this process; for processes that hold several."""
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        plain_imports.leave(self)
        for entry in self._folders_shown:
            sys.path_importer_cache.pop(entry, None)
        # By name: to go through all modules of the process would write to the page of each.
        for name in (self.prefix, *(self._dot + name for name in _with_parents(self._by_name))):
            sys.modules.pop(name, None)
        if self._builtins is OF_PROCESS:
            for name in ("__import__", "print"):
                OF_PROCESS[name] = getattr(builtins, name)

    def module_of(self, kind: type) -> str:
        """The plain name of the module that a class comes from."""
        return str(kind.__module__).removeprefix(self._dot)

    def find_class(self, module: str, name: str) -> object:
        """What a module of the bundle holds under a dotted name, or None."""
        found: object = sys.modules.get(self._dot + module)
        for part in name.split("."):
            found = getattr(found, part, None)
        return found

    def place(self, frame: FrameType | CodeType | None) -> str | None:
        """The innermost place in the bundle that a frame or a function is at, as "module.py:12"."""
        if isinstance(frame, CodeType):
            path = frame.co_filename
            is_ours = path.startswith(self._slash)
            return f"{path[len(self._slash) :]}:{frame.co_firstlineno}" if is_ours else None
        for _ in range(_FRAMES_MAX):
            if frame is None:
                return None
            path = frame.f_code.co_filename
            if path.startswith(self._slash):
                return f"{path[len(self._slash) :]}:{frame.f_lineno}"
            frame = frame.f_back
        return None

    # --- what the finder asks --------------------------------------------------------------------

    def spec(self, full_name: str) -> ModuleSpec | None:
        """How to import a module by its private name, or None."""
        name = full_name.removeprefix(self._dot)
        module = self._by_name.get(name)
        if module is None and name not in self._folders:
            return None
        is_package = self._is_package(name)
        origin = self._slash + module.path if module else None
        spec = ModuleSpec(full_name, self._finder, origin=origin, is_package=is_package)
        spec.has_location = module is not None
        if is_package:
            spec.submodule_search_locations = [self._show_folder(name.replace(".", "/"))]
        return spec

    def _show_folder(self, folder: str) -> str:
        """The entry of `__path__` that stands for a folder of the bundle."""
        entry = f"{self._slash}{folder}" if folder else self.prefix
        if entry not in self._folders_shown:
            self._folders_shown.add(entry)
            importer: Any = FolderImporter(self, self._by_path, folder)
            sys.path_importer_cache[entry] = importer
        return entry

    def folder(self, full_name: str) -> BundleFolder | None:
        """The folder of a package of the bundle, for importlib.resources."""
        name = full_name.removeprefix(self._dot)
        if full_name != self.prefix and not (self.holds(full_name) and self._is_package(name)):
            return None
        path = "" if full_name == self.prefix else name.replace(".", "/")
        return BundleFolder(self._by_path, path)

    def _is_package(self, name: str) -> bool:
        module = self._by_name.get(name)
        return name in self._folders or (module is not None and _is_init(module.path))

    def holds(self, full_name: str) -> bool:
        """Whether the name is one of the bundle's private ones."""
        return full_name.startswith(self._dot)

    def lends(self, name: str) -> bool:
        """Whether code outside the bundle may find a module of it by that plain name."""
        is_ours = name in self._by_name or name in self._folders
        return is_ours and not self._is_granted(name.partition(".")[0]) and name != _FACE

    def grants(self, module: str) -> bool:
        """Whether what that module defines, which is none of its own, is there for the bundle."""
        top = module.partition(".")[0]
        return self._is_granted(top) or top == "pydantic_core"  # It is what pydantic is made of.

    def _is_granted(self, top: str) -> bool:
        return top in sys.stdlib_module_names or top in _ALWAYS or top in self._packages

    def execute(self, target: ModuleType) -> None:
        """Run a module's code, or give it its content."""
        module = self._by_name.get(target.__name__.removeprefix(self._dot))
        if module is None:
            return
        if module.kind != "py":
            target.default = _content(module)  # type: ignore[attr-defined]
            return
        target.__dict__["__builtins__"] = self._builtins
        exec(self._codes[module.path], target.__dict__)

    def source(self, full_name: str) -> str | None:
        """The text of a module, for tracebacks."""
        module = self._by_name.get(full_name.removeprefix(self._dot))
        return module.data.decode("utf-8", "replace") if module and module.kind == "py" else None

    def data(self, path: str) -> bytes:
        """The bytes of a file of the bundle; FileNotFoundError if there is none."""
        path = path.replace("\\", "/").removeprefix(self._slash)
        if path not in self._by_path:
            raise FileNotFoundError(f"the bundle has no {path!r}")
        return self._by_path[path].data

    def _import(
        self,
        name: str,
        globals: dict[str, object] | None = None,
        locals: dict[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """The `__import__` of the bundle's modules."""
        is_private = self.holds(name) or name == self.prefix
        if level or (is_private and name in sys.modules):
            # The private name is how pickle, for one, asks for the module of a class.
            return __import__(name, globals, locals, fromlist or (), level)
        top = name.partition(".")[0]
        if not self._is_alone:
            plain_imports.take_back_from_others(self)
        if top in self._tops:
            leaf = __import__(self._dot + name, globals, locals, fromlist or (), 0)
            return leaf if fromlist else sys.modules[self._dot + top]
        if not self._is_granted(top) and name != _FACE:
            raise ModuleNotFoundError(
                f"No module named {name!r}: it is neither in the bundle nor among the packages"
                " that the platform grants",
                name=name,
            )
        # What hangs on asyncio hangs on its stand-in as well.
        is_below = top == "asyncio" and not fromlist
        stand_in = self._stand_ins.get(top if is_below else name)
        if stand_in is not None:
            return stand_in
        return __import__(name, globals, locals, fromlist or (), 0)


class _Finder(MetaPathFinder, Loader):
    def __init__(self, modules: Modules, *, is_alone: bool) -> None:
        self._modules = modules
        self._is_alone = is_alone

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        if self._modules.holds(fullname):
            return self._modules.spec(fullname)
        if self._is_meant(fullname):
            # It goes on under its private name, where all of its package is.
            return ModuleSpec(fullname, _Alias(self._modules))
        return None

    def _is_meant(self, name: str) -> bool:
        if not self._modules.lends(name):
            return False
        return self._is_alone or plain_imports.lend(name, self._modules)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        self._modules.execute(module)

    def get_source(self, fullname: str) -> str | None:
        return self._modules.source(fullname)

    def get_data(self, path: str) -> bytes:
        return self._modules.data(path)

    def get_resource_reader(self, fullname: str) -> object:
        folder = self._modules.folder(fullname)
        return None if folder is None else _resources(folder)

    def is_package(self, fullname: str) -> bool:
        spec = self._modules.spec(fullname)
        return spec is not None and spec.submodule_search_locations is not None


def _resources(folder: BundleFolder) -> object:
    # Imported when it is asked for: few bundles do.
    from importlib.resources.abc import TraversableResources

    class BundleResources(TraversableResources):
        """The files of one package."""

        def files(self) -> Any:
            return folder

    return BundleResources()


class _Alias(Loader):
    """Lets a plain name, asked for from outside the bundle's own imports, find the same module."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = self._modules.get(spec.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # Python has just given it the spec of the plain name, which knows nothing of its folder.
        module.__spec__ = self._spec


def _content(module: Module) -> object:
    if module.kind == "json":
        return msgspec.json.decode(module.data)
    return module.data.decode("utf-8") if module.kind == "text" else module.data


def _name(path: str) -> str:
    stem = path.rpartition(".")[0] if "." in path.rpartition("/")[2] else path
    return stem.removesuffix("/__init__").replace("/", ".")


def _names(modules: Iterable[Module]) -> dict[str, Module]:
    """The modules by name; where two share one, Python goes before content."""
    names: dict[str, Module] = {}
    for module in sorted(modules, key=lambda module: (module.kind != "py", module.path)):
        names.setdefault(_name(module.path), module)
    return names


def _with_parents(names: Iterable[str]) -> set[str]:
    found = set()
    for name in names:
        while name:
            found.add(name)
            name = name.rpartition(".")[0]
    return found


def _is_init(path: str) -> bool:
    return path.rpartition("/")[2] == "__init__.py"


def _syntax(path: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        line = "" if error.lineno is None else f":{error.lineno}"
        return f"{path}{line}: {error.msg}"
    return f"{path} cannot be parsed: {error}"
