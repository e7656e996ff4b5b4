from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.ndimage

from hyper_matcher import sections
from hyper_matcher.align.geometry import Affine
from hyper_matcher.align.match import MatchOptions, PreparedSection
from hyper_matcher.sections import Matcher, SectionCache
from tests.support.sections import texture

_OPTIONS = MatchOptions(template_px=32, spacing_px=16)


def test_the_same_content_is_prepared_once() -> None:
    cache = SectionCache(2)
    first, second = texture((96, 96), 1), texture((96, 96), 2)
    prepared = cache.prepare(first, _OPTIONS)
    assert cache.prepare(first.copy(), _OPTIONS) is prepared
    assert cache.prepare(second, _OPTIONS) is not prepared
    assert cache.prepare(first, MatchOptions(template_px=48, spacing_px=16)) is not prepared
    assert cache.prepare(first.astype(np.int16), _OPTIONS) is not prepared


def test_the_least_recently_used_goes() -> None:
    cache = SectionCache(2)
    images = [texture((96, 96), seed) for seed in range(3)]
    kept = [cache.prepare(image, _OPTIONS) for image in images[:2]]
    assert cache.prepare(images[0], _OPTIONS) is kept[0]
    cache.prepare(images[2], _OPTIONS)
    assert cache.prepare(images[0], _OPTIONS) is kept[0]
    assert cache.prepare(images[1], _OPTIONS) is not kept[1]


def test_calls_that_want_a_section_at_once_share_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together, started = threading.Event(), []

    def slow(image: np.ndarray, options: MatchOptions) -> PreparedSection:
        started.append(image)
        assert together.wait(20)
        return PreparedSection(image, options)

    monkeypatch.setattr(sections, "PreparedSection", slow)
    cache, image = SectionCache(2), texture((96, 96))
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(cache.prepare, image, _OPTIONS) for _ in range(2)]
        together.set()
        assert calls[0].result(20) is calls[1].result(20)
    assert len(started) == 1


def test_a_section_that_cannot_be_prepared_is_not_kept() -> None:
    cache = SectionCache(2)
    for _ in range(2):
        with pytest.raises(ValueError, match="larger than the section"):
            cache.prepare(np.zeros((20, 20), np.uint8), _OPTIONS)


@pytest.mark.parametrize(("degrees", "shift"), [(0, (130, -90)), (170, (20, 10)), (3, (-60, 150))])
def test_a_window_is_looked_for_where_the_guess_puts_it(
    degrees: float, shift: tuple[int, int]
) -> None:
    plane = texture((900, 900), seed=2)
    there = Affine.rigid(np.radians(degrees), np.array([299.5, 299.5]), np.array(shift, float))
    back = np.linalg.inv(there.matrix)
    source, target = plane[150:750, 150:750], scipy.ndimage.affine_transform(
        plane, back, 150 - back @ there.offset, output_shape=(600, 600), order=1
    )  # fmt: skip
    window = slice(200, 460), slice(180, 440)
    corner = np.array([200.0, 180.0])
    guess = Affine(there.matrix, there(corner[None])[0] - corner + (6, -5))  # a little off
    options = MatchOptions(template_px=64, spacing_px=24)
    stack = np.stack([source, target])
    found = Matcher(stack, window, options, SectionCache(2)).match(0, 1, guess)
    assert found.flag == "" and found.accepted.mean() > 0.6
    places = found.source[found.accepted] + corner
    error = found.displacement[found.accepted] - (there(places) - places)
    assert np.percentile(np.linalg.norm(error, axis=1), 95) < 0.6


def test_a_guess_that_leads_out_of_the_section_is_no_error() -> None:
    stack = np.stack([texture((300, 300), 1), texture((300, 300), 2)])
    options = MatchOptions(template_px=48, spacing_px=24)
    matcher = Matcher(stack, (slice(0, 150), slice(0, 150)), options, SectionCache(2))
    found = matcher.match(0, 1, Affine(np.eye(2), np.array([9e4, -9e4])))
    assert found.flag
