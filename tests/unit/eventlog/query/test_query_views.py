"""The views: what each shows of a life, hot and cold alike."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from histories import Writer, opened
from paths import DOCS

from dynamic_workflows.eventlog.clock import US, VirtualClock, to_datetime
from dynamic_workflows.eventlog.events import Row, unfold
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.open_store import open_store

Ask = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "log")


@pytest.fixture
def reader(store: Store) -> Iterator[Reader]:
    reader = Reader(store)
    yield reader
    reader.close()


@pytest.fixture(params=["hot", "cold", "half"])
def show(request: pytest.FixtureRequest, store: Store, reader: Reader) -> Any:
    """Store rows, seal none, all or half of them, and give the rows of a view."""

    async def show(rows: list[Row], sql: str) -> list[dict[str, Any]]:
        async with opened(store) as log:
            middle = len(rows) // 2 if request.param == "half" else len(rows)
            await log.append(rows[:middle])
            if request.param != "hot":
                await log.seal()
            if rows[middle:]:
                await log.append(rows[middle:])
            return reader.query(sql).to_pylist()  # type: ignore[no-any-return]

    return show


async def test_events_show_folded_rows_unfolded_with_the_promised_columns(show: Any) -> None:
    one = Writer(VirtualClock())
    rows = one.life(output=[1])
    found = await show(rows, "from events order by seq")
    assert " ".join(found[0]) == (
        "tenant_id workflow instance_id run seq epoch ts type step count attempt payload code_hash"
    )
    expected = [half for row in rows for half in unfold(row)]
    assert [(e["seq"], e["type"], e["attempt"], e["payload"]) for e in found] == [
        (row.seq, row.type, row.attempt, row.payload and row.payload.decode()) for row in expected
    ]
    assert [e["ts"] for e in found] == [to_datetime(row.ts) for row in expected]


async def test_instance_shows_its_life_from_creation_to_output(show: Any) -> None:
    clock = VirtualClock()
    start = clock.now_us()
    (found,) = await show(Writer(clock).life(output={"by": "x"}), "from instances")
    assert found == {
        "tenant_id": "acme",
        "workflow": "W",
        "instance_id": "one",
        "run": 1,
        "status": "complete",
        "reason": None,
        "created_at": to_datetime(start),
        "started_at": to_datetime(start + US),
        "ended_at": to_datetime(start + 4 * US),
        "output": '{"by": "x"}'.replace(" ", ""),
        "error_name": None,
        "error_message": None,
        "steps": 1,
        "code_hash": "c0de",
    }


async def test_error_of_an_instance_is_shown_by_name_and_message(show: Any) -> None:
    one = Writer(VirtualClock())
    failure = one.row("workflow_errored", error={"name": "ValueError", "message": "too 'odd'"})
    (found,) = await show([*one.begin(), failure], "from instances")
    assert (found["status"], found["error_name"], found["error_message"], found["output"]) == (
        "errored",
        "ValueError",
        "too 'odd'",
        None,
    )


@pytest.mark.parametrize(
    ("types", "status"),
    [
        ([], "queued"),
        (["workflow_started"], "running"),
        (["workflow_started", "workflow_waiting"], "waiting"),
        (["workflow_started", "workflow_waiting", "workflow_running"], "running"),
        (["workflow_started", "workflow_waiting_for_pause"], "waitingForPause"),
        (["workflow_started", "workflow_waiting_for_pause", "workflow_resumed"], "running"),
        (["workflow_started", "workflow_waiting_for_pause", "workflow_paused"], "paused"),
        (
            [
                "workflow_started",
                "workflow_waiting_for_pause",
                "workflow_paused",
                "workflow_resumed",
            ],
            "queued",
        ),
        (["workflow_paused", "rollback_started"], "running"),
        (["workflow_started", "workflow_terminated"], "terminated"),
    ],
)
async def test_status_is_that_of_the_last_row_that_changes_it(
    store: Store, reader: Reader, types: list[str], status: str
) -> None:
    one = Writer(VirtualClock())
    async with opened(store) as log:
        await log.append([one.begin()[0], *(one.row(type) for type in types)])
        assert reader.query("from instances").column("status").to_pylist() == [status]


async def test_parked_instance_is_paused_with_a_reason_until_it_is_resumed(show: Any) -> None:
    one = Writer(VirtualClock())
    parked = [*one.begin(), one.row("workflow_parked", code="replay.mismatch", message="m")]
    two = Writer(VirtualClock(), "two")
    released = [
        *two.begin(),
        two.row("workflow_parked", code="replay.mismatch", message="m"),
        two.row("workflow_resumed", shift_us=1),
    ]
    found = await show([*parked, *released], "from instances order by instance_id")
    assert [(e["status"], e["reason"]) for e in found] == [
        ("paused", "replay.mismatch"),
        ("queued", None),
    ]


async def test_steps_show_every_kind_with_status_and_outcome(show: Any) -> None:
    one = Writer(VirtualClock())
    error = {"name": "OSError", "message": "no"}
    rows = [
        *one.begin(),
        *one.do("good", {"n": 1}),
        one.row("step_started", "bad", attempt=1, config={}),
        one.row("step_errored", "bad", attempt=1, error=error),
        one.row("step_started", "slow", attempt=1, config={}),
        one.row("attempt_errored", "slow", attempt=1, error=error, retry_at_us=5, retry_delay_ms=3),
        one.row("step_started", "now", attempt=1, config={}),
        one.row("sleep_started", "nap", until_us=7, duration_ms=1),
        one.row("sleep_completed", "nap"),
        one.row("wait_started", "ask", event_type="t", until_us=9, timeout_ms=1),
        one.row("wait_completed", "ask", event_type="t", event_seq=3, payload=[2], received_us=1),
        one.row("wait_started", "late", event_type="t", until_us=9, timeout_ms=1),
        one.row("wait_timed_out", "late", error={"name": "WorkflowTimeoutError", "message": "x"}),
    ]
    found = await show(rows, "from steps order by started_at")
    assert [
        (e["step"], e["kind"], e["status"], e["attempts"], e["output"], e["error_name"])
        for e in found
    ] == [
        ("good", "do", "complete", 1, '{"n":1}', None),
        ("bad", "do", "errored", 1, None, "OSError"),
        ("slow", "do", "waiting", 1, None, None),
        ("now", "do", "running", 1, None, None),
        ("nap", "sleep", "complete", 0, None, None),
        ("ask", "wait_for_event", "complete", 0, "[2]", None),
        ("late", "wait_for_event", "errored", 0, None, "WorkflowTimeoutError"),
    ]
    assert all(e["ended_at"] is None for e in found if e["status"] in ("running", "waiting"))


async def test_open_steps_and_waits_of_an_ended_run_are_cancelled(show: Any) -> None:
    one = Writer(VirtualClock())
    rows = [
        *one.begin(),
        one.row("step_started", "work", attempt=1, config={}),
        one.row("sleep_started", "nap", until_us=7, duration_ms=1),
        one.row("workflow_terminated"),
    ]
    sql = """select 'step' what, status from steps union all select 'attempt', status from attempts
        union all select 'wait', status from waits"""
    found = await show(rows, sql)
    assert {e["what"] for e in found} == {"step", "attempt", "wait"}
    assert {e["status"] for e in found} == {"cancelled"}


async def test_attempts_show_each_try_with_its_error_and_delay(show: Any) -> None:
    one = Writer(VirtualClock())
    error = {"name": "OSError", "message": "no"}
    rows = [
        *one.begin(),
        one.row("step_started", "a", attempt=1, config={}),
        one.row("attempt_errored", "a", attempt=1, error=error, retry_at_us=5, retry_delay_ms=3),
        one.row("attempt_started", "a", attempt=2),
        one.row("step_completed", "a", attempt=2, output=1),
    ]
    found = await show(rows, "from attempts order by attempt")
    assert [(e["attempt"], e["status"], e["error_name"], e["retry_delay_ms"]) for e in found] == [
        (1, "errored", "OSError", 3),
        (2, "complete", None, None),
    ]
    assert found[0]["ended_at"] < found[1]["started_at"]


async def test_waits_show_what_each_waits_for_and_how_it_ended(show: Any) -> None:
    clock = VirtualClock()
    one = Writer(clock)
    base = clock.now_us()
    rows = [
        *one.begin(),
        one.row("step_started", "a", attempt=1, config={}),
        one.row(
            "attempt_errored", "a", attempt=1, error={}, retry_at_us=base + 50, retry_delay_ms=1
        ),
        one.row("attempt_started", "a", attempt=2),
        one.row(
            "attempt_errored", "a", attempt=2, error={}, retry_at_us=base + 60, retry_delay_ms=1
        ),
        one.row("sleep_started", "nap", until_us=base + 70, duration_ms=1),
        one.row("wait_started", "ask", event_type="yes", until_us=base + 80, timeout_ms=1),
        one.row("wait_started", "late", event_type="no", until_us=base + 90, timeout_ms=1),
        one.row("wait_timed_out", "late", error={}),
    ]
    found = await show(rows, "from waits order by until")
    assert [(e["kind"], e["step"], e["event_type"], e["status"]) for e in found] == [
        ("retry", "a", None, "complete"),
        ("retry", "a", None, "waiting"),
        ("sleep", "nap", None, "waiting"),
        ("event", "ask", "yes", "waiting"),
        ("event", "late", "no", "timed_out"),
    ]
    assert [e["until"] - to_datetime(base) for e in found] == [
        dt.timedelta(microseconds=us) for us in (50, 60, 70, 80, 90)
    ]


async def test_pause_moves_the_end_of_the_waits_that_were_open(show: Any) -> None:
    clock = VirtualClock()
    one = Writer(clock)
    base = clock.now_us()
    rows = [
        *one.begin(),
        one.row("sleep_started", "before", until_us=base + 10, duration_ms=1),
        one.row("sleep_completed", "before"),
        one.row("sleep_started", "during", until_us=base + 20, duration_ms=1),
        one.row("workflow_paused"),
        one.row("workflow_resumed", shift_us=1000),
        one.row("sleep_started", "after", until_us=base + 30, duration_ms=1),
    ]
    found = await show(rows, "from waits order by since")
    shown = {
        e["step"]: (e["until"] - to_datetime(base)) // dt.timedelta(microseconds=1) for e in found
    }
    assert shown == {"before": 10, "during": 1020, "after": 30}


async def test_restart_shows_the_new_run_alone(show: Any) -> None:
    clock = VirtualClock()
    one = Writer(clock)
    start = clock.now_us()
    rows = [*one.life(output="old"), one.row("workflow_restarted")]
    one.run = 2
    rows.append(one.row("workflow_queued", params=None, trigger="restart", created_us=start))
    rows.append(one.row("workflow_started"))
    rows += one.do("b", 2)
    (instance,) = await show(rows, "from instances")
    assert (instance["run"], instance["status"], instance["output"]) == (2, "running", None)
    assert (instance["steps"], instance["ended_at"]) == (1, None)
    assert instance["created_at"] == to_datetime(start) < instance["started_at"]


async def test_outcome_of_an_earlier_run_is_not_that_of_the_newest(show: Any) -> None:
    one = Writer(VirtualClock())
    rows = [*one.life(output="old"), one.row("workflow_restarted")]
    one.run = 2
    rows += [*one.begin(), one.row("workflow_terminated")]
    (instance,) = await show(rows, "from instances")
    assert (instance["status"], instance["output"], instance["steps"]) == ("terminated", None, 0)
    assert instance["ended_at"] == to_datetime(rows[-1].ts)


async def test_steps_kept_by_restarts_belong_to_the_newest_run_with_their_first_times(
    store: Store, reader: Reader
) -> None:
    clock = VirtualClock()
    one = Writer(clock)
    rows = [*one.begin(), *one.do("a", 1), *one.do("b", 2), *one.do("c", 3), *one.end()]
    rows.append(one.row("workflow_restarted", kept=[["do", "a", 1], ["do", "b", 1]]))
    one.run = 2
    rows += [*one.begin(), *one.do("c", 4), *one.end()]
    # `c` of run 2 is kept by this one, but `c` of run 1 was not kept by the restart before.
    rows.append(one.row("workflow_restarted", kept=[["do", "a", 1], ["do", "c", 1]]))
    one.run = 3
    rows += [*one.begin(), *one.do("b", 5)]
    async with opened(store) as log:
        await log.append(rows)
        for _ in range(2):
            steps = reader.query("from steps order by step").to_pylist()
            assert [(e["step"], e["run"], e["output"]) for e in steps] == [
                ("a", 3, "1"),
                ("b", 3, "5"),
                ("c", 3, "4"),
            ]
            assert steps[0]["started_at"] == to_datetime(rows[2].ts)
            assert reader.query("from attempts").num_rows == 3
            assert reader.query("select steps from instances").to_pylist() == [{"steps": 3}]
            await log.seal()


async def test_deleted_instance_is_gone_from_every_view_and_its_id_can_live_again(
    store: Store, reader: Reader
) -> None:
    clock = VirtualClock()
    one, other = Writer(clock), Writer(clock, "other")
    async with opened(store) as log:
        await log.append([*one.life(), *other.life()])
        await log.seal()
        await log.append(one.delete())
        for view in ("events", "instances", "steps", "attempts"):
            names = reader.query(f"select distinct instance_id from {view}").to_pylist()
            assert names == [{"instance_id": "other"}], view
        await log.seal()
        assert reader.query("from instances").num_rows == 1
        await log.append(one.begin())
        found = reader.query("select status from instances where instance_id = 'one'").to_pylist()
        assert found == [{"status": "running"}]
        assert reader.query("from events where instance_id = 'one'").num_rows == 2


async def test_rows_of_the_tenant_itself_are_in_events_only(show: Any) -> None:
    one = Writer(VirtualClock())
    code = Row(type="code_deployed", workflow="", instance_id="", ts=one.clock.now_us())
    sql = """select (select count(*) from events where instance_id = '') as events,
        (select count(*) from instances) as instances"""
    assert await show([code, *one.begin()], sql) == [{"events": 1, "instances": 1}]


HOSTILE = [
    b'"\\ud800"',
    b'{"output": "\\u0000"}',
    b'{"output": 1e999999}',
    b'{"output": ' + b"9" * 5000 + b"}",
    b"[" * 100_000 + b"]" * 100_000,
    b'{"output":' * 50_000 + b"1" + b"}" * 50_000,
    b"not json",
    b"",
    b'{"error": [1, 2], "output": {"$.error.name": 1}}',
    b'{"error": {"name": {"name": "x"}, "message": null}}',
    b'{"kept": {"a": 1}, "until_us": "x", "shift_us": 1e30, "retry_at_us": [], "created_us": {}}',
    b'{"kept": [["do", "a", "x"], "y", [], null], "until_us": 9223372036854775807}',
    b'{"kept": [[["do"]]], "until_us": -9223372036854775808, "created_us": 99999999999999999}',
]

EVERY_TYPE = (
    "workflow_queued workflow_started workflow_parked workflow_resumed workflow_errored "
    "workflow_restarted step_started attempt_errored step_completed sleep_started wait_started "
    "wait_completed event_received"
).split()


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_no_payload_breaks_a_view(store: Store, reader: Reader, is_sealed: bool) -> None:
    clock = VirtualClock()
    async with opened(store) as log:
        for number, payload in enumerate(HOSTILE):
            one = Writer(clock, f"hostile-{number}")
            rows = [one.row(type, "a" if "_st" in type else None) for type in EVERY_TYPE]
            for row in rows:
                row.payload = payload
            await log.append(rows)
        await log.append(Writer(clock, "good").life(output=1))
        if is_sealed:
            await log.seal()
        for view in ("events", "instances", "steps", "attempts", "waits"):
            reader.query(f"from {view}")
            reader.query(f"select count(distinct x::varchar) from (from {view}) as x")
        good = reader.query("from instances where instance_id = 'good'").to_pylist()
        assert good[0]["output"] == "1"
        assert reader.query("from instances").num_rows == len(HOSTILE) + 1


async def test_questions_of_the_documents_have_answers(store: Store, reader: Reader) -> None:
    text = (DOCS / "analytics.md").read_text()
    (block,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    questions = [one for one in block.split(";") if one.strip()]
    async with opened(store) as log:
        await log.append(Writer(VirtualClock()).life(output={"total": "12.50"}))
        answers = [reader.query(one).to_pylist() for one in questions]
        assert len(answers) == 4
        assert [str(value) for value in answers[-1][0].values()] == ["12.50"]
        listed = re.findall(r"^\| `(\w+)` \| ((?:`\w+`[^|]*)+) \|$", text, re.MULTILINE)
        assert len(listed) == 5
        for view, columns in listed:
            said = ["tenant_id", "workflow", "instance_id", "run", *re.findall(r"`(\w+)`", columns)]
            assert reader.query(f"from {view}").column_names == said, view
