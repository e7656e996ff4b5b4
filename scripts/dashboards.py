"""Grafana's dashboards, as code: `make dashboards` writes deploy/grafana/dashboards/*.json.

A dashboard is a list of rows of panels; a panel is a title, a unit, and its queries with legends.
Grids, ids and the rest of Grafana's JSON follow from that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "dashboards"
_WIDTH = 24
_HEIGHT = 8
_SOURCE = {"type": "prometheus", "uid": "prometheus"}


@dataclass(frozen=True, slots=True)
class Panel:
    """Some queries drawn in one picture.

    Args:
        title: what is seen.
        queries: PromQL and the legend of its series.
        unit: Grafana's name of the unit ("s", "bytes", "ops", "percentunit", "short").
        kind: "timeseries", "stat" or "table".
    """

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of panels, row by row."""

    uid: str
    title: str
    rows: Sequence[Sequence[Panel]]


def rate(metric: str, by: str = "", labels: str = "") -> str:
    """Per second, added up over replicas."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(q: float, histogram: str, by: str = "", labels: str = "") -> str:
    """A quantile of a histogram over all replicas."""
    grouped = f"le, {by}" if by else "le"
    buckets = f"sum by ({grouped}) (rate({histogram}_bucket{{{labels}}}[$__rate_interval]))"
    return f"histogram_quantile({q}, {buckets})"


def quantiles(title: str, histogram: str, labels: str = "") -> Panel:
    """The median and the 99th percentile of a duration."""
    queries = [(quantile(q, histogram, labels=labels), f"p{int(q * 100)}") for q in (0.5, 0.99)]
    return Panel(title, queries, "s")


def calls(job: str) -> list[Panel]:
    """What every service's calls look like."""
    of = f'job="{job}"'
    return [
        Panel("Calls by method", [(rate("hyper_rpc_total", "method", of), "{{method}}")], "ops"),
        Panel(
            "Calls by replica", [(rate("hyper_rpc_total", "instance", of), "{{instance}}")], "ops"
        ),
        Panel("Calls by status", [(rate("hyper_rpc_total", "code", of), "{{code}}")], "ops"),
        Panel(
            "Time of calls (p99)",
            [(quantile(0.99, "hyper_rpc_duration_seconds", "method", of), "{{method}}")],
            "s",
        ),
    ]


def resources(job: str) -> list[Panel]:
    """Memory and processors of the replicas."""
    of = f'job="{job}"'
    return [
        Panel("Memory", [(f"process_resident_memory_bytes{{{of}}}", "{{instance}}")], "bytes"),
        Panel(
            "Cores in use", [(rate("process_cpu_seconds_total", "instance", of), "{{instance}}")]
        ),
    ]


