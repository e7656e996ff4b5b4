"""The NCC layer: the scores of OpenCV and of the numpy library, exact gradients, refusals."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from hyper_matcher.ncc import SearchImage
from hyper_matcher.ncc_layer import Method, NormalizedCrossCorrelation, spatial_is_cheaper

METHODS: list[Method] = ["direct", "fft"]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]
on_every_device = pytest.mark.parametrize("device", DEVICES)


def images(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=dtype) * 255


@on_every_device
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("template", [(1, 1), (2, 9), (7, 5), (24, 31)])
@pytest.mark.parametrize("batch", [(2, 3), (1, 1)])
def test_equals_opencv(
    device: str, method: Method, template: tuple[int, int], batch: tuple[int, int]
) -> None:
    search, cut = images(*batch, 24, 31), images(*batch, *template, seed=1)
    layer = NormalizedCrossCorrelation(reduce="none", method=method)
    found = layer(search.to(device), cut.to(device)).cpu()
    for n in range(batch[0]):
        for c in range(batch[1]):
            expected = cv2.matchTemplate(
                search[n, c].numpy(), cut[n, c].numpy(), cv2.TM_CCOEFF_NORMED
            )
            if template == (1, 1):
                expected = np.zeros_like(expected)  # OpenCV calls one pixel a match
            np.testing.assert_allclose(found[n, c].numpy(), expected, atol=1e-5)


@on_every_device
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_library_on_a_bright_background(device: str, method: Method) -> None:
    search = images(1, 1, 60, 70) * 0.01 + 60_000
    cut = search[:, :, 10:30, 20:45].clone()
    layer = NormalizedCrossCorrelation(method=method)
    found = layer(search.to(device), cut.to(device))[0, 0].cpu().numpy()
    expected = SearchImage(search[0, 0].numpy()).correlate(cut[0, 0].numpy())
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.unravel_index(found.argmax(), found.shape) == (10, 20)
    assert found.max() == pytest.approx(1, abs=1e-5)


@on_every_device
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_gradients(device: str, method: Method, dimensions: int) -> None:
    kind: Any = {"dtype": torch.float64, "device": device, "requires_grad": True}
    search = torch.rand(2, 2, *(4, 5, 3)[:dimensions], **kind)
    cut = torch.rand(2, 2, *(2, 3, 2)[:dimensions], **kind)
    layer = NormalizedCrossCorrelation(dimensions=dimensions, method=method)
    assert torch.autograd.gradcheck(layer, (search, cut))


@on_every_device
@pytest.mark.parametrize("method", METHODS)
def test_what_has_no_contrast_scores_0_and_has_no_gradient(device: str, method: Method) -> None:
    search = images(1, 1, 20, 30).to(device)
    search[..., :15] = 200.0
    search.requires_grad_()
    cut = images(1, 1, 6, 6, seed=1).to(device)
    scores = NormalizedCrossCorrelation(method=method)(search, cut)
    assert (scores[..., :10] == 0).all()
    assert (scores[..., 10:] != 0).all()
    constant = torch.full((1, 1, 6, 6), 3.3, device=device, requires_grad=True)
    nothing = NormalizedCrossCorrelation(method=method)(search, constant)
    assert (nothing == 0).all()
    (scores.sum() + nothing.sum()).backward()
    assert search.grad is not None
    assert constant.grad is not None
    assert torch.isfinite(search.grad).all()
    assert (constant.grad == 0).all()


@on_every_device
def test_3d_finds_a_block(device: str) -> None:
    search = images(1, 2, 9, 12, 11).to(device)
    cut = search[:, :, 3:7, 5:9, 2:8].clone()
    for method in METHODS:
        scores = NormalizedCrossCorrelation(dimensions=3, method=method)(search, cut)
        assert scores.shape == (1, 1, 6, 9, 6)
        assert scores[0, 0, 3, 5, 2].item() == pytest.approx(1, abs=1e-5)
        assert scores.argmax() == (3 * 9 + 5) * 6 + 2


def test_channels_are_averaged_and_one_template_serves_a_batch() -> None:
    search, cut = images(3, 2, 15, 15), images(1, 2, 5, 5, seed=1)
    each = NormalizedCrossCorrelation(reduce="none")(search, cut)
    mean = NormalizedCrossCorrelation()(search, cut)
    torch.testing.assert_close(mean, each.mean(1, keepdim=True))
    alone = NormalizedCrossCorrelation(reduce="none")(search[2:], cut)
    torch.testing.assert_close(each[2:], alone)


@on_every_device
@pytest.mark.parametrize("method", METHODS)
def test_half_precision(device: str, method: Method) -> None:
    search = images(2, 1, 20, 21).to(device)
    layer = NormalizedCrossCorrelation(method=method)
    for dtype in (torch.float16, torch.bfloat16):
        half = search.to(dtype)
        found = layer(half, half[:, :, 3:12, 4:11])
        assert found.dtype == dtype
        exact = layer(half.double(), half[:, :, 3:12, 4:11].double())
        torch.testing.assert_close(found, exact.to(dtype))


def test_the_cheaper_way_is_chosen() -> None:
    assert spatial_is_cheaper((3, 3), (64, 64))
    assert not spatial_is_cheaper((40, 40), (106, 106))


@pytest.mark.parametrize(
    ("search", "template", "message"),
    [
        (images(1, 1, 8, 8), images(1, 1, 9, 4), "larger than the search image"),
        (images(8, 8), images(4, 4), "need 4 axes"),
        (images(1, 2, 8, 8), images(1, 1, 4, 4), "do not belong"),
        (images(3, 1, 8, 8), images(2, 1, 4, 4), "do not belong"),
        (images(1, 1, 8, 8).to(torch.uint8), images(1, 1, 4, 4), "floating-point"),
        (images(1, 1, 8, 8) / 0, images(1, 1, 4, 4), "not finite"),
        (images(1, 1, 8, 8), images(1, 1, 4, 4) * float("nan"), "not finite"),
        (images(1, 1, 8, 8), images(1, 1, 0, 4), "must not be empty"),
    ],
)
def test_refusals(search: torch.Tensor, template: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NormalizedCrossCorrelation()(search, template)


def test_settings_are_checked() -> None:
    for wrong in ({"dimensions": 1}, {"reduce": "sum"}, {"method": "guess"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            NormalizedCrossCorrelation(**wrong)  # type: ignore[arg-type]
