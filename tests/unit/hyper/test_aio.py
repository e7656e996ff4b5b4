"""The asyncio face: the same names and arguments, and waits that hold nothing up."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hyper.aio import THREADS, AsyncClient, AsyncWorkflow
from hyper.client import Client
from hyper.errors import DeadlineError, WorkFailedError
from hyper.status import RunState, WorkflowStatus
from hyper.workflows import Workflow
from tests.unit.hyper.test_notebooks import STATUS

PLUMBING = {"call", "stream", "stub", "addresses", "forget", "use_leader", "notify"}


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("plain", "made", "without"),
    [(Client, AsyncClient, PLUMBING), (Workflow, AsyncWorkflow, set[str]())],
)
def test_the_same_names_and_arguments(plain: type, made: type, without: set[str]) -> None:
    names = public(plain) - without
    assert names <= public(made)
    for name in names:
        one, other = (inspect.getattr_static(kind, name) for kind in (plain, made))
        assert isinstance(other, property) == isinstance(one, property), name
        if not isinstance(one, property):
            assert list(inspect.signature(one).parameters) == list(
                inspect.signature(other).parameters
            ), name


class Slow(Workflow):
    """Runs until it is cancelled."""

    def __init__(self, client: Client) -> None:
        super().__init__(client, STATUS)
        self.ended = threading.Event()

    def _watch_until(
        self, end: float | None, on_update: Callable[[WorkflowStatus], None] | None
    ) -> bool:
        assert on_update is not None
        on_update(self._status)
        if not self.ended.wait(20):
            return False
        self._status = replace(STATUS, state=RunState.CANCELLED)
        on_update(self._status)
        return True

    def cancel(self, reason: str = "") -> WorkflowStatus:
        self.ended.set()
        return self._status


async def test_many_waits_hold_up_no_cancel() -> None:
    async with AsyncClient(Client("127.0.0.1:1")) as client:
        slow = [Slow(client.sync) for _ in range(3 * THREADS)]
        workflows = [AsyncWorkflow(client, each) for each in slow]
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(each.wait()) for each in workflows]
            async for _ in workflows[0].watch():
                break  # by now they wait
            for each in workflows:
                async with asyncio.timeout(10):
                    await each.cancel()
        assert {wait.result().state for wait in waits} == {RunState.CANCELLED}


async def test_a_wait_has_a_deadline_updates_and_a_check() -> None:
    async with AsyncClient(Client("127.0.0.1:1")) as client:
        slow = Slow(client.sync)
        workflow = AsyncWorkflow(client, slow)
        heard: list[Any] = []
        with pytest.raises(DeadlineError, match="still runs after 0"):
            await workflow.wait(0.05, heard.append)
        assert [each.state for each in heard] == [RunState.RUNNING]
        slow.ended.set()
        with pytest.raises(WorkFailedError, match="cancelled"):
            await workflow.wait(on_update=heard.append, check=True)
        assert heard[-1].state is RunState.CANCELLED
        assert [each.state async for each in workflow.watch()][-1] is RunState.CANCELLED


async def test_an_error_of_a_watch_arrives() -> None:
    class Broken(Slow):
        def _watch_until(self, end: Any, on_update: Any) -> bool:
            raise WorkFailedError("no")

    async with AsyncClient(Client("127.0.0.1:1")) as client:
        with pytest.raises(WorkFailedError):
            await AsyncWorkflow(client, Broken(client.sync)).wait()
