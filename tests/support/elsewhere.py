"""Programs and tests that run as on another system."""

from __future__ import annotations

import asyncio
import os
import re
import sys

from paths import IMPORTS, ROOT, SUPPORT, TESTS


async def elsewhere(*arguments: str) -> str:
    """What a program of Python prints on another host; errors fail the test."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SUPPORT / "other_host.py"), *arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(IMPORTS)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output
    return output


def file_of(test: str) -> str:
    """The path of a test file, or of a test in it, by the file's name; it may lie in any room."""
    name, _, function = test.partition("::")
    [path] = TESTS.rglob(f"test_{name}.py")
    return "::".join(filter(None, [str(path.relative_to(ROOT)), function]))


async def passing_elsewhere(*arguments: str) -> tuple[int, int]:
    """How many tests passed there, and how many were skipped."""
    output = await elsewhere(
        *("-m", "pytest", "-q", "-p", "other_host", "-p", "no:cacheprovider", "--rootdir", "."),
        *arguments,
    )
    counts = re.findall(r"(\d+) (passed|skipped)", output.splitlines()[-1])
    found = {kind: int(count) for count, kind in counts}
    return found.get("passed", 0), found.get("skipped", 0)
