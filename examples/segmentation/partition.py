"""From membranes to objects: seeds, watershed, agglomeration, links. Pure functions on arrays."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph

Labels = NDArray[np.int32]
Edges = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a section is cut.

    Args:
        smooth_px: of the membranes, before anything else.
        inside: below so much membrane (0 to 1), a pixel may be a seed's.
        seed_px: a seed is a peak of the distance to membranes among this many px around; 0: a seed
            is all that is connected below `inside`.
        merge: neighbours with less membrane than this between them become one.
        least_px: smaller fragments join the neighbour with the weakest membrane.
    """

    smooth_px: float = 1.0
    inside: float = 0.5
    seed_px: int = 7
    merge: float = 0.5
    least_px: int = 100


def cut(membranes: NDArray[np.float32], settings: Settings) -> Labels:
    """A section's fragments (y, x), from 1 on, without gaps; `membranes` is of 0 to 1."""
    smooth = ndimage.gaussian_filter(membranes, settings.smooth_px)
    basins = watershed(smooth, seeds(smooth, settings.inside, settings.seed_px))
    return agglomerate(basins, smooth, settings.merge, settings.least_px)


def seeds(membranes: NDArray[np.float32], inside: float, seed_px: int) -> Labels:
    """Markers of a watershed, from 1 on; see `Settings`."""
    low = membranes < inside
    if seed_px == 0:
        labels, _ = ndimage.label(low)
        return np.asarray(labels, np.int32)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(low), 2.0)
    peaks = (ndimage.maximum_filter(distance, 2 * seed_px + 1) == distance) & (distance > 0.5)
    labels, _ = ndimage.label(peaks, np.ones((3, 3)))
    return np.asarray(labels, np.int32)


def watershed(height: NDArray[np.float32], markers: Labels) -> Labels:
    """Flood from the markers, lowest first; every pixel gets a label, if there is any marker."""
    if not markers.any():
        return np.ones_like(markers)
    labels = markers.astype(np.int32, order="C")
    _flood(np.clip(height * 255, 0, 255).astype(np.uint8), labels)
    return labels


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]  # numba has no types
def _flood(levels: NDArray[np.uint8], labels: Labels) -> None:
    """Label what is 0, pixel by pixel, by queues of equal level (Meyer's flooding)."""
    rows, columns = labels.shape
    head = np.full(256, -1, np.int64)
    tail = np.full(256, -1, np.int64)
    behind = np.full(rows * columns, -1, np.int64)
    for y in range(rows):
        for x in range(columns):
            if labels[y, x] != 0:
                level, at = levels[y, x], y * columns + x
                if head[level] < 0:
                    head[level] = at
                else:
                    behind[tail[level]] = at
                tail[level] = at
    for level in range(256):
        while head[level] >= 0:
            at = head[level]
            head[level] = behind[at]
            y, x = at // columns, at % columns
            for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                v, u = y + dy, x + dx
                if 0 <= v < rows and 0 <= u < columns and labels[v, u] == 0:
                    labels[v, u] = labels[y, x]
                    reached = max(level, np.int64(levels[v, u]))
                    next_at = v * columns + u
                    behind[next_at] = -1
                    if head[reached] < 0:
                        head[reached] = next_at
                    else:
                        behind[tail[reached]] = next_at
                    tail[reached] = next_at


