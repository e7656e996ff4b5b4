"""What surrounds the core, without sockets: conversion, pages of lists, links, transactions."""

from __future__ import annotations

import json
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper.errors import HyperError, InvalidArgumentError, ResourceExhaustedError
from hyper_scheduler import convert
from hyper_scheduler.core.commands import Put, Start
from hyper_scheduler.core.events import Outcome, Tick
from hyper_scheduler.core.model import Attempt
from hyper_scheduler.core.pages import PAGE_TASKS, Page, Record, Status
from hyper_scheduler.core.state import ExperimentRun, RunState, TaskState
from hyper_scheduler.core.step import step
from hyper_scheduler.links import Links, Way
from hyper_scheduler.paging import make_token, page_size, read_index, read_token
from hyper_scheduler.store import MAX_BYTES, MAX_OPERATIONS, transactions
from hyper_scheduler.task_tokens import TaskTokens
from hyper_scheduler.workflow_servicer import WorkflowServicer, select
from hyper_servicekit.tokens import Verifier
from hyperapi.scheduler.v1 import workflow_pb2, workflow_service_pb2
from hyperapi.worker.v1 import agent_service_pb2 as agent
from tests.unit.hyper_scheduler.cores import Core, W, experiment, recipe, task


def status(outcome: int, **facts: object) -> agent.TaskStatus:
    key = agent.TaskKey(
        task=f"{W}/experiments/a/tasks/3", attempt=workflow_pb2.Attempt(epoch=5, number=6)
    )
    return agent.TaskStatus(key=key, outcome=outcome, **facts)


def test_reports_are_read() -> None:
    report = convert.report(status(agent.OUTCOME_SUCCEEDED, result_json='{"a": 1}'))
    assert (report.task, report.attempt) == (task(3), Attempt(5, 6))
    assert (report.outcome, report.result_json) == (Outcome.SUCCEEDED, '{"a": 1}')
    failed = convert.report(status(agent.OUTCOME_FAILED, exit_code=-9))
    assert (failed.outcome, failed.message) == (Outcome.FAILED, "exit status -9")
    for bad, message in (("{", "is not JSON"), ('"' + "x" * 70_000 + '"', "longer than 65536")):
        report = convert.report(status(agent.OUTCOME_SUCCEEDED, result_json=bad))
        assert (report.outcome, report.result_json) == (Outcome.FAILED, "")
        assert message in report.message
    with pytest.raises(InvalidArgumentError):
        convert.report(status(agent.OUTCOME_UNSPECIFIED))


@pytest.mark.parametrize(
    "name",
    ["", "x", f"{W}/experiments/a/tasks/-1", f"{W}/experiments/a/tasks/01",
     f"{W}/experiments/../tasks/1", f"{W}/experiments/a/tasks/1/x",
     "tenants/../workflows/w/experiments/a/tasks/1", f"{W}/experiments/a/tasks/{'9' * 30}"],
)  # fmt: skip
def test_names_that_lead_astray_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        convert.task_id(name)


def test_names_are_read() -> None:
    assert convert.task_id(task(3).name) == task(3)
    assert convert.split_experiment(f"{W}/experiments/a") == (W, "a")
    assert convert.tenant("tenants/t") == "t"
    assert convert.worker_name("workers/w1") == "w1"
    request_id = uuid.uuid4()
    assert convert.request_id(str(request_id).upper(), "lab") == f"lab:{request_id}"
    name = convert.new_workflow_name("align", "t:r1")
    assert name == convert.new_workflow_name("align", "t:r1")
    assert name != convert.new_workflow_name("align", "t:r2")
    assert convert.workflow_name(name) == name
    for bad in ("t", "tenants/", "tenants/a/b"):
        with pytest.raises(InvalidArgumentError):
            convert.tenant(bad)


def test_workers_may_not_offer_what_nobody_has() -> None:
    hello = agent.Hello(worker="w1", slots=2, labels={"b": "2", "a": "1"})
    name, capacity = convert.hello(hello, 10)
    assert (name, capacity.slots, capacity.labels) == ("w1", 2, (("a", "1"), ("b", "2")))
    for bad in (
        agent.Hello(worker="w1", slots=11),
        agent.Hello(worker="../w1", slots=1),
        agent.Hello(worker="w1", slots=-1),
        agent.Hello(worker="w1", labels={str(n): "" for n in range(65)}),
    ):
        with pytest.raises(InvalidArgumentError):
            convert.hello(bad, 10)


