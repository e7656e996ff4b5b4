"""What Prometheus has seen of machines: throughput, preemptions, exposure, cold starts.

Asked over its HTTP API. While it is away the last answers count.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import urllib3

from hyper.errors import UnavailableError
from hyper_scheduler.placement.hazard import Hazard, Prior
from hyper_servicekit.logs import get_logger

log = get_logger(__name__)

TIMEOUT_S = 5.0
_QUERIES = {
    "tasks": "sum by (kind, offer) (increase(hyper_placement_tasks_total[{window}]))",
    "seconds": "sum by (kind, offer) (increase(hyper_placement_task_seconds_total[{window}]))",
    "preemptions": "sum by (offer) (increase(hyper_placement_preemptions_total[12h]))",
    "exposure": "sum by (offer) (increase(hyper_placement_exposure_seconds_total[12h])) / 3600",
    "cold_starts": "sum by (offer) (increase(hyper_placement_cold_starts_total[1d]))",
    "cold_seconds": "sum by (offer) (increase(hyper_placement_cold_start_seconds_total[1d]))",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """The newest answers; rates an hour."""

    throughput: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (kind, offer)
    hazards: Mapping[str, Hazard] = field(default_factory=dict)
    cold_start_h: Mapping[str, float] = field(default_factory=dict)


class Prometheus:
    """Asks; keeps the last answer.

    Args:
        url: of the server; "": there is none, and nothing is known.
        window: over which throughput is taken; short, so that a machine that has become slow is
            noticed, but rates need two scrapes in it.
    """

    def __init__(self, url: str, window: str) -> None:
        self._url, self._window = url.rstrip("/"), window
        self._http = urllib3.PoolManager(num_pools=1, retries=False)
        self.last = Measured()
        self._warned = False

    async def look(self) -> Measured:
        """The newest answers, or the last ones while it is away."""
        if not self._url:
            return self.last
        try:
            found = {}
            for name, query in _QUERIES.items():
                found[name] = await asyncio.to_thread(
                    self._query, query.format(window=self._window)
                )
        except UnavailableError as error:
            if not self._warned:
                log.warning("Prometheus is away: its last answers count", error=str(error))
            self._warned = True
            return self.last
        self._warned = False
        self.last = _measured(found, self.last)
        return self.last

    def _query(self, query: str) -> dict[tuple[str, ...], float]:
        """Values by their labels, in order of name.

        Raises:
            UnavailableError: no answer, or not Prometheus's.
        """
        try:
            answer = self._http.request(
                "GET", f"{self._url}/api/v1/query", fields={"query": query}, timeout=TIMEOUT_S
            )
            body = json.loads(answer.data)
            if body.get("status") != "success":
                raise UnavailableError(f"Prometheus refused {query!r}: {body.get('error')}")
            found = {}
            for each in body["data"]["result"]:
                value = float(each["value"][1])
                if math.isfinite(value):
                    labels = each["metric"]
                    found[tuple(labels[key] for key in sorted(labels))] = value
            return found
        except (urllib3.exceptions.HTTPError, ValueError, KeyError, TypeError) as error:
            raise UnavailableError(f"no answer of Prometheus at {self._url}: {error}") from error


def _measured(found: Mapping[str, Mapping[tuple[str, ...], float]], last: Measured) -> Measured:
    throughput = dict(last.throughput)
    for key, seconds in found["seconds"].items():
        if seconds > 0 and len(key) == 2 and found["tasks"].get(key, 0.0) > 0:
            throughput[key[0], key[1]] = found["tasks"][key] / seconds * 3600
    hazards = {}
    for (offer,), exposure_h in found["exposure"].items():
        events = found["preemptions"].get((offer,), 0.0)
        hazards[offer] = Hazard(Prior(), max(0.0, events), max(0.0, exposure_h))
    cold = dict(last.cold_start_h)
    for (offer,), seconds in found["cold_seconds"].items():
        starts = found["cold_starts"].get((offer,), 0.0)
        if starts > 0:
            cold[offer] = seconds / starts / 3600
    return Measured(throughput, hazards, cold)
