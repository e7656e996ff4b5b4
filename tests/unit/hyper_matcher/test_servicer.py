from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hyper.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from hyper_matcher.config import Settings
from hyper_matcher.servicer import MatcherServicer, Pool
from hyperapi.common.v1.geometry_pb2 import Box
from hyperapi.common.v1.tensor_pb2 import ArrayRef, Tensor, TensorSpec
from hyperapi.matcher.v1 import matcher_service_pb2 as api
from tests.support.sections import texture

_ARRAY = "tenants/t/datasets/d/sessions/s/arrays/features"


def _tensor(image: NDArray[Any]) -> Tensor:
    spec = TensorSpec(shape=image.shape, dtype=image.dtype.name)
    return Tensor(spec=spec, data=image.tobytes())


def _stack() -> NDArray[np.uint8]:
    world = texture((300, 300), 3)
    return np.stack([world[k : k + 256, 2 * k : 2 * k + 256] for k in range(0, 12, 4)])


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool(threads=1, queue=1, retry_after_s=2.5)
    yield pool
    pool.close()


def _servicer(pool: Pool, array: Any = None, **settings: Any) -> MatcherServicer:
    def open_array(name: str) -> Any:
        if array is None or name != _ARRAY:
            raise NotFoundError(f"no array {name}")
        return array

    return MatcherServicer(Settings(**settings), pool, open_array)


async def _sections(servicer: MatcherServicer, **fields: Any) -> list[api.MatchSectionsResponse]:
    request = api.MatchSectionsRequest(
        **{
            "array": ArrayRef(name=_ARRAY),
            "pairs": [api.SectionPair(source_z=0, target_z=1)],
            "options": api.MatchOptions(template_px=64, keep_rejected=True),
            **fields,
        }
    )
    return [response async for response in servicer.MatchSections(request, None)]


def _request(**fields: Any) -> api.MatchRequest:
    world = texture((300, 300), 1)
    return api.MatchRequest(
        **{
            "source": _tensor(world[:256, :256]),
            "target": _tensor(world[5:261, 3:259]),
            "points": [api.Point(y=128, x=128), api.Point(y=2, x=2)],
            "options": api.MatchOptions(template_px=64, search_px=20, keep_rejected=True),
            **fields,
        }
    )


async def test_match_finds_a_shift_and_names_rejections(pool: Pool) -> None:
    response = await _servicer(pool).Match(_request(), None)
    first, second = response.matches
    assert (first.dy, first.dx) == (pytest.approx(-5, abs=0.1), pytest.approx(-3, abs=0.1))
    assert first.rejection == api.REJECTION_UNSPECIFIED
    assert second.rejection == api.REJECTION_OUTSIDE
    assert first.p1 > 0.9 > first.p2


async def test_rejected_matches_are_left_out_unless_asked_for(pool: Pool) -> None:
    options = api.MatchOptions(template_px=64, search_px=20)
    response = await _servicer(pool).Match(_request(options=options), None)
    assert len(response.matches) == 1


async def test_guesses_widen_the_reach(pool: Pool) -> None:
    world = texture((400, 400), 1)
    request = _request(
        target=_tensor(world[60:316, :256]), source=_tensor(world[:256, :256]),
        points=[api.Point(y=150, x=128)], guesses=[api.Point(y=-58, x=1)],
    )  # fmt: skip
    (match,) = (await _servicer(pool).Match(request, None)).matches
    assert match.rejection == 0
    assert match.dy == pytest.approx(-60, abs=0.1)


