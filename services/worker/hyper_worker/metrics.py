"""What the worker tells Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SLOTS = Gauge("hyper_worker_slots", "Tasks that can run at once.")
RUNNING = Gauge("hyper_worker_running", "Attempts that run.")
CONNECTED = Gauge("hyper_worker_connected", "1 while a scheduler has welcomed this worker.")
DRAINING = Gauge("hyper_worker_draining", "1 once the scheduler has asked to drain.")
CONNECTIONS = Counter("hyper_worker_connections_total", "Times a scheduler has welcomed it.")
UNACKNOWLEDGED = Gauge("hyper_worker_unacknowledged", "Reports that are not durable yet.")
FINISHED = Counter("hyper_worker_finished_total", "Attempts that ended.", ("outcome",))
SECONDS = Histogram(
    "hyper_worker_attempt_seconds",
    "Time from start to end of an attempt.",
    ("runner",),
    buckets=(0.001, 0.01, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 14400),
)
CPU_SECONDS = Counter("hyper_worker_cpu_seconds_total", "CPU time of ended attempts.", ("runner",))
PEAK_RSS = Histogram(
    "hyper_worker_attempt_peak_rss_bytes",
    "Peak memory of an attempt, all its processes.",
    ("runner",),
    buckets=tuple(float(1 << shift) for shift in range(22, 38, 2)),
)
LOG_BYTES = Counter("hyper_worker_log_bytes_total", "Output that was shipped.")
LOG_DROPPED_BYTES = Counter(
    "hyper_worker_log_dropped_bytes_total", "Output lost to a full spool or a refusal."
)
LOG_SPOOLED_BYTES = Gauge("hyper_worker_log_spooled_bytes", "Output that waits to be shipped.")
NODE_CPUS = Gauge("hyper_worker_node_cpus", "Cores in use on this machine.")
NODE_MEMORY = Gauge("hyper_worker_node_memory_bytes", "Memory in use on this machine.")
NODE_DISK_FREE = Gauge("hyper_worker_node_disk_free_bytes", "Free where tasks have folders.")
NODE_RECEIVED = Gauge("hyper_worker_node_received_bytes_per_second", "From the network.")
NODE_SENT = Gauge("hyper_worker_node_sent_bytes_per_second", "To the network.")
GPU_UTILIZATION = Gauge("hyper_worker_gpu_utilization", "From 0 to 1.", ("gpu",))
GPU_MEMORY = Gauge("hyper_worker_gpu_memory_bytes", "In use.", ("gpu",))
