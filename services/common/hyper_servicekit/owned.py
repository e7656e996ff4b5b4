"""One background task that lives exactly as long as a block of code.

`asyncio.TaskGroup` owns the tasks of a service; this is for a helper task beside a body whose
exceptions must come out as they are, not inside an exception group.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from hyper_servicekit.logs import get_logger

log = get_logger(__name__)


@asynccontextmanager
async def owned(coroutine: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run `coroutine` beside the body; it is cancelled and awaited when the body ends.

    A failure of the coroutine is logged at once and raised when the body has ended well.
    """
    task = asyncio.create_task(coroutine, name=name)
    task.add_done_callback(_report)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background task failed", task=task.get_name(), exc_info=error)
