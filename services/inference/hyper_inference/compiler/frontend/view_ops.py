"""What works along the axes of any view; shared by the frontends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from hyper_inference.compiler.frontend import reductions
from hyper_inference.compiler.frontend.builder import GraphBuilder
from hyper_inference.compiler.frontend.views import (
    Seen,
    View,
    common_axes,
    settle,
    shape_of,
    spread,
    view_of,
)
from hyper_inference.compiler.ir import Activation, Axes, Shape, Slice
from hyper_inference.errors import UnsupportedOp


class Site(Protocol):
    """The node of a source that is being translated."""

    builder: GraphBuilder
    where: str

    def refuse(self, why: str) -> UnsupportedOp:
        """The error for a use that is not covered."""


def group_of(site: Site, view: View, dim: int) -> tuple[int, ...]:
    """Axes of the value behind one of its view's; not the batch."""
    rank = len(view.axes) + 1
    if not -rank <= dim < rank or dim % rank == 0:
        raise site.refuse("along the batch axis, or one that is not there")
    return view.axes[dim % rank - 1]


def reduce(
    site: Site,
    seen: Seen,
    kind: Any,
    dims: Sequence[int] | None,
    *,
    keep: bool,
    correction: float = 0.0,
) -> Seen:
    """mean, sum, max, min, var or std along `dims`, which stay as 1 or go."""
    view = view_of(site.builder, seen)
    if not dims:
        raise site.refuse("over everything, the batch axis too")
    rank = len(view.axes) + 1
    axes = [axis for dim in dims for axis in group_of(site, view, int(dim))]
    if kind in ("var", "std"):
        result = reductions.variance(site.builder, view.value, axes, correction, site.where)
        if kind == "std":
            result = site.builder.activation(result, Activation("sqrt"), site.where)
    else:
        result = reductions.reduce(site.builder, view.value, axes, kind, site.where)
    places = {int(dim) % rank for dim in dims}
    left: list[tuple[int, ...]] = []
    for place, group in enumerate(view.axes, start=1):
        if place not in places:
            left.append(group)
        elif keep:
            left.append(())
    return settle(site.builder, View(result, tuple(left)))


def softmax(site: Site, seen: Seen, dim: int, *, log: bool) -> Seen:
    """Along one axis of the view."""
    view = view_of(site.builder, seen)
    axes = group_of(site, view, dim)
    result = reductions.softmax(site.builder, view.value, axes, site.where, log=log)
    return settle(site.builder, View(result, view.axes))


def layer_norm(site: Site, seen: Seen, count: int, weight: Any, bias: Any, epsilon: float) -> Seen:
    """Over the last `count` axes; weight and bias go with these."""
    view = view_of(site.builder, seen)
    if not 0 < count <= len(view.axes):
        raise site.refuse("over the batch axis")
    axes = [axis for group in view.axes[len(view.axes) - count :] for axis in group]

    def laid(given: Any) -> Any:
        placed = None if given is None else spread(site.builder, given, view)
        if given is not None and placed is None:
            raise site.refuse(f"with a weight of {np.shape(given)}")
        return placed

    result = reductions.normalize(
        site.builder, view.value, axes, laid(weight), laid(bias), epsilon, site.where
    )
    return settle(site.builder, View(result, view.axes))


def cut(site: Site, seen: Seen, place: int, span: slice, *, drop: bool = False) -> Seen:
    """A part of one axis, `span` in range; `drop`: the axis, then of 1, goes."""
    view = view_of(site.builder, seen)
    group = group_of(site, view, place)
    sizes = site.builder.sizes(view.value)
    size = shape_of(site.builder, view)[place]
    part = view.value
    if span != slice(0, size, 1):
        named = [axis for axis in group if sizes[axis] > 1] or list(group)[:1]
        if len(named) != 1:
            raise site.refuse("of axes that were flattened")
        start, stop, step = [0] * 4, list(sizes), [1] * 4
        axis = named[0]
        start[axis], stop[axis], step[axis] = span.start, max(span.start, span.stop), span.step
        part = site.builder.add(Slice(_four(start), _four(stop), _four(step)), [part], site.where)
    axes = list(view.axes)
    if drop:
        del axes[place - 1]
    return settle(site.builder, View(part, tuple(axes)))


def _four(n: Sequence[int]) -> Shape:
    return n[0], n[1], n[2], n[3]


def concat(site: Site, values: Sequence[Seen], dim: int, *, stack: bool = False) -> Seen:
    """Along one axis of the views, which are alike; `stack`: along a new one."""
    builder = site.builder
    views = [view_of(builder, value) for value in values]
    rank = len(views[0].axes) + 1 + stack
    place = dim % rank
    if place == 0 or any(len(view.axes) + 1 + stack != rank for view in views):
        raise site.refuse("along the batch axis, or of values with other axes")
    if stack:
        views = [
            View(view.value, (*view.axes[: place - 1], (), *view.axes[place - 1 :]))
            for view in views
        ]
    axes = common_axes(builder, views)
    if axes is None:
        raise site.refuse("of values with other axes")
    if not axes[place - 1]:
        axes = _new_axis(site, views, axes, place)
    group = axes[place - 1]
    if len(group) > 1:
        raise site.refuse("of axes that were flattened")
    joined = reductions.concat(builder, [view.value for view in views], group[0], site.where)
    return settle(builder, View(joined, axes))


def _new_axis(site: Site, views: Sequence[View], axes: Axes, place: int) -> Axes:
    """An axis that none of the values uses, for one along which all are 1."""
    used = {axis for group in axes for axis in group}
    plain = place if place == 1 else place + 2 - site.builder.spatial
    for axis in (plain - 1, 0, 3, 2, 1):
        unused = axis not in used and axis not in range(1, 4 - site.builder.spatial)
        if unused and all(site.builder.sizes(view.value)[axis] == 1 for view in views):
            return (*axes[: place - 1], (axis,), *axes[place:])
    raise site.refuse("along a new axis: more than the net has")


def elementwise(site: Site, inputs: Sequence[Any], run: Callable[[list[Any]], Any]) -> Seen:
    """`run` on values that are seen alike, and on constants laid out as they are."""
    builder = site.builder
    computed = [isinstance(v, View) or (isinstance(v, str) and builder.has(v)) for v in inputs]
    views = [view_of(builder, v) for v, is_value in zip(inputs, computed, strict=True) if is_value]
    axes = common_axes(builder, views)
    if axes is None:
        raise site.refuse("of values with other axes")
    arguments: list[Any] = []
    waiting = iter(views)
    for value, is_value in zip(inputs, computed, strict=True):
        if is_value:
            arguments.append(next(waiting).value)
        elif isinstance(value, np.ndarray) and value.ndim:
            laid = spread(builder, value, View(views[0].value, axes))
            if laid is None:
                raise site.refuse(f"with a constant of {value.shape}")
            arguments.append(laid.reshape(1, len(laid), *laid.shape[4 - builder.spatial :]))
        else:
            arguments.append(value)
    return settle(builder, View(run(arguments), axes))
