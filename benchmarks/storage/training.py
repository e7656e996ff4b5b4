"""`python -m benchmarks.storage.training`: nets trained from local files and from remote arrays.

For each net the same samples in the same order come from local files (one a sample, in the page
cache) and from an array in S3 behind 0, 5 and 20 ms of latency, in turn. Reported are medians of
the time of an iteration and of the part of it that waits for data, and the net's demand as a share
of what the loader brings by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scheduler.cluster import ROOT, Cluster, cluster
from hyper.client import Client

LATENCIES_MS = (0, 5, 20)
EDGE, VOLUME = 96, 32
BATCH, BATCH_3D = 8, 2
_READY_S = 60.0


@contextmanager
def gateway(where: Cluster, folder: Path, latency_ms: float) -> Iterator[str]:
    """A gateway of its own whose URLs lead through a slow proxy; gives its address."""
    s3 = where.s3()
    proxy = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.storage.latency",
         s3["endpoint"].partition("://")[2], str(latency_ms)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert proxy.stdout is not None and proxy.stdin is not None
    public = proxy.stdout.readline().strip()
    ready = folder / f"ready-{latency_ms}.json"
    settings = {
        "LISTEN": "127.0.0.1:0", "READY_FILE": str(ready), "ETCD_PREFIX": "/bench-training",
        "ETCD_ENDPOINTS": json.dumps([where.address("etcd")]),
        "S3__ENDPOINT": s3["endpoint"], "S3__BUCKET": s3["bucket"], "S3__PREFIX": "bench-training",
        "S3__ACCESS_KEY": s3["access_key"], "S3__SECRET_KEY": s3["secret_key"],
        "S3__PUBLIC_ENDPOINT": f"http://{public}",
    }  # fmt: skip
    environment = {**os.environ, **{f"HYPER_STORAGE__{k}": v for k, v in settings.items()}}
    server = subprocess.Popen(
        [sys.executable, "-m", "hyper_storage"], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + _READY_S
        while not ready.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the gateway did not start")
            time.sleep(0.05)
        yield json.loads(ready.read_text())["address"]
    finally:
        server.terminate()
        server.wait()
        proxy.stdin.close()
        proxy.wait()


@contextmanager
def client_of(address: str) -> Iterator[Client]:
    """A client of that gateway alone."""
    os.environ["HYPER_STORAGE_ENDPOINT"] = address
    with Client("127.0.0.1:1") as client:
        yield client


class LocalFiles:
    """One .npy a sample."""

    def __init__(self, folder: Path, count: int) -> None:
        self.paths = [folder / f"{number:06d}.npy" for number in range(count)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        sample: np.ndarray = np.load(self.paths[index], allow_pickle=False)
        return sample


def prepare(client: Client, folder: Path, name: str, samples: np.ndarray) -> LocalFiles:
    """The samples as local files and as an array."""
    folder.mkdir()
    one = samples.shape[1:]
    for number, sample in enumerate(samples):
        np.save(folder / f"{number:06d}.npy", sample[None])
    with client.session("bench/training") as session:
        array = session.create_array(
            name, samples.shape, "uint8", chunks=(1, *one), shards=(64, *one),
            dimension_names=[f"axis{axis}" for axis in range(samples.ndim)],
        )  # fmt: skip
        array[...] = samples
    return LocalFiles(folder, len(samples))


def train(net: str, batches: Iterator[Any], iterations: int, warm: int) -> dict[str, float]:
    """Iterations of training; seconds of one, and of its wait for data."""
    import torch

    from benchmarks.storage.nets import NETS

    torch.manual_seed(0)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    model = NETS[net]()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    times, waits = [], []
    for number in range(warm + iterations):
        begin = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        images = batch.squeeze(1).float().div_(255.0)
        if net == "unet3d":
            images = images.unsqueeze(1)
            loss = torch.nn.functional.mse_loss(model(images), images)
        else:
            labels = torch.arange(len(images)) % 10
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number >= warm:
            times.append(time.perf_counter() - begin)
            waits.append(got - begin)
    return {"iteration_s": statistics.median(times), "wait_share": sum(waits) / sum(times)}


def batches_local(files: LocalFiles, batch: int) -> Iterator[Any]:
    """Shuffled batches for ever."""
    from torch.utils.data import DataLoader

    loader = DataLoader(files, batch_size=batch, shuffle=True, num_workers=1, prefetch_factor=4)  # type: ignore[arg-type, var-annotated]
    while True:
        yield from loader


def batches_remote(client: Client, name: str, batch: int) -> Iterator[Any]:
    """The same from the array."""
    array = client.open_array(f"bench/training/{name}")
    loader = array.torch(
        (1, *array.shape[1:]), batch_size=batch, shuffle=True, num_workers=1, prefetch_factor=4
    )
    while True:
        yield from loader


def alone(batches: Iterator[Any], count: int) -> float:
    """Seconds of a batch when nobody computes."""
    next(batches)
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    return (time.perf_counter() - begin) / count


def measure(nets: list[str], rounds: int, iterations: int) -> dict[str, Any]:
    """Every net from every place."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {net: {} for net in nets}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hyper-bench-")))
        where = stack.enter_context(cluster(1, 1))
        addresses = {
            latency: stack.enter_context(gateway(where, scratch, latency))
            for latency in LATENCIES_MS
        }
        with client_of(addresses[0]) as client:
            local = {
                "images": prepare(client, scratch / "images", "images",
                                  rng.integers(0, 255, (512, 3, EDGE, EDGE), np.uint8)),
                "volumes": prepare(client, scratch / "volumes", "volumes",
                                   rng.integers(0, 255, (256, *(VOLUME,) * 3), np.uint8)),
            }  # fmt: skip
        for net in nets:
            name, batch = ("volumes", BATCH_3D) if net == "unet3d" else ("images", BATCH)
            figures: dict[str, list[dict[str, float]]] = {}
            for _ in range(rounds):
                run = train(net, batches_local(local[name], batch), iterations, 2)
                figures.setdefault("local", []).append(run)
                for latency, address in addresses.items():
                    with client_of(address) as client:
                        run = train(net, batches_remote(client, name, batch), iterations, 2)
                        run["loader_s"] = alone(batches_remote(client, name, batch), 10)
                    figures.setdefault(f"remote_{latency}ms", []).append(run)
            found[net] = summary(figures)
            print(net, json.dumps(found[net]), file=sys.stderr, flush=True)
    return found


