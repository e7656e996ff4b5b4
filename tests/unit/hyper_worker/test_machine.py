"""The life of attempts, as events in and commands out."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper_worker.core.backoff import Backoff
from hyper_worker.core.machine import RETURN_S, Machine, describe_exit
from hyper_worker.core.model import (
    Acknowledged,
    Assigned,
    Command,
    Ended,
    EndedAll,
    Event,
    Exit,
    Job,
    Key,
    Kill,
    Launch,
    Leaving,
    Outcome,
    Returned,
    Status,
    StopAsked,
    Terminate,
    Ticked,
)
from hyper_worker.core.reports import BATCH_BYTES_MAX, BATCH_MAX, Reports


def key(task: int, number: int = 1) -> Key:
    return Key(f"task-{task}", 7, number)


def job(task: int, number: int = 1, timeout_s: float | None = None, grace_s: float = 5.0) -> Job:
    return Job(key(task, number), command="true", timeout_s=timeout_s, grace_s=grace_s)


def check_invariants(machine: Machine) -> None:
    assert machine.busy <= machine.slots
    assert len(set(machine.live)) == len(machine.live)
    waiting = len(machine.live) > len(machine.running)
    assert not waiting or machine.busy == machine.slots


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine(2)
    yield made
    check_invariants(made)


def outcomes(machine: Machine) -> list[tuple[str, str, str]]:
    """All reports: (task, outcome, message)."""
    found = []
    while (batch := machine.reports.next_batch()) is not None:
        found += [(s.key.task, str(s.outcome), s.exit.message) for s in batch[1]]
    return found


def test_slots_are_filled_in_order(machine: Machine) -> None:
    jobs = tuple(job(i) for i in range(3))
    assert machine.handle(Assigned(jobs), 0.0) == [Launch((jobs[0],)), Launch((jobs[1],))]
    assert machine.running == (key(0), key(1))
    assert machine.handle(Ended(key(0), Exit()), 1.0) == [Launch((jobs[2],))]
    assert outcomes(machine) == [
        ("task-1", "RUNNING", ""),
        ("task-2", "RUNNING", ""),
        ("task-0", "SUCCEEDED", ""),
    ]


def test_a_repeated_batch_changes_nothing(machine: Machine) -> None:
    batch = Assigned((job(0), job(1), job(2)))
    machine.handle(batch, 0.0)
    assert machine.handle(batch, 0.0) == []
    machine.handle(Ended(key(0), Exit()), 1.0)
    assert machine.handle(batch, 2.0) == []


def test_a_newer_attempt_replaces_an_older_one(machine: Machine) -> None:
    machine.handle(Assigned((job(0, 1),)), 0.0)
    assert machine.handle(Assigned((job(0, 2),)), 1.0) == [
        Terminate(key(0, 1)),
        Launch((job(0, 2),)),
    ]
    assert machine.handle(Assigned((job(0, 1),)), 2.0) == []


def test_stop_terminates_then_kills(machine: Machine) -> None:
    machine.handle(Assigned((job(0),)), 0.0)
    assert machine.handle(StopAsked((key(0),)), 1.0) == [Terminate(key(0))]
    assert machine.handle(StopAsked((key(0),)), 2.0) == []
    assert machine.next_deadline() == 6.0
    assert machine.handle(Ticked(), 5.9) == []
    assert machine.handle(Ticked(), 6.0) == [Kill(key(0))]
    assert machine.handle(Ticked(), 7.0) == []
    assert machine.next_deadline() is None
    machine.handle(Ended(key(0), Exit(exit_code=-9)), 7.1)
    assert outcomes(machine)[-1] == ("task-0", "STOPPED", "stopped on request")


def test_stop_of_what_does_not_run_is_answered_once(machine: Machine) -> None:
    machine.handle(Assigned((job(0), job(1), job(2))), 0.0)
    assert machine.handle(StopAsked((key(2), key(9))), 1.0) == []
    machine.handle(StopAsked((key(2), key(9))), 2.0)
    assert outcomes(machine)[2:] == [
        ("task-2", "STOPPED", "stopped before it started"),
        ("task-9", "STOPPED", "it does not run here"),
    ]


def test_a_timeout_is_a_failure(machine: Machine) -> None:
    machine.handle(Assigned((job(0, timeout_s=10.0),)), 0.0)
    assert machine.next_deadline() == 10.0
    assert machine.handle(Ticked(), 10.0) == [Terminate(key(0))]
    machine.handle(Ended(key(0), Exit(exit_code=0)), 11.0)
    assert outcomes(machine)[-1] == ("task-0", "FAILED", "ran into its timeout of 10 s")


@pytest.mark.parametrize(
    ("exit_", "outcome", "message"),
    [
        (Exit(), "SUCCEEDED", ""),
        (Exit(exit_code=3), "FAILED", "exited with status 3"),
        (Exit(exit_code=-11), "FAILED", "killed by signal 11"),
        (Exit(exit_code=1, message="ValueError: no"), "FAILED", "ValueError: no"),
        (Exit(message="cannot start"), "FAILED", "cannot start"),
    ],
)
def test_how_an_end_is_reported(machine: Machine, exit_: Exit, outcome: str, message: str) -> None:
    machine.handle(Assigned((job(0),)), 0.0)
    machine.handle(Ended(key(0), exit_), 1.0)
    assert outcomes(machine)[-1] == ("task-0", outcome, message)


def test_leaving_preempts_all(machine: Machine) -> None:
    machine.handle(Assigned((job(0), job(1, grace_s=60.0), job(2))), 0.0)
    assert machine.handle(Leaving(3.0), 1.0) == [Terminate(key(0)), Terminate(key(1))]
    assert machine.next_deadline() == 4.0
    machine.handle(Ended(key(0), Exit(result_json="1", returned=True)), 2.0)
    assert machine.handle(Ticked(), 4.0) == [Kill(key(1))]
    machine.handle(Ended(key(1), Exit(exit_code=-9)), 4.1)
    machine.handle(Assigned((job(5),)), 4.2)
    assert machine.idle
    assert outcomes(machine) == [
        ("task-2", "PREEMPTED", "preempted before it started"),
        ("task-0", "SUCCEEDED", ""),
        ("task-1", "PREEMPTED", "the machine goes away"),
        ("task-5", "PREEMPTED", "the worker is leaving"),
    ]


def test_an_attempt_that_was_stopped_before_leaving_gets_no_longer(machine: Machine) -> None:
    machine.handle(Assigned((job(0, grace_s=60.0),)), 0.0)
    machine.handle(StopAsked((key(0),)), 1.0)
    assert machine.handle(Leaving(2.0), 3.0) == []
    assert machine.next_deadline() == 5.0


def test_what_hello_says_covers_reports_on_their_way(machine: Machine) -> None:
    machine.handle(Assigned((job(0), job(1), job(2))), 0.0)
    machine.handle(Ended(key(0), Exit()), 1.0)
    assert set(machine.answered_for) == {key(0), key(1), key(2)}
    sequence, _ = machine.reports.next_batch() or (0, ())
    machine.handle(Acknowledged(sequence), 2.0)
    assert set(machine.answered_for) == {key(1), key(2)}


EVENTS = st.lists(
    st.one_of(
        st.builds(
            lambda task, number: Assigned((job(task, number, timeout_s=5.0),)),
            st.integers(0, 5),
            st.integers(1, 3),
        ),
        st.builds(
            lambda task, number: StopAsked((key(task, number),)),
            st.integers(0, 5),
            st.integers(1, 3),
        ),
        st.builds(lambda grace: Leaving(grace), st.floats(0, 3)),
        st.just(Ticked()),
        st.integers(0, 10),  # the n-th running attempt ends
    ),
    max_size=60,
)


@given(EVENTS)
def test_every_attempt_ends_and_is_reported_once(events: list[Event | int]) -> None:
    machine = Machine(2)
    launched: list[Key] = []
    reports: list[Status] = []
    now = 0.0

    def take(commands: list[Command]) -> None:
        launched.extend(j.key for c in commands if isinstance(c, Launch) for j in c.jobs)
        check_invariants(machine)
        while (batch := machine.reports.next_batch()) is not None:
            reports.extend(batch[1])

    for event in events:
        now += 0.5
        if isinstance(event, int):
            if not machine.running:
                continue
            event = Ended(machine.running[event % len(machine.running)], Exit())
        take(machine.handle(event, now))
    while not machine.idle:  # liveness: whatever refuses to end is killed in time
        deadline = machine.next_deadline()
        if deadline is not None:
            now = max(now, deadline)
            take(machine.handle(Ticked(), now))
        for running in machine.running:
            take(machine.handle(Ended(running, Exit(exit_code=-9)), now))
    assert len(set(launched)) == len(launched)
    ended = [s.key for s in reports if s.outcome is not Outcome.RUNNING]
    assert len(set(ended)) == len(ended)
    assert set(launched) <= set(ended)


def test_reports_are_repeated_after_a_reconnect() -> None:
    reports = Reports()
    for task in range(3):
        reports.add(Status(key(task), Outcome.SUCCEEDED))
        reports.next_batch()
    reports.acknowledged(1)
    reports.reconnected()
    reports.add(Status(key(9), Outcome.SUCCEEDED))
    batches = []
    while (batch := reports.next_batch()) is not None:
        batches.append((batch[0], [s.key for s in batch[1]]))
    assert batches == [(2, [key(1)]), (3, [key(2)]), (4, [key(9)])]
    reports.acknowledged(3)
    assert reports.waiting == 1
    reports.acknowledged(99)
    assert reports.empty


def test_an_acknowledgement_during_a_resend() -> None:
    reports = Reports()
    for task in range(3):
        reports.add(Status(key(task), Outcome.SUCCEEDED))
        reports.next_batch()
    reports.reconnected()
    assert (reports.next_batch() or (0,))[0] == 1
    reports.acknowledged(2)
    assert (reports.next_batch() or (0,))[0] == 3
    assert reports.next_batch() is None


def test_batches_are_bounded_in_number_and_size() -> None:
    reports = Reports()
    for task in range(BATCH_MAX + 1):
        reports.add(Status(key(task), Outcome.SUCCEEDED))
    assert [len(batch[1]) for batch in iter(reports.next_batch, None)] == [BATCH_MAX, 1]
    for task in range(64):
        reports.add(Status(key(task), Outcome.SUCCEEDED, Exit(result_json="x" * 65_536)))
    sizes = [
        sum(len(s.exit.result_json) for s in batch[1]) for batch in iter(reports.next_batch, None)
    ]
    assert max(sizes) < BATCH_BYTES_MAX + 65_536
    assert sum(sizes) == 64 * 65_536


def test_backoff_grows_within_bounds() -> None:
    backoff = Backoff(first_s=0.1, max_s=5.0)
    source = random.Random(1)
    for failures in (1, 2, 5, 10, 10_000):
        full_s = min(0.1 * 2 ** min(failures - 1, 60), 5.0)
        delay_s = backoff.delay_s(failures, source.random())
        assert full_s / 4 <= delay_s <= full_s


def test_describe_exit() -> None:
    assert describe_exit(2) == "exited with status 2"
    assert describe_exit(-15) == "killed by signal 15"


def test_a_worker_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Machine(0)


def call(task: int, timeout_s: float | None = None) -> Job:
    return Job(key(task), function="m:f", timeout_s=timeout_s)


def learned(machine: Machine, wall_s: float, now: float = 0.0) -> None:
    """The machine has seen that a call takes so long."""
    machine.handle(Assigned((call(1000),)), now)
    machine.handle(EndedAll(((key(1000), Exit(returned=True, wall_s=wall_s)),)), now)
    outcomes(machine)


def test_short_functions_share_a_slot(machine: Machine) -> None:
    learned(machine, 0.001)
    jobs = tuple(call(i) for i in range(6))
    first, second = machine.handle(Assigned((*jobs, job(9))), 0.0)
    assert first == Launch(jobs[:4])  # half of what waits, for the other slot is free
    assert second == Launch(jobs[4:])
    ends = tuple((each.key, Exit(returned=True)) for each in jobs[4:])
    assert machine.handle(EndedAll(ends[:1]), 0.1) == []
    assert machine.handle(EndedAll(ends[1:]), 0.1) == [Launch((job(9),))]


def test_long_functions_and_those_with_a_timeout_do_not_share(machine: Machine) -> None:
    learned(machine, 5.0)
    (launch, _) = machine.handle(Assigned(tuple(call(i) for i in range(3))), 0.0)
    assert launch == Launch((call(0),))
    other = Machine(1)
    learned(other, 0.001)
    assert other.handle(Assigned((call(0, 9.0), call(1, 9.0))), 0.0) == [Launch((call(0, 9.0),))]


def test_what_waits_behind_a_long_call_goes_elsewhere(machine: Machine) -> None:
    learned(machine, 0.001)
    machine.handle(Assigned((job(8),)), 0.0)
    (launch,) = machine.handle(Assigned(tuple(call(i) for i in range(4))), 0.0)
    assert len(launch.jobs) == 4  # type: ignore[union-attr]
    assert machine.handle(Returned((key(1), key(2), key(3))), 0.2) == []
    (launch,) = machine.handle(Ended(key(8), Exit()), 0.3)  # in order, in the slot that is free
    assert launch == Launch((call(1), call(2), call(3)))
    machine.handle(Returned((key(2), key(3))), 0.5)
    assert machine.next_deadline() == pytest.approx(0.3 + RETURN_S + 0.01)
    assert outcomes(machine)[-1][:2] == ("task-8", "SUCCEEDED")
    assert machine.handle(Ticked(), 0.4 + RETURN_S) == []
    assert [each[:2] for each in outcomes(machine)] == [
        ("task-2", "RETURNED"),
        ("task-3", "RETURNED"),
    ]
    assert set(machine.running) == {key(0), key(1)}


def test_a_returned_call_that_was_to_stop_has_ended(machine: Machine) -> None:
    learned(machine, 0.001)
    machine.handle(Assigned((job(8), call(0), call(1))), 0.0)
    assert machine.handle(StopAsked((key(1),)), 0.1) == [Terminate(key(1))]
    machine.handle(Returned((key(1),)), 0.1)
    assert outcomes(machine)[-1][:2] == ("task-1", "STOPPED")
    assert machine.running == (key(8), key(0))
