"""Every component, every fault, while a demo, a gang and a storage load run.

Opt-in, for it takes half an hour: `make fault-matrix`, which also renders docs/faults.md;
`make fault-matrix REPEAT=20` does the six hardest twenty times.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyper import align, align_source
from hyper.client import Client
from hyper.cluster.programs import find_prometheus
from hyper.errors import HyperError
from hyper.images import write_png
from hyper.sample_data import synthetic_stack
from hyper.workflows import Workflow
from tests.faults.history import check, longest_stall_s
from tests.faults.world import FAULTS, LEADER_TTL_S, LEASE_S, World, cannot_cut, run_world

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("HYPER_TEST_MATRIX") != "1", reason="half an hour: `make fault-matrix`"
    ),
    pytest.mark.skipif(find_prometheus() is None, reason="needs Prometheus (Debian: prometheus)"),
]

REPEAT = int(os.environ.get("FAULT_REPEAT") or "0")
RESULTS = os.environ.get("HYPER_FAULTS_RESULTS", "")  # a file that gets a JSON line a cell
COMPONENTS = ("scheduler", "gateway", "worker", "etcd", "s3", "prometheus")
# A part each, by how long docs/faults.md says they are felt, and the leader's and a zombie's end.
HARDEST = [
    ("scheduler", "kill"), ("scheduler", "cut"), ("gateway", "cut"), ("worker", "stop"),
    ("etcd", "kill"), ("s3", "restart"),
]  # fmt: skip
CELLS = HARDEST if REPEAT else list(itertools.product(COMPONENTS, FAULTS))
TASKS, TASK_S = 240, 0.3
STEPS, STEP_S = 40, 0.2
RECOVERY_S = 8.0  # beyond the fault, and the leases that have to run out
SAME = ("cpc94", "residual_z1_p95", "matches", "rejected", "tissue_kept", "sharpness")


@dataclass
class StorageLoad:
    """Versions that are committed one after the other, and read again."""

    client: Client
    dataset: str
    acknowledged: dict[int, str] = field(default_factory=dict)  # digest of what is in it
    times: list[float] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until `ended`; an error that outlasts the client's patience is a failure."""
        while not self.ended.is_set():
            data = secrets.token_bytes(50_000)
            with self.client.session(self.dataset) as session:
                session.write_many(
                    (f"part/{k}", data[k * 5000 : (k + 1) * 5000]) for k in range(10)
                )
                version = session.commit(request_id=None)
            self.acknowledged[version.number] = hashlib.sha256(data).hexdigest()
            self.times.append(time.time())
            self.verify(secrets.choice(list(self.acknowledged)))

    def verify(self, number: int) -> None:
        """What was acknowledged is there, byte for byte."""
        version = self.client.open_dataset(f"{self.dataset}@{number}")
        data = b"".join(version.read(f"part/{k}") for k in range(10))
        assert hashlib.sha256(data).hexdigest() == self.acknowledged[number], number

    def stall_s(self, begin: float) -> float:
        """The longest time without an acknowledgement, from `begin` on."""
        later = [at for at in self.times if at > begin]
        assert later, "nothing was committed after the fault"
        return max(b - a for a, b in itertools.pairwise([begin, *later]))


