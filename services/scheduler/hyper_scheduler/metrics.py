"""The scheduler's own metrics."""

from __future__ import annotations

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
