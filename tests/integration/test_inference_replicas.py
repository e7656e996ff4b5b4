"""Several inference services behind one name: shares of the load, a kill, a cap on memory."""

from __future__ import annotations

import re
import secrets
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import hyper_inference
from hyper.client import Client
from hyper.compute_inference import VolumeProgress
from tests.compiler.nets import bandpass_model, small_unet_model
from tests.support.gateway import run_gateway
from tests.support.inference import inference_client, inference_process
from tests.support.servers import EtcdServer, S3Server, ServerProcess

pytestmark = pytest.mark.timeout(120)
MODELS = "tests/replicas"
SIZES = [(40, n) for n in range(50, 55)]


@dataclass(frozen=True, slots=True)
class Replica:
    facts: dict[str, str]
    process: ServerProcess

    def metric(self, name: str) -> float:
        """The value of one line of /metrics; 0 before it is there."""
        url = f"http://{self.facts['metrics_address']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            text = response.read().decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def served(self) -> float:
        return self.metric('hyper_inference_patches_total{call="predict"}')


@dataclass(frozen=True, slots=True)
class Pair:
    replicas: tuple[Replica, Replica]
    client: Client


@pytest.fixture(scope="module")
def gateway(
    etcd_server: EtcdServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    bucket = s3_server.settings(f"replicas-{secrets.token_hex(8)}")
    folder, prefix = tmp_path_factory.mktemp("gateway"), f"/test-{secrets.token_hex(8)}"
    with run_gateway(folder, etcd_server.endpoint, bucket, prefix) as running:
        yield running.address


@pytest.fixture(scope="module")
def cache_bytes() -> int:
    """Room for two of the small nets, not for three."""
    net = hyper_inference.compile(bandpass_model(3), (1, 1, *SIZES[0]))
    return net.memory_bytes * 5 // 2


@pytest.fixture
def pair(gateway: str, cache_bytes: int, tmp_path: Path) -> Iterator[Pair]:
    options = {"BLOCK_BYTES": "65536", "CACHE_BYTES": str(cache_bytes)}
    with (
        inference_process(tmp_path / "one", gateway, **options) as one,
        inference_process(tmp_path / "two", gateway, **options) as two,
        inference_client(gateway, f"{one[0]['address']},{two[0]['address']}") as client,
    ):
        with client.session(MODELS) as session:
            session.write("small.onnx", bandpass_model(3))
            session.write("unet.onnx", small_unet_model())
        yield Pair((Replica(*one), Replica(*two)), client)


def test_replicas_share_the_load_evenly(pair: Pair) -> None:
    x = np.random.default_rng(0).random((1, 1, 40, 50), np.float32)
    name = f"{MODELS}/small.onnx"
    first = pair.client.predict(name, x)
    while not all(replica.served() for replica in pair.replicas):  # until both are connected
        assert np.array_equal(pair.client.predict(name, x), first)
    before = [replica.served() for replica in pair.replicas]
    for _ in range(40):
        assert np.array_equal(pair.client.predict(name, x), first)
    shares = [r.served() - n for r, n in zip(pair.replicas, before, strict=True)]
    assert sum(shares) == 40
    assert min(shares) >= 15


def test_a_killed_replica_changes_no_byte(pair: Pair) -> None:
    client = pair.client
    volume = np.random.default_rng(1).integers(0, 255, (8, 96, 96)).astype(np.uint8)
    session = client.session(f"tests/out-{secrets.token_hex(4)}")
    source = session.create_array("raw", volume.shape, "uint8")
    source[...] = volume
    whole, killed = (
        session.create_array(
            name, (2, *volume.shape), "float32", chunks=(2, 8, 32, 32), shards=(2, 8, 32, 32)
        )
        for name in ("whole", "killed")
    )
    name, told = f"{MODELS}/unet.onnx", list[VolumeProgress]()
    sizes = {"patch": (8, 40, 40), "overlap": (0, 8, 8)}
    client.infer_volume(name, source, whole, scale=1 / 255, blending="bump", **sizes)

    def kill_who_works(progress: VolumeProgress) -> None:
        told.append(progress)
        half = [step for step in told if 2 * step.done_patches >= step.total_patches]
        if len(half) == 1 and half[0] is progress:
            (busy,) = (r for r in pair.replicas if r.metric("hyper_inference_busy"))
            busy.process.kill()

    client.infer_volume(
        name, source, killed, scale=1 / 255, blending="bump", on_progress=kill_who_works, **sizes
    )
    assert told[-1].done_patches == told[-1].total_patches
    assert whole[...].tobytes() == killed[...].tobytes()
    session.abort()


def test_many_nets_stay_under_the_cap(pair: Pair, cache_bytes: int) -> None:
    name, made = f"{MODELS}/small.onnx", dict[tuple[int, int], np.ndarray]()
    for _ in range(3):
        for size in SIZES:  # five, so that each replica is asked for every one
            x = np.random.default_rng(2).random((1, 1, *size), np.float32)
            output = pair.client.predict(name, x)
            assert np.array_equal(output, made.setdefault(size, output))
    for replica in pair.replicas:
        assert 0 < replica.metric("hyper_inference_cache_bytes") <= cache_bytes
    compiled = sum(r.metric("hyper_inference_compile_seconds_count") for r in pair.replicas)
    assert compiled > 2 * len(SIZES)  # some went, and were made again
