"""LLVM in a process of its own, which takes its memory with it, and its crashes.

One process serves all compilations that follow each other; it ends when it was idle for a while,
when this process ends, or when it fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

PROGRAM = Path(__file__).with_name("object_file.py")
"""Run as a file: it needs nothing of ours."""


def emit_elsewhere(text: str, cpu: str, features: str) -> bytes:
    """The object file of an LLVM module (`object_file.emit`).

    Raises:
        RuntimeError: it is no valid module, or LLVM failed.
    """
    with _lock:
        try:
            return _started().emit(text, cpu, features)
        except _EndedError:  # idle for too long, perhaps just now
            try:
                return _started().emit(text, cpu, features)
            except _EndedError as error:
                raise RuntimeError(f"LLVM's process ended with {error}") from error


class _EndedError(Exception):
    """The process is gone; its status."""


class _Process:
    """One process and the pipes to it."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,  # an interrupt at the terminal is not for it
        )  # fmt: skip
        threading.Thread(target=self._child.wait, name="llvm-process", daemon=True).start()

    def ended(self) -> bool:
        """Whether it is gone."""
        return self._child.poll() is not None

    def close(self) -> None:
        """Close the pipes to it."""
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def let_go(self) -> None:
        """In a forked child: the pipes are the parent's, what waits in their buffers too."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                os.dup2(nowhere, pipe.fileno(), inheritable=False)
        os.close(nowhere)

    def emit(self, text: str, cpu: str, features: str) -> bytes:
        """One request and its answer."""
        requests, answers = self._child.stdin, self._child.stdout
        if requests is None or answers is None:
            raise AssertionError("both are pipes")
        module = text.encode()
        head = {"size": len(module), "cpu": cpu, "features": features}
        line, data = b"", b""
        with contextlib.suppress(BrokenPipeError):
            requests.write(json.dumps(head).encode() + b"\n" + module)
            requests.flush()
            line = answers.readline()
        if not line.endswith(b"\n"):
            raise _EndedError(self._child.wait())
        answer = json.loads(line)
        if answer["error"]:
            raise RuntimeError(f"LLVM refuses the module: {answer['error'][-300:]}")
        data = answers.read(answer["size"])
        if len(data) != answer["size"]:
            raise _EndedError(self._child.wait())
        return data


_lock = threading.Lock()
_process: _Process | None = None


def _started() -> _Process:
    global _process
    if _process is not None and _process.ended():
        _process.close()
        _process = None
    _process = _process or _Process()
    return _process


def _forget() -> None:
    """A forked child has a process of its own, and a lock that no other thread holds."""
    global _lock, _process
    if _process is not None:
        _process.let_go()
    _lock, _process = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)
