"""A clock that people can read and that leases can trust."""

from __future__ import annotations

from hyper_servicekit.clock import Clock


class SteadyClock:
    """The time of day as it was at the start, moved on by the monotonic clock.

    An event's one time stamp serves both records and leases: when the machine's date is set
    forward, no worker must count as silent for it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = clock.now() - clock.monotonic()

    def now(self) -> float:
        """Seconds since 1970; never goes back, never jumps."""
        return self._offset + self._clock.monotonic()

    def monotonic(self) -> float:
        """See `Clock`."""
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        await self._clock.sleep(seconds)
