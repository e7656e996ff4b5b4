"""The recipe of `hyper infer`, and how a volume is cut into tasks."""

from __future__ import annotations

import json
import math

import yaml
from hypothesis import given
from hypothesis import strategies as st

from hyper import infer
from hyper_voxels import Box

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
