"""Parts of the service without sockets: model names, the cache of models, slots, patches."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from hyper.compute_inference import model_name
from hyper.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from hyper_inference.convert import VolumeOptions
from hyper_inference.engine import Engine, volume_to_batch
from hyper_inference.models import ModelFile, Models, parse_model_name
from hyper_inference.slots import Slots
from hyper_inference.volume import Conversion
from hyper_voxels import Box
from tests.compiler.nets import bandpass_model, small_unet_model
from tests.unit.hyper_inference.test_volume import MemoryArray

VERSION = "tenants/t/datasets/d/versions/3"


class MemoryFiles:
    """Models in memory."""

    def __init__(self, **files: bytes) -> None:
        self.files = files
        self.reads = 0

    def stamp(self, file: ModelFile) -> str:
        if file.path not in self.files:
            raise NotFoundError(f"no {file.path}")
        return str(hash(self.files[file.path]))

    def read(self, file: ModelFile, limit_bytes: int) -> bytes:
        self.reads += 1
        return self.files[file.path]


def make_models(cache_bytes: int = 2**30, **files: bytes) -> tuple[Models, MemoryFiles]:
    store = MemoryFiles(**files)
    return Models(store, cache_bytes=cache_bytes, model_bytes=2**20), store


def test_model_names() -> None:
    file = parse_model_name(f"{VERSION}/files/a/b.onnx")
    assert (file.parent, file.path) == (VERSION, "a/b.onnx")
    assert file.name == f"{VERSION}/files/a/b.onnx"
    assert parse_model_name("tenants/t/datasets/d/sessions/s/files/x").path == "x"
    for bad in ("", "a/b", f"{VERSION}/files/", f"{VERSION}/files/../x", f"{VERSION}/arrays/x",
                "tenants//datasets/d/versions/3/files/x"):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            parse_model_name(bad)
    assert model_name("t/d@2/nets/a.onnx") == "tenants/t/datasets/d/versions/2/files/nets/a.onnx"
    assert model_name("t/d/a.onnx") == "tenants/t/datasets/d/versions/head/files/a.onnx"
    with pytest.raises(InvalidArgumentError, match="names a dataset"):
        model_name("t/d")


def test_models_are_loaded_once_and_again_when_they_change() -> None:
    models, store = make_models(net=bandpass_model(3))
    name = f"{VERSION}/files/net"
    first = models.model(name)
    assert models.model(name) is first
    assert models.net(first, (5, 1, 8, 8), "fast") is models.net(first, (1, 1, 8, 8), "")
    assert store.reads == 1
    store.files["net"] = bandpass_model(5)
    assert models.model(name) is not first
    assert store.reads == 2


def test_threads_that_ask_at_once_wait_for_one_compilation() -> None:
    models, _ = make_models(net=bandpass_model(3))
    model = models.model(f"{VERSION}/files/net")
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(models.net(model, (1, 1, 9, 9), "fast")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(map(id, found))) == 1


def test_the_least_recently_used_net_goes() -> None:
    models, _ = make_models(cache_bytes=1, net=bandpass_model(3))
    model = models.model(f"{VERSION}/files/net")
    net = models.net(model, (1, 1, 8, 8), "fast")
    assert models.net(model, (1, 1, 8, 8), "fast") is net  # the newest stays, whatever its size
    models.net(model, (1, 1, 8, 9), "fast")
    assert models.net(model, (1, 1, 8, 8), "fast") is not net


async def test_slots_refuse_what_does_not_fit_the_queue() -> None:
    slots = Slots(1, 1, retry_after_s=2.5)
    async with slots.one():
        inside = asyncio.Event()

        async def waiter() -> None:
            async with slots.one():
                inside.set()

        waiting = asyncio.ensure_future(waiter())
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError) as caught:
            async with slots.one():
                pass
        assert caught.value.retry_after_s == 2.5
        assert not inside.is_set()
    await waiting
    assert inside.is_set()
    async with slots.one():
        pass


def options(**changes: object) -> VolumeOptions:
    facts = {"patch": None, "overlap": None, "mode": "fast", "conversion": Conversion(),
             "blending": "crop", **changes}  # fmt: skip
    return VolumeOptions(**facts)


def engine(patch_voxels: int, **files: bytes) -> Engine:
    models, _ = make_models(**files)
    return Engine(models, patch_voxels=patch_voxels, block_bytes=2**20)


def run_volume(engine: Engine, source: np.ndarray, channels: int = 1, **changes: object):
    shape = source.shape if channels == 1 else (channels, *source.shape)
    destination = MemoryArray(np.zeros(shape, np.float32), (2, 16, 16))
    box = Box.of_shape(source.shape)
    steps = list(
        engine.volume(
            f"{VERSION}/files/net", MemoryArray(source), destination, box, options(**changes),
            threading.Event(),
        )
    )  # fmt: skip
    return destination.data, steps


def test_chosen_patches_and_overlap_give_the_whole_result() -> None:
    source = np.random.default_rng(0).integers(0, 255, (2, 50, 70)).astype(np.uint8)
    whole, steps = run_volume(engine(2**20, net=bandpass_model(5)), source)
    assert steps[-1].total_patches == 2
    patched, steps = run_volume(engine(400, net=bandpass_model(5)), source)
    assert steps[-1].total_patches > 8
    assert np.array_equal(whole, patched)


def test_odd_volumes_are_extended_until_the_net_fits() -> None:
    source = np.random.default_rng(0).integers(0, 255, (5, 17, 19)).astype(np.uint8)
    result, _ = run_volume(engine(2**20, net=small_unet_model()), source, channels=2)
    assert result.shape == (2, 5, 17, 19)
    assert np.isfinite(result).all()
    assert result.std() > 0
    with pytest.raises(InvalidArgumentError, match="2 channels"):
        run_volume(engine(2**20, net=small_unet_model()), source)


def test_sections_become_samples() -> None:
    volume = np.arange(24).reshape(2, 3, 4)
    assert volume_to_batch(volume, 2).shape == (2, 1, 3, 4)
    assert volume_to_batch(volume, 3).shape == (1, 1, 2, 3, 4)
    assert volume_to_batch(np.zeros((5, 2, 3, 4)), 2).shape == (2, 5, 3, 4)
