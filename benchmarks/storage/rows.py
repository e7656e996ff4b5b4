"""The rows about files and arrays: what the SDK moves against the same bytes moved raw."""

from __future__ import annotations

import itertools
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.scheduler import cpu
from benchmarks.storage.place import Place
from benchmarks.storage.rounds import cpu_of, in_turn, row, timed
from hyper.config import STORAGE
from hyperapi.storage.v1 import dataset_service_pb2 as api
from hyperapi.storage.v1.dataset_service_pb2_grpc import DatasetServiceStub

MB = 2**20
EDGE, CHUNK, PATCH = 512, 128, 64


def _large(where: Place) -> tuple[Any, list[Any], int]:
    """A dataset of files of 8 MB."""
    size, count = 8 * MB, 8 if where.quick else 24
    name = where.name()
    with where.client.session(name) as session:
        session.write_many((f"{i:03d}", os.urandom(size)) for i in range(count))
    dataset = where.dataset(name)
    return dataset, list(dataset.files()), size * count


def sdk_read_vs_obstore(where: Place) -> dict[str, Any]:
    """Checked reads of 8 MB files against raw obstore reads of the same ranges."""
    dataset, infos, total = _large(where)
    ranges = [[i.object, i.offset, i.offset + i.size_bytes] for i in infos]

    def ours() -> None:
        for info, data in dataset.read_many(infos):
            assert len(data) == info.size_bytes

    return _beside_obstore(where, ours, ranges, total)


def _beside_obstore(
    where: Place, ours: Callable[[], None], ranges: list[list[Any]], total: int
) -> dict[str, Any]:
    """Our reads and raw obstore's of the same bytes, in turn; and what the gateway used."""
    gateway = where.cluster.pids("storage-gateway")
    before = cpu_of(gateway)
    found = in_turn(
        {
            "obstore": lambda: where.peers.ask("obstore_read", ranges=ranges),
            "hyper": lambda: timed(ours),
        },
        where.rounds,
    )
    used = cpu_of(gateway) - before
    result = row(found, base="obstore", megabytes=total / MB)
    result["gateway_cpu_ms_per_mb"] = used * 1e3 / (total / MB) / (where.rounds + 1)
    return result


def gateway_cpu_ms_per_mb(where: Place) -> dict[str, Any]:
    """CPU time of the gateway while the SDK reads, the URLs signed anew in every round."""
    dataset, infos, total = _large(where)
    gateway = where.cluster.pids("storage-gateway")
    address = (
        dataset.name.replace("tenants/", "").replace("/datasets", "").partition("/versions")[0]
    )
    rounds = where.rounds * 4  # the kernel counts in hundredths of a second
    before = cpu_of(gateway)
    for _ in range(rounds):
        for _, data in where.dataset(address).read_many(infos):
            del data
    used = cpu_of(gateway) - before
    return {"value": used * 1e3 / (total / MB) / rounds, "megabytes": total / MB * rounds}


def grpc_vs_raw_s3(where: Place) -> dict[str, Any]:
    """`ReadObject` streams, four at a time, against raw obstore reads of the same objects."""
    dataset, infos, total = _large(where)
    keys = sorted({info.object for info in infos})

    def stream(key: str) -> int:
        request = api.ReadObjectRequest(parent=dataset.name, object=key)
        parts = where.client.stream(STORAGE, DatasetServiceStub, "ReadObject", request)
        return sum(len(part.data) for part in parts)

    def ours() -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(stream, keys)) == total

    return _beside_obstore(where, ours, [[key, None, None] for key in keys], total)