def summary(figures: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds; ratios to local round by round."""
    base = [run["iteration_s"] for run in figures["local"]]
    result: dict[str, Any] = {}
    for place, runs in figures.items():
        result[place] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        if place != "local":
            result[place]["vs_local"] = statistics.median(
                run["iteration_s"] / b for run, b in zip(runs, base, strict=True)
            )
            loader_s = result[place]["loader_s"]
            result[place]["demand_share"] = loader_s / result["local"]["iteration_s"]
    return result


def plot(found: dict[str, Any], path: Path) -> None:
    """Iteration times as bars, the wait for data hatched."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    places = ["local", *(f"remote_{latency}ms" for latency in LATENCIES_MS)]
    figure, axes = pyplot.subplots(figsize=(9, 4))
    for number, place in enumerate(places):
        at = np.arange(len(found)) + number * 0.2
        seconds = [found[net][place]["iteration_s"] for net in found]
        waits = [
            found[net][place]["iteration_s"] * found[net][place]["wait_share"] for net in found
        ]
        axes.bar(at, seconds, 0.18, label=place.replace("_", " "))
        axes.bar(at, waits, 0.18, color="none", edgecolor="black", hatch="///")
    axes.set_xticks(np.arange(len(found)) + 0.3, list(found))
    axes.set_ylabel("seconds an iteration (hatched: waiting for data)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, plot."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.storage.training", description=__doc__
    )
    parser.add_argument("--net", action="append", help="one of the nets; default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="one round of four iterations")
    parser.add_argument("--plot", type=Path, help="write the figure there, as PNG")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    from benchmarks.storage.nets import NETS

    rounds, iterations = (1, 4) if options.quick else (options.rounds, options.iterations)
    found = measure(options.net or list(NETS), rounds, iterations)
    if options.plot is not None:
        plot(found, options.plot)
    if options.json:
        print(json.dumps(found))
        return
    for net, places in found.items():
        for place, figures in places.items():
            text = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
            print(f"{net:12} {place:12} {text}")


if __name__ == "__main__":
    main()
