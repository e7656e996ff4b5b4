"""Images with boxes: made from a seed, and read in YOLO's layout.

A dataset holds `images/NAME.png` (or .jpg) and `labels/NAME.txt` with a line a box: class, centre
x, centre y, width, height; the last four as shares of the image's size.
"""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from hyper._files import Tree

CLASSES = ("disc", "box", "triangle")
_PIXELS_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Box:
    """One object: class and centre and size as shares of the image."""

    kind: int
    x: float
    y: float
    width: float
    height: float


def scene(seed: int, edge: int) -> tuple[bytes, list[Box]]:
    """A PNG of `edge` x `edge` px with one to five shapes on a noisy ground, and its boxes."""
    rng = random.Random(seed)
    ground = np.random.default_rng(seed).normal(rng.uniform(60, 190), 18, (edge, edge, 3))
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    boxes: list[Box] = []
    for _ in range(rng.randint(1, 5)):
        half = rng.uniform(0.06, 0.17) * edge
        x, y = rng.uniform(half, edge - half), rng.uniform(half, edge - half)
        if any(
            math.hypot(b.x * edge - x, b.y * edge - y) < half + b.width * edge / 2 for b in boxes
        ):
            continue
        kind = rng.randrange(len(CLASSES))
        colour = tuple(rng.randrange(256) for _ in range(3))
        corners = (x - half, y - half, x + half, y + half)
        if kind == 0:
            draw.ellipse(corners, fill=colour)
        elif kind == 1:
            draw.rectangle(corners, fill=colour)
        else:
            draw.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=colour)
        boxes.append(Box(kind, x / edge, y / edge, 2 * half / edge, 2 * half / edge))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), boxes


def write_labels(boxes: list[Box]) -> str:
    """As a label file has them."""
    return "".join(f"{b.kind} {b.x:.6f} {b.y:.6f} {b.width:.6f} {b.height:.6f}\n" for b in boxes)


def read_labels(text: str, path: str) -> list[Box]:
    """The boxes of a label file.

    Raises:
        ValueError: a line is not one; the message names it.
    """
    boxes = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            kind, *place = line.split()
            x, y, width, height = (float(part) for part in place)
            box = Box(int(kind), x, y, width, height)
        except ValueError:
            raise ValueError(f"{path}, line {number}: write `class x y width height`") from None
        if not (0 <= x <= 1 and 0 <= y <= 1 and 0 < width <= 1 and 0 < height <= 1):
            raise ValueError(f"{path}, line {number}: centre and size are shares, 0 to 1")
        boxes.append(box)
    return boxes


def all_labels(tree: Tree, classes: int | None = None) -> dict[str, list[Box]]:
    """Boxes by the name of their image, without suffix.

    Raises:
        ValueError: a file is not as it ought to be, or has a class that is not of so many.
    """
    found = {}
    for info, data in tree.read_many(tree.files("labels/")):
        boxes = read_labels(data.decode(), info.path)
        for number, box in enumerate(boxes, 1):
            if box.kind < 0 or (classes is not None and box.kind >= classes):
                raise ValueError(
                    f"{info.path}, line {number}: class {box.kind}, but there are "
                    f"{'classes from 0 on' if classes is None else classes}; "
                    "give the recipe's training `classes: N`"
                )
        found[info.path[len("labels/") : -len(".txt")]] = boxes
    return found


def read_image(data: bytes, edge: int, path: str) -> NDArray[np.float32]:
    """(3, edge, edge) of -1 to 1, whatever the image's own size.

    Raises:
        ValueError: it is too large, or no image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > _PIXELS_MAX:
                raise ValueError(f"{path} has {image.width} x {image.height} px: too many")
            plain = image.convert("RGB").resize((edge, edge), Image.Resampling.BILINEAR)
    except OSError as error:
        raise ValueError(f"{path} is no PNG or JPEG: {error}") from error
    pixels = np.asarray(plain, np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels / 127.5 - 1)


def name_of(path: str) -> str:
    """`images/NAME.png` -> NAME."""
    return path.removeprefix("images/").rpartition(".")[0]
