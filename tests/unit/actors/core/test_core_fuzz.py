"""A guest that says anything at any time, and commands between: nothing breaks but the lifetime.

Whatever comes, the core either takes it or refuses it with the error that is meant for it, having
changed nothing; the audit finds no instance that stopped silently; and the log folds to the state.
"""

from __future__ import annotations

import os
import random
from typing import Any

from core_world import World, config
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_workflows.actors.instances.decisions import Send
from dynamic_workflows.eventlog.errors import InstanceError
from dynamic_workflows.loaders.protocol.messages import (
    AttemptFailed,
    Done,
    End,
    Error,
    Idle,
    Mismatch,
    ProtocolViolation,
    Sleep,
    StepRequest,
    Wait,
)

KEYS = [("Job", "a"), ("Job", "b")]


class Fuzzer:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World(running_max=2, instance_idle_us=self.random.choice([0, 1_000_000]))
        self.world.take = self.take  # type: ignore[method-assign]
        self.sent: dict[int, int] = {}
        self.token = 10
        for _, instance_id in KEYS:
            self.world.create(instance_id)

    def take(self, decision: Any) -> Any:
        """Like the world's, without a guest."""
        for row, real in decision.secrets:
            self.world.secrets[row.seq] = real
        self.world.rows += decision.rows
        for effect in decision.effects:
            if isinstance(effect, Send):
                self.sent[effect.life] = self.sent.get(effect.life, 0) + 1
        self.world.check()
        return decision.answer

    def message(self, life: int) -> Any:
        """Mostly what a guest could say now, sometimes anything."""
        chance = self.random
        known = self.world.core.lifetimes.by_number.get(life)
        in_flight = [step for step in known.tokens.values() if step.in_flight] if known else []
        self.token += 1
        token, attempt = self.token, 1
        if chance.random() < 0.08:
            token, attempt = chance.choice([1, 2, 3, 4, -1, -2]), chance.choice([1, 2, 3])
        elif in_flight and chance.random() < 0.6:
            step = chance.choice(in_flight)
            assert step.token is not None
            return self.outcome(step.token, step.attempt)
        if chance.random() < 0.08:
            return self.outcome(token, attempt)
        if chance.random() < 0.06:
            error = Error("E", "m")
            return chance.choice(
                [End(b"1"), End(None, error), Mismatch("do", "x", 1, None, None, None, 0, None)]
            )
        return self.request(token)

    def outcome(self, token: int, attempt: int) -> Any:
        chance = self.random
        error = Error(chance.choice(["E", "E", "NonRetryableError"]), "m", "tenant")
        if chance.random() < 0.5:
            return Done(token, attempt, b'"v"')
        broken = error if chance.random() < 0.1 else None
        return AttemptFailed(token, attempt, error, chance.choice([None, 7]), broken)

    def request(self, token: int) -> Any:
        chance = self.random
        name, count = chance.choice("xyzuvw"), chance.choice([1, 2, 3])
        text = chance.choice(
            [
                config(limit=2, delay_ms=chance.choice([0, 1_000, None])),
                config(limit=1, sensitive="output"),
                config(lost="fail", timeout_ms=1_000),
            ]
        )
        if chance.random() < 0.06:
            name, count = chance.choice(["x\x00", "z" * 300, "x"]), chance.choice([0, -1])
            text = chance.choice([b"[]", b"{", b'{"retries":{"limit":-1}}'])
        bad = chance.random() < 0.04
        kinds: list[Any] = [
            StepRequest(token, name, count, text, None, chance.random() < 0.5, None),
            StepRequest(token, name, count, text, None, chance.random() < 0.5, None),
            Sleep(token, name, count, -5 if bad else chance.choice([0, 1_000, 60_000])),
            Sleep(token, name, count, None, self.world.now + chance.choice([-1, 5, 10**18])),
            Wait(token, name, count, "a.b" if bad else chance.choice(["go", "no"]), 5_000),
            Idle(chance.choice([0, 100, 100])),
        ]
        return chance.choice(kinds)

    def say(self) -> None:
        lives = list(self.world.core.lifetimes.by_number)
        if not lives:
            self.world.start_runnable()
            return
        life = self.random.choice([*lives * 9, 999])
        message = self.message(life)
        if isinstance(message, Idle):
            known = self.world.core.lifetimes.by_number.get(life)
            if known is not None and not known.tokens:
                return  # Nothing was asked for: it would be parked, and the story over.
            message.seen = min(message.seen, self.sent.get(life, 0))
        before = self.world.core.last_seq
        try:
            self.take(self.world.core.on_message(life, message, now_us=self.world.now))
        except ProtocolViolation as violation:
            assert self.world.core.last_seq == before
            self.world.check()
            if self.random.random() < 0.3:
                self.lose([life], own=True, reason=str(violation))

    def lose(self, lives: list[int], *, own: bool, reason: str = "fuzz") -> None:
        culprit = self.random.choice([0, *lives])
        core, now = self.world.core, self.world.now
        self.take(core.lives_lost(lives, reason=reason, own=own, culprit=culprit, now_us=now))

    def command(self) -> None:
        chance = self.random
        key = chance.choice(KEYS)
        moves: list[Any] = [
            ("pause", (), {}),
            ("resume", (), {}),
            ("resume", (), {}),
            ("resume", (), {}),
            ("resume", (), {}),
            ("send_event", ("go", b"1"), {}),
            ("send_event", ("no", b"2"), {}),
            ("terminate", (), {"rollback": chance.random() < 0.8}),
            ("restart", (), {"from_": None}),
            ("restart", (), {"from_": {"name": "x", "type": chance.choice(["do", "sleep"])}}),
            ("park", ("code", "text"), {}),
            ("delete", (), {}),
        ]
        name, args, more = chance.choice(moves)
        before = self.world.core.last_seq
        try:
            self.world.command(name, key, *args, **more)
        except InstanceError:
            assert self.world.core.last_seq == before

    def act(self) -> None:
        chance = self.random.random()
        world = self.world
        if chance < 0.72:
            self.say()
        elif chance < 0.78:
            world.start_runnable()
        elif chance < 0.81:
            self.command()
        elif chance < 0.9:
            world.now += self.random.choice([0, 1, 999_999, 5_000_000])
            self.take(world.core.due(world.now))
        elif chance < 0.93:
            lives = [one for one in world.core.lifetimes.by_number if self.random.random() < 0.7]
            self.lose(lives, own=self.random.random() < 0.5)
        elif chance < 0.96:
            for key in list(world.core.evictable()):
                world.core.evict(key)
        elif chance < 0.98:
            world.crash(unfolded=self.random.random() < 0.5)
        else:
            for key in KEYS:
                if not world.core.exists(key):
                    world.create(key[1])

    def check_fold(self) -> None:
        cores = [self.world.core, self.world.replayed(), self.world.replayed(unfolded=True)]
        told = []
        for core in cores:
            for summary in core.state.index:
                if summary.instance is not None and summary.instance.is_partial:
                    summary.instance = None
                if summary.instance is None:
                    assert core.load(summary.key, self.world.history(summary.key))
            told.append(core.facts())
        assert told[1] == told[0]
        assert told[2] == told[0]


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")))
@given(st.integers(0, 2**32))
def test_whatever_a_guest_says_the_core_stands(seed: int) -> None:
    fuzzer = Fuzzer(seed)
    for _ in range(250):
        fuzzer.act()
    fuzzer.check_fold()
