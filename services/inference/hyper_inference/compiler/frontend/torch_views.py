"""aten ops that change how a value is seen, or that work along axes of any view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hyper_inference.compiler.frontend import reductions, view_ops
from hyper_inference.compiler.frontend.linear import linear
from hyper_inference.compiler.frontend.torch_call import Call
from hyper_inference.compiler.frontend.views import (
    Seen,
    View,
    permuted,
    reshaped,
    settle,
    shape_of,
    view_of,
)


def _seen(call: Call, name: str = "self") -> Seen:
    value = call.values.get(name, call.inputs[0])
    if not call.is_value(value):
        raise call.refuse(f"{name} is not computed from the net's input")
    seen: Seen = value
    return seen


def _moved(call: Call, result: Seen | None, what: str) -> Seen:
    if result is None:
        raise call.refuse(what)
    return result


def _permute(call: Call) -> Seen:
    seen = _seen(call)
    rank = len(shape_of(call.builder, seen))
    if "transpose" in call.op:
        order = list(range(rank))
        a, b = int(call.get("dim0")) % rank, int(call.get("dim1")) % rank
        order[a], order[b] = order[b], order[a]
    elif "movedim" in call.op:
        source, target = (np.atleast_1d(call.get(n)) % rank for n in ("source", "destination"))
        order = [n for n in range(rank) if n not in source]
        for to, come in sorted(zip(target.tolist(), source.tolist(), strict=True)):
            order.insert(to, come)
    else:
        order = [int(n) for n in call.get("dims")]
    return _moved(call, permuted(call.builder, seen, order), f"to the order {order}")


def _reshape(call: Call) -> Seen:
    seen = _seen(call)
    have = shape_of(call.builder, seen)
    if "unflatten" in call.op:
        at = int(call.get("dim")) % len(have)
        shape = [*have[:at], *call.get("sizes"), *have[at + 1 :]]
    elif "flatten" in call.op:
        first = int(call.get("start_dim", 0)) % len(have)
        last = int(call.get("end_dim", -1)) % len(have)
        shape = [*have[:first], int(np.prod(have[first : last + 1])), *have[last + 1 :]]
    else:
        shape = list(call.get("size") or call.get("shape"))
    return _moved(call, reshaped(call.builder, seen, shape), f"{have} to {tuple(shape)}")


def _squeeze(call: Call) -> Seen:
    seen = _seen(call)
    have = shape_of(call.builder, seen)
    dims = call.get("dim")
    chosen = range(1, len(have)) if dims is None else np.atleast_1d(dims) % len(have)
    shape = [n for at, n in enumerate(have) if n != 1 or at not in chosen]
    if 0 in chosen:
        raise call.refuse("of the batch axis")
    return _moved(call, reshaped(call.builder, seen, shape), f"{have} to {tuple(shape)}")


def _unsqueeze(call: Call) -> Seen:
    seen = _seen(call)
    shape = list(shape_of(call.builder, seen))
    at = int(call.get("dim"))
    shape.insert(at if at >= 0 else at + len(shape) + 1, 1)
    return _moved(call, reshaped(call.builder, seen, shape), f"to {tuple(shape)}")


def _slice(call: Call) -> Seen:
    seen = _seen(call)
    size = shape_of(call.builder, seen)
    place = int(call.get("dim", 0)) % len(size)
    if "select" in call.op:
        index = int(call.get("index"))
        at = index + size[place] if index < 0 else index
        return view_ops.cut(call, seen, place, slice(at, at + 1, 1), drop=True)
    chosen = slice(call.get("start"), call.get("end"), int(call.get("step", 1)))
    return view_ops.cut(call, seen, place, slice(*chosen.indices(size[place])))


def _reduction(kind: Any) -> Callable[[Call], Any]:
    def handler(call: Call) -> Any:
        if call.get("dtype") is not None and not call.get("dtype").is_floating_point:
            raise call.refuse(f"as {call.get('dtype')}")
        given = call.get("correction")
        correction = float(call.get("unbiased", True)) if given is None else float(given)
        dims = call.get("dim")
        seen = view_ops.reduce(
            call, _seen(call), kind, [dims] if isinstance(dims, int) else dims,
            keep=bool(call.get("keepdim", False)), correction=correction,
        )  # fmt: skip
        return (seen, None) if call.op in ("aten.max", "aten.min") else seen

    return handler


def _softmax(call: Call) -> Seen:
    return view_ops.softmax(call, _seen(call), int(call.get("dim")), log="log" in call.op)


def _layer_norm(call: Call) -> Any:
    seen, shape = _seen(call, "input"), shape_of(call.builder, _seen(call, "input"))
    normal = tuple(int(n) for n in call.get("normalized_shape"))
    if len(normal) >= len(shape) or shape[len(shape) - len(normal) :] != normal:
        raise call.refuse(f"over {normal} of {shape}")
    result = view_ops.layer_norm(
        call, seen, len(normal), call.constant("weight"), call.constant("bias"),
        float(call.get("eps", 1e-5)),
    )  # fmt: skip
    return (result, None, None) if "native" in call.op else result


def _concat(call: Call) -> Seen:
    values = list(call.inputs[0])
    if not values or not all(call.is_value(value) for value in values):
        raise call.refuse("of constants")
    return view_ops.concat(call, values, int(call.get("dim", 0)), stack="stack" in call.op)


def _linear(call: Call) -> Seen:
    return linear(
        call.builder, _seen(call, "input"), call.constant("weight"), call.constant("bias"),
        call.op, call.where,
    )  # fmt: skip


def _matmul(call: Call) -> Seen:
    left, right = call.inputs[:2]
    if call.is_value(right) or not call.is_value(left) or np.ndim(right) != 2:
        raise call.refuse("but by a stored matrix from the right")
    return linear(call.builder, left, np.asarray(right).T, None, call.op, call.where)


def _addmm(call: Call) -> Seen:
    bias, left, right = call.inputs[:3]
    if call.is_value(right) or call.is_value(bias) or np.ndim(right) != 2:
        raise call.refuse("but by a stored matrix from the right")
    return linear(call.builder, left, np.asarray(right).T, bias, call.op, call.where)


def _expand(call: Call) -> Seen:
    builder, view = call.builder, view_of(call.builder, _seen(call))
    have = shape_of(builder, view)
    if "expand_as" in call.op:
        wanted = list(shape_of(builder, call.inputs[1]))
    else:
        wanted = [int(n) for n in call.get("size")]
    have = (1,) * (len(wanted) - len(have)) + have
    wanted = [n if want == -1 else want for n, want in zip(have, wanted, strict=True)]
    if wanted[0] != 1 or len(wanted) != len(view.axes) + 1:
        raise call.refuse(f"{have} to {wanted}")
    sizes, axes = list(builder.sizes(view.value)), list(view.axes)
    used = {axis for group in axes for axis in group if sizes[axis] > 1}
    for place, (n, want) in enumerate(zip(have[1:], wanted[1:], strict=True)):
        if n == want:
            continue
        plain = builder.spatial + 2 == len(wanted)
        own = place if place == 0 else place + 3 - builder.spatial
        choices = [own, *range(4)] if plain else list(range(4))
        free = [a for a in choices if sizes[a] == 1 and a not in used]
        if n != 1 or not free:
            raise call.refuse(f"{have} to {wanted}")
        sizes[free[0]], axes[place] = want, (free[0],)
        used.add(free[0])
    c, z, y, x = sizes
    result = builder.expand(view.value, (c, z, y, x), call.where)
    return settle(builder, View(result, tuple(axes)))


def _repeat(call: Call) -> Seen:
    builder, seen = call.builder, settle(call.builder, _seen(call))
    if not isinstance(seen, str) or len(call.get("repeats")) != builder.spatial + 2:
        raise call.refuse("of a value that is not seen as (n, c, ...)")
    n, c, *rest = (int(k) for k in call.get("repeats"))
    if n != 1 or min(c, *rest) < 1:
        raise call.refuse("of the batch axis")
    for axis, times in enumerate(rest, start=4 - builder.spatial):
        if times > 1:
            index = np.tile(np.arange(builder.sizes(seen)[axis]), times)
            seen = reductions.reindex(builder, seen, axis, index.tolist(), call.where)
    return builder.concat([seen] * c, call.where) if c > 1 else seen


def _turned(call: Call) -> Seen:
    """Flips and rolls."""
    builder, view = call.builder, view_of(call.builder, _seen(call))
    value = view.value
    dims = np.atleast_1d(call.get("dims")).tolist()
    shifts = np.atleast_1d(call.get("shifts", [0] * len(dims))).tolist()
    for dim, shift in zip(dims, shifts, strict=True):
        group = [a for a in view_ops.group_of(call, view, int(dim)) if builder.sizes(value)[a] > 1]
        if group == []:
            continue
        if group == [0] or len(group) > 1:
            raise call.refuse("of the channels")
        index = np.arange(builder.sizes(value)[group[0]])
        index = np.roll(index, shift) if "roll" in call.op else index[::-1]
        value = reductions.reindex(builder, value, group[0], index.tolist(), call.where)
    return settle(builder, View(value, view.axes))


HANDLERS: dict[str, Callable[[Call], Any]] = {
    "aten.permute": _permute,
    "aten.transpose": _permute,
    "aten.movedim": _permute,
    "aten.view": _reshape,
    "aten.reshape": _reshape,
    "aten._unsafe_view": _reshape,
    "aten.flatten": _reshape,
    "aten.unflatten": _reshape,
    "aten.squeeze": _squeeze,
    "aten.unsqueeze": _unsqueeze,
    "aten.slice": _slice,
    "aten.select": _slice,
    "aten.linear": _linear,
    "aten.matmul": _matmul,
    "aten.mm": _matmul,
    "aten.addmm": _addmm,
    "aten.mean": _reduction("mean"),
    "aten.sum": _reduction("sum"),
    "aten.amax": _reduction("max"),
    "aten.amin": _reduction("min"),
    "aten.max": _reduction("max"),
    "aten.min": _reduction("min"),
    "aten.var": _reduction("var"),
    "aten.std": _reduction("std"),
    "aten.softmax": _softmax,
    "aten._softmax": _softmax,
    "aten.log_softmax": _softmax,
    "aten._log_softmax": _softmax,
    "aten.layer_norm": _layer_norm,
    "aten.native_layer_norm": _layer_norm,
    "aten.cat": _concat,
    "aten.stack": _concat,
    "aten.expand": _expand,
    "aten.expand_as": _expand,
    "aten.repeat": _repeat,
    "aten.flip": _turned,
    "aten.roll": _turned,
}
