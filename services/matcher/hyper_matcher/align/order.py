"""Doubts about a stack as a whole: neighbours that do not match, sections in the wrong place."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from hyper_matcher.align.facts import PairFacts

_FEWEST = 6  # accepted matches below which two neighbours are not joined
_CHANCE = 0.3  # of those tried: so many agree with their neighbours by chance, in small sections
_OUTSIDE, _SURE = 0.7, 0.6  # chance finds small overlaps; most blocks agree only where it is true
_MARGIN = 1.06  # by what the other order must be better


def resemblance(pair: PairFacts) -> float:
    """How alike two sections are: median correlation of the matches, times the share accepted."""
    return pair.p1 * pair.accepted / max(1, pair.tried)


def swapped_sections(depth: int, pairs: Iterable[PairFacts]) -> dict[int, str]:
    """Neighbours that would fit the sections before and after them better the other way round.

    Sections further apart resemble each other less. Of four in a row, a b c d, the outer two tell
    the order of the inner: if a is more like c, and d more like b, then b and c are swapped. At the
    ends of the stack there is no telling.

    Returns:
        {section: why}, two entries for each swap; the worst of overlapping swaps is named.
    """
    alike = {(p.source_z, p.target_z): resemblance(p) for p in pairs}
    gains = []
    for b in range(1, depth - 2):
        a, c, d = b - 1, b + 1, b + 2
        needed = [(a, b), (a, c), (b, d), (c, d)]
        if any(alike.get(pair, 0.0) <= 0 for pair in needed):
            continue
        given = alike[(a, b)] + alike[(c, d)]
        other = alike[(a, c)] + alike[(b, d)]
        both = alike[(a, c)] > alike[(a, b)] and alike[(b, d)] > alike[(c, d)]
        if both and other > _MARGIN * given:
            gains.append((other / given, b))
    found: dict[int, str] = {}
    for gain, b in sorted(gains, reverse=True):
        if b in found or b + 1 in found:
            continue
        why = f"fit their neighbours {gain - 1:.0%} better"
        found[b] = f"looks swapped with section {b + 1}: the other way round they {why}"
        found[b + 1] = f"looks swapped with section {b}: the other way round they {why}"
    return found


def _outside(pair: PairFacts) -> float:
    """Share of the points that the pair's fit puts outside of the other section."""
    return pair.outside / max(1, pair.total)


def failed_pairs(
    depth: int, pairs: Sequence[PairFacts], left_out: Mapping[int, str] | Iterable[int] = ()
) -> list[tuple[int, int, str]]:
    """Neighbours that could not be joined, and why; those over sections left out count as one.

    Args:
        depth: of the stack.
        pairs: of sections, matched.
        left_out: sections that the user wants to be blank: z - 1 and z + 1 are neighbours there.
    """
    blank = set(left_out)
    kept = [z for z in range(depth) if z not in blank]
    known = {(p.source_z, p.target_z): p for p in pairs}
    failed = []
    for a, b in itertools.pairwise(kept):
        pair = known.get((a, b))
        if pair is None:
            failed.append((a, b, "too far apart to be matched; raise --neighbours"))
        elif pair.accepted < max(_FEWEST, _CHANCE * pair.tried):
            failed.append((a, b, pair.flag or f"only {pair.accepted} matches"))
        elif (outside := _outside(pair)) > _OUTSIDE and pair.coarse_score < _SURE:
            failed.append((a, b, f"a fit in which they share {1 - outside:.0%} alone is no proof"))
    return failed