_FLAWED = _tensor(np.full((256, 256), np.nan, np.float32))
_TRUNCATED = Tensor(spec=TensorSpec(shape=[9, 9], dtype="uint8"), data=b"123")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"source": _FLAWED}, "NaN"),
        ({"target": _FLAWED}, "NaN"),
        ({"source": _TRUNCATED}, "3 bytes"),
        ({"source": _tensor(np.zeros((4, 4), np.complex64))}, "dtype"),
        ({"source": _tensor(np.zeros((2, 9, 9), np.uint8))}, r"\(y, x\)"),
        ({"source": Tensor()}, "dtype"),
        ({"target": Tensor(spec=TensorSpec(shape=[0, 5], dtype="uint8"))}, "shape"),
        ({"target": Tensor(spec=TensorSpec(shape=[-4, 5], dtype="uint8"))}, "shape"),
        ({"points": []}, "no points"),
        ({"points": [api.Point(y=float("nan"), x=0)]}, "not numbers"),
        ({"guesses": [api.Point()]}, "1 guesses for 2 points"),
        ({"options": api.MatchOptions(template_px=300)}, "larger than the source"),
        ({"options": api.MatchOptions(template_px=200, search_px=100)}, "need a target"),
        ({"options": api.MatchOptions(template_px=-1)}, "template_px is -1"),
        ({"options": api.MatchOptions(template_px=3)}, "at least 16"),
        ({"options": api.MatchOptions(min_peak=2)}, "min_peak"),
    ],
)
async def test_match_refuses_bad_input(pool: Pool, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        await _servicer(pool).Match(_request(**fields), None)


async def test_pairs_of_sections_stream_in_order(pool: Pool) -> None:
    pairs = [api.SectionPair(source_z=a, target_z=b) for a, b in ((1, 2), (0, 1), (2, 0))]
    responses = await _sections(_servicer(pool, _stack()), pairs=pairs, spacing_px=24)
    assert [(r.pair.source_z, r.pair.target_z) for r in responses] == [(1, 2), (0, 1), (2, 0)]
    accepted = [m for m in responses[1].matches if m.rejection == 0]
    assert len(accepted) > 30
    assert np.median([m.dy for m in accepted]) == pytest.approx(-4, abs=0.1)
    assert np.median([m.dx for m in accepted]) == pytest.approx(-8, abs=0.1)
    assert responses[1].coarse_score > 0.5
    assert list(responses[1].coarse.matrix) == pytest.approx([1, 0, 0, 1], abs=0.02)
    assert responses[1].compute_s > 0


async def test_a_pair_with_many_matches_comes_in_parts(pool: Pool) -> None:
    servicer = _servicer(pool, _stack(), matches_a_message=10)
    parts = await _sections(servicer, spacing_px=24)
    assert len(parts) > 3
    assert {(p.pair.source_z, p.pair.target_z) for p in parts} == {(0, 1)}
    (whole,) = await _sections(_servicer(pool, _stack()), spacing_px=24)
    assert sum(len(p.matches) for p in parts) == len(whole.matches)


async def test_a_box_restricts_the_sections(pool: Pool) -> None:
    array = ArrayRef(name=_ARRAY, box=Box(start=[0, 0, 0], stop=[3, 200, 220]))
    (response,) = await _sections(_servicer(pool, _stack()), array=array)
    assert max(m.source.y for m in response.matches) < 200


def _pairs(*pairs: tuple[int, int]) -> list[api.SectionPair]:
    return [api.SectionPair(source_z=a, target_z=b) for a, b in pairs]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"array": ArrayRef()}, "name the array"),
        ({"pairs": []}, "no pairs"),
        ({"pairs": _pairs((0, 3))}, "no pair of two"),
        ({"pairs": _pairs((-1, 1))}, "no pair of two"),
        ({"pairs": _pairs((1, 1))}, "no pair of two"),
        ({"pairs": _pairs((0, 1), (0, 1))}, "twice"),
        ({"pairs": _pairs((0, 1), (0, 2), (1, 2), (2, 1))}, "at most 3"),
        ({"array": ArrayRef(name=_ARRAY, box=Box(start=[0, 0, 0], stop=[3, 999, 9]))}, "the box"),
        ({"options": api.MatchOptions(template_px=1000)}, "larger than the section"),
        ({"downsample": 0.5}, "downsample"),
        ({"spacing_px": -3.0}, "spacing_px"),
        ({"spacing_px": 1.0}, "spacing_px"),
    ],
)
async def test_sections_refuse_bad_input(pool: Pool, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        await _sections(_servicer(pool, _stack(), pairs_max=3), **fields)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((300, 300), np.uint8), "needs \\(z, y, x\\)"),
        (np.zeros((3, 64, 64), np.complex64), "real numbers"),
        (np.zeros((3, 600, 600), np.uint8), "larger than this service"),
        (np.full((3, 128, 128), np.inf, np.float32), "infinite"),
    ],
)
async def test_arrays_that_are_no_stack_are_refused(
    pool: Pool, array: NDArray[Any], says: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        await _sections(_servicer(pool, array, section_pixels_max=300_000))


async def test_an_unknown_array_is_not_found(pool: Pool) -> None:
    with pytest.raises(NotFoundError):
        await _sections(_servicer(pool, None))


async def test_a_full_queue_turns_calls_away_until_there_is_room(pool: Pool) -> None:
    gate = threading.Event()

    class Slow:
        shape, dtype = (3, 256, 256), np.dtype(np.uint8)

        def __getitem__(self, key: Any) -> Any:
            gate.wait(30)
            return _stack()[key]

    servicer = _servicer(pool, Slow())
    async with asyncio.TaskGroup() as group:
        first = group.create_task(_sections(servicer))
        second = group.create_task(_sections(servicer))
        await _until(lambda: pool.calls == 2)
        with pytest.raises(ResourceExhaustedError) as refused:
            await servicer.Match(_request(), None)
        assert refused.value.retry_after_s == 2.5
        gate.set()
    assert len(first.result()) == len(second.result()) == 1
    assert pool.calls == 0
    await servicer.Match(_request(), None)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (a count is watched, not an event)
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "guess",
    [
        api.Affine(matrix=[1, 0, 0, 1, 0]),
        api.Affine(),
        api.Affine(matrix=[1, 0, 0, 1], ty=float("nan")),
        api.Affine(matrix=[0, 0, 0, 0]),
        api.Affine(matrix=[1e9, 0, 0, 1e-9]),
        api.Affine(matrix=[1, 0, 0, 1], tx=1e12),
    ],
    ids=str,
)
async def test_guesses_that_are_no_maps_are_refused(pool: Pool, guess: api.Affine) -> None:
    pair = api.SectionPair(source_z=0, target_z=1, guess=guess)
    with pytest.raises(InvalidArgumentError, match="no affine map"):
        await _sections(_servicer(pool, _stack()), pairs=[pair])


async def test_a_guess_comes_to_the_same_where_none_is_needed(pool: Pool) -> None:
    guess = api.Affine(matrix=[1, 0, 0, 1], ty=-4, tx=-8)
    pair = api.SectionPair(source_z=0, target_z=1, guess=guess)
    (told,) = await _sections(_servicer(pool, _stack()), pairs=[pair])
    (alone,) = await _sections(_servicer(pool, _stack()))
    assert not told.pair.HasField("guess")
    for one, other in zip(told.matches, alone.matches, strict=True):
        if one.rejection == 0 == other.rejection:
            assert (one.dy, one.dx) == pytest.approx((other.dy, other.dx), abs=0.1)