DASHBOARDS = (
    Dashboard(
        "hyper-cluster",
        "Hyper: cluster",
        [
            [
                Panel("Replicas up", [("sum by (job) (up)", "{{job}}")], kind="stat"),
                Panel(
                    "Leaders (one is right)", [("sum(hyper_scheduler_leading)", "")], kind="stat"
                ),
                Panel("Workers", [("max(hyper_scheduler_workers_connected)", "")], kind="stat"),
                Panel(
                    "Alerts",
                    [('count(ALERTS{alertstate="firing"}) or vector(0)', "")],
                    kind="stat",
                ),
            ],
            [
                Panel("Calls", [("job:hyper_rpc:rate1m", "{{job}}")], "ops"),
                Panel(
                    "Failed calls",
                    [("job:hyper_rpc_failed:ratio_rate5m", "{{job}}")],
                    "percentunit",
                ),
                Panel(
                    "Time of calls (p99)", [("job:hyper_rpc_duration_seconds:p99", "{{job}}")], "s"
                ),
            ],
            [
                Panel(
                    "Memory", [("sum by (job) (process_resident_memory_bytes)", "{{job}}")], "bytes"
                ),
                Panel("Cores in use", [(rate("process_cpu_seconds_total", "job"), "{{job}}")]),
                Panel("Open files", [("max by (job) (process_open_fds)", "{{job}}")]),
            ],
            [
                Panel("etcd: database", [("etcd_mvcc_db_total_size_in_bytes", "size")], "bytes"),
                Panel(
                    "etcd: writes to disk (p99)",
                    [(quantile(0.99, "etcd_disk_wal_fsync_duration_seconds"), "fsync")],
                    "s",
                ),
                Panel(
                    "etcd: proposals",
                    [(rate("etcd_server_proposals_committed_total"), "committed")],
                    "ops",
                ),
            ],
        ],
    ),
    Dashboard(
        "hyper-workflows",
        "Hyper: workflows",
        [
            [
                Panel(
                    "Attempts that ended",
                    [(rate("hyper_scheduler_tasks_total", "state"), "{{state}}")],
                    "ops",
                ),
                Panel(
                    "Attempts that run",
                    [
                        ("sum(hyper_worker_running)", "running"),
                        ("sum(hyper_worker_slots)", "slots"),
                    ],
                ),
                Panel(
                    "Slots in use",
                    [("cluster:hyper_worker_slots_used:ratio", "in use")],
                    "percentunit",
                ),
            ],
            [
                quantiles("From startable to a worker", "hyper_scheduler_dispatch_seconds"),
                quantiles("Commits of state", "hyper_scheduler_commit_seconds"),
                Panel("Lag of the loop", [("max(hyper_scheduler_loop_lag_seconds)", "lag")], "s"),
            ],
            [
                Panel(
                    "Time of attempts",
                    [(quantile(0.5, "hyper_worker_attempt_seconds", "runner"), "{{runner}}")],
                    "s",
                ),
                Panel(
                    "Outcomes",
                    [(rate("hyper_worker_finished_total", "outcome"), "{{outcome}}")],
                    "ops",
                ),
                Panel(
                    "Peak memory of attempts (p99)",
                    [
                        (
                            quantile(0.99, "hyper_worker_attempt_peak_rss_bytes", "runner"),
                            "{{runner}}",
                        )
                    ],
                    "bytes",
                ),
            ],
            [
                Panel("Reports not durable yet", [("sum(hyper_worker_unacknowledged)", "reports")]),
                Panel(
                    "Log output",
                    [
                        (rate("hyper_worker_log_bytes_total"), "shipped"),
                        (rate("hyper_worker_log_dropped_bytes_total"), "lost"),
                    ],
                    "Bps",
                ),
                Panel(
                    "Log output that waits",
                    [("sum(hyper_worker_log_spooled_bytes)", "waits")],
                    "bytes",
                ),
            ],
            calls("scheduler"),
        ],
    ),
    Dashboard(
        "hyper-placement",
        "Hyper: placement and cost",
        [
            [
                Panel(
                    "Machines by offer",
                    [("sum by (offer) (hyper_placement_machines) or vector(0)", "{{offer}}")],
                ),
                Panel(
                    "Dollars an hour",
                    [
                        ("3600 * sum(rate(hyper_placement_usd_total[10m])) or vector(0)", "spent"),
                        (
                            "3600 * sum(rate(hyper_placement_rework_usd_total[10m])) or vector(0)",
                            "for work done again",
                        ),
                        (
                            "3600 * sum(rate(hyper_placement_egress_usd_total[10m])) or vector(0)",
                            "for data",
                        ),
                    ],
                    "currencyUSD",
                ),
                Panel(
                    "Launches and preemptions",
                    [
                        (
                            "sum(increase(hyper_placement_launches_total[1h])) or vector(0)",
                            "launched",
                        ),
                        (
                            "sum(increase(hyper_placement_preemptions_total[1h])) or vector(0)",
                            "taken away",
                        ),
                    ],
                ),
            ],
            [
                Panel(
                    "Workers",
                    [
                        ("max(hyper_scheduler_workers_connected)", "connected"),
                        ("sum(hyper_worker_draining)", "draining"),
                    ],
                ),
                Panel("Slots", [("sum by (instance) (hyper_worker_slots)", "{{instance}}")]),
                Panel(
                    "Attempts by worker",
                    [("sum by (instance) (hyper_worker_running)", "{{instance}}")],
                ),
            ],
            [
                Panel("Cores in use by node", [("hyper_worker_node_cpus", "{{instance}}")]),
                Panel(
                    "Memory by node", [("hyper_worker_node_memory_bytes", "{{instance}}")], "bytes"
                ),
                Panel(
                    "Free disk by node",
                    [("hyper_worker_node_disk_free_bytes", "{{instance}}")],
                    "bytes",
                ),
            ],
            [
                Panel(
                    "Network in",
                    [("hyper_worker_node_received_bytes_per_second", "{{instance}}")],
                    "Bps",
                ),
                Panel(
                    "Network out",
                    [("hyper_worker_node_sent_bytes_per_second", "{{instance}}")],
                    "Bps",
                ),
                Panel(
                    "GPUs in use",
                    [("avg(hyper_worker_gpu_utilization) or vector(0)", "mean")],
                    "percentunit",
                ),
            ],
            [
                Panel(
                    "Processor time of tasks",
                    [(rate("hyper_worker_cpu_seconds_total", "runner"), "{{runner}}")],
                ),
                Panel(
                    "Connections of workers",
                    [(rate("hyper_worker_connections_total"), "welcomed")],
                    "ops",
                ),
            ],
        ],
    ),
    Dashboard(
        "hyper-storage",
        "Hyper: storage",
        [
            calls("storage-gateway"),
            [
                Panel(
                    "Commits",
                    [(rate("hyper_storage_commits_total", "outcome"), "{{outcome}}")],
                    "ops",
                ),
                Panel("Commits rebased", [(rate("hyper_storage_rebases_total"), "rebased")], "ops"),
                Panel(
                    "Fragments from S3",
                    [
                        (rate("hyper_storage_fragment_reads_total"), "read"),
                        (rate("hyper_storage_fragment_lists_total"), "listed"),
                    ],
                    "ops",
                ),
            ],
            resources("storage-gateway"),
        ],
    ),
    Dashboard(
        "hyper-inference",
        "Hyper: inference",
        [
            [
                Panel(
                    "Voxels", [(rate("hyper_inference_voxels_total", "call"), "{{call}}")], "ops"
                ),
                Panel(
                    "Patches", [(rate("hyper_inference_patches_total", "call"), "{{call}}")], "ops"
                ),
                Panel(
                    "Time in nets",
                    [(rate("hyper_inference_compute_seconds_total", "call"), "{{call}}")],
                ),
            ],
            [
                Panel(
                    "Calls",
                    [
                        ("sum(hyper_inference_busy)", "served"),
                        ("sum(hyper_inference_queue)", "wait"),
                    ],
                ),
                Panel(
                    "Memory of models and nets",
                    [("hyper_inference_cache_bytes", "{{instance}}")],
                    "bytes",
                ),
                Panel(
                    "Nets compiled",
                    [(rate("hyper_inference_compile_seconds_count"), "compiled")],
                    "ops",
                ),
            ],
            calls("inference"),
            resources("inference"),
        ],
    ),
    Dashboard(
        "hyper-matcher",
        "Hyper: matcher",
        [
            [
                Panel(
                    "Matches",
                    [(rate("hyper_matcher_matches_total", "outcome"), "{{outcome}}")],
                    "ops",
                ),
                Panel(
                    "Pairs of sections",
                    [(rate("hyper_matcher_pair_seconds_count"), "pairs")],
                    "ops",
                ),
                Panel(
                    "Calls",
                    [
                        ("sum(hyper_matcher_calls_waiting)", "wait"),
                        (rate("hyper_matcher_calls_refused_total"), "refused a second"),
                    ],
                ),
            ],
            calls("matcher"),
            resources("matcher"),
        ],
    ),
)


def render(dashboard: Dashboard) -> dict[str, Any]:
    """Grafana's JSON of a dashboard."""
    panels: list[dict[str, Any]] = []
    for y, row in enumerate(dashboard.rows):
        width = _WIDTH // len(row)
        for x, panel in enumerate(row):
            grid = {"h": _HEIGHT, "w": width, "x": x * width, "y": y * _HEIGHT}
            panels.append(_panel(panel, len(panels) + 1, grid))
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["hyper"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": []},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, grid: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend, "datasource": _SOURCE}
        for i, (query, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "title": panel.title,
        "type": panel.kind,
        "gridPos": grid,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": targets,
    }


def texts() -> dict[str, str]:
    """The files by name."""
    return {
        f"{dashboard.uid}.json": json.dumps(render(dashboard), indent=1) + "\n"
        for dashboard in DASHBOARDS
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text)
