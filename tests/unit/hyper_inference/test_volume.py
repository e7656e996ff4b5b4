"""Volumes: patches, blending, blocks of whole shards; with arrays in memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.errors import InvalidArgumentError
from hyper_inference.augment import AUGMENTATIONS, augmented, check_augmentation
from hyper_inference.mask import Mask
from hyper_inference.volume import (
    Conversion,
    Grid,
    Work,
    infer_volume,
    margins,
    read_patch,
    split_blocks,
    windows,
)
from hyper_voxels import Box


class MemoryArray:
    """An array that remembers what was written."""

    def __init__(self, data: np.ndarray, shards: tuple[int, ...] = ()) -> None:
        self.data = data
        self.shards = shards
        self.written: list[tuple[slice, ...]] = []

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    def __getitem__(self, key: object) -> np.ndarray:
        return self.data[key]

    def __setitem__(self, key: tuple[slice, ...], value: np.ndarray) -> None:
        self.written.append(key)
        self.data[key] = value


def blur(values: np.ndarray) -> np.ndarray:
    """A net that sees one voxel on each side; zero outside, as a padded convolution's."""
    result = np.zeros_like(values)
    padded = np.pad(values, [(0, 0), (1, 1), (1, 1), (1, 1)])
    _, z, y, x = values.shape
    for i, j, k in itertools.product(range(3), repeat=3):
        result += padded[:, i : i + z, j : j + y, k : k + x]
    return result


sizes = st.integers(1, 200)


@given(sizes, sizes, sizes)
def test_windows_cover_every_voxel_once(size: int, patch: int, overlap: int) -> None:
    overlap %= patch
    found = windows(size, patch, overlap)
    kept = [voxel for w in found for voxel in range(w.keep_start, w.keep_stop)]
    assert kept == list(range(size))
    for w in found:
        assert w.start <= w.keep_start < w.keep_stop <= w.start + patch
        assert patch >= size or w.start + patch <= size
    for left, right in itertools.pairwise(found):
        assert left.start + patch - right.start >= overlap
        assert left.keep_stop - left.start >= overlap // 2
        assert right.start + overlap // 2 <= right.keep_start


@given(
    st.tuples(*[st.integers(0, 50)] * 3), st.tuples(*[st.integers(1, 60)] * 3),
    st.tuples(*[st.integers(1, 40)] * 3), st.integers(1, 100_000),
)  # fmt: skip
def test_blocks_are_whole_shards(start, shape, shards, voxels) -> None:
    box = Box.at(start, shape)
    blocks = list(split_blocks(box, shards, voxels))
    assert sum(block.voxels for block in blocks) == box.voxels
    for block in blocks:
        assert box.covers(block)
        for axis in range(3):
            assert block.start[axis] == box.start[axis] or block.start[axis] % shards[axis] == 0
            assert block.stop[axis] == box.stop[axis] or block.stop[axis] % shards[axis] == 0
        assert block.voxels <= max(voxels, int(np.prod(shards)))


def run(
    source: np.ndarray, box: Box, *, patch, overlap, blending="crop", shards=(4, 8, 8),
    net=blur, margin=(0, 0, 0), check=True, **more: object,
):  # fmt: skip
    destination = MemoryArray(np.full(source.shape, -7, np.float32), shards)
    grid = Grid.of(source.shape, patch, overlap, margin)
    work = Work(box, grid, Conversion(), blending, 6144, **more)
    steps = list(infer_volume(net, MemoryArray(source), destination, work))
    if check:
        assert steps[-1].done_patches == steps[-1].total_patches
    return destination


VOLUME = np.random.default_rng(0).integers(0, 9, (9, 30, 26)).astype(np.float32)
WHOLE = blur(VOLUME[None])[0]
ALL = Box.of_shape(VOLUME.shape)


@pytest.mark.parametrize("patch", [(9, 30, 26), (4, 9, 12), (3, 30, 7)])
def test_crop_gives_what_the_net_gives_on_the_whole(patch: tuple[int, int, int]) -> None:
    destination = run(VOLUME, ALL, patch=patch, overlap=(2, 2, 2))
    assert np.array_equal(destination.data, WHOLE)
    for key in destination.written:
        assert all(s.start % n == 0 for s, n in zip(key, (4, 8, 8), strict=True))


