"""Functions that the features' tests run on workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyper.context import TaskContext
from hyper.errors import InvalidArgumentError


def echo(context: TaskContext, **parameters: Any) -> dict[str, Any]:
    return parameters


def refused(context: TaskContext) -> None:
    raise InvalidArgumentError("no such section: there are 0 to 9")


def needs_more(context: TaskContext, *, what: int) -> int:
    return what


def trial(context: TaskContext, *, x: float, steps: int) -> dict[str, float]:
    for step in range(1, steps + 1):
        context.report(step, score=x)
        time.sleep(0.02)
    return {"score": x}


def train(context: TaskContext, *, folder: str, steps: int) -> dict[str, int]:
    """Sum up all ranks through rank 0, step after step; rank 1 is killed once, after a step."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    checkpoint = Path(folder) / f"rank-{rank}.json"
    first = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
    total = 0
    with Ring(rank, size) as ring:
        for step in range(first, steps):
            total = ring.sum(rank)
            checkpoint.write_text(json.dumps({"step": step + 1}))
            ring.sum(0)  # a barrier: everybody has written
            mark = Path(folder) / "killed"
            if rank == 1 and step == 1 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
    return {
        "rank": rank, "sum": total, "first_step": first,
        "local_world_size": int(os.environ["LOCAL_WORLD_SIZE"]),
    }  # fmt: skip


def ranked(context: TaskContext) -> dict[str, bool]:
    return {"ranked": "RANK" in os.environ}


def place(context: TaskContext, *, number: int) -> dict[str, Any]:
    """What a gang of one is told; it can listen where it is told to."""
    with socket.create_server((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))):
        time.sleep(0.5)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
    return {"pid": os.getpid(), **{name: os.environ[name] for name in names}}


class Ring:
    """Ranks of a gang that add numbers: rank 0 listens at MASTER_PORT, the others dial."""

    def __init__(self, rank: int, size: int) -> None:
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        self._peers: list[socket.socket] = []
        if rank == 0:
            with socket.create_server(address, backlog=size) as server:
                server.settimeout(20)
                self._peers = [server.accept()[0] for _ in range(size - 1)]
        else:
            self._peers = [_dial(address)]
        self._rank = rank

    def __enter__(self) -> Ring:
        """Use it in a `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self._peers:
            peer.close()

    def sum(self, value: int) -> int:
        """Of all ranks' values."""
        return self._combine(value, sum)

    def least(self, value: int) -> int:
        """Of all ranks' values."""
        return self._combine(value, min)

    def _combine(self, value: int, by: Callable[[list[int]], int]) -> int:
        if self._rank == 0:
            total = by([value, *(_receive(peer) for peer in self._peers)])
            for peer in self._peers:
                peer.sendall(total.to_bytes(4, "big"))
            return total
        self._peers[0].sendall(value.to_bytes(4, "big"))
        return _receive(self._peers[0])


def _dial(address: tuple[str, int]) -> socket.socket:
    end = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(address, timeout=20)
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _receive(peer: socket.socket) -> int:
    data = b""
    while len(data) < 4:
        part = peer.recv(4 - len(data))
        if not part:
            raise ConnectionError("a peer is gone")
        data += part
    return int.from_bytes(data, "big")
