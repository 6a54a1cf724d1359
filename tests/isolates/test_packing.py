"""What isolates write to at their start is brought together, and does what it did."""

from __future__ import annotations

import fresh_python

BEGIN = """
import gc, sys
from dynamic_workflows.loaders.isolates import page_packing as packing
from dynamic_workflows.loaders.isolates import warmup as rehearsal

def pages_written(work):
    "How many pages a forked child has for itself after some work."
    def count():
        work()
        with open("/proc/self/smaps_rollup") as file:
            sizes = [line.split()[1] for line in file if line.startswith("Private_Dirty")]
        return int(sizes[0]) // 4
    return int(in_child(count))
"""


def run(text: str) -> str:
    return fresh_python.run(BEGIN + text)


def test_a_child_writes_to_fewer_pages() -> None:
    before, after = map(
        int,
        run("""
rehearsal.rehearse()
gc.collect()
gc.freeze()
before = pages_written(rehearsal.rehearse)
gc.unfreeze()
packing.pack(rehearsal.rehearse, frozenset())
gc.freeze()
print(before, pages_written(rehearsal.rehearse))
""").split(),
    )
    assert after < 0.95 * before


def test_packed_functions_do_what_they_did() -> None:
    found = run("""
import asyncio, functools

def outer(number, *, factor=2):
    base = 10
    def inner(more):
        return [base + number * factor + more for _ in range(2)]
    return inner

class Kind:
    def method(self): return super().__repr__()[:6]
    @property
    def value(self): return outer(1)(1)
    @classmethod
    def made(cls): return cls

async def waits():
    await asyncio.sleep(0)
    return "awaited"

def gives():
    yield from (1, 2)

def fails():
    raise KeyError("as it was")

def work():
    try:
        fails()
    except KeyError as error:
        trace = error.__traceback__.tb_next
        failed = (str(error), trace.tb_lineno - fails.__code__.co_firstlineno)
    return [outer(3)(4), outer(3, factor=5)(4), Kind().value, Kind.made() is Kind,
            Kind().method(), asyncio.run(waits()), list(gives()), failed]

codes = {one: one.__code__ for one in (outer, waits, gives, fails)}
before = work()
packing.pack(work, frozenset({"__main__"}))
print(before == work(), all(one.__code__ is not codes[one] for one in codes),
      all(one.__code__ == codes[one] for one in codes), sys.getprofile())
""")
    assert found == "True True True None"


def test_a_rehearsal_that_fails_leaves_no_profile_behind() -> None:
    found = run("""
def fail(): raise RuntimeError("no rehearsal")
try:
    packing.pack(fail, frozenset())
except RuntimeError as error:
    print(error, sys.getprofile())
""")
    assert found == "no rehearsal None"
