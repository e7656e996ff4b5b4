"""What Prometheus answers, sense or nonsense, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from urllib.parse import parse_qs, urlsplit

import pytest

from hyper_scheduler import measured, metrics
from hyper_scheduler.measured import FADE_S, Prometheus
from hyper_scheduler.placement.hazard import Hazard
from tests.support.http_server import http_server
from tests.unit.hyper_scheduler.cores import Core
from tests.unit.hyper_scheduler.scaling import OFFERS, Provider, autoscaler

Series = list[tuple[dict[str, str], float]]


@dataclass
class Fake:
    """A Prometheus that answers what it is told to."""

    url: str = ""
    text: str | None = None  # instead of an answer
    asked: int = 0
    tasks: float = 10.0
    offers: tuple[str, ...] = ("a", "b")

    def answer(self, query: str) -> str:
        self.asked += 1
        if self.text is not None:
            return self.text
        series: Series = []
        for offer in self.offers:
            labels = {"offer": offer} | ({"kind": "k"} if "kind" in query else {})
            if "task_seconds" in query:
                series.append((labels, 3600.0))
            elif "tasks_total" in query:
                series.append((labels, self.tasks))
            elif "utilization" in query:
                series.append((labels, 0.5))
            else:
                series.append((labels, 2.0))
        result = [{"metric": m, "value": [0, str(value)]} for m, value in series]
        return json.dumps({"status": "success", "data": {"result": result}})


@contextmanager
def fake() -> Iterator[Fake]:
    state = Fake()

    def answer(method: str, url: str, headers: Message, body: bytes) -> tuple[int, str]:
        return 200, state.answer(parse_qs(urlsplit(url).query)["query"][0])

    with http_server(answer) as url:
        state.url = url
        yield state


def result(*series: object) -> str:
    return json.dumps({"status": "success", "data": {"result": list(series)}})


@pytest.mark.parametrize(
    "text",
    [
        "[]", '"text"', "null", "3", "{}", "[" * 100_000, '{"status": "success"}',
        '{"status": "success", "data": null}', '{"status": "success", "data": {"result": {}}}',
        '{"status": "error", "error": "too many samples"}', "not JSON", "",
        result({"metric": {"offer": "a"}, "value": [0]}), result({"metric": {"offer": "a"}}),
        result({"metric": None, "value": [0, "1"]}), result(None),
        result({"metric": {}, "value": [0, "much"]}),
    ],
)  # fmt: skip
async def test_nonsense_leaves_what_was_known(text: str) -> None:
    with fake() as server:
        prometheus = Prometheus(server.url, "30s")
        before = await prometheus.look()
        assert before.throughput == {("k", "a"): 10.0, ("k", "b"): 10.0}
        assert before.utilization == {"a": 0.5, "b": 0.5}
        server.text = text
        assert await prometheus.look() is before


def windows(*counts: tuple[float, float]) -> dict[str, measured.Values]:
    """Answers where tasks and their seconds in each window are as given."""
    names = ("preemptions", "exposure", "cold_starts", "cold_seconds", "utilization")
    found: dict[str, measured.Values] = {name: {} for name in names}
    for times, (tasks, seconds) in zip(measured.LONGER, counts, strict=True):
        found[f"tasks {times}"] = {("k", "a"): tasks}
        found[f"seconds {times}"] = {("k", "a"): seconds}
    return found


@pytest.mark.parametrize(
    ("counts", "rate"),
    [
        ([(10, 30), (40, 60), (160, 240)], 1200),  # it has become slow: seen at once
        ([(9, 30), (40, 60), (160, 240)], 2400),  # too few to tell
        ([(0, 0), (9, 60), (20, 80)], 900),
        ([(0, 0), (2, 60), (3, 80)], 135),  # there are no more
        ([(0, 0), (0, 0), (0, 0)], None),
    ],
)
def test_the_shortest_window_with_enough_tasks_counts(
    counts: list[tuple[float, float]], rate: float | None
) -> None:
    found = measured.measured(windows(*counts), measured.Measured(), 1.0)
    assert found.throughput.get(("k", "a")) == (None if rate is None else pytest.approx(rate))


async def test_series_without_their_labels_say_nothing() -> None:
    with fake() as server:
        server.text = result(
            {"metric": {}, "value": [0, "7"]},
            {"metric": {"offer": 3}, "value": [0, "7"]},
            {"metric": {"offer": "a", "kind": "k"}, "value": [0, "NaN"]},
        )
        found = await Prometheus(server.url, "30s").look()
    assert (found.throughput, found.hazards, found.cold_start_h) == ({}, {}, {})


async def test_what_was_slow_once_gets_another_try() -> None:
    with fake() as server:
        prometheus = Prometheus(server.url, "30s")
        await prometheus.look(0.0)
        server.offers = ("a",)
        await prometheus.look(FADE_S)
        assert ("k", "b") in prometheus.last.throughput
        await prometheus.look(FADE_S + 1)
        assert list(prometheus.last.throughput) == [("k", "a")]
        server.offers = ()  # nothing runs: it is remembered for the next time
        await prometheus.look(9 * FADE_S)
        assert list(prometheus.last.throughput) == [("k", "a")]


async def test_history_counts_though_prometheus_comes_later() -> None:
    """`hyper up` starts it after the scheduler."""
    core = Core()
    with fake() as server:
        server.offers, server.text = ("cheap",), "starting"
        scaler, _ = autoscaler(core, OFFERS, broken=Provider(), good=Provider())
        scaler._prometheus = Prometheus(server.url, "30s")
        await scaler.look()
        assert scaler.known("k")["cheap"].hazard.mean_per_h == Hazard().mean_per_h
        server.text = None
        for _ in range(2):  # and counts once
            await scaler.look()
            hazard = scaler.known("k")["cheap"].hazard
            assert (hazard.events, hazard.exposure_h) == pytest.approx((2.0, 2.0), rel=1e-3)


async def test_counters_begin_at_nothing() -> None:
    """`increase` takes no notice of the first value that it sees."""
    offers = OFFERS.replace("name: cheap", "name: never-before")
    scaler, _ = autoscaler(Core(), offers, broken=Provider(), good=Provider())
    await scaler.look()
    for counter in (metrics.PREEMPTIONS, metrics.EXPOSURE, metrics.COLD_STARTS,
                    metrics.COLD_SECONDS):  # fmt: skip
        (family,) = counter.collect()
        found = {each.labels["offer"]: each.value for each in family.samples
                 if each.name.endswith("_total")}  # fmt: skip
        assert found["never-before"] == 0.0


def test_all_questions_are_understood() -> None:
    for labels, query in measured._QUERIES.values():
        assert all(each in query for each in labels)