def test_tokens_are_opaque_and_checked() -> None:
    assert read_token(make_token("a/b")) == "a/b"
    assert (read_index(make_token("12")), read_index("")) == (12, 0)
    for bad in ("%%%", make_token("-1"), make_token("x"), "a"):
        with pytest.raises(InvalidArgumentError):
            read_index(bad)
    assert (page_size(0, 1000), page_size(5, 1000), page_size(5000, 1000)) == (100, 5, 1000)
    with pytest.raises(InvalidArgumentError):
        page_size(-1, 10)


def test_lists_of_tasks_skip_what_was_never_touched() -> None:
    run = ExperimentRun.fresh(experiment("a", 10_000_000))
    assert select(run, 0, 3, None) == ([0, 1, 2], 3)
    assert select(run, 9_999_998, 5, TaskState.PENDING) == ([9_999_998, 9_999_999], 10_000_000)
    run.page(150_000).set_done(150_000, "")
    found, after = select(run, 0, 10, TaskState.SUCCEEDED)
    assert found == [150_000]
    assert after > 150_000
    assert select(run, 2 * PAGE_TASKS, 10, TaskState.FAILED)[0] == []


async def test_results_come_in_pages_that_fit_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ExperimentRun.fresh(experiment("a", 100))
    for index in range(100):
        run.page(index).set_done(index, "")
    line = {"attempt": [1, 1], "worker": "w", "failures": 0, "losses": 0, "start": 0, "end": 1}
    lines = {
        index: {**line, "result": json.dumps("x" * 60_000 + str(index))} for index in range(100)
    }

    async def experiment_run(*_: object) -> ExperimentRun:
        return run

    async def some_lines(_w: str, _r: object, indices: set[int]) -> dict[int, dict[str, Any]]:
        return {index: lines[index] for index in indices}

    settings_ = SimpleNamespace(max_page_size=1000)
    servicer = WorkflowServicer(settings_, None, None, None)  # type: ignore[arg-type]
    monkeypatch.setattr(servicer, "_experiment", experiment_run)
    monkeypatch.setattr(servicer, "_lines", some_lines)
    request = workflow_service_pb2.ListTasksRequest(
        parent="tenants/t/workflows/w/experiments/a", page_size=500, results=True
    )
    found = []
    while True:
        response = await servicer.ListTasks(request, None)
        assert 0 < response.ByteSize() < 4 << 20
        found += [json.loads(task.result_json).lstrip("x") for task in response.tasks]
        if not response.next_page_token:
            break
        request.page_token = response.next_page_token
    assert found == [str(index) for index in range(100)]


