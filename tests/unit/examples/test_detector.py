"""The detector's pure parts: labels, loss, boxes out of a grid, precision."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

from examples.workloads import code_of

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[ModuleType, ModuleType, ModuleType]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with (
        code_of("detector", "scenes") as scenes,
        code_of("detector", "model") as model,
        code_of("detector", "detect") as detect,
    ):
        yield scenes, model, detect
    torch.set_num_threads(threads)


def test_labels_go_through_their_file(modules: tuple[ModuleType, ...]) -> None:
    scenes = modules[0]
    _, boxes = scenes.scene(3, 64)
    back = scenes.read_labels(scenes.write_labels(boxes), "labels/3.txt")
    assert [b.kind for b in back] == [b.kind for b in boxes]
    assert np.allclose([b.x for b in back], [b.x for b in boxes], atol=1e-6)
    for text in ("0 0.5 0.5 0.1", "x 0.5 0.5 0.1 0.1", "0 0.5 0.5 nan 0.1", "0 1.5 0.5 0.1 0.1"):
        with pytest.raises(ValueError, match=r"labels/3.txt, line 2"):
            scenes.read_labels(f"0 0.5 0.5 0.1 0.1\n{text}\n", "labels/3.txt")


def test_images_of_any_size(modules: tuple[ModuleType, ...]) -> None:
    scenes = modules[0]
    data, _ = scenes.scene(1, 80)
    image = scenes.read_image(data, 32, "a.png")
    assert image.shape == (3, 32, 32) and image.min() >= -1 and image.max() <= 1
    with pytest.raises(ValueError, match="no PNG or JPEG"):
        scenes.read_image(b"GIF89a", 32, "a.gif")


def batch(modules: tuple[ModuleType, ...], count: int) -> tuple[object, object]:
    scenes, model, _ = modules
    made = [scenes.scene(seed, 32) for seed in range(count)]
    images = [torch.from_numpy(scenes.read_image(data, 32, "x")) for data, _ in made]
    return torch.stack(images), torch.stack([torch.from_numpy(model.encode(b)) for _, b in made])


def test_the_loss_is_a_sum_over_samples(modules: tuple[ModuleType, ...]) -> None:
    model = modules[1]
    images, boxes = batch(modules, 8)
    net = model.Detector(4)
    with torch.no_grad():
        whole = model.loss_sum(net(images), boxes)
        parts = [model.loss_sum(net(images[s]), boxes[s]) for s in (slice(3), slice(3, None))]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-5)


def test_training_lowers_it(modules: tuple[ModuleType, ...]) -> None:
    model = modules[1]
    images, boxes = batch(modules, 8)
    torch.manual_seed(0)
    net = model.Detector(4)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss_sum(net(images), boxes)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_the_onnx_model_is_the_net(modules: tuple[ModuleType, ...]) -> None:
    import hyper_inference

    model = modules[1]
    images, _ = batch(modules, 2)
    net = model.Detector(4)
    compiled = hyper_inference.compile(model.to_onnx(net), (1, 3, 32, 32), threads=1)
    with torch.no_grad():
        expected = net(images).numpy()
    assert np.allclose(compiled(images.numpy()), expected, atol=1e-4)


def test_boxes_out_of_a_grid(modules: tuple[ModuleType, ...]) -> None:
    detect = modules[2]
    grid = np.full((8, 4, 4), -9.0, np.float32)
    grid[:, 1, 2] = [3, 2, 0, 0, 0, 0, 5, 0]  # class 1, right in its cell
    grid[:, 1, 3] = [1, -9, 0, 0, 0, 0, 5, 0]  # the same object, less sure
    (box,) = detect.decode(grid)
    assert box[0] == 1 and box[2:] == pytest.approx([2.8808 / 4, 1.5 / 4, 0.25, 0.25], abs=1e-3)
    grid[5, 1, 3], grid[6, 1, 3] = 5, 0  # of another class: it stays
    assert len(detect.decode(grid)) == 2


def test_average_precision(modules: tuple[ModuleType, ...]) -> None:
    detect = modules[2]
    truth = {"a": [[0, 1.0, 0.5, 0.5, 0.2, 0.2]], "b": [[0, 1.0, 0.3, 0.3, 0.2, 0.2]]}
    right = [0, 0.9, 0.5, 0.5, 0.2, 0.2]
    wrong = [0, 0.95, 0.9, 0.9, 0.1, 0.1]
    assert detect.mean_average_precision(truth, truth) == 1.0
    assert detect.mean_average_precision({"a": [right]}, truth) == pytest.approx(0.5)
    assert detect.mean_average_precision({"a": [right, wrong]}, truth) == pytest.approx(0.25)
    assert detect.mean_average_precision({"a": [right, right]}, truth) == pytest.approx(0.5)
    assert detect.mean_average_precision({}, truth) == 0.0
