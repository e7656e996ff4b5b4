from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hyper.sample_data import synthetic_stack
from hyper_matcher.align.geometry import Affine, PairMatches
from hyper_matcher.bandpass import bandpass
from hyper_matcher.job_files import Job
from hyper_matcher.job_pairs import load_pair, pack_pair
from hyper_matcher.job_plan import Plan, choose_plan

OPTIONS = {"template_px": 0, "search_px": 0, "spacing_px": 0.0, "neighbours": 3}


def settings(shape: tuple[int, int, int], **changes: object) -> dict[str, object]:
    return {"options": {**OPTIONS, **changes}, "shape": shape}


def test_what_the_user_chose_stands() -> None:
    plan = choose_plan(settings((4, 512, 512), template_px=96, spacing_px=30.0), [])
    assert (plan.template_px, plan.spacing_px) == (96, 30.0)


def test_small_sections_get_small_templates() -> None:
    assert choose_plan(settings((4, 200, 300)), []).template_px == 48
    assert choose_plan(settings((4, 2048, 2048)), []).template_px == 160


def test_gain_makes_features_of_faint_and_deep_stacks_alike() -> None:
    sharp = synthetic_stack(2, 256, seed=2).sections
    faint = (100 + sharp.astype(np.float64) / 16).astype(np.uint8)
    deep = sharp.astype(np.uint16) * 200
    spreads = []
    for stack in (sharp, faint, deep):
        plan = choose_plan(settings((2, 256, 256)), list(stack))
        filtered = bandpass(
            stack[0], plan.sigma_low_px, plan.sigma_high_px, offset=plan.grey_mean, gain=plan.gain
        )
        spreads.append(float(filtered[40:-40, 40:-40].std()))
    assert max(spreads) < 1.25 * min(spreads)


def test_blank_sections_do_not_decide() -> None:
    stack = synthetic_stack(2, 256, seed=2).sections
    with_blank = choose_plan(settings((3, 256, 256)), [np.zeros_like(stack[0]), *stack])
    without = choose_plan(settings((3, 256, 256)), list(stack))
    assert (with_blank.gain, with_blank.grey_mean) == (without.gain, without.grey_mean)


def test_plan_survives_json() -> None:
    plan = choose_plan(settings((4, 512, 512)), [])
    assert Plan.from_json(plan.to_json()) == plan


def test_matches_survive_their_file() -> None:
    generator = np.random.default_rng(0)
    pair = PairMatches(
        source_z=3, target_z=5, coarse=Affine(np.eye(2), np.array([1.0, 2.0])), coarse_score=0.5,
        source=generator.random((7, 2)), displacement=generator.random((7, 2)),
        p1=generator.random(7), p2=generator.random(7),
        rejection=np.arange(7, dtype=np.uint8), compute_s=0.25, flag="only 7 matches",
    )  # fmt: skip
    back = load_pair(pack_pair(pair))
    assert (back.source_z, back.target_z, back.flag) == (3, 5, "only 7 matches")
    for name in ("source", "displacement", "p1", "p2", "rejection"):
        assert np.array_equal(getattr(back, name), getattr(pair, name)), name
    assert np.array_equal(back.coarse.offset, pair.coarse.offset)


class Large(Job):
    """A job over an array whose tissue lies in one corner."""

    def source_window(self, z: int, y: slice, x: slice) -> NDArray[Any]:
        tissue = y.start >= 11_000 and x.start >= 11_000
        return np.full((y.stop - y.start, x.stop - x.start), int(tissue), np.uint8)


def test_of_a_large_section_a_part_with_tissue_is_looked_at() -> None:
    settings = {"shape": [2, 20_000, 20_000], "files": [], "dtype": "uint8", "bad": []}
    part = Large(cast(Any, None), cast(Any, None), settings).sample_section(0)
    assert part.shape == (4096, 4096)
    assert part.all()
