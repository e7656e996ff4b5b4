"""Commands beside a task's process."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hyper_worker.runner.beside import run_beside
from hyper_worker.runner.guard import Guard


async def test_children_that_come_and_go(tmp_path: Path) -> None:
    """The newest process of a task is often one that has ended before it can be looked at."""
    guard = Guard()
    script = "while :; do /bin/true; done"
    task = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", script, cwd=tmp_path, env={"COLOUR": "green"}
    )
    try:
        for _ in range(60):
            ran = await run_beside(guard, task.pid, ["/bin/sh", "-c", "pwd; echo $COLOUR"], 20)
            assert ran.output == f"{tmp_path}\ngreen\n".encode()
    finally:
        task.kill()
        await task.wait()
        guard.close()
