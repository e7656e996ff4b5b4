"""A headless Chromium that a test drives, over the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

_START_S = 30.0


def find_chromium() -> str:
    """The program; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    return found


class Page:
    """One page; commands of the DevTools protocol by name."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._last = 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._last += 1
        command = {"id": self._last, "method": method, "params": parameters}
        await self._socket.write_message(json.dumps(command))
        while True:
            message = await self._socket.read_message()
            assert message is not None, "the browser has gone"
            answer = json.loads(message)
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    async def evaluate(self, expression: str) -> Any:
        """The value of some JavaScript."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    async def picture(self) -> np.ndarray:
        """What is to be seen, as grey (y, x)."""
        found = await self.call("Page.captureScreenshot", format="png")
        with Image.open(io.BytesIO(base64.b64decode(found["data"]))) as image:
            return np.asarray(image.convert("L"))


@asynccontextmanager
async def open_page(url: str, folder: Path) -> AsyncIterator[Page]:
    """A page that shows `url`; the browser ends with the block."""
    websocket = pytest.importorskip("tornado.websocket", reason="pip install -e '.[view]'")
    log = folder / "chromium.log"
    process = _start(log, folder / "profile")
    try:
        base = _endpoint(process, log)
        place = await asyncio.to_thread(_new_page, base, url)
        socket = await websocket.websocket_connect(place, max_message_size=64 << 20)
        try:
            yield Page(socket)
        finally:
            socket.close()
            async with asyncio.timeout(_START_S):
                while await socket.read_message() is not None:
                    pass  # what came before the browser has closed it too
    finally:
        process.kill()
        process.wait()


def _start(log: Path, profile: Path) -> subprocess.Popen[bytes]:
    command = [
            find_chromium(), "--headless=new", "--no-sandbox", "--disable-dev-shm-usage",
            "--no-first-run", f"--user-data-dir={profile}", "--remote-debugging-port=0",
            "--window-size=900,700", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
            "--ignore-gpu-blocklist", "about:blank",
    ]  # fmt: skip
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def _new_page(base: str, url: str) -> str:
    """Open a page; returns where to talk to it."""
    address = f"{base}/json/new?{urllib.parse.quote(url, safe='')}"
    request = urllib.request.Request(address, method="PUT")
    with urllib.request.urlopen(request, timeout=_START_S) as response:
        return str(json.load(response)["webSocketDebuggerUrl"])


def _endpoint(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        found = re.search(r"DevTools listening on ws://([^/]+)/", log.read_text(errors="replace"))
        if found:
            return f"http://{found[1]}"
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        time.sleep(0.05)
    raise AssertionError(f"Chromium does not start: {log.read_text(errors='replace')[-2000:]}")
