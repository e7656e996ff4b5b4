"""The scheduler's own metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)

TASKS = Counter("hyper_scheduler_tasks_total", "Attempts by what they came to.", ("state",))
DISPATCH_SECONDS = Histogram(
    "hyper_scheduler_dispatch_seconds",
    "From the event that made tasks startable to their way to a worker.",
    buckets=_BUCKETS,
)
COMMIT_SECONDS = Histogram(
    "hyper_scheduler_commit_seconds", "Results to S3 and state to etcd.", buckets=_BUCKETS
)
LOOP_LAG = Gauge("hyper_scheduler_loop_lag_seconds", "Age of an event when its turn comes.")
WORKERS = Gauge("hyper_scheduler_workers_connected", "Workers with an open stream.")
LEADING = Gauge("hyper_scheduler_leading", "1 while this replica leads.")

# Of machines that the scheduler has launched; `offer` is of the catalogue. The kinds of tasks are
# bounded by `autoscaler.KINDS`.
_OFFER = ("offer",)
DONE = Counter("hyper_placement_tasks_total", "Tasks done.", ("kind", "offer"))
DONE_SECONDS = Counter("hyper_placement_task_seconds_total", "Their time.", ("kind", "offer"))
EXPOSURE = Counter("hyper_placement_exposure_seconds_total", "Of spot machines.", _OFFER)
PREEMPTIONS = Counter("hyper_placement_preemptions_total", "Spot machines taken away.", _OFFER)
COLD_STARTS = Counter("hyper_placement_cold_starts_total", "Machines whose agent came.", _OFFER)
COLD_SECONDS = Counter("hyper_placement_cold_start_seconds_total", "From launch to agent.", _OFFER)
LAUNCHES = Counter("hyper_placement_launches_total", "By outcome.", ("offer", "outcome"))
MACHINES = Gauge("hyper_placement_machines", "Launched and not gone.", _OFFER)
BUSY = Gauge("hyper_placement_utilization", "Part of their slots that has work.", _OFFER)
USD = Counter("hyper_placement_usd_total", "Spent.", _OFFER)
REWORK_SECONDS = Counter("hyper_placement_rework_seconds_total", "Work lost.", _OFFER)
EGRESS_USD = Counter(
    "hyper_placement_egress_usd_total", "Of it, data between machines and storage.", _OFFER
)
REWORK_USD = Counter("hyper_placement_rework_usd_total", "What it had cost.", _OFFER)


def count_done(kind: str, offer: str, count: float, seconds: float) -> None:
    """Tasks of a kind were done."""
    DONE.labels(kind, offer).inc(count)
    DONE_SECONDS.labels(kind, offer).inc(seconds)


def count_rework(offer: str, seconds: float, usd: float) -> None:
    """Work was lost with a machine."""
    REWORK_SECONDS.labels(offer).inc(seconds)
    REWORK_USD.labels(offer).inc(usd)


def count_egress(offer: str, usd: float) -> None:
    """Data went between a machine and storage."""
    USD.labels(offer).inc(usd)
    EGRESS_USD.labels(offer).inc(usd)


def know_offers(names: Iterable[str]) -> None:
    """Begin the series of these offers at 0: of one that begins at 1 Prometheus misses the first.

    The same holds for dashboards, which show what there is.
    """
    by_offer = (
        EXPOSURE, PREEMPTIONS, COLD_STARTS, COLD_SECONDS, USD, EGRESS_USD, REWORK_SECONDS,
        REWORK_USD,
    )  # fmt: skip
    for name in names:
        for counter in by_offer:
            counter.labels(name)
        for gauge in (MACHINES, BUSY):
            gauge.labels(name)
        for outcome in ("started", "refused"):
            LAUNCHES.labels(name, outcome)
