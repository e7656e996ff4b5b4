"""Where blocks of memory lie in one arena, given how long each lives. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """`size` floats that are in use from step `born` to step `dies`, both included."""

    size: int
    born: int
    dies: int

    def meets(self, other: Block) -> bool:
        """Both are in use at some step."""
        return self.born <= other.dies and other.born <= self.dies


_ORDERS: tuple[Callable[[Block], tuple[int, int]], ...] = (
    lambda block: (-block.size, block.born),
    lambda block: (-block.size * (block.dies - block.born + 1), block.born),
    lambda block: (block.born, -block.size),
)
"""No order of placing is best for all nets; all are cheap."""


def place(blocks: Sequence[Block]) -> tuple[list[int], int]:
    """Offsets so that blocks in use at the same time do not overlap, and the arena's size."""
    return min((_place_in_order(blocks, order) for order in _ORDERS), key=lambda found: found[1])


def _place_in_order(
    blocks: Sequence[Block], order: Callable[[Block], tuple[int, int]]
) -> tuple[list[int], int]:
    """One after another, each into the smallest gap that holds it, else as low as possible."""
    offsets = [0] * len(blocks)
    placed: list[int] = []
    for index in sorted(range(len(blocks)), key=lambda n: order(blocks[n])):
        block = blocks[index]
        taken = sorted(
            (offsets[n], offsets[n] + blocks[n].size) for n in placed if blocks[n].meets(block)
        )
        end, best = 0, None
        for start, stop in taken:
            gap = start - end
            if gap >= block.size and (best is None or gap < best[0]):
                best = gap, end
            end = max(end, stop)
        offsets[index] = end if best is None else best[1]
        placed.append(index)
    total = max((offsets[n] + block.size for n, block in enumerate(blocks)), default=0)
    return offsets, total
