"""etcd and object storage of the simulation: fenced, and what is done there stays done."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hyper_scheduler.core import commands as c
from hyper_scheduler.core.commit import results_folder, workflow_path
from hyper_scheduler.core.model import Attempt, TaskId
from hyper_scheduler.core.pages import PAGE_TASKS, decode_page


@dataclass
class Disk:
    """etcd and object storage; only the newest epoch may write."""

    epoch: int = 0
    keys: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    written: int = 0
    gangs: set[tuple[str, str]] = field(default_factory=set)  # workflow, experiment
    forgotten: dict[str, bytes] = field(default_factory=dict)  # keys as they were

    def put(self, epoch: int, puts: list[c.Put]) -> bool:
        """One fenced transaction; what is done must stay done."""
        if epoch != self.epoch:
            return False
        self.written += 1
        for put in puts:
            if put.below:
                self._forget(put.key)
                continue
            if put.value is None:
                self.keys.pop(put.key, None)
                continue
            assert put.key not in self.forgotten, f"{put.key} is written after it was forgotten"
            if "/pages/" in put.key:
                self._check_page(put.key, put.value)
            self.keys[put.key] = put.value
        return True

    def _forget(self, root: str) -> None:
        state = json.loads(self.keys[f"{root}head"])["state"]
        assert state not in ("pending", "running"), f"{root} is forgotten and {state}"
        for key in [key for key in self.keys if key.startswith(root)]:
            self.forgotten[key] = self.keys.pop(key)

    def find(self, key: str) -> bytes | None:
        """What a key holds, or held when its workflow was forgotten."""
        return self.keys.get(key, self.forgotten.get(key))

    def _check_page(self, key: str, value: bytes) -> None:
        page = decode_page(value)
        new = int.from_bytes(page.done)
        if key in self.keys:
            old = int.from_bytes(decode_page(self.keys[key]).done)
            assert old & new == old, f"{key}: a durable completion was lost"
        _, tenant, workflow, _, experiment, number = key.split("/")
        name = f"tenants/{tenant}/workflows/{workflow}"
        folder = results_folder(name, experiment, int(number))
        lines = [
            json.loads(line)["i"]
            for segment in page.segments
            for line in self.objects[f"{folder}/{segment}.jsonl"].decode().splitlines()
        ]
        done = [int(number) * PAGE_TASKS + i for i in range(PAGE_TASKS) if page.is_done(i)]
        if (name, experiment) in self.gangs:  # a rank that is held has its result there already
            assert set(done) <= set(lines), f"{key}: done tasks without a result"
        else:
            assert sorted(lines) == done, f"{key}: results and done tasks differ"

    def results(self, workflow: str, experiment: str) -> dict[int, str]:
        """What the tasks of an experiment have returned, as JSON."""
        found: dict[int, str] = {}
        prefix = f"{workflow_path(workflow)}/pages/{experiment}/"
        for key in sorted(self.keys):
            if key.startswith(prefix):
                number = int(key.rpartition("/")[2])
                folder = results_folder(workflow, experiment, number)
                for segment in decode_page(self.keys[key]).segments:
                    for line in self.objects[f"{folder}/{segment}.jsonl"].decode().splitlines():
                        facts = json.loads(line)
                        found[facts["i"]] = facts["result"]
        return found

    def is_known(self, task: TaskId, attempt: Attempt) -> bool:
        """Whether an attempt, or a newer one of the task, is durable."""
        key = (
            f"{workflow_path(task.workflow)}/pages/{task.experiment}/{task.index // PAGE_TASKS:06d}"
        )
        page = self.find(key)
        record = None if page is None else decode_page(page).records.get(task.index)
        return record is not None and record.attempt is not None and record.attempt >= attempt

    def total(self, workflow: str, experiment: str) -> int:
        """How many tasks an experiment has come to have."""
        total: int = self.head(workflow)["experiments"][experiment]["total"]
        return total

    def is_done(self, task: TaskId) -> bool:
        """Whether the task's success is durable."""
        number = task.index // PAGE_TASKS
        key = f"{workflow_path(task.workflow)}/pages/{task.experiment}/{number:06d}"
        page = self.find(key)
        return page is not None and decode_page(page).is_done(task.index)

    def head(self, workflow: str) -> dict[str, Any]:
        """The stored head."""
        found = self.find(f"{workflow_path(workflow)}/head")
        assert found is not None, workflow
        head: dict[str, Any] = json.loads(found)
        return head
