"""GPUs: one attempt each, whatever the order of taking and giving back."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyper_worker.core.model import Around, Job, Key, Needs
from hyper_worker.gpus import Gpu, GpuPool, Nvml
from hyper_worker.node import Node
from hyper_worker.runner.environment import command_environment
from hyper_worker.runner.place import Place


@dataclass(frozen=True)
class FakeDevices:
    count: int

    def look(self) -> list[Gpu]:
        return [Gpu(i, "Fake 9000", 0.5, 1 << 30, 8 << 30) for i in range(self.count)]


def test_three_hundred_are_never_given_out_twice() -> None:
    pool, chance = GpuPool(FakeDevices(300)), random.Random(7)
    held: dict[str, tuple[int, ...]] = {}
    for turn in range(3_000):
        task = f"task-{turn}"
        if held and chance.random() < 0.5:
            pool.give_back(held.pop(chance.choice(list(held))))
        else:
            wanted, free = chance.choice((1, 1, 2, 4, 8)), 300 - sum(map(len, held.values()))
            if wanted > free:
                with pytest.raises(ValueError, match=f"asks for {wanted} GPUs, and {free} of 300"):
                    pool.take(wanted, task)
                continue
            held[task] = pool.take(wanted, task)
            assert len(held[task]) == wanted
        everything = [index for indices in held.values() for index in indices]
        assert len(everything) == len(set(everything))
        assert set(everything) <= set(range(300))
        assert pool.holders == {i: task for task, indices in held.items() for i in indices}


def test_a_failed_attempt_gives_back() -> None:
    pool = GpuPool(FakeDevices(2))
    with pytest.raises(OSError, match="broken"), pool.holding(2, "a"):
        raise OSError("broken")
    with pool.holding(2, "b") as indices:
        assert indices == (0, 1)


def test_a_program_sees_its_own_alone(tmp_path: Path) -> None:
    folder = tmp_path
    job = Job(Key("t", 1, 1), command="x", around=Around(needs=Needs(gpus=2)))
    place = Place(folder, folder, gpus=(3, 5))
    environment = command_environment("", job, place)
    assert environment["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    usage = Node(folder, pool := GpuPool(FakeDevices(4))).look([])
    assert [gpu.task for gpu in usage.gpus] == [""] * 4
    pool.take(1, "mine")
    assert [gpu.task for gpu in Node(folder, pool).look([]).gpus] == ["mine", "", "", ""]
    assert usage.memory_total_bytes > usage.memory_bytes > 0


def test_a_machine_without_gpus_has_none() -> None:
    pool = GpuPool(Nvml())
    if pool.count:
        pytest.skip("this machine has NVIDIA GPUs")
    with pytest.raises(ValueError, match="0 of 0 are free"):
        pool.take(1, "a")
