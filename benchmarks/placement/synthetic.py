"""Spot markets made up from a seed: zones that come and go, alone and together."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import gamma

from hyper.spot_traces import Recording

TICK_H = 0.1
DAYS = 40


@dataclass(frozen=True, slots=True)
class Zone:
    """Mean hours with and without capacity; `tail` is the shape of Weibull-distributed spells."""

    up_h: float
    down_h: float
    tail: float = 0.7


# Two weeks in nine zones, from steady to hopeless, as AWS had them for V100 in 2023.
NINE = tuple(
    Zone(1.0 / losses_per_h, 1.0 / losses_per_h * (1.0 / share - 1.0), 0.5)
    for share, losses_per_h in (
        (0.17, 1.4), (0.47, 0.67), (0.45, 0.6), (0.59, 0.44), (0.76, 0.18), (0.68, 0.23),
        (0.88, 0.16), (0.9, 0.1), (0.89, 0.15),
    )
)  # fmt: skip
MARKETS = {
    "nine zones": NINE,
    "calm": (Zone(30.0, 2.0),) * 5,
    "flapping": (Zone(1.5, 0.7),) * 6,
    "scarce": (Zone(6.0, 6.0), Zone(6.0, 6.0)),
    "one zone": (Zone(8.0, 2.0),),
}


def recordings(seed: int) -> list[Recording]:
    """All of them, and two in which zones fail together or change their nature."""
    made = [_recording(name, zones, seed) for name, zones in MARKETS.items()]
    calm = _recording("droughts", MARKETS["calm"], seed)
    rng = random.Random(f"{seed}-drought")
    gone = _spells(Zone(60.0, 12.0, 1.0), rng)
    rows = tuple(
        tuple(n if up else 0 for n, up in zip(row, gone, strict=True)) for row in calm.capacity
    )
    made.append(Recording("droughts", TICK_H, calm.zones, rows))
    steady = _recording("", (Zone(40.0, 1.0),) * 6, seed + 1)
    wild = _recording("", (Zone(1.0, 1.0),) * 6, seed + 2)
    drifting = []
    for i in range(6):
        regime = _spells(Zone(48.0, 48.0, 1.0), random.Random(f"{seed}-regime-{i}"))
        pairs = zip(regime, steady.capacity[i], wild.capacity[i], strict=True)
        drifting.append(tuple(a if calm_now else b for calm_now, a, b in pairs))
    made.append(Recording("drifting", TICK_H, steady.zones, tuple(drifting)))
    return made


def _recording(name: str, zones: tuple[Zone, ...], seed: int) -> Recording:
    rows = tuple(
        tuple(map(int, _spells(zone, random.Random(f"{seed}-{name}-{i}"))))
        for i, zone in enumerate(zones)
    )
    return Recording(name, TICK_H, tuple(f"zone-{i}" for i in range(len(zones))), rows)


def _spells(zone: Zone, rng: random.Random) -> list[bool]:
    """With capacity or not, tick by tick."""
    ticks: list[bool] = []
    scale = 1.0 / gamma(1.0 + 1.0 / zone.tail)
    up = rng.random() < zone.up_h / (zone.up_h + zone.down_h)
    while len(ticks) < DAYS * 24 / TICK_H:
        mean_h = zone.up_h if up else zone.down_h
        spell_h = rng.weibullvariate(mean_h * scale, zone.tail)
        ticks += [up] * max(1, round(spell_h / TICK_H))
        up = not up
    return ticks[: int(DAYS * 24 / TICK_H)]
