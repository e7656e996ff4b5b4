"""What is known of pairs of sections: guesses, matches, counts; in blocks, and gathered."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper.align import blocks
from hyper_matcher.align import overview
from hyper_matcher.align.blocks import join_blocks
from hyper_matcher.align.facts import PairFacts, facts_of, join_facts, thin
from hyper_matcher.align.geometry import Affine, PairMatches
from hyper_matcher.align.pipeline import pairs_of
from hyper_matcher.job_files import Job

_MIN_SHARE = 0.3  # of an overview's blocks that agree with a fit that is used


def match_file(source_z: int, target_z: int, block: int) -> str:
    """Where a pair's matches in one block of the section are."""
    return f"align/matches/{source_z:06d}-{target_z:06d}-{block:06d}.npz"


def overview_file(z: int, part: int) -> str:
    """Where a part of a large section is, shrunk."""
    return f"align/overviews/{z:06d}-{part:06d}.npz"


def guess_file(z: int) -> str:
    """Where the following sections show what a large section does, roughly."""
    return f"align/guesses/{z:06d}.json"


def facts_file(source_z: int, target_z: int, block: int | None) -> str:
    """Where their counts are; None: those of the whole section."""
    return f"align/facts/{source_z:06d}-{target_z:06d}-{_number(block)}.json"


def thin_file(source_z: int, target_z: int, block: int | None) -> str:
    """Where few of them are, for a coarser mesh; None: those of the whole section."""
    return f"align/thin/{source_z:06d}-{target_z:06d}-{_number(block)}.npz"


def _number(block: int | None) -> str:
    return "all" if block is None else f"{block:06d}"


def write_overview(job: Job, z: int, part: int) -> None:
    """Keep a part of a section, shrunk."""
    factor = overview.factor_of(job.shape[1:])
    span = job.parts(job.shape[1:])[part]
    small = overview.shrink(lambda y, x: job.source_window(z, y, x), span, factor)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, origin=np.array(small.origin), grey=small.grey, tissue=small.tissue)
    job.session.write(overview_file(z, part), buffer.getvalue())


def load_overview(job: Job, z: int) -> NDArray[np.float32]:
    """A section, shrunk; blank if it was left out."""
    every = range(0 if job.left_out(z) else len(job.parts(job.shape[1:])))
    found = []
    for content in job.stream_files([overview_file(z, part) for part in every]):
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            y, x = (int(value) for value in stored["origin"])
            found.append(overview.Shrunk((y, x), stored["grey"], stored["tissue"]))
    shape = job.shape[1:]
    return overview.joined(found, shape, overview.factor_of(shape))


def guess(job: Job, z: int) -> list[tuple[int, int, float]]:
    """Find out roughly where a section's tissue lies in the following ones; keep it."""
    source, factor = load_overview(job, z), overview.factor_of(job.shape[1:])
    told, found = [], []
    for a, b in pairs_of(job.shape[0], job.plan.neighbours):
        if a == z:
            fit, share = overview.fit(source, load_overview(job, b), factor)
            told.append((a, b, share))
            found.append(
                {"target_z": b, "matrix": fit.matrix.tolist(), "offset": fit.offset.tolist(),
                 "share": share}
            )  # fmt: skip
    job.write_json(guess_file(z), found)
    return told


def load_guesses(job: Job, z: int) -> dict[int, Affine]:
    """By the following sections where it can be trusted."""
    if not job.in_blocks:
        return {}
    return {
        int(one["target_z"]): Affine(np.array(one["matrix"]), np.array(one["offset"]))
        for one in job.read_json(guess_file(z))
        if one["share"] >= _MIN_SHARE
    }


def write_matches(job: Job, pair: PairMatches, block: int) -> None:
    """A pair's matches in a block, their counts, and, for a coarser mesh, few of them."""
    ends = pair.source_z, pair.target_z, block
    files = [
        (match_file(*ends), pack_pair(pair)),
        (facts_file(*ends), json.dumps(asdict(facts_of(pair))).encode()),
    ]
    if len(job.levels) > 1:
        files.append((thin_file(*ends), pack_pair(thin(pair, job.levels[0]))))
    job.session.write_many(files)


def gather(job: Job, z: int) -> int:
    """Put the blocks' facts, and their few matches, together: a file each for a pair from z.

    What looks at the whole stack then reads as many files as there are pairs, not blocks.
    """
    found = [pair for pair in pairs_of(job.shape[0], job.plan.neighbours) if pair[0] == z]
    every, thinned = range(len(blocks(job.shape))), len(job.levels) > 1
    for pair in found:
        facts = _facts(job.read_files([facts_file(*pair, block) for block in every]))
        files = [(facts_file(*pair, None), json.dumps(asdict(facts)).encode())]
        if thinned:
            few = _matches(job.read_files([thin_file(*pair, block) for block in every]))
            files.append((thin_file(*pair, None), pack_pair(few)))
        job.session.write_many(files)
    return len(found)


def load_matches(job: Job) -> list[PairMatches]:
    """All pairs, in order."""
    every = range(len(blocks(job.shape)))
    return [
        _matches(job.read_files([match_file(*pair, block) for block in every]))
        for pair in pairs_of(job.shape[0], job.plan.neighbours)
    ]


def load_thin_matches(job: Job) -> list[PairMatches]:
    """Few of each pair's, in order."""
    return [load_pair(content) for content in _of_pairs(job, thin_file)]


def load_facts(job: Job) -> list[PairFacts]:
    """The counts of all pairs, in order; none where another alignment's fields are used."""
    if job.settings["options"]["from_fields"]:
        return []
    return [PairFacts(**json.loads(content)) for content in _of_pairs(job, facts_file)]


def _of_pairs(job: Job, file_of: Callable[[int, int, int | None], str]) -> Iterator[bytes]:
    block = None if job.in_blocks else 0
    pairs = pairs_of(job.shape[0], job.plan.neighbours)
    return job.stream_files(file_of(*pair, block) for pair in pairs)


def _facts(contents: Sequence[bytes]) -> PairFacts:
    return join_facts([PairFacts(**json.loads(content)) for content in contents])


def _matches(contents: Sequence[bytes]) -> PairMatches:
    return join_blocks([load_pair(content) for content in contents])


def pack_pair(found: Any) -> bytes:
    """A pair's matches as an npz file: plain arrays, no pickle."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        sections=np.array([found.source_z, found.target_z]),
        matrix=np.asarray(found.coarse.matrix, np.float64),
        offset=np.asarray(found.coarse.offset, np.float64),
        scalars=np.array([found.coarse_score, found.compute_s]),
        source=found.source,
        displacement=found.displacement,
        p1=found.p1,
        p2=found.p2,
        rejection=np.asarray(found.rejection, np.uint8),
        flag=np.array(found.flag, dtype=np.str_),
    )
    return buffer.getvalue()


def load_pair(content: bytes) -> PairMatches:
    """The way back."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        source_z, target_z = (int(value) for value in stored["sections"])
        score, seconds = (float(value) for value in stored["scalars"])
        return PairMatches(
            source_z=source_z,
            target_z=target_z,
            coarse=Affine(stored["matrix"], stored["offset"]),
            coarse_score=score,
            source=stored["source"],
            displacement=stored["displacement"],
            p1=stored["p1"],
            p2=stored["p2"],
            rejection=stored["rejection"],
            compute_s=seconds,
            flag=str(stored["flag"]),
        )
