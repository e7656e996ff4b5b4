"""What a notebook shows of things, with hostile text in every free field."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hyper
from hyper.arrays import Array
from hyper.client import Client
from hyper.datasets import Dataset
from hyper.placement import (
    Cost,
    Estimate,
    ExperimentPlan,
    OfferCost,
    OfferScore,
    PaidMachine,
    Plan,
    WorkflowCost,
)
from hyper.status import ExperimentStatus, RunState, TaskCounts, WorkflowStatus
from hyper.tasks import MapRun
from hyper.workflows import Workflow
from hyperapi.storage.v1 import dataset_pb2

HOSTILE = "<script>alert('&')</script><img src=x onerror=\"1\">"
SOME = Estimate(1.25, 1, 2)
COUNTS = TaskCounts(total=4, pending=1, running=1, succeeded=1, failed=1, cancelled=0, lost=2)
STATUS = WorkflowStatus(
    name=f"tenants/t/workflows/{HOSTILE}",
    display_name=HOSTILE,
    state=RunState.RUNNING,
    experiments=(
        ExperimentStatus(
            name=f"x/{HOSTILE}", state=RunState.FAILED, depends_on=(), tasks=COUNTS,
            start_time=None, end_time=None, message=HOSTILE,
        ),
    ),
    create_time=datetime(2026, 1, 1, tzinfo=UTC),
    end_time=None,
    message=HOSTILE,
    etag="1",
    tasks=COUNTS,
    recipe_yaml=HOSTILE,
)  # fmt: skip


def offer(**changes: Any) -> OfferScore:
    made = OfferScore(
        offer=HOSTILE, spot=True, usd_h=0.04, usd_per_unit=0.05, machines=3, reason=HOSTILE,
        price_age_s=None, utilization=None,
    )  # fmt: skip
    return replace(made, **changes)


def plan() -> Plan:
    offers = (offer(), offer(spot=False, usd_per_unit=float("inf")))
    experiment = ExperimentPlan(HOSTILE, 7, 60.0, False, offers, SOME, SOME, HOSTILE)
    return Plan((experiment,), SOME, SOME, 4.5, 0.25, HOSTILE)


def cost() -> Cost:
    offers = (OfferCost(HOSTILE, 1.5, 2, 4.5, 0.5, 0.25, 3, 2),)
    workflow = WorkflowCost(HOSTILE, 1.5, 4.5, 0.5, 0.25, 40.0, HOSTILE, offers)
    return Cost((workflow,), (PaidMachine(HOSTILE, HOSTILE, True, 0.04, HOSTILE, False),))


def dataset(client: Client) -> Dataset:
    message = dataset_pb2.Version(
        name=f"tenants/t/datasets/{HOSTILE}/versions/3", number=3, message=HOSTILE,
        arrays=[HOSTILE], files=2, file_bytes=1_500_000,
    )  # fmt: skip
    return Dataset(client, message)


def array() -> Any:
    """What `Array._repr_html_` reads of one."""
    return SimpleNamespace(
        name=HOSTILE, shape=(4, 5, 6), dtype=np.dtype("uint8"), nbytes=120, chunks=(1, 5, 6),
        shards=(2, 5, 6), voxel_size_nm=(40, 4, 4), url=HOSTILE, attributes={HOSTILE: HOSTILE},
    )  # fmt: skip


class Strict(HTMLParser):
    """Collects tags; every one must be ours, and closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("b", "br", "span", "table", "tr", "th", "td"), tag
        assert {name for name, _ in attrs} <= {"style"}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda client: Workflow(client, STATUS), ["running", "1/4", "failed"]),
        (lambda client: MapRun(Workflow(client, STATUS), 4), ["running", "1/4"]),
        (dataset, ["2 (1.5 MB)", "version"]),
        (lambda client: plan(), ["1.25 (1 to 2)", "4.5", "25%", "7 tasks", "does not fit"]),
        (lambda client: cost(), ["1.5 USD spent", "40", "spot"]),
    ],
    ids=["workflow", "map", "dataset", "plan", "cost"],
)
def test_a_notebook_shows_text_as_text(make: Any, shown: list[str]) -> None:
    with Client("127.0.0.1:1") as client:
        look(make(client)._repr_html_(), shown)


def test_an_array_is_shown() -> None:
    look(Array._repr_html_(array()), ["4 × 5 × 6", "120 B", "40 × 4 × 4"])


def look(html: str, shown: list[str]) -> None:
    seen = Strict()
    seen.feed(html)
    seen.close()
    assert not seen.open
    assert re.search(r"<script>alert\('&'\)", seen.text), "the hostile text is there, as text"
    for each in shown:
        assert each in seen.text


def test_everything_public_can_be_had() -> None:
    for name in hyper.__all__:
        assert getattr(hyper, name) is not None
    assert {"Plan", "Cost"} <= set(hyper.__all__)
