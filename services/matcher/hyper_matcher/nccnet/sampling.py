"""Training pairs from a stack: each a pure function of (seed, step, place in the batch).

The stack is roughly aligned (`hyper align` does that without a net): to within some pixels, what
lies at a place of one section lies there in the next ones. A template is cut anywhere in section
z, its search image from section z + 1 ... z + reach round a random offset, so that the net cannot
learn where in a search image the template usually lies. Both are cut with a margin that the loss
never sees: no feature tells where the cut's border was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.nccnet import augment


class Sections(Protocol):
    """A stack (z, y, x): a numpy array, a Zarr array or `hyper.arrays.Array`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x)."""

    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class SampleConfig:
    """How pairs are cut; lengths in px of the sections.

    Args:
        templates_px: edges of templates; a batch takes one of them.
        search_px: largest offset of a template in its search image.
        margin_px: cut off the features of both.
        reach: pairs are z with z + 1 ... z + reach.
        unrelated: share of the batches whose pairs show different places.
        damaged: whether folds, stripes and dust are made up.
    """

    templates_px: tuple[int, ...] = (160, 224)
    search_px: int = 100
    margin_px: int = 32
    reach: int = 3
    unrelated: float = 0.25
    damaged: bool = True

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "templates_px": list(self.templates_px)}


@dataclass(frozen=True, slots=True)
class Batch:
    """Search images (n, 1, Y, X) and templates (n, 1, y, x), margins included; what they are.

    Args:
        search: grey values, float32.
        template: likewise.
        related: (n,) whether a pair shows the same tissue.
        place: (n, 2) offset of the template in the search image, px, where they are related.
    """

    search: NDArray[np.float32]
    template: NDArray[np.float32]
    related: NDArray[np.bool_]
    place: NDArray[np.float32]


def check_stack(shape: Sequence[int], config: SampleConfig) -> None:
    """Refuse a stack that no pair can be cut from.

    Raises:
        ValueError: with what would do.
    """
    if len(shape) != 3:
        raise ValueError(f"a stack of sections has axes (z, y, x), not shape {tuple(shape)}")
    needed = max(config.templates_px) + 2 * (config.search_px + config.margin_px)
    if shape[0] < 2:
        raise ValueError(f"{shape[0]} section(s): training needs at least two neighbours")
    if min(shape[1:]) < needed:
        raise ValueError(
            f"sections of {shape[1]} x {shape[2]} px are too small for templates of "
            f"{max(config.templates_px)} px searched within {config.search_px} px: they need "
            f"{needed} px; give smaller templates or a smaller search"
        )


def batch(
    stack: Sections,
    config: SampleConfig,
    *,
    seed: int,
    step: int,
    size: int,
    members: Sequence[int],
    mean: float,
    spread: float,
    related: bool | None = None,
) -> Batch:
    """The pairs `members` of the step's batch of `size`; `related` None: drawn for the batch.

    Every rank of a gang asks for its own members of the same batch.
    """
    shared = np.random.default_rng((seed, step))
    edge = int(shared.choice(config.templates_px))
    drawn = bool(shared.random() >= config.unrelated)
    related = drawn if related is None else related
    searches: list[Any] = []
    templates: list[Any] = []
    places = []
    for member in members:
        if not 0 <= member < size:
            raise ValueError(f"member {member} of a batch of {size}")
        rng = np.random.default_rng((seed, step, member))
        search, template, place = _pair(stack, config, rng, edge, related)
        places.append(place)
        for images, image in ((searches, search), (templates, template)):
            wide = image.astype(np.float32)
            if config.damaged:
                wide = augment.damage(wide, rng, mean, spread)
            images.append(augment.contrast(wide, rng, mean, spread))
    return Batch(
        np.stack(searches)[:, None], np.stack(templates)[:, None],
        np.full(len(members), related), np.array(places, np.float32),
    )  # fmt: skip


def _pair(
    stack: Sections, config: SampleConfig, rng: np.random.Generator, edge: int, related: bool
) -> tuple[NDArray[Any], NDArray[Any], tuple[int, int]]:
    """Search image, template (margins included; turned and flipped together), and its offset."""
    depth, height, width = stack.shape
    small, large = edge + 2 * config.margin_px, edge + 2 * (config.search_px + config.margin_px)
    distance = int(rng.integers(1, min(config.reach, depth - 1) + 1))
    z = int(rng.integers(0, depth - distance))
    first, second = (z, z + distance) if rng.random() < 0.5 else (z + distance, z)
    corner = np.array([rng.integers(0, height - large + 1), rng.integers(0, width - large + 1)])
    if related:
        at = corner + rng.integers(0, 2 * config.search_px + 1, 2)
    else:
        at = _elsewhere(corner, (height - small, width - small), large, rng)
    search = _cut(stack, second, corner, large)
    template = _cut(stack, first, at, small)
    y, x = (int(value) for value in at - corner)
    turns, flip = int(rng.integers(4)), bool(rng.random() < 0.5)
    for _ in range(turns):
        search, template = np.rot90(search), np.rot90(template)
        y, x = 2 * config.search_px - x, y
    if flip:
        search, template, x = search[:, ::-1], template[:, ::-1], 2 * config.search_px - x
    return search, template, (y, x)


def _elsewhere(
    corner: NDArray[Any], limits: tuple[int, int], large: int, rng: np.random.Generator
) -> NDArray[Any]:
    """A corner of a template far from the search image: the farthest of some."""
    best, reach = corner, -1.0
    for _ in range(20):
        at = np.array([rng.integers(0, limit + 1) for limit in limits])
        away = float(np.abs(at + 0.0 - corner - large / 4).max())
        if away > reach:
            best, reach = at, away
    return best


def _cut(stack: Sections, z: int, corner: NDArray[Any], edge: int) -> NDArray[Any]:
    y, x = (int(value) for value in corner)
    return np.asarray(stack[z, y : y + edge, x : x + edge])
