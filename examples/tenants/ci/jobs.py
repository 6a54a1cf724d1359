"""The kinds of job a pipeline may name. Each works on the pushed files, in memory."""

import ast
import builtins
import fnmatch
import hashlib
import importlib.abc
import importlib.util
import io
import sys
import zipfile

LINE_MAX = 100


class PushedFiles(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets `import` find the pushed files, which are on no disk."""

    def __init__(self, files: dict) -> None:
        self.files = files

    def find_spec(self, name, path=None, target=None):
        stem = name.replace(".", "/")
        for place, is_package in ((f"{stem}/__init__.py", True), (f"{stem}.py", False)):
            if place in self.files:
                return importlib.util.spec_from_loader(
                    name, self, origin=place, is_package=is_package
                )
        if any(place.startswith(f"{stem}/") for place in self.files):
            return importlib.util.spec_from_loader(name, self, is_package=True)
        return None

    def exec_module(self, module):
        place = module.__spec__.origin
        # A bundle's own import finds the bundle; Python's own asks this finder as well.
        module.__dict__["__builtins__"] = builtins
        if place is not None:
            exec(compile(self.files[place], place, "exec"), module.__dict__)

    def __enter__(self):
        sys.meta_path.append(self)
        return self

    def __exit__(self, *_):
        sys.meta_path.remove(self)
        for name, module in list(sys.modules.items()):
            if getattr(module, "__loader__", None) is self:
                del sys.modules[name]


def chosen(files: dict, patterns: list) -> list:
    """The paths that match any of the patterns, sorted."""
    return sorted(p for p in files if any(fnmatch.fnmatch(p, pattern) for pattern in patterns))


def lint(job: dict, files: dict, attempt: int) -> dict:
    """Remarks on style. A file that does not parse fails the job."""
    remarks = []
    for path in chosen(files, job["files"]):
        tree = ast.parse(files[path], path)
        if ast.get_docstring(tree) is None:
            remarks.append(f"{path}:1 says nothing about itself")
        for number, line in enumerate(files[path].splitlines(), start=1):
            if len(line) > LINE_MAX:
                remarks.append(f"{path}:{number} is longer than {LINE_MAX}")
            if "# TODO" in line:
                remarks.append(f"{path}:{number} is not finished")
    return {"files": len(chosen(files, job["files"])), "remarks": remarks}


def checks(job: dict, files: dict, attempt: int) -> dict:
    """Run every function named check_… and fail with the first that fails."""
    passed = []
    with PushedFiles(files):
        for path in chosen(files, job["files"]):
            module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
            for name, check in vars(module).items():
                if name.startswith("check_"):
                    wants = check.__code__.co_varnames[: check.__code__.co_argcount]
                    check(**({"attempt": attempt} if "attempt" in wants else {}))
                    passed.append(f"{path}::{name}")
    return {"passed": passed}


def bundle(job: dict, files: dict, attempt: int) -> dict:
    """An archive of the files, the same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in chosen(files, job["files"]):
            archive.writestr(zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0)), files[path])
    body = buffer.getvalue()
    return {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body), "archive": body}


def notes(job: dict, files: dict, attempt: int) -> dict:
    """What will be told about the release."""
    lines = sum(text.count("\n") for path, text in files.items() if path.endswith(".py"))
    return {"text": f"{len(files)} files, {lines} lines of Python"}


KINDS = {"lint": lint, "checks": checks, "bundle": bundle, "notes": notes}
