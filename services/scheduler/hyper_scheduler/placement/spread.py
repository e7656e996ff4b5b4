"""Failure domains: how much of a fleet one zone may hold."""

from __future__ import annotations

MAX_SHARE = 3  # at most one machine in so many stands in one domain


def domain_cap(fleet: int, domains: int) -> int:
    """Units of a bag of tasks that one failure domain may hold.

    A third of the fleet; where fewer than three domains have capacity, an even share of these.

    Args:
        fleet: units in all.
        domains: that have capacity now.
    """
    if fleet <= 0 or domains <= 0:
        return 0
    return max(1, -(-fleet // min(domains, MAX_SHARE)))
