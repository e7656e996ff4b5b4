from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hyper_matcher import sections
from hyper_matcher.align.match import MatchOptions, PreparedSection
from hyper_matcher.sections import SectionCache
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
