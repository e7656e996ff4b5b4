"""Matching by the matcher service: inline images, and pairs of sections of stored arrays."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hyper.errors import InvalidArgumentError, ResourceExhaustedError, UnavailableError
from hyperapi.common.v1.geometry_pb2 import Box
from hyperapi.common.v1.tensor_pb2 import ArrayRef, Tensor, TensorSpec
from hyperapi.matcher.v1 import matcher_service_pb2 as api
from hyperapi.matcher.v1.matcher_service_pb2_grpc import MatcherServiceStub

if TYPE_CHECKING:
    from hyper.arrays import Array
    from hyper.client import Client

SERVICE = "matcher"
_MATCH_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Affine:
    """target = matrix @ source + offset, in (y, x) pixels.

    Args:
        matrix: (2, 2).
        offset: (2,).
    """

    matrix: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True, slots=True)
class Matches:
    """Matches of n points, in pixels.

    Args:
        source: (n, 2), (y, x) in the source.
        displacement: (n, 2); the content of `source` lies at `source + displacement` in the target.
        p1: (n,) first peak of the correlogram.
        p2: (n,) highest score outside a box round it.
        rejection: (n,) numbers of `hyperapi.matcher.v1.Rejection`; 0: accepted.
    """

    source: np.ndarray
    displacement: np.ndarray
    p1: np.ndarray
    p2: np.ndarray
    rejection: np.ndarray


@dataclass(frozen=True, slots=True)
class PairMatches(Matches):
    """Matches of two sections.

    Args:
        source: (n, 2), (y, x) in the source section.
        displacement: (n, 2); the content of `source` lies at `source + displacement` in the target.
        p1: (n,) first peak of the correlogram.
        p2: (n,) highest score outside a box round it.
        rejection: (n,) numbers of `hyperapi.matcher.v1.Rejection`; 0: accepted.
        source_z: section the templates come from.
        target_z: section searched.
        coarse: what the fine search started from.
        coarse_score: share of the coarse blocks that agree with it, 0..1.
        compute_s: seconds it took.
        flag: empty, or why the pair as a whole cannot be trusted.
    """

    source_z: int
    target_z: int
    coarse: Affine
    coarse_score: float
    compute_s: float
    flag: str


def match_images(
    client: Client,
    source: np.ndarray,
    target: np.ndarray,
    points: np.ndarray,
    *,
    guesses: np.ndarray | None = None,
    template_px: int = 0,
    search_px: int = 0,
    keep_rejected: bool = True,
) -> Matches:
    """Look for templates round points of one image in another; images of at most 1 MiB.

    Args:
        client: of the cluster.
        source: (y, x), uint8 or float32, say.
        target: (y, x).
        points: (n, 2) template centres in the source.
        guesses: (n, 2) expected displacements; none: 0.
        template_px: edge of a template; 0: 160.
        search_px: radius; 0: chosen.
        keep_rejected: also return what was not accepted.
    """
    request = api.MatchRequest(
        source=_tensor(source),
        target=_tensor(target),
        points=_points(points),
        guesses=[] if guesses is None else _points(guesses),
        options=api.MatchOptions(
            template_px=template_px, search_px=search_px, keep_rejected=keep_rejected
        ),
    )
    response = client.call(
        SERVICE, MatcherServiceStub, "Match", request, timeout_s=_MATCH_TIMEOUT_S
    )
    return _matches(response.matches)


def match_sections(
    client: Client,
    array: Array,
    pairs: Sequence[tuple[int, int]],
    *,
    spacing_px: float = 0.0,
    template_px: int = 0,
    search_px: int = 0,
    min_distinctness: float = 0.0,
    min_peak: float = 0.0,
    downsample: float = 0.0,
    window: tuple[int, int, int, int] | None = None,
    guesses: Sequence[Affine | None] | None = None,
    keep_rejected: bool = True,
) -> Iterator[PairMatches]:
    """Match pairs of sections of an array (z, y, x); results come pair by pair, in order.

    A lost stream is taken up again at the first pair that is missing; a full queue is waited for.

    Args:
        client: of the cluster.
        array: of a version or of an open session.
        pairs: (source z, target z).
        spacing_px: of the points that are matched; 0: chosen.
        template_px: edge of a template; 0: 160 px of full resolution.
        search_px: radius of the first search round the coarse fit; 0: chosen.
        min_distinctness: lowest P1 - P2; 0: the service's own.
        min_peak: lowest P1; 0: the service's own.
        downsample: the array's pixels are so many times coarser than full resolution; decides what
            0 means above. Results are in the array's pixels.
        window: (y0, x0, y1, x1), ends excluded: only this part of either section is looked at;
            results are relative to its first pixel, in the target too.
        guesses: for each pair, or None, roughly where the source lies in the target, in the pixels
            of results; the part of the target that is looked at lies where it puts the window.
        keep_rejected: also return what was not accepted.
    """
    if not pairs:
        raise InvalidArgumentError("no pairs of sections were given", field="pairs")
    known = guesses or [None] * len(pairs)
    if len(known) != len(pairs):
        raise InvalidArgumentError(
            f"{len(known)} guesses for {len(pairs)} pairs; give one each, or none", field="guesses"
        )
    left = [_section_pair(*pair, guess) for pair, guess in zip(pairs, known, strict=True)]
    request = api.MatchSectionsRequest(
        array=ArrayRef(name=array.name),
        spacing_px=spacing_px,
        downsample=downsample,
        options=api.MatchOptions(
            template_px=template_px,
            search_px=search_px,
            min_distinctness=min_distinctness,
            min_peak=min_peak,
            keep_rejected=keep_rejected,
        ),
    )
    if window is not None:
        y0, x0, y1, x1 = window
        request.array.box.CopyFrom(Box(start=(0, y0, x0), stop=(array.shape[0], y1, x1)))
    waited_s = 0.0
    while left:
        del request.pairs[:]
        request.pairs.extend(left)
        responses = client.stream(SERVICE, MatcherServiceStub, "MatchSections", request)
        progress = False
        try:
            for pair in _join(responses):
                progress, waited_s = True, 0.0
                left.pop(0)
                yield pair
            if left:
                raise UnavailableError(
                    f"the matcher ended its answer {len(left)} pairs early; try again"
                )
        except UnavailableError:
            if not progress:
                raise
        except ResourceExhaustedError as error:
            pause_s = error.retry_after_s or 1.0
            if waited_s + pause_s > client.patience_s:
                raise
            waited_s += pause_s
            time.sleep(pause_s)


def _section_pair(source_z: int, target_z: int, guess: Affine | None) -> api.SectionPair:
    pair = api.SectionPair(source_z=int(source_z), target_z=int(target_z))
    if guess is not None:
        pair.guess.matrix.extend(np.asarray(guess.matrix, np.float64).ravel().tolist())
        pair.guess.ty, pair.guess.tx = (float(value) for value in guess.offset)
    return pair


def _join(responses: Iterator[Any]) -> Iterator[PairMatches]:
    """Whole pairs: one with many matches arrives in several messages, one after the other.

    A pair is whole once another pair's message, or the stream's clean end, follows.
    """
    parts: list[Any] = []
    for response in responses:
        if parts and response.pair != parts[0].pair:
            yield _pair(parts)
            parts = []
        parts.append(response)
    if parts:
        yield _pair(parts)


def _pair(parts: Sequence[Any]) -> PairMatches:
    first = parts[0]
    matches = _matches([match for part in parts for match in part.matches])
    return PairMatches(
        source=matches.source,
        displacement=matches.displacement,
        p1=matches.p1,
        p2=matches.p2,
        rejection=matches.rejection,
        source_z=first.pair.source_z,
        target_z=first.pair.target_z,
        coarse=Affine(
            np.array(first.coarse.matrix, np.float64).reshape(2, 2),
            np.array([first.coarse.ty, first.coarse.tx]),
        ),
        coarse_score=first.coarse_score,
        compute_s=first.compute_s,
        flag=first.flag,
    )


def _matches(matches: Sequence[Any]) -> Matches:
    table = np.array(
        [(m.source.y, m.source.x, m.dy, m.dx, m.p1, m.p2, m.rejection) for m in matches], np.float64
    ).reshape(-1, 7)
    reasons = table[:, 6].astype(np.uint8)
    return Matches(table[:, :2], table[:, 2:4], table[:, 4], table[:, 5], reasons)


def _tensor(image: np.ndarray) -> Tensor:
    plain = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
    return Tensor(spec=TensorSpec(shape=plain.shape, dtype=plain.dtype.name), data=plain.tobytes())


def _points(points: np.ndarray) -> list[api.Point]:
    table = np.asarray(points, np.float64)
    if table.ndim != 2 or table.shape[1] != 2:
        raise InvalidArgumentError(f"points are (n, 2), not {table.shape}", field="points")
    return [api.Point(y=y, x=x) for y, x in table.tolist()]