@pytest.mark.parametrize("blending", ["crop", "linear", "bump"])
def test_boxes_in_any_split_write_the_same_bytes(blending: str) -> None:
    options = {"patch": (4, 11, 13), "overlap": (2, 4, 5), "blending": blending}
    whole = run(VOLUME, ALL, **options).data
    assert not (whole == -7).any()
    parts = np.full_like(whole, -7)
    for z, y in itertools.product([(5, 9), (0, 5)], [(13, 30), (0, 13)]):
        box = Box((z[0], y[0], 0), (z[1], y[1], 26))
        parts[box.slices] = run(VOLUME, box, **options).data[box.slices]
    assert np.array_equal(whole, parts)


@pytest.mark.parametrize("blending", ["linear", "bump"])
def test_blending_of_agreeing_patches_changes_nothing(blending: str) -> None:
    flat = np.ones((6, 20, 20), np.float32)
    destination = MemoryArray(np.zeros_like(flat), (6, 20, 20))
    grid = Grid.of(flat.shape, (4, 8, 8), (2, 4, 4))
    work = Work(Box.of_shape(flat.shape), grid, Conversion(), blending)
    list(infer_volume(lambda v: 3 * v, MemoryArray(flat), destination, work))
    assert np.allclose(destination.data, 3, rtol=1e-6)


def test_an_array_smaller_than_the_patch_is_reflected() -> None:
    source = np.arange(12).reshape(1, 3, 4)
    grid = Grid.of((1, 3, 4), (2, 6, 5), (0, 0, 0))
    ((patch,),) = [grid.touching(Box.of_shape((1, 3, 4)), "crop")]
    values = read_patch(MemoryArray(source), patch, grid)
    assert values.shape == (1, 2, 6, 5)
    assert values[0, 1, :, 0].tolist() == [0, 4, 8, 4, 0, 4]
    assert values[0, 0, 0].tolist() == [0, 1, 2, 3, 2]


def test_conversion_rounds_clips_and_drops_nan() -> None:
    conversion = Conversion(0.5, 1.0, 100.0, 10.0)
    assert conversion.read(np.uint8([0, 255])).tolist() == [1.0, 128.5]
    values = np.float32([np.nan, -1, 0.004, 0.5, 9e9, np.inf, -np.inf])
    assert conversion.write(values, np.dtype("uint8")).tolist() == [0, 0, 10, 60, 255, 255, 0]
    assert conversion.write(np.float32([1]), np.dtype("float32")).tolist() == [110.0]
    assert conversion.write(np.float32([-1, 1]), np.dtype("bool")).tolist() == [False, True]
    limits = np.float32([-np.inf, np.inf])
    assert Conversion().write(limits, np.dtype("int64")).tolist() == [-(2**63), 2**63 - 1024]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="overlap"):
        windows(10, 4, 4)
    with pytest.raises(InvalidArgumentError, match="blending"):
        run(VOLUME, ALL, patch=(4, 8, 8), overlap=(0, 0, 0), blending="magic")
    assert margins((1, 4, 6, 8), (1, 4, 4, 2)) == (0, 1, 3)
    for out in ((1, 3, 4, 4), (1, 5, 4, 4)):
        with pytest.raises(InvalidArgumentError, match="middle"):
            margins((1, 4, 4, 4), out)
    for shape in ((9, 30), (9, 7, 26), (10, 30, 26)):
        with pytest.raises(InvalidArgumentError, match="mask"):
            Mask(np.ones(shape), VOLUME.shape)


def valid(values: np.ndarray) -> np.ndarray:
    """The same net without padding: its output lacks one voxel on each side."""
    return blur(values)[:, 1:-1, 1:-1, 1:-1]


@pytest.mark.parametrize("blending", ["crop", "linear", "bump"])
def test_an_output_smaller_than_the_input(blending: str) -> None:
    """The border sees reflected voxels, the inside is what the net gives on the whole."""
    expected = valid(np.pad(VOLUME, 1, mode="reflect")[None])[0]
    for patch in ((5, 9, 12), (4, 32, 28), (11, 40, 50)):
        found = run(
            VOLUME, ALL, patch=patch, overlap=(0, 0, 0), blending=blending, net=valid,
            margin=(1, 1, 1),
        ).data  # fmt: skip
        assert np.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("blending", ["crop", "bump"])
