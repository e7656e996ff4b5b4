"""An end to a program that does not answer."""

from __future__ import annotations

import asyncio
import contextlib


async def killed(process: asyncio.subprocess.Process) -> None:
    """Kill it, and close what would have gone to its standard input."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
        with contextlib.suppress(ConnectionError):
            await process.stdin.wait_closed()
    await process.wait()
