"""Places where a test can make this process fail: a closed list, each a no-op unless armed.

A module declares its points as constants, `_BEFORE_COMMIT = declare("storage.commit.before")`,
and calls `_BEFORE_COMMIT.hit()` (or `await ....reach()` on an event loop) at the place. The
environment arms them: `HYPER_FAILPOINTS="storage.commit.before=crash,other.point=sleep:2"`.

Actions: `crash` (SIGKILL to itself, as a machine vanishes), `error` (an `UnavailableError`),
`sleep:SECONDS`. A number in front, `3*crash`, lets the first two hits pass.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Mapping

from hyper.errors import UnavailableError
from hyper_servicekit.logs import get_logger

ENVIRONMENT = "HYPER_FAILPOINTS"
_SPEC = re.compile(
    r"(?P<name>[a-z0-9_.-]+)=(?:(?P<nth>\d+)\*)?"
    r"(?:(?P<action>crash|error)|sleep:(?P<seconds>\d+(?:\.\d+)?))"
)

log = get_logger(__name__)


class Failpoint:
    """One declared place; see `declare`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hits = 0
        self._action: str | None = None
        self._seconds = 0.0
        self._nth = 1

    def hit(self) -> None:
        """Do what the point is armed with; sleeping blocks the thread."""
        if self._action is not None and (seconds := self._act()):
            time.sleep(seconds)

    async def reach(self) -> None:
        """The same on an event loop."""
        if self._action is not None and (seconds := self._act()):
            await asyncio.sleep(seconds)

    def arm(self, spec: str | None) -> None:
        """Arm with an action as in the environment (None: disarm); counts hits from here on."""
        self.hits, self._nth, self._action, self._seconds = 0, 1, None, 0.0
        if spec is None:
            return
        found = _SPEC.fullmatch(f"{self.name}={spec}")
        if found is None:
            raise ValueError(
                f"failpoint {self.name}: {spec!r} is not crash, error or sleep:SECONDS"
            )
        self._nth = int(found["nth"] or 1)
        self._seconds = float(found["seconds"] or 0)
        self._action = found["action"] or "sleep"

    def _act(self) -> float:
        """Count the hit; returns how long to sleep."""
        self.hits += 1
        if self.hits < self._nth:
            return 0.0
        log.warning("failpoint", name=self.name, action=self._action, hits=self.hits)
        if self._action == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._action == "error":
            raise UnavailableError(f"failpoint {self.name}")
        return self._seconds


_declared: dict[str, Failpoint] = {}


def declare(name: str) -> Failpoint:
    """The failpoint of this name, armed if the environment says so; call it at import."""
    if name in _declared:
        raise ValueError(f"failpoint {name} is declared twice")
    point = _declared[name] = Failpoint(name)
    point.arm(parse(os.environ).get(name))
    return point


def parse(environment: Mapping[str, str]) -> dict[str, str]:
    """Name -> action, as the environment arms them.

    Raises:
        ValueError: not name=action, comma-separated.
    """
    armed: dict[str, str] = {}
    for part in filter(None, environment.get(ENVIRONMENT, "").split(",")):
        name, equals, spec = part.strip().partition("=")
        if not equals or not name:
            raise ValueError(f"{ENVIRONMENT}: {part!r} is not name=action")
        armed[name] = spec
    return armed


def check_armed() -> None:
    """Refuse to start with an armed name that no imported module declares.

    Raises:
        ValueError: naming it and the points there are.
    """
    unknown = sorted(set(parse(os.environ)) - set(_declared))
    if unknown:
        raise ValueError(
            f"{ENVIRONMENT}: no failpoint {', '.join(unknown)}; "
            f"there are {', '.join(sorted(_declared)) or 'none'}"
        )
