from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hyper.compute_matching import Affine, PairMatches, match_images, match_sections
from hyper.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError
from hyperapi.matcher.v1 import matcher_service_pb2 as api


class _Array:
    name = "tenants/t/datasets/d/versions/1/arrays/a"


def _part(a: int, b: int, *points: float) -> api.MatchSectionsResponse:
    return api.MatchSectionsResponse(
        pair=api.SectionPair(source_z=a, target_z=b),
        coarse=api.Affine(matrix=[1, 0.5, 0, 1], ty=3, tx=4),
        coarse_score=0.9,
        matches=[api.SectionMatch(source=api.Point(y=p, x=2 * p), dy=1, dx=-1) for p in points],
    )


class _Client:
    """Plays back one list of parts, or errors, for each stream."""

    patience_s = 1.0

    def __init__(self, *streams: list[api.MatchSectionsResponse | Exception]) -> None:
        self._streams = list(streams)
        self.asked: list[list[tuple[int, int]]] = []

    def stream(self, service: str, stub: Any, method: str, request: Any) -> Iterator[Any]:
        assert (service, method) == ("matcher", "MatchSections")
        self.asked.append([(p.source_z, p.target_z) for p in request.pairs])
        for part in self._streams.pop(0):
            if isinstance(part, Exception):
                raise part
            yield part

    def call(self, service: str, stub: Any, method: str, request: Any, **options: Any) -> Any:
        self.request = request
        return api.MatchResponse(matches=[api.SectionMatch(dy=2, p1=0.5, rejection=10)])


def _match(client: _Client, pairs: list[tuple[int, int]]) -> list[PairMatches]:
    return list(match_sections(client, _Array(), pairs))  # type: ignore[arg-type]  # look-alikes


def test_parts_of_a_pair_are_joined() -> None:
    client = _Client([_part(0, 1, 1, 2), _part(0, 1, 3), _part(1, 2)])
    first, second = _match(client, [(0, 1), (1, 2)])
    assert first.source.tolist() == [[1, 2], [2, 4], [3, 6]]
    assert first.coarse.matrix.tolist() == [[1, 0.5], [0, 1]]
    assert first.coarse.offset.tolist() == [3, 4]
    assert second.source.shape == second.displacement.shape == (0, 2)
    assert second.rejection.dtype == np.uint8


def test_a_lost_stream_is_taken_up_at_the_first_missing_pair() -> None:
    lost = UnavailableError("gone")
    client = _Client(
        [_part(0, 1, 1), _part(1, 2, 5), lost],  # (1, 2) may have been cut
        [_part(1, 2, 5, 6), lost],  # nothing is known to be whole
    )
    with pytest.raises(UnavailableError):
        _match(client, [(0, 1), (1, 2)])
    assert client.asked == [[(0, 1), (1, 2)], [(1, 2)]]
    client = _Client([_part(0, 1, 1), _part(1, 2, 5), lost], [_part(1, 2, 5, 6)])
    assert [len(p.source) for p in _match(client, [(0, 1), (1, 2)])] == [1, 2]


def test_a_full_queue_is_waited_for() -> None:
    full = ResourceExhaustedError("full", retry_after_s=0.01)
    assert len(_match(_Client([full], [full], [_part(0, 1)]), [(0, 1)])) == 1
    patient = ResourceExhaustedError("full", retry_after_s=60)
    with pytest.raises(ResourceExhaustedError):
        _match(_Client([patient]), [(0, 1)])


def test_an_answer_that_ends_early_is_an_error() -> None:
    client = _Client([_part(0, 1, 1)], [])
    with pytest.raises(UnavailableError, match="early"):
        _match(client, [(0, 1), (1, 2)])


def test_bad_arguments_are_refused_before_the_call() -> None:
    with pytest.raises(InvalidArgumentError, match="no pairs"):
        _match(_Client(), [])
    with pytest.raises(InvalidArgumentError, match=r"\(n, 2\)"):
        image = np.zeros((4, 4), np.uint8)
        match_images(_Client(), image, image, np.zeros(3))  # type: ignore[arg-type]  # look-alike


def test_inline_images_travel_as_tensors() -> None:
    client = _Client()
    image = np.arange(12, dtype=">u2").reshape(3, 4)
    found = match_images(client, image, image[::-1], np.array([[1.0, 2.0]]))  # type: ignore[arg-type]  # look-alike
    assert found.displacement.tolist() == [[2, 0]]
    assert found.rejection.tolist() == [10]
    spec = client.request.source.spec
    assert (list(spec.shape), spec.dtype) == ([3, 4], "uint16")
    assert np.frombuffer(client.request.source.data, "<u2").tolist() == list(range(12))


def test_guesses_travel_with_their_pairs_and_through_a_lost_stream() -> None:
    sent: list[list[Any]] = []

    class Watched(_Client):
        def stream(self, service: str, stub: Any, method: str, request: Any) -> Iterator[Any]:
            sent.append([api.SectionPair.FromString(p.SerializeToString()) for p in request.pairs])
            return super().stream(service, stub, method, request)

    client = Watched([_part(0, 1, 1), _part(1, 2), UnavailableError("x")], [_part(1, 2)])
    guesses = [None, Affine(np.array([[0, -1], [1, 0]]), np.array([5, 6]))]
    assert len(list(match_sections(client, _Array(), [(0, 1), (1, 2)], guesses=guesses))) == 2  # type: ignore[arg-type]  # look-alikes
    assert [p.HasField("guess") for p in sent[0]] == [False, True]
    last = sent[-1][-1].guess
    assert (list(last.matrix), last.ty, last.tx) == ([0, -1, 1, 0], 5, 6)
    with pytest.raises(InvalidArgumentError, match="1 guesses for 2 pairs"):
        list(match_sections(client, _Array(), [(0, 1), (1, 2)], guesses=[None]))  # type: ignore[arg-type]
