"""Which parameters an alignment uses, and why: chosen from the sections unless the user did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper.align import matches_every_px, mesh_spacing_px
from hyper_matcher.bandpass import bandpass

_SIGMA_LOW_PX, _SIGMA_HIGH_PX = 2.0, 10.0
_FEATURE_SPREAD = 0.6  # standard deviation in front of tanh: strong edges bend, little is cut
_FULL_TEMPLATE_PX = 160


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of one alignment.

    Args:
        template_px: edge of a template of the first pass.
        search_px: radius of the first pass round the coarse fit; 0: the matcher chooses.
        spacing_px: of the points that are matched.
        mesh_spacing_px: of the mesh that is relaxed.
        neighbours: each section is matched with so many following ones.
        sigma_low_px: narrow Gaussian of the band-pass.
        sigma_high_px: wide one.
        grey_mean: taken off before the filter.
        gain: of the filter, 1 / grey levels.
        reasons: a sentence a choice.
    """

    template_px: int
    search_px: int
    spacing_px: float
    mesh_spacing_px: float
    neighbours: int
    sigma_low_px: float
    sigma_high_px: float
    grey_mean: float
    gain: float
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "reasons": list(self.reasons)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """The way back."""
        return cls(**{**values, "reasons": tuple(values["reasons"])})


def choose_plan(settings: Mapping[str, Any], sample: Sequence[NDArray[Any]]) -> Plan:
    """Choose what the user left open.

    Args:
        settings: the job's settings file: `options` and `shape` (z, y, x).
        sample: some sections (H, W); blank ones are left out of the statistics.
    """
    options = settings["options"]
    _, height, width = settings["shape"]
    reasons = []
    tissue = [section for section in sample if section.any()]
    grey_mean, gain = 128.0, 1.0 / 24.0
    if tissue:
        grey_mean = float(np.mean([section[section > 0].mean() for section in tissue]))
        spread = _feature_spread(tissue, grey_mean)
        if spread > 0:
            gain = _FEATURE_SPREAD / spread
        reasons.append(
            f"band-pass of sigma {_SIGMA_LOW_PX:g} to {_SIGMA_HIGH_PX:g} px round grey "
            f"{grey_mean:.0f}, gain 1/{1 / gain:.1f}: from the spread of {len(tissue)} sections"
        )
    template = int(options["template_px"])
    if not template:
        template = min(_FULL_TEMPLATE_PX, max(16, min(height, width) // 4 // 8 * 8))
        reasons.append(
            f"templates of {template} px: "
            + ("the usual edge" if template == _FULL_TEMPLATE_PX else "a quarter of the section")
        )
    spacing = float(options["spacing_px"])
    if not spacing:
        spacing = matches_every_px(template)
        reasons.append(f"matches every {spacing:g} px: 0.3 of a template")
    mesh_spacing = mesh_spacing_px(spacing)
    reasons.append(f"mesh of {mesh_spacing:.3g} px: a little finer than the matches")
    reasons.append(
        f"sections z to z + {options['neighbours']} are matched, so that a bad one is bridged"
    )
    return Plan(
        template_px=template,
        search_px=int(options["search_px"]),
        spacing_px=spacing,
        mesh_spacing_px=mesh_spacing,
        neighbours=int(options["neighbours"]),
        sigma_low_px=_SIGMA_LOW_PX,
        sigma_high_px=_SIGMA_HIGH_PX,
        grey_mean=grey_mean,
        gain=gain,
        reasons=tuple(reasons),
    )


def _feature_spread(sections: Sequence[NDArray[Any]], grey_mean: float) -> float:
    """Standard deviation of the band-passed grey values, over at most 512 x 512 px of each."""
    spreads = []
    for section in sections:
        y, x = (max(0, (edge - 512) // 2) for edge in section.shape)
        cut = section[y : y + 512, x : x + 512]
        filtered = bandpass(
            cut, _SIGMA_LOW_PX, _SIGMA_HIGH_PX, offset=grey_mean, gain=1.0, bounded=False
        )
        margin = min(30, min(filtered.shape) // 4)
        inner = filtered[margin : filtered.shape[0] - margin, margin : filtered.shape[1] - margin]
        spreads.append(float(inner.std()))
    return float(np.median(spreads))
