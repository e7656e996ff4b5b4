"""The scheduler's core: events in, exact commands out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hyper_scheduler.core import commands as c
from hyper_scheduler.core import events as e
from hyper_scheduler.core.events import Outcome
from hyper_scheduler.core.invariants import check_invariants
from hyper_scheduler.core.model import Attempt, Hardware
from hyper_scheduler.core.state import Limits, Request, RunState, State, TaskState
from tests.unit.hyper_scheduler.cores import Core, W, experiment, recipe, task


@pytest.fixture
def core() -> Iterator[Core]:
    core = Core()
    yield core
    check_invariants(core.state)


def state_of(core: Core, name: str = W) -> RunState:
    return core.state.workflows[name].state


def test_a_submit_is_answered_once_it_is_durable(core: Core) -> None:
    core.hold_commits = True
    core.hello("w1")
    assert core.submit(recipe(experiment("a", 1))) == []
    (commit,) = core.commits
    assert [put.key for atom in commit.atoms for put in atom] == [
        "workflows/t/w/head", "workflows/t/w/recipe", "requests/r1",
    ]  # fmt: skip
    assert len(commit.atoms) == 1  # one transaction
    assert core.feed(e.Committed(core.now, 1)) == [
        c.Reply(Request("r1", "submit", W)),
        core.start("w1", (task(0), 1)),  # not before
    ]


def test_a_repeated_submit_gets_the_first_answer(core: Core) -> None:
    answer = [c.Reply(Request("r1", "submit", W))]
    assert core.submit(recipe(experiment("a", 1))) == answer
    assert core.submit(recipe(experiment("a", 1))) == answer
    assert len(core.state.workflows) == 1
    (refusal,) = core.feed(e.Cancel(core.now, "r1", W))
    assert isinstance(refusal, c.Refuse)
    assert refusal.kind == "invalid"


def test_answers_are_remembered_up_to_a_bound() -> None:
    core = Core(State(9, Limits(gather_s=0.0, requests=2), checked_at=1000.0))
    for number in range(3):
        core.submit(recipe(experiment("a", 1)), f"{W}{number}", request_id=f"r{number}")
    assert list(core.state.requests) == ["r1", "r2"]
    puts = [put for commit in core.commits for atom in commit.atoms for put in atom]
    assert {put.key for put in puts if put.value is None} == {"requests/r0"}


def test_tasks_go_round_the_workers_in_order_of_index(core: Core) -> None:
    core.hello("w1", slots=3)
    core.hello("w2", slots=2)
    assert core.submit(recipe(experiment("a", 9)))[1:] == [
        core.start("w1", (task(0), 1), (task(2), 3), (task(4), 5)),
        core.start("w2", (task(1), 2), (task(3), 4)),
    ]
    assert core.report("w2", task(1), 2) == [
        core.start("w2", (task(5), 6)),
        core.ack("w2"),
    ]


def test_the_workers_limit_holds(core: Core) -> None:
    core.hello("w1", slots=5)
    started = core.submit(recipe(experiment("a", 5, workers=2)))
    assert started[1:] == [core.start("w1", (task(0), 1), (task(1), 2))]
    assert core.report("w1", task(0), 1)[0] == core.start("w1", (task(2), 3))


def test_workflows_share_and_priority_goes_first(core: Core) -> None:
    for name, priority in (("x", 0), ("y", 0), ("z", 1)):
        what = recipe(experiment("a", 3), priority=priority)
        core.submit(what, f"tenants/t/workflows/{name}", name)
    (_, start) = core.hello("w1", slots=7)
    assert isinstance(start, c.Start)
    order = [(which.workflow[-1], which.index) for which, _ in start.tasks]
    assert order == [("z", 0), ("z", 1), ("z", 2), ("x", 0), ("y", 0), ("x", 1), ("y", 1)]


def test_a_stage_waits_until_the_one_before_is_durable(core: Core) -> None:
    core.hello("w1", slots=2)
    core.submit(recipe(experiment("a", 1), experiment("b", 1, "a")))
    core.hold_commits = True
    assert core.report("w1", task(0), 1) == []
    assert core.feed(e.Committed(core.now, core.state.commits)) == [
        core.ack("w1"),
        core.start("w1", (task(0, "b"), 2)),
    ]


def test_an_acknowledgement_waits_for_its_commit(core: Core) -> None:
    core.hello("w1", slots=2)
    core.submit(recipe(experiment("a", 2)))
    core.hold_commits = True
    core.report("w1", task(0), 1, sequence=1)
    first = core.state.commits
    assert core.report("w1", task(1), 2, sequence=2) == []
    assert core.feed(e.Committed(core.now, first)) == [core.ack("w1", 1)]
    assert state_of(core) is RunState.SUCCEEDED
    assert core.state.workflows[W].durable is RunState.RUNNING  # what a reader sees
    assert core.feed(e.Committed(core.now, first + 1)) == [core.ack("w1", 2)]
    assert core.state.workflows[W].durable is RunState.SUCCEEDED


def test_results_are_written_before_the_page_that_names_them(core: Core) -> None:
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 2)))
    core.report("w1", task(0), 1)
    commit = core.commits[-1]
    (object_,) = commit.objects
    assert object_.key == "results/workflows/t/w/a/000000/9-1.jsonl"
    assert b'"i":0' in object_.data
    core.report("w1", task(1), 2, sequence=2)
    (object_,) = core.commits[-1].objects  # small objects are written anew, the old one goes
    assert object_.key == "results/workflows/t/w/a/000000/9-2.jsonl"
    assert object_.data.count(b"\n") == 2
    assert core.commits[-1].garbage == ("results/workflows/t/w/a/000000/9-1.jsonl",)


def test_failures_are_retried_and_then_end_the_workflow(core: Core) -> None:
    core.hello("w1", slots=2)
    what = recipe(experiment("a", 1, retries=1), experiment("b", 1), experiment("c", 1, "a"))
    core.submit(what)
    assert core.report("w1", task(0), 1, Outcome.FAILED, message="boom") == [
        core.start("w1", (task(0), 3)),
        core.ack("w1"),
    ]
    assert core.report("w1", task(0), 3, Outcome.FAILED, message="boom", sequence=2) == [
        core.stop("w1", (task(0, "b"), 2)),
        core.ack("w1", 2),
    ]
    assert state_of(core) is RunState.RUNNING  # until nothing of it runs
    core.report("w1", task(0, "b"), 2, Outcome.STOPPED, sequence=3)
    workflow = core.state.workflows[W]
    assert workflow.state is RunState.FAILED
    assert workflow.message == "experiment a: task 0 failed 2 times: boom"
    states = [run.state for run in workflow.experiments.values()]
    assert states == [RunState.FAILED, RunState.CANCELLED, RunState.CANCELLED]
    assert workflow.experiments["b"].task_state(0) is TaskState.CANCELLED


def test_a_repeated_failure_counts_once(core: Core) -> None:
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 1, retries=1)))
    core.report("w1", task(0), 1, Outcome.FAILED)
    assert core.report("w1", task(0), 1, Outcome.FAILED) == [core.ack("w1")]
    record = core.state.workflows[W].experiments["a"].record(0)
    assert record is not None
    assert record.failures == 1


def test_a_failure_counts_once_also_when_its_worker_dials_again(core: Core) -> None:
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 1, retries=1)))
    core.feed(e.DrainWorker(core.now, "r2", "w1"))
    core.report("w1", task(0), 1, Outcome.FAILED)
    stop = core.hello("w1", slots=1, running=((task(0), Attempt(9, 1)),))[-1]
    assert stop == core.stop("w1", (task(0), 1))
    core.report("w1", task(0), 1, Outcome.FAILED)
    record = core.state.workflows[W].experiments["a"].record(0)
    assert record is not None
    assert record.failures == 1


def test_retry_runs_what_failed_again(core: Core) -> None:
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 2, retries=0)))
    core.report("w1", task(0), 1)
    core.report("w1", task(1), 2, Outcome.FAILED, sequence=2)
    assert state_of(core) is RunState.FAILED
    assert core.feed(e.Retry(core.now, "r2", W)) == [
        c.Reply(Request("r2", "retry", W)),
        core.start("w1", (task(1), 3)),
    ]
    core.report("w1", task(1), 3, sequence=3)
    assert state_of(core) is RunState.SUCCEEDED
    (refusal,) = core.feed(e.Retry(core.now, "r3", W))
    assert isinstance(refusal, c.Refuse)
    assert refusal.kind == "finished"


def test_cancel_stops_what_runs(core: Core) -> None:
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 3)))
    assert core.feed(e.Cancel(core.now, "r2", W, "tired")) == [
        core.stop("w1", (task(0), 1)),
        c.Reply(Request("r2", "cancel", W)),
    ]
    core.report("w1", task(0), 1, Outcome.STOPPED)
    workflow = core.state.workflows[W]
    assert (workflow.state, workflow.message) == (RunState.CANCELLED, "cancelled: tired")
    assert core.feed(e.Cancel(core.now, "r3", W)) == [c.Reply(Request("r3", "cancel", W))]


def test_an_etag_that_is_old_is_refused(core: Core) -> None:
    core.submit(recipe(experiment("a", 1)))
    (refusal,) = core.feed(e.Cancel(core.now, "r2", W, etag="7"))
    assert isinstance(refusal, c.Refuse)
    assert refusal.kind == "conflict"


def test_a_lost_worker_counts_no_failure(core: Core) -> None:
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 1, retries=0)))
    core.hello("w2")
    assert core.later(4.0) == []
    core.beat("w2")
    session = core.sessions["w1"]
    assert core.later(2.5) == [
        c.Lost("w1", session, (task(0),)),
        core.start("w2", (task(0), 2)),
    ]
    record = core.state.workflows[W].experiments["a"].record(0)
    assert record is not None
    assert (record.failures, record.losses) == (0, 1)
    # what the lost one still runs has been superseded
    assert core.hello("w1", running=((task(0), Attempt(9, 1)),)) == [
        core.welcome("w1"),
        core.stop("w1", (task(0), 1)),
    ]
    assert core.report("w1", task(0), 1) == [core.ack("w1")]
    assert state_of(core) is RunState.RUNNING
    core.report("w2", task(0), 2)
    assert state_of(core) is RunState.SUCCEEDED


def test_nobody_is_lost_because_the_scheduler_stood_still(core: Core) -> None:
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 1)))
    core.later(1.0)
    core.now += 60.0  # SIGSTOP, say; heartbeats wait in the inbox behind the tick
    assert core.feed(e.Tick(core.now)) == []
    core.beat("w1")
    assert core.later(5.0) == []
    (lost, *_) = core.later(1.5)
    assert lost == c.Lost("w1", 1, (task(0),))


def test_a_late_success_of_the_newest_attempt_counts(core: Core) -> None:
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 1)))
    core.later(7.0)
    core.hello("w1", slots=0)
    core.report("w1", task(0), 1)
    assert state_of(core) is RunState.SUCCEEDED


def test_a_worker_that_comes_back_goes_on(core: Core) -> None:
    core.hello("w1", slots=2)
    core.submit(recipe(experiment("a", 2)))
    core.feed(e.Goodbye(core.now, "w1", 1))
    running = ((task(0), Attempt(9, 1)), (task(1), Attempt(9, 2)))
    assert core.hello("w1", slots=2, running=running) == [core.welcome("w1")]
    core.later(5.0)
    assert core.state.workflows[W].experiments["a"].lost == 0


def test_a_start_lost_with_the_stream_runs_again(core: Core) -> None:
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 1)))
    assert core.hello("w1", slots=1) == [core.welcome("w1")]  # nothing runs there
    core.later(5.0)
    core.beat("w1")
    assert core.later(1.5) == [core.start("w1", (task(0), 2))]


def test_a_preempted_worker_gets_nothing_new(core: Core) -> None:
    core.hello("w1", slots=2)
    core.submit(recipe(experiment("a", 1, retries=0)))
    assert core.report("w1", task(0), 1, Outcome.PREEMPTED) == [core.ack("w1")]
    assert core.hello("w2")[1:] == [core.start("w2", (task(0), 2))]


def test_a_drained_worker_gets_nothing_new(core: Core) -> None:
    core.hello("w1", slots=2)
    assert core.feed(e.DrainWorker(core.now, "r2", "w1")) == [
        c.Drain("w1", 1, "asked to drain"),
        c.Reply(Request("r2", "drain", "w1")),
    ]
    assert core.submit(recipe(experiment("a", 1))) == [c.Reply(Request("r1", "submit", W))]
    assert core.hello("w1", slots=2) == [
        core.welcome("w1"),
        c.Drain("w1", 2, "asked to drain"),
    ]


def test_stale_sessions_are_ignored(core: Core) -> None:
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 1)))
    core.hello("w1", slots=1, running=((task(0), Attempt(9, 1)),))
    one = e.Report(task(0), Attempt(9, 1), Outcome.SUCCEEDED)
    assert core.feed(e.Reports(core.now, "w1", 1, 1, (one,))) == []
    assert core.feed(e.Goodbye(core.now, "w1", 1)) == []
    assert core.state.workers["w1"].session == 2


def test_attempts_that_nobody_gave_out_are_refused(core: Core) -> None:
    core.hello("w1", slots=0)
    core.submit(recipe(experiment("a", 1)))
    for epoch, number in ((9, 5), (10, 1)):
        assert core.report("w1", task(0), number, epoch=epoch) == [core.ack("w1")]
    assert core.report("w1", task(7), 1) == [core.ack("w1")]
    assert core.report("w1", task(0, "nope"), 1) == [core.ack("w1")]
    assert state_of(core) is RunState.RUNNING
    # an earlier scheduler may have given this one out and died before writing it down
    core.report("w1", task(0), 3, epoch=8)
    assert state_of(core) is RunState.SUCCEEDED


def test_the_deadline_ends_a_workflow(core: Core) -> None:
    core.hello("w1", slots=1)
    core.submit(recipe(experiment("a", 1), deadline_s=3.0))
    assert core.later(2.0) == []
    assert core.later(1.5) == [core.stop("w1", (task(0), 1))]
    core.report("w1", task(0), 1, Outcome.STOPPED)
    assert core.state.workflows[W].message == "the deadline of 3 s has passed"
    assert state_of(core) is RunState.FAILED


def test_hardware_and_labels_decide_who_can(core: Core) -> None:
    core.hello("w1", slots=4)
    core.hello("w2", slots=4, labels={"zone": "b"}, gpus=1)
    core.submit(
        recipe(
            experiment("a", 1, hardware=Hardware(gpus=1)),
            experiment("b", 1, labels={"zone": "b"}),
            experiment("c", 3, hardware=Hardware(cpus=2.0)),
            experiment("d", 1, hardware=Hardware(memory_bytes=9 << 30)),
        )
    )
    held = {
        name: sorted((which.experiment, which.index) for which in worker.running)
        for name, worker in core.state.workers.items()
    }
    assert {("a", 0), ("b", 0)} <= set(held["w2"])
    assert len(held["w1"]) + len(held["w2"]) == 5  # d fits nowhere
    assert max(worker.cpus_used for worker in core.state.workers.values()) <= 4.0


def test_dispatch_pauses_while_results_cannot_be_written(core: Core) -> None:
    core.hello("w1", slots=2)
    core.submit(recipe(experiment("a", 10)))
    core.state.limits = type(core.state.limits)(lease_s=6.0, gather_s=0.0, results=0)
    core.hold_commits = True
    assert core.report("w1", task(0), 1) == []  # its result waits: nothing new
    assert core.report("w1", task(1), 2, sequence=2) == []
    core.hold_commits = False
    commands = core.feed(e.Committed(core.now, core.state.commits))
    assert core.start("w1", (task(2), 3), (task(3), 4)) in commands


def test_completions_are_gathered() -> None:
    core = Core()
    core.state.limits = type(core.state.limits)(gather_s=0.05)
    core.hello("w1", slots=100)
    core.submit(recipe(experiment("a", 100)))
    core.later(0.06)
    before = len(core.commits)
    for index in range(50):
        assert core.report("w1", task(index), index + 1, sequence=index + 1) == []
    assert core.later(0.06) == []  # few, and nobody waits
    assert core.later(0.25) == [core.ack("w1", 50)]
    assert len(core.commits) == before + 1