def test_a_mask_leaves_out_patches_and_blocks(blending: str) -> None:
    mask = np.zeros((3, 5, 5), np.uint8)  # a voxel of it is 3 x 6 x 6
    mask[0, 0, 1] = 1
    seen: list[int] = []

    def net(values: np.ndarray) -> np.ndarray:
        seen.append(1)
        return blur(values)

    options = {"patch": (3, 6, 6), "overlap": (0, 0, 0), "blending": blending}
    found = run(VOLUME, ALL, net=net, mask=Mask(mask, VOLUME.shape), **options)
    everything = run(VOLUME, ALL, **options).data
    assert len(seen) < 12
    wanted = (slice(0, 3), slice(0, 6), slice(6, 12))
    if blending == "crop":
        assert np.array_equal(found.data[wanted], everything[wanted])
    assert set(np.unique(found.data[6:])) == {-7}  # never written
    assert len(found.written) < 6
    parts = np.full_like(found.data, -7)
    for y in ((0, 8), (8, 30)):
        box = Box((0, y[0], 0), (9, y[1], 26))
        more = run(VOLUME, box, mask=Mask(mask, VOLUME.shape), check=False, **options).data
        parts[box.slices] = more[box.slices]
    assert np.array_equal(np.maximum(parts, 0), np.maximum(found.data, 0))
    nothing = run(VOLUME, ALL, mask=Mask(mask * 0, VOLUME.shape), check=False, **options)
    assert nothing.written == []


def test_a_stopped_run_goes_on_where_it_stopped() -> None:
    options = {"patch": (4, 11, 13), "overlap": (2, 4, 5)}
    whole = run(VOLUME, ALL, **options)
    grid = Grid.of(VOLUME.shape, (4, 11, 13), (2, 4, 5))
    destination = MemoryArray(np.full(VOLUME.shape, -7, np.float32), (4, 8, 8))
    done: list[Box] = []
    for step in infer_volume(
        blur, MemoryArray(VOLUME), destination, Work(ALL, grid, Conversion(), "crop", 6144)
    ):
        done += [step.written] if step.written is not None else []
        if len(done) == 3:
            break
    written = len(destination.written)
    assert 3 <= written < len(whole.written)
    work = Work(ALL, grid, Conversion(), "crop", 6144, done=tuple(done))
    list(infer_volume(blur, MemoryArray(VOLUME), destination, work))
    assert len(destination.written) <= len(whole.written) + written - 3
    assert np.array_equal(destination.data, whole.data)


def test_errors_of_reading_and_writing_come_out() -> None:
    class Broken(MemoryArray):
        def __getitem__(self, key: object) -> np.ndarray:
            raise OSError("gone")

        def __setitem__(self, key: object, value: np.ndarray) -> None:
            raise OSError("full")

    work = Work(ALL, Grid.of(VOLUME.shape, (4, 11, 13), (0, 0, 0)), Conversion())
    good, bad = MemoryArray(VOLUME.copy(), (4, 8, 8)), Broken(VOLUME, (4, 8, 8))
    with pytest.raises(OSError, match="gone"):
        list(infer_volume(blur, bad, good, work))
    with pytest.raises(OSError, match="full"):
        list(infer_volume(blur, good, bad, work))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_of_a_symmetric_net_changes_little(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)
    assert np.allclose(augmented(blur, name)(x), blur(x), rtol=1e-5, atol=1e-5)
    calls: list[np.ndarray] = []

    def net(values: np.ndarray) -> np.ndarray:
        calls.append(values)
        return values

    assert np.allclose(augmented(net, name)(x), x)
    different = {values.tobytes() for values in calls}
    assert len(different) == {"none": 1, "flips": 4, "flips_zyx": 8, "rotations": 8}[name]


def test_augmentation_refuses_what_cannot_be_turned() -> None:
    check_augmentation("flips", (1, 2, 3))
    for name, patch in (("rotations", (1, 2, 3)), ("magic", (1, 2, 2))):
        with pytest.raises(InvalidArgumentError):
            check_augmentation(name, patch)
