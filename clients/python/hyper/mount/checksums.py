"""The crc32c of bytes whose parts were summed apart, in any order (pure).

As zlib's `crc32_combine`: appending a zero bit to a message is a linear map of its checksum, a
matrix of bits, and so is appending any number of them.
"""

from __future__ import annotations

from functools import lru_cache

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reversed
_BITS = 32

Matrix = tuple[int, ...]  # column by column

_ZERO_BIT: Matrix = (_POLYNOMIAL, *(1 << bit for bit in range(_BITS - 1)))
_UNCHANGED: Matrix = tuple(1 << bit for bit in range(_BITS))


def combined(first: int, second: int, second_bytes: int) -> int:
    """The crc32c of two messages, one behind the other, from those of each."""
    return _applied(_zeros(second_bytes), first) ^ second


@lru_cache(64)
def _zeros(count: int) -> Matrix:
    """What appending `count` zero bytes does."""
    result, power, bits = _UNCHANGED, _ZERO_BIT, 8 * count
    while bits:
        if bits & 1:
            result = tuple(_applied(power, column) for column in result)
        power = tuple(_applied(power, column) for column in power)
        bits >>= 1
    return result


def _applied(matrix: Matrix, vector: int) -> int:
    result = 0
    for column in matrix:
        if not vector:
            break
        if vector & 1:
            result ^= column
        vector >>= 1
    return result
