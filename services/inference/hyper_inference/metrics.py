"""What the inference service counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

PATCHES = Counter("hyper_inference_patches_total", "Patches or samples computed.", ("call",))
VOXELS = Counter("hyper_inference_voxels_total", "Input voxels computed.", ("call",))
COMPUTE_SECONDS = Counter("hyper_inference_compute_seconds_total", "Time in nets.", ("call",))
COMPILE_SECONDS = Histogram(
    "hyper_inference_compile_seconds",
    "Time to compile a net for one shape.",
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100),
)
QUEUE = Gauge("hyper_inference_queue", "Calls that wait for a worker.")
BUSY = Gauge("hyper_inference_busy", "Calls being served.")
CACHE_BYTES = Gauge("hyper_inference_cache_bytes", "Memory of loaded models and nets.")
