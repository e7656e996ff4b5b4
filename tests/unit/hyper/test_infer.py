"""The recipe of `hyper infer`, and how a volume is cut into tasks."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hyper import infer
from hyper.compute_inference import VolumeProgress, infer_volume
from hyper.errors import UnavailableError
from hyper_voxels import Box
from hyperapi.common.v1 import geometry_pb2
from hyperapi.inference.v1.inference_service_pb2 import InferVolumeResponse

sizes = st.tuples(st.integers(1, 3000), st.integers(1, 40_000), st.integers(1, 40_000))
shards = st.tuples(st.sampled_from([1, 8, 64]), *[st.sampled_from([256, 512, 2048])] * 2)


@given(sizes, shards)
def test_slabs_tile_the_volume_by_whole_shards(
    shape: tuple[int, int, int], shards: tuple[int, int, int]
) -> None:
    boxes = [Box(low, high) for low, high in infer.slabs(shape, shards)]
    assert sum(box.voxels for box in boxes) == math.prod(shape)
    for box in boxes:
        assert Box.of_shape(shape).covers(box)
        assert all(low % n == 0 for low, n in zip(box.start, shards, strict=True))
        one = shards[0] * shards[1] * shape[2]
        assert box.voxels <= max(infer.BLOCK_VOXELS, one)


def test_the_recipe_names_every_slab() -> None:
    document = yaml.safe_load(infer.recipe("infer-x", "tenants/t/x", json.dumps({"a": [1]}), 7))
    compute = document["experiments"]["compute"]
    assert compute["parameters"]["slab"] == {"range": [0, 7]}
    assert json.loads(compute["parameters"]["settings"]) == {"a": [1]}
    assert document["experiments"]["commit"]["depends_on"] == ["compute"]


class Lossy:
    """A client whose service goes away in the middle of every call but the last."""

    def __init__(self, blocks: int, lost_after: int) -> None:
        self.blocks, self.lost_after = blocks, lost_after
        self.calls: list[int] = []

    def stream(self, service: str, stub: object, method: str, request: object) -> object:
        done = {box.start[0] for box in request.done}
        left = [z for z in range(self.blocks) if z not in done]
        self.calls.append(len(left))
        for count, z in enumerate(left):
            if count == self.lost_after:
                raise UnavailableError("gone")
            yield InferVolumeResponse(done_patches=count + 1, total_patches=len(left))
            written = geometry_pb2.Box(start=(z, 0, 0), stop=(z + 1, 9, 9))
            yield InferVolumeResponse(
                done_patches=count + 1, total_patches=len(left), written=written, compute_s=1.0
            )


def volume(client: Lossy) -> list[VolumeProgress]:
    array = SimpleNamespace(name="tenants/t/datasets/d/versions/1/arrays/a")
    steps: list[VolumeProgress] = []
    infer_volume(client, "t/d/net.onnx", array, array, on_progress=steps.append)
    return steps


def test_a_volume_goes_on_behind_the_last_block_that_was_written() -> None:
    client = Lossy(blocks=7, lost_after=3)
    steps = volume(client)
    assert client.calls == [7, 4, 1]
    assert [step.done_patches for step in steps] == [n for n in range(1, 8) for _ in range(2)]
    assert {step.total_patches for step in steps} == {7}


def test_a_service_that_gets_nowhere_is_an_error() -> None:
    with pytest.raises(UnavailableError):
        volume(Lossy(blocks=7, lost_after=0))
