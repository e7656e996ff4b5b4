"""Values seen with other axes than (n, c, [z,] y, x): permuted, flattened, squeezed.

Nothing is moved: a view only says which axes of the value its own axes run through. What computes
settles it, where it is seen as usual, or works on the axes themselves (`linear`, norms, means).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from hyper_inference.compiler.frontend.builder import GraphBuilder
from hyper_inference.compiler.ir import Axes, plain_axes, seen_shape


@dataclass(frozen=True, slots=True)
class View:
    """A value of the graph, and how it is seen."""

    value: str
    axes: Axes


Seen: TypeAlias = str | View
"""A string is a value seen as (n, c, [z,] y, x)."""


def view_of(builder: GraphBuilder, seen: Seen) -> View:
    """Any value as a view."""
    return View(seen, plain_axes(builder.spatial)) if isinstance(seen, str) else seen


def shape_of(builder: GraphBuilder, seen: Seen) -> tuple[int, ...]:
    """With a batch of 1."""
    view = view_of(builder, seen)
    return 1, *seen_shape(builder.sizes(view.value), view.axes)


def settle(builder: GraphBuilder, seen: Seen) -> Seen:
    """The value itself where that is what the view shows; else the view."""
    if isinstance(seen, str):
        return seen
    plain = plain_axes(builder.spatial)
    sizes = builder.sizes(seen.value)

    def large(axes: Axes) -> list[list[int]]:
        return [[axis for axis in group if sizes[axis] > 1] for group in axes]

    same = len(seen.axes) == len(plain) and large(seen.axes) == large(plain)
    return seen.value if same else seen


def permuted(builder: GraphBuilder, seen: Seen, order: Sequence[int]) -> Seen | None:
    """Axes in another order, the batch first; None if it is not."""
    view = view_of(builder, seen)
    rank = len(view.axes) + 1
    places = [int(n) % rank for n in order]
    if sorted(places) != list(range(rank)) or places[0] != 0:
        return None
    return settle(builder, View(view.value, tuple(view.axes[n - 1] for n in places[1:])))


def reshaped(builder: GraphBuilder, seen: Seen, shape: Sequence[int]) -> Seen | None:
    """Axes joined, parted again, or of 1 put in or left out; None if that is not what it does."""
    view = view_of(builder, seen)
    sizes = builder.sizes(view.value)
    total = math.prod(sizes)
    wanted = [int(n) for n in shape]
    if wanted.count(-1) == 1:
        known = math.prod(n for n in wanted if n != -1)
        if known < 1 or total % known:
            return None
        wanted = [total // known if n == -1 else n for n in wanted]
    if not wanted or wanted[0] != 1 or math.prod(wanted) != total:
        return None
    waiting = [axis for group in view.axes for axis in group if sizes[axis] > 1]
    axes = []
    for size in wanted[1:]:
        group: list[int] = []
        while math.prod(sizes[axis] for axis in group) < size and waiting:
            group.append(waiting.pop(0))
        if math.prod(sizes[axis] for axis in group) != size:
            return None
        axes.append(tuple(group))
    return settle(builder, View(view.value, tuple(axes)))


def common_axes(builder: GraphBuilder, views: Sequence[View]) -> Axes | None:
    """Axes that all these views have, apart from those of 1; None if there are none."""
    rank = max(len(view.axes) for view in views)
    columns: list[set[tuple[int, ...]]] = [set() for _ in range(rank)]
    for view in views:
        sizes = builder.sizes(view.value)
        for place, group in enumerate(view.axes, start=rank - len(view.axes)):
            columns[place].add(tuple(axis for axis in group if sizes[axis] > 1))
    found = []
    for groups in columns:
        groups.discard(())
        if len(groups) > 1:
            return None
        found.append(groups.pop() if groups else ())
    named = [axis for group in found for axis in group]
    return tuple(found) if len(set(named)) == len(named) else None


def spread(builder: GraphBuilder, constant: Any, view: View) -> Any | None:
    """A constant that goes with a view, as (c, z, y, x) with 1 where it is the same all along."""
    array = np.asarray(constant, np.float64)
    sizes = builder.sizes(view.value)
    rank = len(view.axes) + 1
    if array.ndim > rank:
        return None
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if array.shape[0] != 1:
        return None
    shape: list[int] = []
    order: list[int] = []
    for group, have in zip(view.axes, array.shape[1:], strict=True):
        whole = math.prod(sizes[axis] for axis in group)
        if have not in (1, whole):
            return None
        shape += [sizes[axis] if have == whole else 1 for axis in group]
        order += group
    missing = [axis for axis in range(4) if axis not in order]
    laid = array.reshape(shape + [1] * len(missing))
    places = order + missing
    return laid.transpose([places.index(axis) for axis in range(4)])