def test_one_call_finds_the_failed_task_of_ten_million() -> None:
    run = ExperimentRun.fresh(experiment("a", 10_000_000))
    full = Page(done=bytearray(b"\xff" * (PAGE_TASKS // 8)), done_count=PAGE_TASKS)
    run.pages = dict.fromkeys(range(run.total // PAGE_TASKS), full)
    last = run.total - 1
    run.page(last).records[last] = Record(Status.FAILED)
    assert select(run, 0, 100, TaskState.FAILED) == ([last], run.total)
    assert select(run, 0, 1, TaskState.PENDING)[0] == [run.total // PAGE_TASKS * PAGE_TASKS]
    assert select(run, 0, 3, TaskState.SUCCEEDED) == ([0, 1, 2], 3)


@settings(max_examples=60)
@given(
    st.dictionaries(st.integers(0, 9_999), st.sampled_from([None, *Status]), max_size=30),
    st.sampled_from([None, *TaskState]),
    st.sampled_from([RunState.RUNNING, RunState.FAILED]),
    st.integers(1, 20),
)
def test_pages_of_a_list_are_the_list(
    tasks: dict[int, Status | None], wanted: TaskState | None, state: RunState, size: int
) -> None:
    run = ExperimentRun.fresh(experiment("a", 10_000))
    run.state = state
    for index, status in tasks.items():
        if status is None:
            run.page(index).set_done(index, "")
        else:
            run.page(index).records[index] = Record(status)
    every = [i for i in range(run.total) if wanted is None or run.task_state(i) is wanted]
    found: list[int] = []
    after = 0
    while after < run.total and len(found) < 200:
        part, after = select(run, after, size, wanted)
        found += part
    assert found == every[: len(found)]
    assert len(found) >= min(len(every), 200)


def way(most: int = 10) -> Way:
    return Way(most, lambda: 0.0, lambda: None)


def test_no_more_is_given_out_than_is_answered() -> None:
    now, ticks = [0.0], [0]

    def more() -> None:
        ticks[0] += 1

    open_way = Way(4, lambda: now[0], more)
    for session in range(4):
        open_way.given(session)
    assert open_way.room() == 0
    open_way.given(3)  # again, before an answer
    open_way.heard(0)
    assert (open_way.room(), ticks[0]) == (1, 0)
    open_way.heard(1)
    assert (open_way.room(), ticks[0]) == (2, 1)
    open_way.heard(2)
    assert ticks[0] == 1
    now[0] = 1.1
    assert open_way.room() == 4  # a silent one does not count for ever


def test_the_core_gives_out_what_there_is_room_for() -> None:
    core = Core()
    for number in range(5):
        core.hello(f"w{number}")
    core.state.room = 0
    core.submit(recipe(experiment("a", 5)))
    for room, workers in ((2, ["w0", "w1"]), (0, []), (10, ["w2", "w3", "w4"])):
        core.state.room = room
        given = step(core.state, Tick(core.now))
        assert [command.worker for command in given if isinstance(command, Start)] == workers


def test_a_spec_goes_once_a_stream() -> None:
    core = Core()
    core.submit(recipe(experiment("a", 5)))
    links = Links(100, TaskTokens({}, 60), way())
    link = links.open("w1")
    sent: list[agent.ConnectResponse] = []
    link.send = sent.append  # type: ignore[method-assign]  # looks at what would be queued
    link.send_tasks(core.state, [(task(0), Attempt(9, 1)), (task(1), Attempt(9, 2))], 0.0)
    link.send_tasks(core.state, [(task(2), Attempt(9, 3))], 0.0)
    assert [len(message.tasks.specs) for message in sent] == [1, 0]
    groups = [message.tasks.groups[0] for message in sent]
    assert [list(group.numbers) for group in groups] == [[1, 2], [3]]
    assert [json.loads(text) for text in groups[0].parameters_json] == [{"i": 0}, {"i": 1}]
    assert groups[0].epoch == 9
    assert groups[1].experiment == sent[0].tasks.specs[0].experiment


def test_a_spec_brings_its_tenants_token_and_newer_ones_later() -> None:
    core, now = Core(), [1000.0]
    core.submit(recipe(experiment("a", 5)))
    keys = {"k1": "first key of the cluster", "k2": "second key of the cluster"}
    link = Links(100, TaskTokens(keys, 700, lambda: now[0]), way()).open("w1")
    sent: list[agent.ConnectResponse] = []
    link.send = sent.append  # type: ignore[method-assign]  # looks at what would be queued
    for number, seconds in enumerate((0, 99, 2, 1)):
        now[0] += seconds
        link.send_tasks(core.state, [(task(number), Attempt(9, number))], 0.0)
    tokens = [spec.token for message in sent for spec in message.tasks.specs]
    assert [len(message.tasks.specs) for message in sent] == [1, 0, 1, 0]
    read = Verifier({"k1": keys["k1"]}).read
    claims = [read(token, 1000.0) for token in tokens]
    assert [(each.tenant, each.expires_s) for each in claims] == [("t", 1700), ("t", 1801)]
    assert not claims[0].may_use("other")


async def test_a_worker_that_does_not_read_is_cut_off() -> None:
    links = Links(3, TaskTokens({}, 60), way())
    link = links.open("w1")
    for sequence in range(5):
        link.send(agent.ConnectResponse(ack=agent.StatusAck(sequence=sequence)))
    with pytest.raises(ResourceExhaustedError):
        async for _ in link.messages():
            pytest.fail("what was queued is void")


async def test_a_new_stream_ends_the_older_one() -> None:
    links = Links(3, TaskTokens({}, 60), way())
    older = links.open("w1")
    newer = links.open("w1")
    assert [message async for message in older.messages()] == []
    assert links.get("w1", newer.session) is newer
    assert links.get("w1", older.session) is None
    links.forget(older)
    assert len(links) == 1
    links.close_all(HyperError("over"))
    with pytest.raises(HyperError, match="over"):
        async for _ in newer.messages():
            pytest.fail("nothing was sent")


def test_transactions_keep_atoms_whole_and_in_order() -> None:
    atoms = [tuple(Put(f"{n}/{m}", b"x") for m in range(3)) for n in range(80)]
    batches = list(transactions(atoms))
    assert [put for batch in batches for put in batch] == [put for atom in atoms for put in atom]
    assert all(len(batch) <= MAX_OPERATIONS and len(batch) % 3 == 0 for batch in batches)
    large = [(Put(str(n), b"x" * (MAX_BYTES // 2)),) for n in range(4)]
    assert [len(batch) for batch in transactions(large)] == [1, 1, 1, 1]
    assert list(transactions([])) == []
