"""Sections of stored arrays, prepared for matching; a few are kept for the next pairs and calls."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hyper.errors import InvalidArgumentError
from hyper_matcher.align.geometry import Affine, PairMatches, Points
from hyper_matcher.align.match import MatchOptions, PreparedSection, match_pair
from hyper_matcher.convert import finite


class ArrayLike(Protocol):
    """The part of `hyper.arrays.Array` that matching needs."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values."""

    def __getitem__(self, key: Any) -> Any:
        """Read a selection."""


class SectionCache:
    """Prepared sections by their content, for all calls: neighbours share most of their sections.

    A section that two calls want at once is prepared once; the other call waits for it.

    Args:
        limit: how many are kept; the least recently used goes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, MatchOptions], Future[PreparedSection]] = OrderedDict()

    def prepare(self, section: NDArray[Any], options: MatchOptions) -> PreparedSection:
        """The section (H, W) with all that its matches share.

        Raises:
            ValueError: it has no room for a template.
        """
        digest = hashlib.blake2b(np.ascontiguousarray(section).data, digest_size=20)
        digest.update(repr((section.shape, section.dtype.str)).encode())
        key = (digest.digest(), options)
        with self._lock:
            known = self._kept.get(key)
            mine = known is None
            future = known or Future()
            self._kept[key] = future
            self._kept.move_to_end(key)
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        if mine:
            try:
                future.set_result(PreparedSection(section, options))
            except BaseException as error:  # noqa: BLE001  (handed to all who wait)
                with self._lock:
                    self._kept.pop(key, None)
                future.set_exception(error)
        return future.result()


class Matcher:
    """Matches pairs of one array, one after the other.

    Args:
        array: (z, y, x).
        window: (start, stop) of y and x; positions in results are relative to its start.
        options: how to match.
        cache: where prepared sections are kept.
    """

    def __init__(
        self,
        array: ArrayLike,
        window: tuple[slice, slice],
        options: MatchOptions,
        cache: SectionCache,
    ) -> None:
        self._array, self._window, self._options, self._cache = array, window, options, cache
        self._source: tuple[int, PreparedSection] | None = None  # mostly that of the next pair too

    def match(self, source_z: int, target_z: int, guess: Affine | None = None) -> PairMatches:
        """All matches of a pair; positions in the target, too, are relative to the window's start.

        Args:
            source_z: section the templates come from.
            target_z: section searched.
            guess: source -> target, roughly: the target's window is where it puts the window.

        Raises:
            InvalidArgumentError: a section that cannot be matched.
        """
        if self._source is None or self._source[0] != source_z:
            self._source = (source_z, self._prepared(source_z, self._window))
        moved, window = self._moved(guess)
        source, target = self._source[1], self._prepared(target_z, window)
        if guess is not None:
            guess = Affine(guess.matrix, guess.offset - moved)
        try:
            found = match_pair(source, target, source_z, target_z, guess)
        except ValueError as error:
            raise InvalidArgumentError(
                f"sections {source_z} and {target_z}: {error}", field="options"
            ) from error
        if not moved.any():
            return found
        coarse = Affine(found.coarse.matrix, found.coarse.offset + moved)
        return replace(found, coarse=coarse, displacement=found.displacement + moved)

    def _moved(self, guess: Affine | None) -> tuple[Points, tuple[slice, slice]]:
        """The target's window, and how far its start lies from the source's, (2,) whole px."""
        moved = np.zeros(2)
        if guess is not None:
            sizes = np.array([side.stop - side.start for side in self._window])
            start = np.array([side.start for side in self._window])
            middle = (sizes - 1) / 2
            room = np.array(self._array.shape[1:]) - sizes
            wanted = start + np.rint(guess(middle[None])[0] - middle)
            moved = np.clip(wanted, 0, room) - start
        y, x = (
            slice(int(side.start + by), int(side.stop + by))
            for side, by in zip(self._window, moved, strict=True)
        )
        return moved, (y, x)

    def _prepared(self, z: int, window: tuple[slice, slice]) -> PreparedSection:
        section = finite(np.asarray(self._array[(z, *window)]), f"section {z}")
        try:
            return self._cache.prepare(section, self._options)
        except ValueError as error:
            raise InvalidArgumentError(f"section {z}: {error}", field="options") from error


def warm_up() -> None:
    """Compile what matching needs (or load it from numba's cache), so that no call waits for it."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (1, 96, 96)).astype(np.uint8).repeat(2, axis=0)
    options = MatchOptions(template_px=32, spacing_px=16)
    Matcher(noise, (slice(0, 96), slice(0, 96)), options, SectionCache(2)).match(0, 1)


def check_pairs(pairs: Sequence[tuple[int, int]], shape: tuple[int, ...], pairs_max: int) -> None:
    """Refuse pairs that the array cannot have.

    Raises:
        InvalidArgumentError: none, too many, outside the array, or a section with itself.
    """
    if not pairs:
        raise InvalidArgumentError("no pairs of sections were given", field="pairs")
    if len(pairs) > pairs_max:
        raise InvalidArgumentError(
            f"{len(pairs)} pairs in one call; send at most {pairs_max}", field="pairs"
        )
    if len(set(pairs)) < len(pairs):
        raise InvalidArgumentError("a pair of sections was given twice", field="pairs")
    for source, target in pairs:
        if not (0 <= source < shape[0] and 0 <= target < shape[0]) or source == target:
            raise InvalidArgumentError(
                f"({source}, {target}) is no pair of two of the array's {shape[0]} sections",
                field="pairs",
            )


def check_array(array: ArrayLike, pixels_max: int) -> None:
    """Refuse arrays that are no stack of sections.

    Raises:
        InvalidArgumentError: of another rank, dtype or size.
    """
    if len(array.shape) != 3 or min(array.shape) < 1:
        raise InvalidArgumentError(
            f"the array has shape {tuple(array.shape)}; matching needs (z, y, x)",
            reason="SHAPE_MISMATCH",
            field="array",
        )
    if array.dtype.kind not in "uif":
        raise InvalidArgumentError(
            f"the array has dtype {array.dtype}; matching needs real numbers", field="array"
        )
    if array.shape[1] * array.shape[2] > pixels_max:
        raise InvalidArgumentError(
            f"a section of {array.shape[1]} x {array.shape[2]} px is larger than this service "
            f"takes ({pixels_max} px); match a downsampled array or a box of it",
            field="array",
        )


def window_of(box: Any, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The (y, x) part of a `Box` of the array; the z part is given by the pairs.

    Raises:
        InvalidArgumentError: it does not lie in the array.
    """
    if not box.start and not box.stop:
        return slice(0, shape[1]), slice(0, shape[2])
    start, stop = tuple(box.start), tuple(box.stop)
    if (
        len(start) != 3
        or len(stop) != 3
        or any(not 0 <= a < b <= n for a, b, n in zip(start, stop, shape, strict=True))
    ):
        raise InvalidArgumentError(
            f"the box {start} to {stop} does not lie in the array of shape {tuple(shape)}",
            reason="SHAPE_MISMATCH",
            field="array.box",
        )
    return slice(start[1], stop[1]), slice(start[2], stop[2])