def agglomerate(
    labels: Labels, membranes: NDArray[np.float32], merge: float, least_px: int
) -> Labels:
    """Join neighbours, the weakest membrane first, while its mean is below `merge`.

    Means are of all pixel pairs along a border and kept up to date as fragments grow.
    """
    size = np.bincount(labels.ravel()).astype(np.int64)
    borders = _borders(labels, membranes)
    parent = np.arange(len(size))

    def root(label: int) -> int:
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = int(parent[label])
        return label

    heap = [(total / count, a, b) for a, row in borders.items() for b, (total, count) in row.items()
            if a < b]  # fmt: skip
    heapq.heapify(heap)
    while heap:
        value, a, b = heapq.heappop(heap)
        if parent[a] != a or parent[b] != b or b not in borders[a]:
            continue
        total, count = borders[a][b]
        if total / count != value:
            continue  # it has changed since; its newer value is in the heap too
        if value >= merge and min(size[a], size[b]) >= least_px:
            continue
        if len(borders[a]) < len(borders[b]):
            a, b = b, a
        parent[b] = a
        size[a] += size[b]
        for other, (total, count) in borders.pop(b).items():
            del borders[other][b]
            if other == a:
                continue
            before = borders[a].get(other, (0.0, 0))
            joined = (before[0] + total, before[1] + count)
            borders[a][other] = borders[other][a] = joined
            heapq.heappush(heap, (joined[0] / joined[1], min(a, other), max(a, other)))
    table = np.array([root(label) for label in range(len(size))])
    _, dense = np.unique(table[labels], return_inverse=True)
    return np.asarray(dense.reshape(labels.shape) + 1, np.int32)


def _borders(
    labels: Labels, membranes: NDArray[np.float32]
) -> dict[int, dict[int, tuple[float, int]]]:
    """(sum of membrane, number of pixel pairs) of every two fragments that touch, both ways."""
    firsts, seconds, values = [], [], []
    for axis in (0, 1):
        low = [slice(None)] * 2
        high = [slice(None)] * 2
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        a, b = labels[tuple(low)], labels[tuple(high)]
        between = a != b
        firsts.append(np.minimum(a, b)[between])
        seconds.append(np.maximum(a, b)[between])
        values.append(np.maximum(membranes[tuple(low)], membranes[tuple(high)])[between])
    first, second = np.concatenate(firsts).astype(np.int64), np.concatenate(seconds)
    base = int(labels.max()) + 1
    keys, inverse = np.unique(first * base + second, return_inverse=True)
    sums = np.bincount(inverse, np.concatenate(values), len(keys))
    counts = np.bincount(inverse, minlength=len(keys))
    found: dict[int, dict[int, tuple[float, int]]] = {int(label): {} for label in np.unique(labels)}
    for key, total, count in zip(keys.tolist(), sums.tolist(), counts.tolist(), strict=True):
        a, b = divmod(key, base)
        found[a][b] = found[b][a] = (total, count)
    return found


def overlaps(one: NDArray[np.int64], other: NDArray[np.int64], share: float) -> Edges:
    """Labels of two pictures of the same place that belong together.

    Each must be the other's best match, and cover at least `share` of the smaller one there. 0 is
    nothing.
    """
    real = (one > 0) & (other > 0)
    a, b = one[real], other[real]
    if not a.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    names_a, at_a, size_a = np.unique(a, return_inverse=True, return_counts=True)
    names_b, at_b, size_b = np.unique(b, return_inverse=True, return_counts=True)
    table = sparse.csr_array(
        (np.ones(len(a), np.int64), (at_a, at_b)), shape=(len(names_a), len(names_b))
    ).tocoo()
    row, column, count = table.coords[0], table.coords[1], table.data
    best_a = np.zeros(len(names_a), np.int64)
    best_b = np.zeros(len(names_b), np.int64)
    np.maximum.at(best_a, row, count)
    np.maximum.at(best_b, column, count)
    good = (count == best_a[row]) & (count == best_b[column])
    good &= count >= share * np.minimum(size_a[row], size_b[column])
    return names_a[row[good]], names_b[column[good]]


def first_of(names: NDArray[np.int64], edges: list[Edges]) -> NDArray[np.int64]:
    """For each of the sorted `names` the first name of all that edges join it with."""
    first = np.concatenate([np.zeros(0, np.int64), *(a for a, _ in edges)])
    second = np.concatenate([np.zeros(0, np.int64), *(b for _, b in edges)])
    row, column = np.searchsorted(names, first), np.searchsorted(names, second)
    graph = sparse.coo_array((np.ones(len(row), np.int8), (row, column)), (len(names),) * 2)
    count, component = csgraph.connected_components(graph, directed=False)
    least = np.full(count, len(names))
    np.minimum.at(least, component, np.arange(len(names)))
    return np.asarray(names[least[component]] if len(names) else names, np.int64)
