"""Test-time augmentation: the mean of a net's results on turned and mirrored patches."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hyper.errors import InvalidArgumentError
from hyper_inference.compiler.ir import Triple

Floats: TypeAlias = npt.NDArray[np.float32]
Net: TypeAlias = Callable[[Floats], Floats]
AUGMENTATIONS = ("none", "flips", "flips_zyx", "rotations")
"""flips: of y and x, 4 patches; flips_zyx: of all axes, 8; rotations: of y and x, mirrored, 8."""


@dataclass(frozen=True, slots=True)
class _View:
    """Quarter turns of (y, x), after flips along some axes of (c, z, y, x)."""

    flips: tuple[int, ...] = ()
    turns: int = 0

    def apply(self, values: Floats) -> Floats:
        return np.ascontiguousarray(np.rot90(np.flip(values, self.flips), self.turns, (2, 3)))

    def undo(self, values: Floats) -> Floats:
        return np.flip(np.rot90(values, -self.turns, (2, 3)), self.flips)


def check_augmentation(name: str, patch: Triple) -> None:
    """Refuse unknown names, and turns of patches that are not square.

    Raises:
        InvalidArgumentError: says which.
    """
    if name not in AUGMENTATIONS:
        raise InvalidArgumentError(
            f"augmentation {name[:40]!r} is not one of {', '.join(AUGMENTATIONS)}",
            field="augmentation",
        )
    if name == "rotations" and patch[1] != patch[2]:
        raise InvalidArgumentError(
            f"a patch of {patch} cannot be turned: choose one with equal y and x",
            field="augmentation",
        )


def augmented(net: Net, name: str) -> Net:
    """The net, or the mean of its results on all views of a patch, always in the same order."""
    views = _views(name)
    if len(views) == 1:
        return net

    def run(values: Floats) -> Floats:
        total: Floats | None = None
        for view in views:
            result = view.undo(net(view.apply(values)))
            total = np.array(result) if total is None else total + result
        if total is None:
            raise AssertionError("there is always a view")
        return total / np.float32(len(views))

    return run


def _views(name: str) -> list[_View]:
    if name == "rotations":
        return [_View(flips, turns) for flips in ((), (3,)) for turns in range(4)]
    axes = {"flips": (2, 3), "flips_zyx": (1, 2, 3)}.get(name, ())
    subsets = (itertools.combinations(axes, count) for count in range(len(axes) + 1))
    return [_View(flips) for flips in itertools.chain.from_iterable(subsets)]
