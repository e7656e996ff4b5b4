"""`hyper infer` on a local cluster: a net over an array, as tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hyper_inference
from hyper.client import Client
from tests.compiler.nets import small_unet_model
from tests.support.local_cluster import LocalCluster

pytestmark = pytest.mark.timeout(300)


def test_a_net_over_a_volume(local_cluster: LocalCluster, tmp_path: Path) -> None:
    model = tmp_path / "unet.onnx"
    model.write_bytes(small_unet_model())
    volume = np.random.default_rng(0).integers(0, 255, (6, 40, 56)).astype(np.uint8)
    with Client(local_cluster.endpoint) as client:
        with client.session("tests/infer-raw") as session:
            raw = session.create_array("raw", volume.shape, "uint8")
            raw[...] = volume
        result = local_cluster.json(
            "infer", str(model), "tests/infer-raw/raw", "tests/infer-out/prediction",
            "--scale", "0.01",
        )  # fmt: skip
        assert result["shape"] == [2, 6, 40, 56]
        found = client.open_array("tests/infer-out/prediction")[...]
    net = hyper_inference.compile(small_unet_model(), (1, 1, *volume.shape))
    expected = net(volume[None, None].astype(np.float32) * np.float32(0.01))[0]
    assert np.array_equal(found, expected)
    refused = local_cluster.run("infer", str(model), "tests/infer-raw/raw", "tests/infer-out")
    assert refused.returncode == 2
    assert "tenant/name/array" in refused.stderr
