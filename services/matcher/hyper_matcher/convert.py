"""Between the wire and the matcher's values, with everything checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper.errors import InvalidArgumentError
from hyper_matcher.align.geometry import Affine, PairMatches, Points
from hyper_matcher.align.match import Found, MatchOptions
from hyperapi.common.v1 import tensor_pb2
from hyperapi.matcher.v1 import matcher_service_pb2 as api

_DTYPES = ("uint8", "int8", "uint16", "int16", "float32", "float64")
_LARGEST_PX = 2**20


def image_from(message: tensor_pb2.Tensor, field: str) -> NDArray[Any]:
    """An inline image (y, x).

    Raises:
        InvalidArgumentError: of another rank, dtype or size than it says, empty, or not finite.
    """
    spec = message.spec
    if spec.dtype not in _DTYPES:
        raise InvalidArgumentError(
            f"{field} has dtype {spec.dtype[:40]!r}; send one of {', '.join(_DTYPES)}",
            field=f"{field}.spec.dtype",
        )
    shape = tuple(spec.shape)
    if len(shape) != 2 or min(shape) < 1 or max(shape) > _LARGEST_PX:
        raise InvalidArgumentError(
            f"{field} has shape {shape}; send an image with axes (y, x)",
            reason="SHAPE_MISMATCH",
            field=f"{field}.spec.shape",
        )
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    needed = shape[0] * shape[1] * dtype.itemsize
    if len(message.data) != needed:
        raise InvalidArgumentError(
            f"{field} has {len(message.data)} bytes; {shape[0]} x {shape[1]} {spec.dtype} are "
            f"{needed}",
            reason="SHAPE_MISMATCH",
            field=f"{field}.data",
        )
    return finite(np.frombuffer(message.data, dtype).reshape(shape), field)


def finite(image: NDArray[Any], what: str) -> NDArray[Any]:
    """`image`, if all its values are finite.

    Raises:
        InvalidArgumentError: it holds NaN or infinity.
    """
    if np.issubdtype(image.dtype, np.floating):
        bad = int(image.size - np.isfinite(image).sum())
        if bad:
            raise InvalidArgumentError(
                f"{what} has {bad} values that are NaN or infinite; replace them, with 0 say",
                field=what,
            )
    return image


def points_from(messages: Any, field: str) -> Points:
    """(n, 2) from repeated `Point`.

    Raises:
        InvalidArgumentError: a coordinate is not finite or absurdly large.
    """
    points = np.array([(p.y, p.x) for p in messages], np.float64).reshape(-1, 2)
    if not (np.isfinite(points).all() and (np.abs(points) <= _LARGEST_PX).all()):
        raise InvalidArgumentError(
            f"{field} has coordinates that are not numbers of pixels", field=field
        )
    return points


def guess_from(pair: api.SectionPair) -> Affine | None:
    """Where a pair's source lies in its target, if it says.

    Raises:
        InvalidArgumentError: it is no map between sections.
    """
    if not pair.HasField("guess"):
        return None
    values = np.array([*pair.guess.matrix, pair.guess.ty, pair.guess.tx], np.float64)
    if len(values) == 6 and np.isfinite(values).all() and np.abs(values[4:]).max() <= _LARGEST_PX:
        matrix = values[:4].reshape(2, 2)
        if 0.25 <= abs(np.linalg.det(matrix)) <= 4.0 and np.abs(matrix).max() <= 4.0:
            return Affine(matrix, values[4:])
    raise InvalidArgumentError(
        f"the guess of sections {pair.source_z} and {pair.target_z} is no affine map between "
        "sections: give a matrix of four numbers, of a determinant from 0.25 to 4, and a shift",
        field="pairs.guess",
    )


def options_from(
    message: api.MatchOptions, *, spacing_px: float = 0.0, downsample: float = 0.0
) -> MatchOptions:
    """How to match; what is 0 or missing is chosen, for pixels `downsample` times coarser.

    Raises:
        InvalidArgumentError: a value out of its range.
    """
    factor = downsample or 1.0
    if not 1.0 <= factor <= 1024.0:
        raise InvalidArgumentError(
            f"downsample is {downsample}; give 1 (full resolution) to 1024", field="downsample"
        )
    for name, value in (
        ("options.template_px", message.template_px),
        ("options.search_px", message.search_px),
        ("spacing_px", spacing_px),
    ):
        if not 0 <= value <= _LARGEST_PX:
            raise InvalidArgumentError(f"{name} is {value}; give pixels, or 0", field=name)
    for name, value in (
        ("min_distinctness", message.min_distinctness),
        ("min_peak", message.min_peak),
    ):
        if not 0.0 <= value <= 1.0:
            raise InvalidArgumentError(
                f"options.{name} is {value}; give 0 to 1", field=f"options.{name}"
            )
    defaults = MatchOptions()
    template = message.template_px or max(32, round(defaults.template_px / factor))
    peaks = replace(
        defaults.peaks,
        min_distinctness=message.min_distinctness or defaults.peaks.min_distinctness,
        min_peak=message.min_peak or defaults.peaks.min_peak,
    )
    try:
        return replace(
            defaults,
            template_px=template,
            search_px=message.search_px,
            spacing_px=spacing_px
            or max(8.0, defaults.spacing_px * template / defaults.template_px),
            first_factor=defaults.first_factor if template >= 96 else 1,
            peaks=peaks,
        )
    except ValueError as error:
        raise InvalidArgumentError(str(error), field="options") from error


def matches_to(found: Found, *, keep_rejected: bool) -> list[api.SectionMatch]:
    """Matches round points, in their order; rejected ones only if asked for."""
    return [
        _match(found.source[k], found.target[k] - found.source[k], found.p1[k], found.p2[k], reason)
        for k, reason in enumerate(found.rejection.tolist())
        if keep_rejected or reason == 0
    ]


def pair_to(
    pair: PairMatches, *, keep_rejected: bool, matches_a_message: int
) -> Iterator[api.MatchSectionsResponse]:
    """A pair as one message, or as several where it has many matches."""
    kept = np.flatnonzero(pair.accepted | keep_rejected)
    for first in range(0, max(len(kept), 1), matches_a_message):
        part = kept[first : first + matches_a_message].tolist()
        yield api.MatchSectionsResponse(
            pair=api.SectionPair(source_z=pair.source_z, target_z=pair.target_z),
            coarse=api.Affine(
                matrix=pair.coarse.matrix.ravel().tolist(),
                ty=float(pair.coarse.offset[0]),
                tx=float(pair.coarse.offset[1]),
            ),
            coarse_score=pair.coarse_score,
            matches=[
                _match(
                    pair.source[k], pair.displacement[k], pair.p1[k], pair.p2[k],
                    int(pair.rejection[k]),
                )
                for k in part
            ],
            compute_s=pair.compute_s,
            flag=pair.flag,
        )  # fmt: skip


def _match(source: Any, displacement: Any, p1: Any, p2: Any, reason: int) -> api.SectionMatch:
    return api.SectionMatch(
        source=api.Point(y=float(source[0]), x=float(source[1])),
        dy=float(displacement[0]),
        dx=float(displacement[1]),
        p1=float(p1),
        p2=float(p2),
        rejection=api.Rejection.ValueType(reason),
    )
