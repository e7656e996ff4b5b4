"""Normalised cross-correlation as a differentiable torch layer: channel-wise, batched, 2D and 3D.

The score is that of `hyper_matcher.ncc` (zero mean, unit norm; Lewis 1995). Sums over windows are
taken in float64 by cumulative sums, since float32 loses the variance of a window on a bright
background; products run in the spatial domain or by FFTs, whichever costs less. Needs torch.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import scipy.fft
import torch
from torch import Tensor, nn

Method = Literal["auto", "direct", "fft"]
Reduce = Literal["mean", "none"]

_FLAT = 1e-12  # energy of a window below this share of its image's mean square counts as none


class NormalizedCrossCorrelation(nn.Module):  # type: ignore[misc]  # torch has no types here
    """Scores of a template at every place of a search image.

    Args:
        reduce: "mean" averages the channels' correlograms; "none" keeps them.
        method: "auto" chooses by cost.
        dimensions: 2 or 3 spatial axes.

    Shape:
        search (N, C, [Z,] Y, X), template (N, C, [z,] y, x) -> (N, 1 or C, [Z - z + 1,] ...),
        in [-1, 1], of the search image's dtype. A batch of one template is matched in every image.
    """

    def __init__(
        self, *, dimensions: int = 2, reduce: Reduce = "mean", method: Method = "auto"
    ) -> None:
        super().__init__()
        if dimensions not in (2, 3):
            raise ValueError(f"dimensions are 2 or 3, not {dimensions}")
        if reduce not in ("mean", "none"):
            raise ValueError(f"reduce is 'mean' or 'none', not {reduce!r}")
        if method not in ("auto", "direct", "fft"):
            raise ValueError(f"method is 'auto', 'direct' or 'fft', not {method!r}")
        self.dimensions, self.reduce, self.method = dimensions, reduce, method

    def forward(self, search: Tensor, template: Tensor) -> Tensor:
        """Correlograms; places and templates without contrast score 0."""
        _check(search, template, self.dimensions)
        scores = normalized_cross_correlation(search, template, method=self.method)
        return scores.mean(1, keepdim=True) if self.reduce == "mean" else scores

    def extra_repr(self) -> str:
        """The settings, as `print(module)` shows them."""
        return f"dimensions={self.dimensions}, reduce={self.reduce!r}, method={self.method!r}"


def normalized_cross_correlation(
    search: Tensor, template: Tensor, *, method: Method = "auto"
) -> Tensor:
    """Channel by channel: (N, C, *S) and (N, C, *T) -> (N, C, *(S - T + 1)).

    Raises:
        ValueError: shapes that do not belong together, a template larger than the image, values
            that are no floating-point numbers, or not finite.
    """
    axes = tuple(range(2, search.ndim))
    edges = tuple(template.shape[2:])
    template = template.expand(search.shape[0], *template.shape[1:])
    centred = template.double()
    centred = centred - centred.mean(axes, keepdim=True)
    wide = search.double()
    wide = wide - wide.mean(axes, keepdim=True)

    template_energy, template_flat = _energy_of(centred.square().sum(axes, keepdim=True), template)
    first, second = _box_sums(wide, edges), _box_sums(wide.square(), edges)
    count = math.prod(edges)
    mean_square = wide.square().mean(axes, keepdim=True) + _tiny(search)
    window_energy = second - first.square() / count
    flat = template_flat | (window_energy <= _FLAT * count * mean_square)
    window_energy = torch.where(flat, torch.ones_like(window_energy), window_energy)

    direct = method == "direct" or (
        method == "auto" and spatial_is_cheaper(edges, tuple(search.shape[2:]), cuda=search.is_cuda)
    )
    dtype = torch.promote_types(search.dtype, torch.float32)  # half precision has no FFT
    products = (_correlate_directly if direct else _correlate_by_fft)(
        wide.to(dtype), centred.to(dtype)
    )
    scores = products.double() * (window_energy * template_energy).rsqrt()
    # Not clamped: a clamp would cut the gradient exactly at a perfect match.
    return torch.where(flat, torch.zeros_like(scores), scores).to(search.dtype)


def spatial_is_cheaper(
    template: tuple[int, ...], search: tuple[int, ...], *, cuda: bool = False
) -> bool:
    """Whether the direct sum costs less than three real FFTs.

    The constants are those of `benchmarks.matcher.ncc --torch`, forward and backward: on a core of
    an AMD EPYC (Zen 4), and on an H200, where launches are most of the time of either.
    """
    places = math.prod(s - t + 1 for s, t in zip(search, template, strict=True))
    voxels = math.prod(search)
    direct = places * math.prod(template)
    return direct < (100 if cuda else 2) * voxels * math.log2(max(voxels, 2))


def _energy_of(energy: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The energy, 1 where there is none, and where that is."""
    axes = tuple(range(2, values.ndim))
    scale = values.double().square().sum(axes, keepdim=True)
    flat = energy <= 1e-20 * scale + 1e-300
    return torch.where(flat, torch.ones_like(energy), energy), flat


