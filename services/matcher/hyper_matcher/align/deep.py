"""Deep refinement without supervision: a displacement field a section, optimised online.

It starts from the elastic result. From coarse to fine, a field over the canvas is moved so that the
section's features meet those of its neighbours (mean square error) while the field stays smooth;
across cracks and folds, which are found in the section itself, it may tear, and they are masked in
the error. (SEAMLeSS, Mitchell et al. 2019; online optimisation of each pair as in later work.) No
true field is in the loss. From there the map is fitted anew, as a stiff one that may tear: see
`sides`. Where the result correlates less with the neighbours than before, or hardly moves, the
field goes back to none. Needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from numpy.typing import NDArray

from hyper_matcher.align.coarse import contrast_features
from hyper_matcher.align.sampling import downsample
from hyper_matcher.align.sides import Features, SideOptions, narrow_part, register_by_side

_DARK = 0.5
_CRACKED = 0.2  # a pixel of which more is a crack's is the crack's
_BOX_PX = 61  # over which correlations are looked at
_UNSURE = 0.1  # beside a crack one may lose so much by the blank that has closed


@dataclass(frozen=True, slots=True)
class DeepOptions:
    """How to refine.

    Args:
        factors: scales of the optimiser, coarse to fine: sections shrunk by so much.
        steps: of the optimiser at each scale.
        rate: largest step, px at the scale.
        smoothness: weight of the field's squared differences against the features' error.
        tear: what is left of it across a crack.
        crack_px: folds and cracks are widened by this much before they are masked.
        neighbours: weights of sections at distance 1, 2.
        widest_crack_px: what is wider is a hole, or lies beyond the section.
        fit_factor: sections shrunk by so much are what the field is fitted to in the end,
        everywhere: once as a whole,
        near_damage: and once more where it is torn.
        noise_px: what moves by less, far from damage, hardly moves.
    """

    factors: tuple[int, ...] = (16, 8, 4)
    steps: int = 120
    rate: float = 0.05
    smoothness: float = 2.0
    tear: float = 0.001
    crack_px: int = 10
    neighbours: tuple[float, ...] = (1.0, 0.4)
    widest_crack_px: int = 160
    fit_factor: int = 2
    everywhere: SideOptions = field(default_factory=lambda: SideOptions(cell_px=16))
    near_damage: SideOptions = field(default_factory=lambda: SideOptions(cell_px=8))
    noise_px: float = 0.5


def crack_mask(section: NDArray[Any], widen_px: int = 10, narrowest_px: int = 5) -> NDArray[Any]:
    """Where a section is torn or folded, not at its border: (H, W) of bool.

    Cracks are blank (0); folds are darker than half of what dark tissue (the tenth percentile) is,
    over `narrowest_px` each way.
    """
    blank = section == 0
    tissue = section[~blank]
    if tissue.size == 0:
        return np.ones(section.shape, bool)
    limit = _DARK * float(np.percentile(tissue, 10))
    dark = blank | (scipy.ndimage.uniform_filter(section.astype(np.float32), 3) < limit)
    dark = scipy.ndimage.binary_opening(dark, np.ones((narrowest_px, narrowest_px)))
    labels, count = scipy.ndimage.label(dark)
    if count:
        sizes = np.bincount(labels.ravel())
        long_enough = sizes > 8 * narrowest_px * narrowest_px
        long_enough[0] = False
        dark = long_enough[labels]
    if not dark.any():
        return np.zeros(section.shape, bool)
    return np.asarray(scipy.ndimage.distance_transform_edt(~dark) <= widen_px)


def refine_section(
    section: NDArray[Any],
    neighbours: Sequence[tuple[int, NDArray[Any]]],
    options: DeepOptions | None = None,
    maps: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """The field (H, W, 2), px: the pixel p of the refined section is the given one's p + field[p].

    Args:
        section: (H, W), rendered by the elastic result, 0 where there is no tissue.
        neighbours: (distance, (H, W)) of the sections near it, as rendered.
        options: how.
        maps: (H, W, 2), the elastic result: what the source's pixels are shown at; NaN outside.
            Without it, the section is taken for the source.
    """
    options = options or DeepOptions()
    shown = [(d, other) for d, other in neighbours if d <= len(options.neighbours) and other.any()]
    zero = np.zeros((*section.shape, 2), np.float32)
    if not section.any() or not shown:
        return zero
    if maps is None:
        maps = np.moveaxis(np.indices(section.shape), 0, -1).astype(np.float32)
    cracks = crack_mask(section, options.crack_px)
    sure = [crack_mask(other, 4 * options.crack_px) for _, other in shown]
    rough: torch.Tensor | None = None
    for factor in options.factors:
        if min(section.shape) // factor >= 24:
            features = _features(section, shown, cracks, sure, factor, options)
            rough = _optimise(rough, features, options)
    if rough is None:
        return zero
    fine = _resize(rough, section.shape)[0].permute(1, 2, 0).numpy()
    features = _features(section, shown, cracks, sure, options.fit_factor, options)
    everywhere = np.ones(section.shape, bool)
    calm, _ = register_by_side(features, cracks, everywhere, maps, fine, options.everywhere)
    damage = narrow_part(cracks, options.widest_crack_px)
    by_side, share = register_by_side(features, cracks, damage, maps, calm, options.near_damage)
    others = [o for _, o in shown]
    unsure = scipy.ndimage.maximum_filter(damage, 2 * _BOX_PX) * np.float32(_UNSURE)
    near = share * _worth(section, others, by_side, -unsure) if share.any() else share
    length = np.linalg.norm(calm, axis=-1)
    away = (1 - share) * _worth(section, others, calm)
    away = away * length**2 / (length**2 + options.noise_px**2)
    return np.asarray(near[..., None] * by_side + away[..., None] * calm, np.float32)


def _features(
    section: NDArray[Any],
    shown: Sequence[tuple[int, NDArray[Any]]],
    cracks: NDArray[np.bool_],
    sure: Sequence[NDArray[np.bool_]],
    factor: int,
    options: DeepOptions,
) -> Features:
    """What is compared at one scale; `sure`: the neighbours' cracks, widely."""
    shrink = _shrinker(section.shape, factor)

    def share(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        return shrink(mask.astype(np.float32))

    crack = share(cracks) > _CRACKED
    return Features(
        factor,
        _bandpass(shrink(section)),
        crack,
        (share(section > 0) > 0.5) & ~crack,
        [_bandpass(shrink(other)) for _, other in shown],
        [
            np.float32(options.neighbours[d - 1]) * ((share(o > 0) > 0.5) & (share(c) < _CRACKED))
            for (d, o), c in zip(shown, sure, strict=True)
        ],
    )


def warp_by(section: NDArray[Any], field: NDArray[np.float32]) -> NDArray[np.float32]:
    """The section (H, W) read at p + field[p], bilinear; 0 outside."""
    grid = np.mgrid[: section.shape[0], : section.shape[1]].astype(np.float32)
    where = grid + np.moveaxis(field, -1, 0)
    return np.asarray(
        scipy.ndimage.map_coordinates(section.astype(np.float32), where, order=1, cval=0.0)
    )


def _bandpass(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return contrast_features(image, 0.8, 4.0)


def _shrinker(shape: tuple[int, ...], factor: int) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    height, width = (-(-edge // factor) * factor for edge in shape)

    def shrink(image: NDArray[Any]) -> NDArray[np.float32]:
        pad = (height - image.shape[0], width - image.shape[1])
        padded = np.pad(image, ((0, pad[0]), (0, pad[1])), mode="edge")
        return downsample(padded, factor)

    return shrink


def _resize(field: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A field (1, 2, h, w) px of its own scale on another grid, in px of that."""
    scale = torch.tensor(
        [shape[0] / field.shape[2], shape[1] / field.shape[3]], dtype=field.dtype
    ).view(1, 2, 1, 1)
    fine = F.interpolate(field, size=tuple(shape), mode="bilinear", align_corners=False)
    return fine * scale.round()


def _optimise(start: torch.Tensor | None, features: Features, options: DeepOptions) -> torch.Tensor:
    """Move the field at one scale: (1, 2, h, w), px of the scale."""
    height, width = features.moving.shape
    images = (features.moving, *features.targets)
    moving, *targets = (torch.from_numpy(np.ascontiguousarray(i))[None, None] for i in images)
    base = _base_grid(height, width)
    mask = torch.from_numpy(features.valid.astype(np.float32))[None, None]
    pulls = [torch.from_numpy(np.asarray(w, np.float32))[None, None] for w in features.weights]
    total = torch.stack(pulls).sum().clamp(min=1.0)
    tearing = np.where(features.crack, options.tear, 1.0).astype(np.float32)
    hold = torch.from_numpy(tearing)[None, None]
    across, down = (
        torch.minimum(hold[..., 1:], hold[..., :-1]),
        torch.minimum(hold[..., 1:, :], hold[..., :-1, :]),
    )
    if start is None:
        field = torch.zeros(1, 2, height, width)
    else:
        field = _resize(start, (height, width)).detach()
    field.requires_grad_(True)
    optimiser = torch.optim.Adam([field], lr=options.rate, betas=(0.9, 0.99))
    step = torch.tensor([2.0 / height, 2.0 / width]).view(1, 1, 1, 2)
    for _ in range(options.steps):
        optimiser.zero_grad()
        grid = base + field.permute(0, 2, 3, 1) * step
        at = grid.flip(-1)  # torch reads (x, y)
        read = F.grid_sample(moving, at, padding_mode="border", align_corners=False)
        seen = F.grid_sample(mask, at, padding_mode="zeros", align_corners=False)
        error = sum(
            (pull * seen * (read - target) ** 2).sum()
            for pull, target in zip(pulls, targets, strict=True)
        )
        smooth = (across * (field[..., 1:] - field[..., :-1]) ** 2).sum()
        smooth = smooth + (down * (field[..., 1:, :] - field[..., :-1, :]) ** 2).sum()
        loss = error / total + options.smoothness * smooth / (height * width)
        loss.backward()
        optimiser.step()
    return field.detach()


def _base_grid(height: int, width: int) -> torch.Tensor:
    """(1, h, w, 2) centres of pixels, (y, x) from -1 to 1."""
    y = (torch.arange(height) + 0.5) * 2 / height - 1
    x = (torch.arange(width) + 0.5) * 2 / width - 1
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)[None]


def _worth(
    section: NDArray[Any],
    others: Sequence[NDArray[Any]],
    field: NDArray[np.float32],
    least: float | NDArray[np.float32] = 0.0,
) -> NDArray[np.float32]:
    """1 where the correlation with neighbours grows by more than `least`, 0 where not: (H, W)."""
    refined = warp_by(section, field)
    gain = np.zeros(section.shape, np.float32)
    for other in others:
        gain += _local_correlation(refined, other) - _local_correlation(section, other)
    better = scipy.ndimage.gaussian_filter(gain / len(others), 8.0) > least
    return np.asarray(scipy.ndimage.gaussian_filter(better.astype(np.float32), 6.0))


def _local_correlation(
    first: NDArray[Any], second: NDArray[Any], edge_px: int = _BOX_PX
) -> NDArray[np.float32]:
    """Correlation of two sections in a box round every pixel, over what both show."""
    both = ((first > 0) & (second > 0)).astype(np.float32)
    a, b = first.astype(np.float32) * both, second.astype(np.float32) * both

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(scipy.ndimage.uniform_filter(values, edge_px))

    share = np.maximum(mean(both), 1e-3)
    ma, mb = mean(a) / share, mean(b) / share
    product = mean(a * b) / share - ma * mb
    energy = np.maximum(mean(a * a) / share - ma * ma, 1) * np.maximum(
        mean(b * b) / share - mb * mb, 1
    )
    return np.asarray(np.where(share > 0.3, product / np.sqrt(energy), 0.0), np.float32)
