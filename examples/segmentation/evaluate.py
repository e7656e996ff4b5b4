"""How good a segmentation is on sections that nobody trained on, beside a watershed on intensity.

Both are judged within sections, as the truth was drawn: every connected part of a cell's inside is
an object, membranes and what is between cells are left out. The watershed's settings are the best
of a grid on the section before the held-out ones; ours are those of the recipe.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from metrics import Agreement, agreement
from numpy.typing import NDArray
from partition import Settings, cut, first_of, overlaps
from PIL import Image
from prepare import INSIDE
from scipy import ndimage
from segment import cells

from hyper import TaskContext
from hyper.images import encode_png

RESULT = "result.json"
_SHOWN_PX = 512


def measure(
    context: TaskContext, *, session: str, truth: str, sections: Sequence[int]
) -> dict[str, Any]:
    """Compare the sections from the first to before the last with the truth; write the result."""
    data, (low, high) = context.client.open_dataset(truth), sections
    raw, labels = (data[name][low - 1 : high] for name in ("raw", "labels"))
    return _judge(context.client.attach(session), raw, np.isin(labels, INSIDE), low)


def measure_aligned(
    context: TaskContext, *, session: str, aligned: str, truth: str, sections: Sequence[int]
) -> dict[str, Any]:
    """The same for sections that were aligned before.

    Args:
        aligned: the array that was segmented.
        truth: session of an alignment by the same fields, of what is 255 within cells.
    """
    low, high = sections
    raw = context.client.open_array(aligned)[low - 1 : high]
    inside = context.client.attach(truth)["aligned"][low - 1 : high] > 127
    return _judge(context.client.attach(session), raw, inside, low)


def _judge(job: Any, raw: NDArray[np.uint8], inside: NDArray[np.bool_], low: int) -> dict[str, Any]:
    """Compare the sections from `low` on; `raw` and `inside` begin with the one before it."""
    tuned = tune(raw[0], objects(inside[0]))
    wanted, raw = np.stack([objects(section) for section in inside[1:]]), raw[1:]
    high = low + len(raw)
    ours = cells(job, job["fragments"], slice(low, high))
    theirs = np.stack([cut(boundary(section), tuned) for section in raw])
    volume = agreement(job["segmentation"][low:high].astype(np.int64), in_depth(wanted))
    result = {
        "sections": [low, high],
        "ours": _mean([agreement(a, b) for a, b in zip(ours, wanted, strict=True)]),
        "intensity": _mean([agreement(a, b) for a, b in zip(theirs, wanted, strict=True)]),
        "intensity_settings": asdict(tuned),
        "ours_3d": _plain(volume),
        "objects": int(sum(section.max() for section in wanted)),
    }
    result["rand_error_ratio"] = result["ours"]["rand_error"] / result["intensity"]["rand_error"]
    result["information_ratio"] = (
        result["ours"]["information_bits"] / result["intensity"]["information_bits"]
    )
    part = np.s_[:_SHOWN_PX, :_SHOWN_PX]
    pictures = {
        "section": raw[0][part],
        "membranes": job["membranes"][low][part],
        "ours": colours(ours[0][part]),
        "truth": colours(wanted[0][part]),
        "watershed on intensity": colours(theirs[0][part]),
    }
    job.write(RESULT, json.dumps(result))
    job.write_many((f"pictures/{name}.png", png(picture)) for name, picture in pictures.items())
    return result


def objects(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The truth's objects in a section, from 1 on; 0 is left out."""
    found, _ = ndimage.label(inside)
    return np.asarray(found, np.int64)


def in_depth(sections: NDArray[np.int64]) -> NDArray[np.int64]:
    """Objects of sections joined where they overlap on neighbours; 0 stays 0.

    The truth names no objects across sections: this is the rule that our own links follow.
    """
    named = sections.copy()
    for z in range(1, len(named)):
        named[z][named[z] > 0] += int(named[z - 1].max())
    names = np.unique(named[named > 0])
    table = first_of(names, [overlaps(a, b, 0.3) for a, b in itertools.pairwise(named)])
    joined = np.zeros_like(named)
    joined[named > 0] = table[np.searchsorted(names, named[named > 0])]
    return joined


def boundary(section: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How dark a pixel is, 0 to 1: a net's stand-in."""
    low, high = np.percentile(section, (1, 99))
    return np.clip((high - section.astype(np.float32)) / max(high - low, 1), 0, 1)


def tune(section: NDArray[np.uint8], wanted: NDArray[np.int64]) -> Settings:
    """The settings of a watershed on intensity that do best on a section."""
    dark = boundary(section)
    tried = [
        replace(Settings(), smooth_px=smooth, inside=inside, seed_px=seed, merge=merge)
        for smooth, inside, seed, merge in itertools.product(
            (2.0, 4.0), (0.45, 0.6), (11, 21), (0.0, 0.4, 0.5)
        )
    ]
    return min(tried, key=lambda settings: agreement(cut(dark, settings), wanted).rand_error)


def colours(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Labels as (y, x, 3); 0 is black, a label always has the same colour."""
    mixed = (labels.astype(np.uint64) * 0x9E3779B97F4A7C15) >> np.uint64(40)
    rgb = np.stack([(mixed >> shift & 0xFF) // 2 + 96 for shift in (0, 8, 16)], -1)
    return np.where(labels[..., None] > 0, rgb, 0).astype(np.uint8)


def png(picture: NDArray[np.uint8]) -> bytes:
    """Grey (y, x) or colours (y, x, 3) as PNG."""
    if picture.ndim == 2:
        return encode_png(picture)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def picture_html(name: str, data: bytes) -> str:
    """An inline picture with its name."""
    return (
        f'<figure style="display:inline-block;margin:.3rem"><img alt="{name}" width="280" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _plain(value: Agreement) -> dict[str, float]:
    return {**asdict(value), "information_bits": value.information_bits}


def _mean(values: list[Agreement]) -> dict[str, float]:
    plain = [_plain(value) for value in values]
    return {key: float(np.mean([each[key] for each in plain])) for key in plain[0]}