def _tiny(values: Tensor) -> float:
    return float(torch.finfo(values.dtype).tiny)


def _box_sums(values: Tensor, edges: tuple[int, ...]) -> Tensor:
    """Sums over all boxes of `edges`, by cumulative sums along one axis after the other."""
    for axis, edge in enumerate(edges, start=2):
        total = values.cumsum(axis)
        head = total.narrow(axis, edge - 1, 1)
        rest = total.narrow(axis, edge, total.shape[axis] - edge) - total.narrow(
            axis, 0, total.shape[axis] - edge
        )
        values = torch.cat([head, rest], axis)
    return values


def _correlate_directly(search: Tensor, template: Tensor) -> Tensor:
    """Each (image, channel) is a group of one convolution."""
    n, c = search.shape[:2]
    convolve: Any = nn.functional.conv2d if search.ndim == 4 else nn.functional.conv3d
    images = search.reshape(1, n * c, *search.shape[2:])
    kernels = template.reshape(n * c, 1, *template.shape[2:])
    found = convolve(images, kernels, groups=n * c)
    return found.reshape(n, c, *found.shape[2:])


def _correlate_by_fft(search: Tensor, template: Tensor) -> Tensor:
    axes = tuple(range(2, search.ndim))
    size = tuple(scipy.fft.next_fast_len(n, real=True) for n in search.shape[2:])
    spectrum = torch.fft.rfftn(search, size, axes) * torch.fft.rfftn(template, size, axes).conj()
    products = torch.fft.irfftn(spectrum, size, axes)
    for axis in axes:
        products = products.narrow(axis, 0, search.shape[axis] - template.shape[axis] + 1)
    return products


def _check(search: Tensor, template: Tensor, dimensions: int) -> None:
    if search.ndim != dimensions + 2 or template.ndim != dimensions + 2:
        raise ValueError(
            f"search and template need {dimensions + 2} axes (N, C, {'Z, ' * (dimensions == 3)}Y, "
            f"X), not shapes {tuple(search.shape)} and {tuple(template.shape)}"
        )
    if search.shape[1] != template.shape[1] or template.shape[0] not in (1, search.shape[0]):
        raise ValueError(
            f"{tuple(template.shape[:2])} templates and channels do not belong to "
            f"{tuple(search.shape[:2])} images and channels"
        )
    if 0 in search.shape or 0 in template.shape:
        raise ValueError("search and template must not be empty")
    if any(t > s for t, s in zip(template.shape[2:], search.shape[2:], strict=True)):
        raise ValueError(
            f"the template {tuple(template.shape[2:])} is larger than the search image "
            f"{tuple(search.shape[2:])}"
        )
    for name, values in (("search", search), ("template", template)):
        if not values.is_floating_point():
            raise ValueError(f"{name} is {values.dtype}: convert it to a floating-point dtype")
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} has values that are not finite")
