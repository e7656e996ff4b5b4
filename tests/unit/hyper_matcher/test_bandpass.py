from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from hyper_matcher.bandpass import bandpass, bandpass_onnx, gaussian_kernel
from tests.support.sections import texture


@pytest.mark.parametrize("bounded", [True, False])
def test_the_model_computes_the_function(bounded: bool) -> None:
    image = texture((70, 90)).astype(np.float32)
    model = bandpass_onnx(1.5, 6.0, offset=120.0, gain=0.03, bounded=bounded)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {"image": image[None, None]})
    assert features.shape == (1, 1, 70, 90)
    expected = bandpass(image, 1.5, 6.0, offset=120.0, gain=0.03, bounded=bounded)
    assert np.abs(features[0, 0] - expected).max() < 1e-4


def test_takes_off_shading_and_stays_bounded() -> None:
    shading = np.linspace(0, 200, 128)[None].repeat(128, 0)
    features = bandpass(shading, 2, 8)
    assert np.abs(features[40:-40, 40:-40]).max() < 1e-2
    assert np.abs(bandpass(texture((64, 64)).astype(np.float32) * 1e4, 2, 8)).max() <= 1.0


def test_the_outline_of_the_tissue_is_no_feature() -> None:
    section = np.zeros((160, 160), np.uint8)
    section[40:120, 40:120] = 120
    section[80:83, 60:110] = 0  # a dark line in the tissue, not a hole
    features = bandpass(section, 2, 8, offset=120.0)
    assert not features[:40].any() and not features[:, 120:].any()
    assert np.abs(features[42:54, 42:118]).max() < 1e-3
    assert features[81, 80] < -0.5
    model = bandpass_onnx(2, 8, offset=120.0)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (computed,) = session.run(None, {"image": section[None, None].astype(np.float32)})
    assert np.abs(computed[0, 0] - features).max() < 1e-4


def test_kernels_sum_to_one() -> None:
    assert gaussian_kernel(2.0).shape == (13,)
    assert gaussian_kernel(0.3).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("sigmas", [(2.0, 2.0), (5.0, 2.0), (0.0, 1.0), (-1.0, 2.0)])
def test_refuses_sigmas_that_make_no_band(sigmas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="band-pass"):
        bandpass(np.zeros((8, 8)), *sigmas)
    with pytest.raises(ValueError, match="band-pass"):
        bandpass_onnx(*sigmas)
