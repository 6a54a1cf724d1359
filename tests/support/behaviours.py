"""The table of behaviours: which test holds which numbered behaviour, and which are not built, why.

`python tests/support/behaviours.py` writes docs/behaviours.md; a test keeps it true. A test
names its behaviours by `@pytest.mark.behaviour(58, 59)`; what is not built stands in NOT_BUILT,
with why.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from paths import ROOT

TABLE = ROOT / "docs" / "behaviours.md"
LAST = 381

# Ranges of numbers (first, last) and why no test of ours holds them.
NOT_BUILT: dict[tuple[int, int], str] = {
    (14, 14): "an oddity of the local engine of the original: a second create is refused (B013)",
    (28, 28): "the object form of a batch: ours takes a list and answers with what it created",
    (39, 39): "a status has no list of outputs: `history()` and the views show the steps",
    (47, 47): "a batch of deletes is one append: it happens whole, or the call raises",
    (115, 115): "there are no views on buffers among the values: bytes are stored as they are",
    (117, 117): "bytes stay readable: rows and views show them as tagged base64 text",
    (123, 123): "streams as step outputs are not built",
    (210, 210): "no bulk termination by status; `list` and `terminate` do it one by one",
    (125, 137): "streams as step outputs: large values go to blobs and come back whole instead",
    (273, 273): "no REST interface yet; `subscribe` gives the same stream to drivers and tenants",
    (275, 275): "cron-made instances queue like all others",
    (276, 276): "schedules belong to the tenant whose code has the class: there is no other script",
    (277, 277): "the opposite is built: schedules fire in the testing platform too",
    (285, 285): "streams as step outputs are not built",
    (307, 307): "nothing has to be re-exported: bindings are values here",
    (310, 310): "metadata lies beside the params and does not count toward their size",
    (328, 328): "an id's code is held for `code_ttl_seconds`; its isolates go by content hash",
    (329, 329): "a statement about what is not guaranteed",
    (333, 334): "limits and prices of the vendor's service",
    (347, 348): "figures and plans of the vendor's service",
    (350, 354): "per-tenant storage objects inside a supervisor are not part of this system",
    (368, 374): "no REST interface yet; the binding and the command line do the same",
    (375, 381): "advice to authors of workflows: see docs/writing-workflows.md",
}


def marked(path: Path) -> Iterator[tuple[int, str]]:
    """(number, test) for every behaviour that a test file says it holds."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for decorator in node.decorator_list:
            if (
                isinstance(decorator, ast.Call)
                and isinstance(decorator.func, ast.Attribute)
                and decorator.func.attr == "behaviour"
            ):
                for argument in decorator.args:
                    assert isinstance(argument, ast.Constant), f"{path}: numbers only"
                    assert isinstance(argument.value, int), f"{path}: numbers only"
                    yield argument.value, f"{path.relative_to(ROOT)}::{node.name}"


def held() -> dict[int, list[str]]:
    """Every behaviour that has a test, with its tests."""
    found: dict[int, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for number, test in marked(path):
            found.setdefault(number, []).append(test)
    return found


def not_built() -> dict[int, str]:
    """Every behaviour without a test, with the reason."""
    return {
        number: reason
        for (first, last), reason in NOT_BUILT.items()
        for number in range(first, last + 1)
    }


def render() -> str:
    """The page as it should be."""
    tests, reasons = held(), not_built()
    rows = []
    for number in range(1, LAST + 1):
        if number in tests:
            names = [test.rsplit("::", 1)[1] for test in tests[number]]
            sentence = names[0].removeprefix("test_").replace("_", " ")
            where = "<br>".join(f"`{test}`" for test in tests[number])
            rows.append(f"| B{number:03} | held | {sentence} | {where} |")
        else:
            reason = reasons.get(number, "no test yet")
            rows.append(f"| B{number:03} | not built | {reason} | |")
    count = sum(1 for number in range(1, LAST + 1) if number in tests)
    return "\n".join(
        [
            "# Behaviours",
            "",
            f"{count} of {LAST} numbered behaviours are held by a test. Made by"
            " `python tests/support/behaviours.py`; a test keeps it true.",
            "",
            "| number | state | what the test says, or why there is none | tests |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    TABLE.write_text(render())
    sys.stdout.write(f"wrote {TABLE.relative_to(ROOT)}\n")
