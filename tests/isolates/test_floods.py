"""Raw output is drained whatever comes, and counted; it, and what nobody asked for, has an end."""

from __future__ import annotations

import re

import msgspec
import pytest
from isolates import ECHO, ECHOED, LOG, Talk, isolates, start

from dynamic_workflows.loaders.isolates.interface import Exit, Limits
from dynamic_workflows.loaders.protocol.messages import Log

PATIENT = Limits(turn_cpu_ms=60_000, turn_wall_ms=120_000)
"""At the rate that is kept, what these tests write would take far longer."""
FLOOD = """
import os
data = (b"x" * 99 + b"\\n") * 640
left = {size}
while left:
    left -= os.write(1, data[:left])
"""
ENDLESS = """
import asyncio, os
async def main():
    while True:
        os.write({fd}, {data})
        await asyncio.sleep(0)
"""


def logs(talk: Talk) -> list[Log]:
    return [msgspec.msgpack.decode(f[2], type=Log) for f in talk.frames if f[0] == LOG]


def dropped_bytes(told: list[Log]) -> int:
    found = (re.match(r"raw output of ([0-9,]+) bytes dropped", log.text) for log in told)
    return sum(int(one[1].replace(",", "")) for one in found if one)


async def test_a_flood_passes_in_one_turn_and_every_byte_is_accounted_for() -> None:
    size = 10_000_000
    async with isolates() as made:
        talk = await start(made, PATIENT)
        assert (await talk.run(FLOOD.format(size=size)))[0] == "ok"
        assert await talk.run("result = 1") == ("ok", "1")
        await talk.close()
    told = logs(talk)
    kept = "".join(log.text for log in told if not log.dropped)
    assert 64_000 < kept.count("x") < size / 4
    # Of what is kept only line ends at the ends of pieces are left out.
    assert size * 0.999 < dropped_bytes(told) + len(kept) <= size
    lines = sum(log.dropped for log in told) + kept.count("\n")
    assert size / 100 - len(told) <= lines <= size / 100


async def test_last_words_after_a_flood_are_heard() -> None:
    source = FLOOD.format(size=3_000_000) + "os.write(2, b'these last words'); os._exit(1)"
    async with isolates() as made:
        talk = await start(made, PATIENT)
        talk.tell(source)
        await talk.end()
    assert logs(talk)[-1].text.endswith("these last words")


@pytest.mark.parametrize(("fd", "data"), [(1, "b'x' * 60_000"), (2, "b'\\n' * 60_000")])
async def test_a_flood_without_end_ends_its_isolate_with_the_limit(fd: int, data: str) -> None:
    async with isolates() as made:
        talk = await start(made, Limits(output_mb=8))
        talk.tell(ENDLESS.format(fd=fd, data=data), life=7)
        assert await talk.end() == Exit(
            "output limit of 8 MB exceeded", is_tenants_own=True, life=7, kind="output"
        )
        assert made.counts["ended_output"] == 1
    assert dropped_bytes(logs(talk)) > 8 << 20


async def test_others_are_served_while_one_floods() -> None:
    async with isolates() as made:
        flooding = await start(made, Limits(output_mb=1 << 20))
        flooding.tell(ENDLESS.format(fd=1, data="b'x' * 60_000"))
        other = await start(made)
        for number in range(300):
            other.isolate.send([(ECHO, number, b"")])
            await other.hear(ECHOED)
        assert not flooding.exit.done()
        await flooding.close()
    assert dropped_bytes(logs(flooding)) > 0


async def test_after_a_flood_output_is_kept_again() -> None:
    async with isolates() as made:
        talk = await start(made, PATIENT)
        await talk.run(FLOOD.format(size=1_000_000))
        while not dropped_bytes(logs(talk)):
            await talk.run("import asyncio\nasync def main(): await asyncio.sleep(0.05)")
        await talk.run("import os; os.write(1, b'calm \\xc3\\xa9 words\\n')")
        text = ""
        while "calm é words" not in text:
            text = msgspec.msgpack.decode(await talk.hear(LOG), type=Log).text


IDLING = """
from dynamic_workflows.loaders.protocol.messages import Idle, pack
idle = pack(Idle(1), life=1)
async def main():
    for _ in range({count}):
        send([idle] * 100)
"""


async def test_what_a_guest_is_told_it_may_answer_however_much_it_is() -> None:
    limits = Limits(messages_per_second_max=1_000, turn_cpu_ms=60_000, turn_wall_ms=120_000)
    async with isolates() as made:
        talk = await start(made, limits)
        talk.isolate.send([(ECHO, 0, b"")] * 20_000)
        # Ten seconds' worth, and one for each message that it was sent.
        assert (await talk.run(IDLING.format(count=290)))[0] == "ok"
        talk.tell(IDLING.format(count=2_000), life=7)
        exit = await talk.end()
    assert (exit.kind, exit.is_tenants_own) == ("messages", True)
    assert exit.reason == "message limit of 1,000 a second exceeded"
