"""Offers that were refused are left alone for a while."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FIRST_S = 15.0
MOST_S = 1_800.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """The newest of several in a row.

    Args:
        reason: the provider's name for it, such as InsufficientInstanceCapacity.
        count: in a row.
        until: when the offer may be tried again, seconds since 1970.
    """

    reason: str
    count: int
    until: float


def refused(
    refusals: Mapping[str, Refusal], offer: str, reason: str, now: float
) -> dict[str, Refusal]:
    """One more: the wait doubles."""
    before = refusals.get(offer)
    count = 1 if before is None else before.count + 1
    wait_s = min(MOST_S, FIRST_S * 2.0 ** min(count - 1, 20))
    return {**refusals, offer: Refusal(reason, count, now + wait_s)}


def accepted(refusals: Mapping[str, Refusal], offer: str) -> dict[str, Refusal]:
    """A launch went well."""
    return {name: each for name, each in refusals.items() if name != offer}
