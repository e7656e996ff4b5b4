"""Why nothing starts is said in one sentence."""

from __future__ import annotations

from dataclasses import replace

from hyper_scheduler.core import events as e
from hyper_scheduler.core.model import Experiment, Hardware
from hyper_scheduler.core.state import Quota
from hyper_scheduler.core.waiting import why_waiting
from tests.unit.hyper_scheduler.cores import Core, W, experiment, recipe


def why(core: Core) -> str:
    return why_waiting(core.state, core.state.workflows[W])


def waiting(spec: Experiment, slots: int = 2, gpus: int = 0) -> str:
    core = Core()
    core.hello("w1", slots, gpus=gpus)
    core.submit(recipe(spec))
    return why(core)


def test_no_worker_fits() -> None:
    assert waiting(experiment("a", 1)) == ""
    needs = experiment("a", 1, hardware=Hardware(cpus=64))
    assert waiting(needs) == "a: a task needs 64 CPUs, and no worker has more than 4"
    needs = experiment("a", 1, hardware=Hardware(gpus=2))
    assert waiting(needs, gpus=1) == "a: a task needs 2 GPUs, and no worker has more than 1"
    needs = experiment("a", 1, hardware=Hardware(memory_bytes=64 << 30))
    assert waiting(needs) == "a: a task needs 64 GiB of memory, and no worker has more than 8"
    needs = experiment("a", 1, labels={"zone": "x"})
    assert waiting(needs) == "a: none of 1 workers has the labels zone=x"
    gang = replace(experiment("a", 1), gang=5)
    assert waiting(gang) == (
        "a: a gang of 5 needs as many places at once in one zone, and none has more than 2"
    )


def test_no_zone_has_room_for_a_gang() -> None:
    core = Core()
    for name in "xy":
        core.hello(name, 2, labels={"zone": name})
    core.submit(recipe(replace(experiment("a", 1), gang=3)))
    assert why(core) == (
        "a: a gang of 3 needs as many places at once in one zone, and none has more than 2"
    )


def test_nobody_is_there_or_free() -> None:
    core = Core()
    core.submit(recipe(experiment("a", 3)))
    assert why(core).startswith("no worker is connected")
    core.hello("w1", 1)
    assert why(core) == ""  # it gets on
    core.submit(recipe(experiment("b", 3)), name=f"{W}2", request_id="r2")
    text = why_waiting(core.state, core.state.workflows[f"{W}2"])
    assert text == "b: waits for a free slot (1 of 1 busy)"
    core.feed(e.Pause(core.now, "r3", W, True))
    assert why(core) == "paused: `hyper resume w` goes on"


def test_a_quota_is_used_up() -> None:
    core = Core()
    core.state.limits = replace(core.state.limits, other_tenants=Quota(slots=1))
    core.hello("w1", 4)
    core.submit(recipe(experiment("a", 3)), name=f"{W}1", request_id="r1")
    core.submit(recipe(experiment("b", 3)), request_id="r2")
    assert why(core) == "tenant t uses all of its 1 slots"