def _volume(where: Place, compressor: str | None) -> Any:
    """A committed array of 512^3 uint8, an object a chunk: grey values as a microscope's."""
    edge = EDGE // 2 if where.quick else EDGE
    name = where.name()
    rng = np.random.default_rng(7)
    noise = rng.integers(-12, 13, (edge, edge), dtype=np.int16)
    y, x = np.mgrid[:edge, :edge]
    with where.client.session(name) as session:
        array = session.create_array(
            "a", (edge,) * 3, "uint8", chunks=(CHUNK,) * 3, shards=(CHUNK,) * 3,
            compressor=compressor,
        )  # fmt: skip
        for z in range(0, edge, CHUNK):
            slab = [
                np.clip(
                    128 + 60 * np.sin((x + k) / 40) * np.cos((y - k) / 55) + np.roll(noise, k),
                    0,
                    255,
                )
                for k in range(z, z + CHUNK)
            ]
            array[z : z + CHUNK] = np.stack(slab).astype(np.uint8)
    return where.client.open_array(f"{name}/a")


def _chunk_keys(array: Any) -> list[list[Any]]:
    prefix = array.url.partition("://")[2].partition("/")[2]
    counts = [range(-(-n // s)) for n, s in zip(array.shape, array.shards, strict=True)]
    keys = (f"{prefix}/c/" + "/".join(map(str, index)) for index in itertools.product(*counts))
    return [[key, None, None] for key in keys]


def array_read_vs_raw(where: Place) -> dict[str, Any]:
    """A whole array from S3 against its raw objects; zarr-python and TensorStore too."""
    result = {}
    for compressor in (None, "zstd"):
        array = _volume(where, compressor)
        keys = _chunk_keys(array)
        prefix = keys[0][0].partition("/c/")[0]
        name = f"{array.name}"
        found = in_turn(
            {
                "raw": lambda keys=keys: where.peers.ask("obstore_read", ranges=keys),
                "hyper": lambda name=name: timed(lambda: where.client.open(name)[...]),
                "tensorstore": lambda p=prefix: where.peers.ask("tensorstore_read", prefix=p),
                "zarr": lambda p=prefix: where.peers.ask("zarr_read", prefix=p),
            },
            where.rounds,
        )
        figures = row(found, base="raw", megabytes=array.nbytes / MB)
        if compressor is None:
            result = figures
        else:
            result["zstd"] = figures
    return result


def array_write_vs_raw(where: Place) -> dict[str, Any]:
    """A whole array to S3 against raw PUTs of the same bytes, and TensorStore."""
    edge = EDGE // 2 if where.quick else EDGE
    shape = (edge,) * 3
    data = np.frombuffer(os.urandom(edge**3), np.uint8).reshape(shape)
    count = (edge // CHUNK) ** 3

    def ours() -> dict[str, float]:
        with where.client.session(where.name()) as session:
            array = session.create_array(
                "a", shape, "uint8", chunks=(CHUNK,) * 3, shards=(CHUNK,) * 3, compressor=None
            )

            def write() -> None:
                array[...] = data

            return timed(write)

    keys = [f"bench-raw/{i:04d}" for i in range(count)]
    found = in_turn(
        {
            "raw": lambda: where.peers.ask("obstore_write", keys=keys, size=CHUNK**3),
            "hyper": ours,
            "tensorstore": lambda: where.peers.ask(
                "tensorstore_write", prefix="bench-ts", shape=shape, chunk=[CHUNK] * 3
            ),
        },
        where.rounds,
    )
    return row(found, base="raw", megabytes=data.nbytes / MB)


def patch_cached_ms(where: Place) -> dict[str, Any]:
    """Patches of 64^3 at random places of an array whose chunks are in the local cache."""
    stored = _volume(where, "zstd")
    array = stored.cached(2**31)
    count = 50 if where.quick else 200
    picks = random.Random(5)
    corners = [[picks.randrange(n - PATCH) for n in array.shape] for _ in range(count)]
    prefix = _chunk_keys(stored)[0][0].partition("/c/")[0]

    def ours() -> None:
        for z, y, x in corners:
            array[z : z + PATCH, y : y + PATCH, x : x + PATCH]

    _ = array[...]
    found = in_turn(
        {
            "tensorstore": lambda: where.peers.ask(
                "tensorstore_patches", prefix=prefix, corners=corners, edge=PATCH
            ),
            "hyper": lambda: timed(ours),
        },
        where.rounds,
    )
    result = row(found, base="tensorstore", megabytes=count * PATCH**3 / MB)
    for name in ("hyper", "tensorstore"):
        if result[name]:
            result[name]["ms"] = result[name]["s"] / count * 1e3
    result["value"] = result["hyper"]["ms"]
    return result


def _small(count: int, size: int = 4096) -> Iterator[tuple[str, bytes]]:
    block = os.urandom(2 * size)
    for i in range(count):
        at = i % size
        yield f"{i // 1000:05d}/{i % 1000:03d}.bin", block[at : at + size]


def small_files_per_s(where: Place) -> dict[str, Any]:
    """Checked reads of packed files of 4 KB through the SDK, in order and shuffled."""
    count = 20_000 if where.quick else 100_000
    name = where.name()
    with where.client.session(name) as session:
        session.write_many(_small(count))
    dataset = where.dataset(name)
    infos = list(dataset.files())
    shuffled = random.Random(3).sample(infos, count // 10)  # a request a file

    def read(files: list[Any]) -> Callable[[], None]:
        def work() -> None:
            assert sum(len(data) for _, data in dataset.read_many(files)) == len(files) * 4096

        return work

    ordered = [timed(read(infos)) for _ in range(where.rounds)]
    mixed = [timed(read(shuffled)) for _ in range(where.rounds)]
    rate = count / statistics.median(each["s"] for each in ordered)
    megabytes = count * 4096 / MB
    return {
        "value": rate,
        "shuffled_per_s": len(shuffled) / statistics.median(each["s"] for each in mixed),
        "cpu_ms_mb": statistics.median(e["cpu_s"] for e in ordered) * 1e3 / megabytes,
    }


def ingest_files_per_s(where: Place) -> dict[str, Any]:
    """Files of 4 KB written, packed, recorded and committed."""
    count = 20_000 if where.quick else 100_000
    gateway = where.cluster.pids("storage-gateway")
    rates, cpus = [], []
    for _ in range(max(2, where.rounds // 2)):
        session = where.client.session(where.name())
        begin, used, served = time.perf_counter(), time.process_time(), cpu_of(gateway)
        session.write_many(_small(count))
        session.commit()
        rates.append(count / (time.perf_counter() - begin))
        cpus.append((time.process_time() - used, cpu_of(gateway) - served))
    return {
        "value": statistics.median(rates),
        "client_cpu_us_a_file": statistics.median(c for c, _ in cpus) / count * 1e6,
        "gateway_cpu_us_a_file": statistics.median(g for _, g in cpus) / count * 1e6,
        "gateway_rss_mb": max(map(cpu.rss_mb, gateway)),
    }


def commits_per_s(where: Place) -> dict[str, Any]:
    """Sessions that are committed to one head at once, each with a file of its own."""
    count, writers = (100, 16) if where.quick else (600, 32)
    name = where.name()
    with where.client.session(name) as session:
        session.write("first", b"1")

    def prepare(number: int) -> Any:
        session = where.client.session(name)
        session.write(f"file-{number}", b"x")
        return session

    from concurrent.futures import ThreadPoolExecutor

    gateway = where.cluster.pids("storage-gateway")
    with ThreadPoolExecutor(writers) as pool:
        sessions = list(pool.map(prepare, range(count)))
        served = cpu_of(gateway)
        begin = time.perf_counter()
        versions = list(pool.map(lambda session: session.commit().number, sessions))
        seconds = time.perf_counter() - begin
    assert len(set(versions)) == count
    assert where.dataset(name).file_count == count + 1
    return {
        "value": count / seconds,
        "writers": writers,
        "gateway_cpu_ms_a_commit": (cpu_of(gateway) - served) / count * 1e3,
        "threads": threading.active_count(),
    }
