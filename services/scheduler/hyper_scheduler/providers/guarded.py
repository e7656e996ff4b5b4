"""Between the autoscaler and a provider: what goes wrong with one harms no other.

A provider is made when it is first asked something, so that a daemon or a cloud that is away when
the scheduler starts keeps nobody from starting. Whatever its library raises becomes one of our
errors; a question that is not answered in time is given up, and then nothing is asked for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hyper.errors import HyperError, UnavailableError
from hyper_scheduler.placement.offers import Offer
from hyper_scheduler.providers.base import AT_ONCE, Instance, Order, Provider, unreachable
from hyper_servicekit.logs import get_logger

log = get_logger(__name__)

LIMITS_S = {
    "launch": 120.0, "instances": 45.0, "terminate": 90.0, "notices": 30.0, "tidy": 60.0,
    "prices": 30.0,
}  # fmt: skip
FIRST_S, MOST_S = 15.0, 300.0  # one that has not answered is left alone for so long


class Guarded:
    """A provider whose failures stay its own.

    Args:
        name: of the provider, for messages.
        make: makes it; called in a thread, again after it has failed.
        monotonic: seconds.
    """

    def __init__(
        self, name: str, make: Callable[[], Provider],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._name, self._make, self._monotonic = name, make, monotonic
        self._made: Provider | None = None
        self._making = asyncio.Lock()
        self._launching = asyncio.Semaphore(AT_ONCE)
        self._silent = 0  # times in a row that it has not answered
        self._until = -1.0

    async def launch(self, order: Order) -> str:
        """See `Provider`."""
        async with self._launching:
            return str(await self._ask("launch", order))

    async def instances(self) -> Sequence[Instance]:
        """See `Provider`."""
        found: Sequence[Instance] = await self._ask("instances")
        return found

    async def terminate(self, ids: Sequence[str]) -> None:
        """See `Provider`."""
        await self._ask("terminate", ids)

    async def notices(self) -> Sequence[str]:
        """See `Provider`."""
        found: Sequence[str] = await self._ask("notices")
        return found

    async def tidy(self, networks: Sequence[str]) -> None:
        """See `Provider`."""
        await self._ask("tidy", networks)

    async def prices(self, offers: Sequence[Offer]) -> Mapping[str, float]:
        """See `prices.Priced`; none of a provider that tells none."""
        found: Mapping[str, float] = await self._ask("prices", offers)
        return found

    async def close(self) -> None:
        """See `Provider`; it is made anew when it is asked again."""
        if self._made is not None:
            await self._made.close()
            self._made = None

    async def _ask(self, verb: str, *arguments: Any) -> Any:
        """Call one of its methods.

        Raises:
            HyperError: whatever it raised, as one of ours.
        """
        left_s = self._until - self._monotonic()
        if left_s > 0:
            raise unreachable(
                self._name, f"it has not answered lately; it is asked again in {left_s:.0f} s"
            )
        limit_s = LIMITS_S[verb]
        try:
            async with asyncio.timeout(limit_s):
                call = getattr(await self._provider(), verb, None)
                found = {} if call is None else await call(*arguments)
        except TimeoutError as error:
            self._silent += 1
            wait_s = min(MOST_S, FIRST_S * 2.0 ** min(self._silent - 1, 20))
            self._until = self._monotonic() + wait_s
            raise unreachable(
                self._name, f"it has not answered for {limit_s:g} s ({verb})"
            ) from error
        except HyperError:
            raise
        except ExceptionGroup as group:
            raise self._ours(verb, group.exceptions[0]) from group
        except Exception as error:
            raise self._ours(verb, error) from error
        self._silent = 0
        return found

    async def _provider(self) -> Provider:
        async with self._making:
            if self._made is None:
                self._made = await asyncio.to_thread(self._make)
            return self._made

    def _ours(self, verb: str, error: Exception) -> HyperError:
        if isinstance(error, HyperError):
            return error
        log.error("provider failed", provider=self._name, verb=verb, exc_info=error)
        return UnavailableError(
            f"provider {self._name} cannot be used ({verb}): {type(error).__name__}: {error}"
        )
