"""How many calls a service takes in: so many at once, and so many a second of one caller.

What is refused was not begun, and the refusal says when to try again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hyper.errors import ResourceExhaustedError
from hyper_servicekit.tokens import ANY_TENANT, TASK, Claims

_CALLERS_MAX = 10_000
_BUSY_RETRY_S = 1.0


class Admission:
    """Counts calls; not to be shared by threads.

    Args:
        places: calls served at once, streams too; 0: no bound.
        calls_per_s: of one caller, with bursts of as many (at least one); 0: no bound.
        now: seconds, never backwards.
    """

    def __init__(
        self,
        places: int = 0,
        calls_per_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places, self._calls_per_s, self._now = places, calls_per_s, now
        self._burst = max(1.0, calls_per_s)
        self.serving = 0
        # By caller: what is left, and when that was so. Who was longest away is forgotten first.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Serve one call.

        Raises:
            ResourceExhaustedError: all places are taken.
        """
        if self._places and self.serving >= self._places:
            raise ResourceExhaustedError(
                f"{self.serving} calls are being served, which is all that this service takes; "
                "try again in a moment",
                reason="QUEUE_FULL",
                retry_after_s=_BUSY_RETRY_S,
            )
        self.serving += 1
        try:
            yield
        finally:
            self.serving -= 1

    def take(self, caller: str) -> None:
        """Count one call of a caller.

        Raises:
            ResourceExhaustedError: it calls too often.
        """
        if not self._calls_per_s:
            return
        now = self._now()
        left, then = self._left.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._calls_per_s)
        refused = left < 1.0
        self._left[caller] = (left if refused else left - 1.0, now)
        if len(self._left) > _CALLERS_MAX:
            self._left.popitem(last=False)
        if refused:
            raise ResourceExhaustedError(
                f"your token may call {self._calls_per_s:g} times a second",
                reason="QUOTA_EXCEEDED",
                retry_after_s=(1.0 - left) / self._calls_per_s,
            )


def counted_as(claims: Claims, peer: str) -> str | None:
    """Whose calls are counted together; None: nobody's, as those of services and workers.

    A tenant's tasks have one token: those of each machine are counted by themselves, or more
    machines would do no more work.
    """
    if claims.tenant == ANY_TENANT:
        return None
    if claims.subject == TASK:
        return f"{claims.id} {peer.rpartition(':')[0]}"
    return claims.id