@dataclass(frozen=True)
class Calm:
    """What comes of the loads where nobody disturbs them."""

    alignment: dict[str, Any]
    pixels: bytes
    gang: list[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with run_world(tmp_path_factory.mktemp("matrix")) as running:
        yield running


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> align_source.Source:
    folder = tmp_path_factory.mktemp("stack")
    for z, section in enumerate(synthetic_stack(4, 288, seed=3, max_shift_px=12).sections):
        write_png(folder / f"s{z:02}.png", section)
    return align_source.inspect_folder(folder)


@pytest.fixture(scope="module")
def calm(
    world: World, sections: align_source.Source, tmp_path_factory: pytest.TempPathFactory
) -> Calm:
    folder = tmp_path_factory.mktemp("calm")
    with world.client() as client:
        alignment, pixels = demo(client, sections, "test/calm")
        workflow = submit(client, folder)
        workflow.wait(timeout_s=120, check=True)
        return Calm(alignment, pixels, gang_results(workflow))


def demo(
    client: Client, sections: align_source.Source, destination: str
) -> tuple[dict[str, Any], bytes]:
    job = align.submit(client, sections, destination, align.AlignOptions(), say=lambda line: None)
    result = align.finish(client, job)
    pixels = np.asarray(client.open_array(result["array"])[...])
    return {key: result[key] for key in SAME}, pixels.tobytes()


def submit(client: Client, folder: Path) -> Workflow:
    return client.submit(
        {
            "version": 1,
            "name": "matrix",
            "experiments": {
                "gang": {
                    "function": "tests.faults.work:rank",
                    "parameters": {"folder": str(folder), "steps": STEPS, "pause_s": STEP_S},
                    "gang": 2,
                },
                "pulse": {
                    "function": "tests.faults.work:trace",
                    "parameters": {
                        "i": {"range": [0, TASKS]}, "journal": str(folder / "journal"),
                        "seconds": TASK_S,
                    },
                    "retries": 0,
                },
            },
        }
    )  # fmt: skip


def gang_results(workflow: Workflow) -> list[str]:
    return [task.result for task in workflow.tasks("gang", results=True)]


@pytest.mark.timeout(200 * max(1, REPEAT))
@pytest.mark.parametrize(("component", "fault"), CELLS, ids=[f"{c}-{f}" for c, f in CELLS])
def test_nothing_acknowledged_is_lost(
    world: World,
    sections: align_source.Source,
    calm: Calm,
    component: str,
    fault: str,
    tmp_path: Path,
) -> None:
    if fault == "cut" and (why := cannot_cut()):
        pytest.skip(why)
    for turn in range(max(1, REPEAT)):
        folder = tmp_path / str(turn)
        folder.mkdir()
        cell = f"{component}-{fault}-{turn}"
        with world.client() as client, ThreadPoolExecutor(2) as pool:
            load = StorageLoad(client, f"test/load-{cell}")
            storing = pool.submit(load.run)
            try:
                aligning = pool.submit(demo, client, sections, f"test/align-{cell}")
                workflow = submit(client, folder)
                for status in workflow.watch():
                    if status.experiment("pulse").tasks.succeeded >= TASKS // 12:
                        break
                begin = time.time()
                FAULTS[fault](world.part(component))
                lasted_s = time.time() - begin
                workflow.wait(timeout_s=150, check=True)
                alignment, pixels = aligning.result(timeout=120)
                end = time.monotonic() + 60
                while not any(at > begin + lasted_s for at in load.times):
                    assert time.monotonic() < end and not storing.done(), "storage does not go on"
                    time.sleep(0.1)
            finally:
                load.ended.set()
            storing.result(timeout=100)
            assert (alignment, pixels) == (calm.alignment, calm.pixels)
            assert gang_results(workflow) == calm.gang
            tasks = list(workflow.tasks("pulse", results=True))
            check(folder / "journal", tasks)
            for number in load.acknowledged:
                load.verify(number)
            assert client.open_dataset(load.dataset).version >= max(load.acknowledged)
        stalls = {
            "tasks": longest_stall_s(tasks, begin), "storage": load.stall_s(begin)
        }  # fmt: skip
        row = {"component": component, "fault": fault, "lasted_s": round(lasted_s, 2),
               **{f"{k}_stall_s": round(v, 2) for k, v in stalls.items()},
               "commits": len(load.acknowledged)}  # fmt: skip
        print(json.dumps(row))
        if RESULTS:
            with Path(RESULTS).open("a") as file:
                file.write(json.dumps(row) + "\n")
        worst = max(stalls.values())
        assert worst < lasted_s + LEADER_TTL_S + LEASE_S + RECOVERY_S, row


def test_it_would_be_seen(world: World, calm: Calm, tmp_path: Path) -> None:
    """The checks fail where something was lost."""
    with world.client() as client:
        load = StorageLoad(client, "test/load-lost")
        load.acknowledged[1] = "0" * 64
        with pytest.raises((AssertionError, HyperError)):
            load.verify(1)
