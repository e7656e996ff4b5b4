"""What Prometheus has seen of machines: throughput, use, preemptions, exposure, cold starts.

Asked over its HTTP API. While it is away, or answers what makes no sense, its last answers count.
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

TIMEOUT_S = 5.0  # for all questions together: they are asked side by side
LONGER = (1, 4, 16)  # windows, in units of the shortest
ENOUGH = 10  # tasks in a window, for their mean to be taken; of the longest one are enough
FADE_S = 3_600.0  # a throughput that was not seen again for so long, where others were, is dropped
_KIND_OFFER, _OFFER = ("kind", "offer"), ("offer",)
# name -> labels of its answers, and the question
_QUERIES: dict[str, tuple[tuple[str, ...], str]] = {
    "preemptions": (
        _OFFER, "sum by (offer) (increase(hyper_placement_preemptions_total[12h]))",
    ),
    "exposure": (
        _OFFER, "sum by (offer) (increase(hyper_placement_exposure_seconds_total[12h])) / 3600",
    ),
    "cold_starts": (
        _OFFER, "sum by (offer) (increase(hyper_placement_cold_starts_total[1d]))",
    ),
    "cold_seconds": (
        _OFFER, "sum by (offer) (increase(hyper_placement_cold_start_seconds_total[1d]))",
    ),
    "utilization": (
        _OFFER,
        "sum by (offer) (avg_over_time(hyper_placement_utilization[2m])"
        " and hyper_placement_machines > 0)",
    ),
}  # fmt: skip
_DONE = "sum by (kind, offer) (increase(hyper_placement_{what}_total[{seconds}s]))"
_UNIT_S = {"s": 1, "m": 60, "h": 3600}
Values = Mapping[tuple[str, ...], float]  # by labels


@dataclass(frozen=True, slots=True)
class Measured:
    """The newest answers; rates an hour.

    Args:
        throughput: tasks an hour of a slot, by kind and offer.
        hazards: of spot machines, by offer.
        cold_start_h: from launch to agent, by offer.
        utilization: part of the slots that had work, by offer that has machines.
        seen: when each throughput was in an answer last.
    """

    throughput: Mapping[tuple[str, str], float] = field(default_factory=dict)
    hazards: Mapping[str, Hazard] = field(default_factory=dict)
    cold_start_h: Mapping[str, float] = field(default_factory=dict)
    utilization: Mapping[str, float] = field(default_factory=dict)
    seen: Mapping[tuple[str, str], float] = field(default_factory=dict)


class Prometheus:
    """Asks; keeps the last answer.

    Args:
        url: of the server; "": there is none, and nothing is known.
        window: the shortest over which throughput is taken, as "30s", so that a machine that has
            become slow is noticed soon; rates need two scrapes in it. Where too few tasks have
            ended in it, one of 4 or 16 times its length counts.
    """

    def __init__(self, url: str, window: str) -> None:
        self._url = url.rstrip("/")
        shortest_s = int(window[:-1]) * _UNIT_S[window[-1]]
        self._queries = dict(_QUERIES)
        for times in LONGER:
            for name, what in (("tasks", "tasks"), ("seconds", "task_seconds")):
                query = _DONE.format(what=what, seconds=shortest_s * times)
                self._queries[f"{name} {times}"] = (_KIND_OFFER, query)
        self._http = urllib3.PoolManager(num_pools=1, maxsize=len(self._queries), retries=False)
        self.last = Measured()
        self._warned = False

    async def look(self, now: float = 0.0) -> Measured:
        """The newest answers, or the last ones while it is away.

        Args:
            now: seconds since 1970.
        """
        if not self._url:
            return self.last
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):  # its threads may not get their turn
                answers = await asyncio.gather(
                    *(asyncio.to_thread(self._query, *each) for each in self._queries.values())
                )
        except (UnavailableError, TimeoutError) as error:
            if not self._warned:
                log.warning("Prometheus is away: its last answers count", error=str(error))
            self._warned = True
            return self.last
        self._warned = False
        self.last = measured(dict(zip(self._queries, answers, strict=True)), self.last, now)
        return self.last

    def _query(self, labels: tuple[str, ...], query: str) -> Values:
        """Values by their labels.

        Raises:
            UnavailableError: no answer, or not Prometheus's.
        """
        try:
            answer = self._http.request(
                "GET", f"{self._url}/api/v1/query",
                fields={"query": query},
                timeout=urllib3.Timeout(total=TIMEOUT_S),
            )  # fmt: skip
            return values(json.loads(answer.data), labels)
        except (urllib3.exceptions.HTTPError, ValueError, RecursionError) as error:
            raise UnavailableError(f"no answer of Prometheus at {self._url}: {error}") from error


def values(body: object, labels: tuple[str, ...]) -> Values:
    """The finite values of an answer by these labels; a series that lacks one is of no use.

    Raises:
        ValueError: it is not what Prometheus answers.
    """
    match body:
        case {"status": "success", "data": {"result": list(series)}}:
            pass
        case {"error": str(error)}:
            raise ValueError(f"it refused the question: {error[:200]}")
        case _:
            raise ValueError(f"not what Prometheus answers: {str(body)[:100]}")
    found = {}
    for each in series:
        match each:
            case {"metric": dict(metric), "value": [_, str(text)]}:
                value = float(text)
                if math.isfinite(value) and all(isinstance(metric.get(k), str) for k in labels):
                    found[tuple(metric[key] for key in labels)] = value
            case _:
                raise ValueError(f"not what Prometheus answers: {str(each)[:100]}")
    return found


def measured(found: Mapping[str, Values], last: Measured, now: float) -> Measured:
    """What the newest answers say, and of the ones before what still counts."""
    throughput, seen = dict(last.throughput), dict(last.seen)
    kinds = set()
    for (kind, offer), rate in _throughput(found).items():
        kinds.add(kind)
        throughput[kind, offer] = rate
        seen[kind, offer] = now
    # An offer that was slow once is left alone, and so is never measured again: it gets another
    # try. Where nothing of a kind runs, what is known of it stays.
    for pair in [each for each in throughput if each[0] in kinds]:
        if now - seen.get(pair, now) > FADE_S:
            del throughput[pair], seen[pair]
    hazards = {}
    for (offer,), exposure_h in found["exposure"].items():
        events = found["preemptions"].get((offer,), 0.0)
        hazards[offer] = Hazard(Prior(), max(0.0, events), max(0.0, exposure_h))
    cold = dict(last.cold_start_h)
    for (offer,), seconds in found["cold_seconds"].items():
        starts = found["cold_starts"].get((offer,), 0.0)
        if starts > 0:
            cold[offer] = max(0.0, seconds) / starts / 3600
    used = {offer: min(1.0, max(0.0, each)) for (offer,), each in found["utilization"].items()}
    return Measured(throughput, hazards, cold, used, seen)


def _throughput(found: Mapping[str, Values]) -> Values:
    """Tasks an hour of a slot, each by the shortest window that has enough of them."""
    rates: dict[tuple[str, ...], float] = {}
    settled: set[tuple[str, ...]] = set()
    for times in LONGER:
        tasks = found[f"tasks {times}"]
        for key, seconds in found[f"seconds {times}"].items():
            count = tasks.get(key, 0.0)
            if seconds > 0 and count > 0 and key not in settled:
                rates[key] = count / seconds * 3600
                if count >= ENOUGH:
                    settled.add(key)
    return rates
