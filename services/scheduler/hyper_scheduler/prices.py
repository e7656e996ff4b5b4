"""Live prices of spot machines, where a provider tells them; the catalogue's count elsewhere."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from hyper.errors import HyperError
from hyper_scheduler.catalogue import MAX_USD_H, Catalogue
from hyper_scheduler.placement.offers import Offer
from hyper_scheduler.providers.base import Provider
from hyper_servicekit.logs import get_logger

log = get_logger(__name__)

KEPT_S = 6 * 3600.0  # a live price counts for so long after it was heard last


@runtime_checkable
class Priced(Protocol):
    """A provider that tells prices."""

    async def prices(self, offers: Sequence[Offer]) -> Mapping[str, float]:
        """What a spot machine costs now, USD an hour, by the offer's name; of those it knows.

        Raises:
            UnavailableError: the provider cannot be reached.
        """
        ...


class Prices:
    """The catalogue as it stands.

    Args:
        catalogue: as it was read.
        every_s: how often providers are asked; 0: never.
    """

    def __init__(self, catalogue: Catalogue, every_s: float) -> None:
        self._listed, self._every_s = catalogue, every_s
        self._heard: dict[str, tuple[float, float]] = {}  # offer -> USD an hour, when
        self._next = -math.inf

    async def look(self, providers: Mapping[str, Provider], now: float) -> None:
        """Ask for prices, if it is time; a provider that is away is asked the next time."""
        if not self._every_s or now < self._next:
            return
        self._next = now + self._every_s
        wanted: dict[str, list[Offer]] = {}
        for offer in self._listed.offers:
            if offer.spot_usd_h is not None and isinstance(providers.get(offer.provider), Priced):
                wanted.setdefault(offer.provider, []).append(offer)

        async def ask(name: str, offers: list[Offer]) -> None:
            provider = providers[name]
            assert isinstance(provider, Priced)
            try:
                found = await provider.prices(offers)
            except HyperError as error:
                log.warning("prices not heard", provider=name, error=str(error))
                return
            for offer in offers:
                usd_h = found.get(offer.name, math.nan)
                if 0 < usd_h <= MAX_USD_H:
                    self._heard[offer.name] = usd_h, now

        await asyncio.gather(*(ask(*each) for each in wanted.items()))

    def live(self, now: float) -> dict[str, tuple[float, float]]:
        """Prices that count, by offer: USD an hour, and when they were heard."""
        return {
            name: each for name, each in self._heard.items()
            if now - each[1] <= max(KEPT_S, 2 * self._every_s)
        }  # fmt: skip

    def catalogue(self, now: float) -> Catalogue:
        """The catalogue, with live prices where there are."""
        live = self.live(now)
        if not live:
            return self._listed
        offers = tuple(
            replace(each, spot_usd_h=live[each.name][0]) if each.name in live else each
            for each in self._listed.offers
        )
        return replace(self._listed, offers=offers)
