"""Creating instances, naming them, admitting them, listing and deleting them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from core_world import START, WORKFLOW, S, StepApi, World, payload

from dynamic_workflows.actors.instances.decisions import CreateItem
from dynamic_workflows.actors.instances.identifiers import (
    check_event_type,
    check_id,
    check_new_id,
    check_tenant_id,
    check_workflow_name,
)
from dynamic_workflows.eventlog.errors import InstanceError, InvalidError, LimitExceededError
from dynamic_workflows.loaders.protocol.messages import Run


async def quick(step: StepApi, params: Any) -> Any:
    return params


async def sleepy(step: StepApi, params: Any) -> Any:
    await step.sleep("nap", 3_600_000)
    return "woke"


def items(*ids: str, **more: Any) -> list[CreateItem]:
    return [CreateItem(WORKFLOW, one, b"{}", "h1", **more) for one in ids]


@pytest.mark.behaviour(1, 2)
@pytest.mark.parametrize("name", ["abc", "NAME_123-hello", "w" * 64])
def test_good_workflow_names_are_accepted(name: str) -> None:
    assert check_workflow_name(name) == name


@pytest.mark.behaviour(2)
@pytest.mark.parametrize("name", ["", " ", "-a", "\na", "a\n", "a#", "a!", "w" * 65, 7, None])
def test_bad_workflow_names_are_refused(name: Any) -> None:
    with pytest.raises(InvalidError) as caught:
        check_workflow_name(name)
    assert caught.value.code == "workflow.invalid_name"


@pytest.mark.behaviour(3)
@pytest.mark.parametrize("name", ["", "a b", "-a", "a" * 101, "a.b", None, "ä"])
def test_a_create_with_a_bad_id_stores_nothing(name: Any) -> None:
    world = World(quick)
    with pytest.raises(InvalidError) as caught:
        world.core.create(items("fine", name), strict=True, now_us=START)
    assert caught.value.code == "instance.invalid_id"
    assert not world.core.exists((WORKFLOW, "fine"))
    assert world.core.last_seq == 0
    assert check_new_id("a" * 100) == "a" * 100


@pytest.mark.behaviour(4)
def test_ids_made_by_cron_can_be_addressed_though_not_created() -> None:
    assert check_id("*/5 * * * *-1767225600000")
    assert check_id("a" * 271)
    for bad in ("", "a" * 272, "a\n", "a;b"):
        with pytest.raises(InvalidError):
            check_id(bad)
    with pytest.raises(InvalidError):
        check_new_id("*/5 * * * *-1767225600000")


@pytest.mark.behaviour(7)
@pytest.mark.parametrize("name", ["", "a.b", "a" * 101, "-a", "a b", 3])
def test_bad_event_types_are_refused(name: Any) -> None:
    with pytest.raises(InvalidError) as caught:
        check_event_type(name)
    assert caught.value.code == "workflow.invalid_event_type"


@pytest.mark.parametrize("name", ["", "a" * 257, "a\x00", "a\x85", None])
def test_bad_tenant_ids_are_refused(name: Any) -> None:
    with pytest.raises(InvalidError) as caught:
        check_tenant_id(name)
    assert caught.value.code == "tenant.invalid_id"
    assert check_tenant_id("über/../a b") == "über/../a b"


@pytest.mark.behaviour(9, 11, 12)
def test_run_sees_the_params_and_the_time_of_creation_in_every_lifetime() -> None:
    world = World(sleepy)
    world.create("a", {"n": 1}, workflow_name="Shown")
    world.now += 5 * S
    world.pump()
    world.advance(3_600)
    assert len(world.sent(Run)) == 2
    for run in world.sent(Run):
        assert json.loads(run.params) == {"n": 1}
        assert run.timestamp_us == START
        assert run.instance_id == "a"
        assert run.workflow_name == "Shown"


@pytest.mark.behaviour(10, 32)
def test_a_create_only_queues() -> None:
    world = World(quick)
    key = world.create()
    assert world.status(key) == "queued"
    assert world.types(key) == ["workflow_queued"]


@pytest.mark.behaviour(13)
def test_a_second_create_of_an_id_is_refused_and_changes_nothing() -> None:
    world = World(quick)
    key = world.create("a", 1)
    world.pump()
    before = world.core.last_seq
    with pytest.raises(InstanceError) as caught:
        world.create("a", 2)
    assert caught.value.code == "instance.already_exists"
    assert world.core.last_seq == before
    assert world.output(key) == 1


@pytest.mark.behaviour(23, 26)
def test_a_batch_skips_what_exists_and_what_stands_in_it_twice() -> None:
    world = World(quick)
    world.create("b")
    answer = world.take(world.core.create(items("a", "b", "c", "a"), strict=False, now_us=START))
    assert answer == ["a", "c"]


def test_the_same_create_again_is_answered_as_the_first_time_and_creates_nothing() -> None:
    world = World(quick)
    first = world.take(world.core.create(items("a", token="t"), strict=True, now_us=START))
    world.pump()
    world.crash()
    before = world.core.last_seq
    again = world.take(world.core.create(items("a", token="t"), strict=True, now_us=START))
    assert first == again == ["a"]
    assert world.core.last_seq == before
    with pytest.raises(InstanceError):
        world.core.create(items("a", token="other"), strict=True, now_us=START)


@pytest.mark.behaviour(24, 25, 27)
def test_a_batch_is_validated_whole() -> None:
    world = World(quick)
    for batch in ([], items(*(f"i{n}" for n in range(10_001))), "abc"):
        with pytest.raises(InvalidError) as caught:
            world.core.create(batch, strict=False, now_us=START)  # type: ignore[arg-type]
        assert caught.value.code == "batch.invalid"
    assert world.core.last_seq == 0
    ten_thousand = items(*(f"i{n}" for n in range(10_000)))
    assert len(world.core.create(ten_thousand, strict=False, now_us=START).answer) == 10_000


@pytest.mark.behaviour(18)
def test_creates_above_the_rate_are_refused_with_a_time_to_wait() -> None:
    world = World(quick, creates_per_second_max=2.0)
    world.create("a")
    world.create("b")
    with pytest.raises(LimitExceededError) as caught:
        world.create("c")
    assert caught.value.code == "limit.exceeded"
    assert 0 < caught.value.retry_after <= 0.5
    world.now += round(caught.value.retry_after * S) + 1
    world.create("c")


@pytest.mark.behaviour(19)
def test_above_the_limit_instances_stay_queued_and_start_oldest_first() -> None:
    world = World(sleepy, running_max=2, instance_idle_us=0)
    world.slow = True
    for n in range(4):
        world.create(f"i{n}")
    assert [key[1] for key in world.core.runnable()] == ["i0", "i1"]
    world.start_runnable()
    assert list(world.core.runnable()) == []
    assert world.status((WORKFLOW, "i2")) == "queued"
    world.pump()  # The first two fall asleep, and take no slot.
    assert world.core.counts()["waiting"] == 4


@pytest.mark.behaviour(19)
def test_beyond_the_queue_maximum_creation_fails() -> None:
    world = World(quick, queued_max=2)
    world.create("a")
    world.create("b")
    with pytest.raises(LimitExceededError):
        world.create("c")
    assert not world.core.exists((WORKFLOW, "c"))


@pytest.mark.behaviour(53)
def test_woken_instances_go_before_new_ones_and_show_as_queued_without_a_slot() -> None:
    async def busy(step: StepApi, params: Any) -> Any:
        if params == "sleep":
            await step.sleep("nap", 60_000)
        return await step.do("work", lambda attempt: 1)

    world = World(busy, running_max=1)
    sleeper = world.create("sleeper", "sleep")
    world.pump()
    world.slow = True
    first = world.create("first", "work")
    world.pump()
    new = world.create("new", "work")
    assert world.status(first) == "running"
    world.advance(60)
    assert world.status(sleeper) == "queued"
    assert world.core.list(WORKFLOW, ["queued"], 10, None)["items"][1]["id"] == "sleeper"
    world.finish()
    assert world.deliver()
    assert world.deliver()
    assert list(world.core.runnable()) == [sleeper]
    world.pump()
    assert world.status(sleeper) == "running"
    assert world.status(new) == "queued"


@pytest.mark.behaviour(15, 20)
def test_after_its_retention_an_instance_is_gone_and_its_id_is_free() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        if params == "fail":
            raise ValueError("no")

    world = World(program, retention_success_us=10 * S, retention_error_us=20 * S)
    good, bad = world.create("good"), world.create("bad", "fail")
    own = world.create("own", retention={"success_us": 5 * S})
    world.pump()
    world.now += 5 * S
    world.pump()
    assert [world.core.exists(one) for one in (good, bad, own)] == [True, True, False]
    world.now += 5 * S
    world.crash()
    world.pump()
    assert [world.core.exists(one) for one in (good, bad, own)] == [False, True, False]
    world.now += 10 * S
    world.pump()
    assert not world.core.exists(bad)
    assert world.rows[-1].type == "workflow_deleted"
    assert world.core.next_due_us() is None
    world.create("good")


@pytest.mark.behaviour(15)
def test_what_outlived_its_retention_while_nobody_was_there_is_gone_when_the_log_is_opened() -> (
    None
):
    world = World(quick, retention_success_us=10 * S)
    key = world.create("a", 1)
    world.pump()
    world.now += 10 * S
    world.crash()
    assert not world.core.exists(key)
    world.create("a", 2)
    world.pump()
    assert world.output(key) == 2


@pytest.mark.behaviour(29, 30, 43)
def test_an_unknown_instance_is_not_found_by_any_command() -> None:
    world = World(quick)
    key = (WORKFLOW, "nobody")
    core = world.core
    for command in (
        lambda: core.status(key),
        lambda: core.pause(key, now_us=0),
        lambda: core.resume(key, now_us=0),
        lambda: core.terminate(key, rollback=True, now_us=0),
        lambda: core.restart(key, from_=None, now_us=0),
        lambda: core.send_event(key, "go", b"1", now_us=0),
        lambda: core.delete(key, now_us=0),
        lambda: core.why(key),
        lambda: core.is_loaded(key),
    ):
        with pytest.raises(InstanceError) as caught:
            command()
        assert caught.value.code == "instance.not_found"
    assert not core.exists(key)


@pytest.mark.behaviour(40, 41)
@pytest.mark.parametrize("moment", ["queued", "running", "waiting", "paused", "complete"])
def test_a_delete_in_any_status_leaves_nothing_and_frees_the_id(moment: str) -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.do("work", lambda attempt: 1)
        if moment != "complete":
            await step.sleep("nap", 3_600_000)

    world = World(program)
    key = world.create()
    if moment != "queued":
        world.slow = moment == "running"
        world.pump()
    if moment == "paused":
        world.command("pause", key)
    assert world.status(key) == moment
    world.command("delete", key)
    assert not world.core.exists(key)
    assert not world.guests
    assert world.core.open_count() == world.core.live_count() == 0
    assert world.core.next_due_us() is None
    assert world.core.list(None, None, 10, None) == {"items": [], "cursor": None}
    assert world.rows[-1].type == "workflow_deleted"
    world.crash()
    assert not world.core.exists(key)
    world.slow = False
    world.create()
    world.pump()
    assert world.types(key)[0] == "workflow_queued"
    assert world.history(key)[0].run == 1


@pytest.mark.behaviour(44, 45, 46, 48, 49, 50)
def test_a_batch_of_deletes_answers_for_each_position() -> None:
    world = World(quick)
    world.create("a")
    world.create("b")
    delete = world.core.delete_batch
    for bad, code in (([], "batch.invalid"), (["a", "b;"], "instance.invalid_id")):
        with pytest.raises(InvalidError) as caught:
            delete(WORKFLOW, bad, now_us=START)
        assert caught.value.code == code
    assert world.core.exists((WORKFLOW, "a"))
    answer = world.take(delete(WORKFLOW, ["a", "nobody", "a"], now_us=START))
    assert answer["deleted"] == ["a", "a"]
    assert [(one["id"], one["code"]) for one in answer["errors"]] == [
        ("nobody", "instance.not_found")
    ]
    assert world.core.exists((WORKFLOW, "b"))


def test_a_list_is_newest_first_in_pages_and_by_status() -> None:
    world = World(sleepy)
    world.programs["Other"] = quick
    for n in range(5):
        world.create(f"i{n}")
    world.create("x", workflow="Other")
    world.pump()
    page = world.core.list(WORKFLOW, None, 2, None)
    assert [item["id"] for item in page["items"]] == ["i4", "i3"]
    world.command("delete", (WORKFLOW, "i2"))
    page = world.core.list(WORKFLOW, None, 2, page["cursor"])
    assert [item["id"] for item in page["items"]] == ["i1", "i0"]
    assert page["cursor"] is None
    assert [i["id"] for i in world.core.list(None, "complete", 9, None)["items"]] == ["x"]
    assert [i["id"] for i in world.core.list(None, ["waiting", "complete"], 9, None)["items"]] == [
        "x",
        "i4",
        "i3",
        "i1",
        "i0",
    ]
    with pytest.raises(InvalidError) as caught:
        world.core.list(None, ["sleeping"], 9, None)
    assert caught.value.code == "status.invalid"
    for limit, cursor in ((0, None), (10, "x")):
        with pytest.raises(InvalidError):
            world.core.list(None, None, limit, cursor)


def test_what_an_evicted_instance_was_is_read_again_when_it_is_needed() -> None:
    world = World(sleepy, instance_idle_us=0)
    key = world.create()
    world.pump()
    assert list(world.core.evictable()) == [key]
    world.core.evict(key)
    assert not world.core.is_loaded(key)
    assert world.core.status(key) is not None
    world.advance(3_600)
    assert world.output(key) == "woke"
    world.core.evict(key)
    assert world.core.status(key) is None
    assert world.output(key) == "woke"


def test_a_history_that_was_read_too_early_is_not_taken_in() -> None:
    world = World(sleepy, instance_idle_us=0)
    key = world.create()
    world.pump()
    world.core.evict(key)
    early = world.history(key)
    world.take(world.core.pause(key, now_us=world.now))
    assert not world.core.load(key, early)
    assert not world.core.is_loaded(key)
    assert world.core.load(key, world.history(key))


def test_an_instance_that_is_under_way_is_not_evicted() -> None:
    world = World(sleepy)
    key = world.create()
    world.core.evict(key)
    assert world.core.is_loaded(key)


def test_why_says_in_a_sentence_what_an_instance_waits_for() -> None:
    async def program(step: StepApi, params: Any) -> Any:
        await step.sleep("nap", 60_000)
        await step.wait("approval", "approved")

    world = World(program)
    key = world.create()
    assert "queued" in world.core.why(key)[1]
    world.core.note_load_failure(key, "code.load_failed", "the callback raised KeyError")
    code, text = world.core.why(key)
    assert code == "code.load_failed"
    assert text.startswith("the callback raised KeyError; it is tried again by itself")
    status = world.core.status(key)
    assert status is not None
    assert (status.status, status.reason_code) == ("queued", "code.load_failed")
    world.pump()
    assert "sleeps in 'nap' until 2026-01-01 00:01:00" in world.core.why(key)[1]
    world.advance(60)
    assert "event of type 'approved'" in world.core.why(key)[1]
    world.command("pause", key)
    assert world.core.why(key)[0] == "paused"


def test_one_whose_code_cannot_be_loaded_lets_others_go_first() -> None:
    world = World(quick)
    bad = world.create("bad")
    good = world.create("good")
    world.core.note_load_failure(bad, "code.load_failed", "no")
    assert list(world.core.runnable()) == [good, bad]
    world.take(world.core.start(bad, now_us=world.now))
    assert world.core.why(bad)[0] == "running"


def test_rows_of_the_tenant_itself_take_their_place_in_the_order() -> None:
    world = World(quick)
    world.take(world.core.note("code_deployed", b"{}", code_hash="h9", now_us=START))
    key = world.create()
    assert [row.seq for row in world.rows] == [1, 2]
    assert payload(world.rows[1])["trigger"] == "create"
    world.crash()
    assert world.core.exists(key)


def test_instances_of_any_status_have_a_number() -> None:
    world = World(quick, instances_max=3)
    for name in ("a", "b", "c"):
        world.create(name)
    world.pump()
    for _ in range(2):
        with pytest.raises(LimitExceededError, match="instances_max") as caught:
            world.create("d")
        assert caught.value.retry_after > 0
        world.crash()
    with pytest.raises(LimitExceededError):
        world.take(world.core.create(items("a", "e"), strict=False, now_us=world.now))
    assert world.take(world.core.create(items("a"), strict=False, now_us=world.now)) == []
    world.take(world.core.delete(("Job", "a"), now_us=world.now))
    world.create("d")
