"""A volume's objects, block by block: membranes on the CPU engine, fragments, links, labels.

Blocks overlap; what two of them see of the same place says which of their fragments are one. So
labels go across blocks, however many there are and in whatever order they are computed. A fragment
is numbered by its block and within it; an object has the number of its first fragment. No task
but `link` sees more than a block and its neighbours, and `link` sees only what touches a border.
"""

from __future__ import annotations

import io
import itertools
import json
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from partition import Edges, Settings, cut, first_of, overlaps

from hyper import TaskContext
from hyper.arrays import Array

SETTINGS = "settings.json"
HALO_PX = 96  # that a block sees beyond itself
OVERLAP_PX = 32  # of this, where it is compared with the next block
_LINK_Z = 0.3  # least share of the smaller of two fragments on neighbouring sections
_LINK_XY = 0.5
_MULTIPLE_PX = 16  # of the net's input, in y and x
_ID_BITS = 32
Span = tuple[slice, slice, slice]


def begin(
    context: TaskContext, *, source: str, model: str, destination: str, depth: int, edge: int,
    settings: dict[str, Any], valid: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Open the session, make the arrays, cut the volume into blocks of (depth, edge, edge).

    Args:
        valid: an array of the source's shape, 0 where there is no tissue, and hence no object.
    """
    settings = {"cut": dict(settings)}
    client = context.client
    array = client.open_array(source)
    Settings(**settings["cut"])  # refuses what is not a setting
    if valid:
        tissue = client.open_array(valid)
        if tissue.shape != array.shape:
            raise ValueError(f"{valid} has shape {tissue.shape}, {source} {array.shape}")
        settings["valid"] = tissue.name
    job = client.session(destination)
    for name in job.arrays():  # of an earlier segmentation
        job.delete_array(name)
    sizes = {"voxel_size_nm": array.voxel_size_nm}
    shards = tuple(min(n, step) for n, step in zip(array.shape, (depth, edge, edge), strict=True))
    inner = (1, *shards[1:])
    job.create_array("membranes", array.shape, "uint8", chunks=inner, shards=shards, **sizes)
    made = job.create_array(
        "fragments", array.shape, "uint64", chunks=shards, shards=shards, **sizes
    )
    job.create_array("segmentation", array.shape, "uint64", chunks=shards, shards=shards, **sizes)
    asked = {"source": array.name, "model": model, "shape": list(array.shape),
             "block": list(made.shards), **settings}  # fmt: skip
    job.write(SETTINGS, json.dumps(asked))
    return {"session": job.name, "blocks": {"range": [0, len(_blocks(asked))]}}


def membranes(context: TaskContext, *, session: str, block: int) -> dict[str, int]:
    """The net over a block, on the inference service; 255 is surely membrane."""
    job, asked = _job(context, session)
    client = context.client
    source, found = client.open_array(asked["source"]), job["membranes"]
    span = _blocks(asked)[block]
    box = (tuple(s.start for s in span), tuple(s.stop for s in span))
    margins = (1, HALO_PX, HALO_PX)
    patch, overlap = [], []
    for n, edge, margin, multiple in zip(
        source.shape, found.shards, margins, (1, _MULTIPLE_PX, _MULTIPLE_PX), strict=True
    ):
        size = min(n, edge + 2 * margin) // multiple * multiple
        patch.append(size)
        overlap.append(2 * margin if size < n else 0)
    client.infer_volume(
        asked["model"], source, found, box=box, patch=patch, overlap=overlap, output_scale=255.0
    )
    return {"sections": span[0].stop - span[0].start}


def fragments(context: TaskContext, *, session: str, block: int) -> dict[str, int]:
    """One block's fragments, linked across its sections, and what it sees of the next blocks."""
    job, asked = _job(context, session)
    span, shape = _blocks(asked)[block], asked["shape"]
    seen = _grown(span, shape)
    values = job["membranes"][seen].astype(np.float32) / 255
    settings = Settings(**asked["cut"])
    valid = context.client.open_array(asked["valid"])[seen] if "valid" in asked else None
    found = np.zeros(values.shape, np.int64)
    count = 0
    for z, section in enumerate(values):
        labels = cut(section, settings)
        found[z] = labels.astype(np.int64) + (((block + 1) << _ID_BITS) + count)
        if valid is not None:
            found[z][valid[z] == 0] = 0
        count += int(labels.max())
    inner = _within(span, seen)
    job["fragments"][span] = found[inner].astype(np.uint64)
    links = [overlaps(a, b, _LINK_Z) for a, b in itertools.pairwise(found)]
    names = np.unique(found[found > 0])
    kept: dict[str, Any] = {
        "names": names,
        "roots": first_of(names, links),
        "inside": np.isin(names, found[inner]),
    }
    for axis, (own, whole) in enumerate(zip(span, seen, strict=True)):
        beyond = slice(own.stop, min(own.stop + OVERLAP_PX, whole.stop))
        if beyond.stop > beyond.start:
            place = tuple(beyond if a == axis else s for a, s in enumerate(span))
            kept[f"strip_{axis}"] = found[_within(place, seen)]
            kept[f"place_{axis}"] = np.array([(s.start, s.stop) for s in place])
    _write(job, _fragments_file(block), kept)
    return {"fragments": int(kept["inside"].sum())}


def compare(context: TaskContext, *, session: str, block: int) -> dict[str, int]:
    """Which of a block's fragments are one with fragments of the blocks behind it."""
    job, _ = _job(context, session)
    array = job["fragments"]
    own = _read(job, _fragments_file(block))
    flat: list[Edges] = []
    deep: list[Edges] = []
    for axis in range(3):
        if f"strip_{axis}" not in own:
            continue
        place = tuple(slice(*pair) for pair in own[f"place_{axis}"].tolist())
        mine, other = own[f"strip_{axis}"], array[place].astype(np.int64)
        share = _LINK_Z if axis == 0 else _LINK_XY
        edges = [overlaps(a, b, share) for a, b in zip(mine, other, strict=True)]
        if axis > 0:
            flat.extend(edges)
        a, b = _joined(edges)
        roots = np.zeros(len(b), np.int64)
        for number in np.unique((b >> _ID_BITS) - 1).tolist():
            there, here = _read(job, _fragments_file(number)), (b >> _ID_BITS) - 1 == number
            roots[here] = there["roots"][np.searchsorted(there["names"], b[here])]
        deep.append((own["roots"][np.searchsorted(own["names"], a)], roots))
    flat_a, flat_b = _joined(flat)
    deep_a, deep_b = _joined(deep)
    inside = np.unique(own["roots"][own["inside"]])
    _write(job, f"edges/{block:06}.npz", {
        "flat_a": flat_a, "flat_b": flat_b, "deep_a": deep_a, "deep_b": deep_b,
        "inside": np.isin(deep_a, inside), "objects": len(inside),
    })  # fmt: skip
    return {"edges": len(flat_a) + len(deep_a)}


def link(context: TaskContext, *, session: str) -> dict[str, int]:
    """Join what goes across borders: for each block the fragments that have another's number."""
    job, asked = _job(context, session)
    count, objects = len(_blocks(asked)), 0
    flat: list[Edges] = []
    deep: list[Edges] = []
    there = [np.zeros(0, np.int64)]  # objects of blocks that others join, and not of halos alone
    for _, content in job.read_many([f"edges/{block:06}.npz" for block in range(count)]):
        edges = _unpacked(content)
        flat.append((edges["flat_a"], edges["flat_b"]))
        deep.append((edges["deep_a"], edges["deep_b"]))
        there += [edges["deep_a"][edges["inside"]], edges["deep_b"]]
        objects += int(edges["objects"])
    tables = {}
    for kind, found in (("cell", flat), ("object", deep)):
        joined = _joined(found)
        names = np.unique(np.concatenate(joined))
        tables[kind] = names, first_of(names, [joined])

    def files() -> Iterator[tuple[str, bytes]]:
        for block in range(count):
            values = {}
            for kind, (names, numbers) in tables.items():
                ends = np.searchsorted(names, [(block + 1) << _ID_BITS, (block + 2) << _ID_BITS])
                part = slice(*ends.tolist())
                values |= {f"{kind}_from": names[part], f"{kind}_to": numbers[part]}
            yield _table_file(block), _packed(values)

    job.write_many(files())
    parts = np.unique(np.concatenate(there))
    across = len(np.unique(_replaced(parts, *tables["object"])))
    return {"blocks": count, "objects": objects - len(parts) + across, "across_borders": across}


def label(context: TaskContext, *, session: str, block: int) -> dict[str, int]:
    """One block of the segmentation."""
    job, asked = _job(context, session)
    span = _blocks(asked)[block]
    part = job["fragments"][span].astype(np.int64)
    own, table = _read(job, _fragments_file(block)), _read(job, _table_file(block))
    numbers = _replaced(own["roots"], table["object_from"], table["object_to"])
    objects = np.zeros_like(part)
    objects[part > 0] = numbers[np.searchsorted(own["names"], part[part > 0])]
    job["segmentation"][span] = objects.astype(np.uint64)
    return {"voxels": part.size, "objects": len(np.unique(objects[objects > 0]))}


def commit(context: TaskContext, *, session: str, message: str = "segmentation") -> dict[str, Any]:
    """Make everything one version."""
    job = context.client.attach(session)
    request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, context.task))
    return {"version": job.commit(message, request_id=request_id).number}


def cells(tree: Any, fragments: Array, sections: slice) -> NDArray[np.int64]:
    """Sections of the segmentation before links from one to the next; (z, y, x)."""
    found = fragments[sections].astype(np.int64)
    for block in np.unique((found[found > 0] >> _ID_BITS) - 1).tolist():
        table, here = _read(tree, _table_file(block)), (found >> _ID_BITS) - 1 == block
        found[here] = _replaced(found[here], table["cell_from"], table["cell_to"])
    return found


def _job(context: TaskContext, session: str) -> tuple[Any, dict[str, Any]]:
    job = context.client.attach(session)
    asked: dict[str, Any] = json.loads(job.read(SETTINGS))
    return job, asked


def _blocks(asked: dict[str, Any]) -> list[Span]:
    edges = [
        [slice(at, min(at + step, size)) for at in range(0, size, step)]
        for size, step in zip(asked["shape"], asked["block"], strict=True)
    ]
    return [(z, y, x) for z, y, x in itertools.product(*edges)]


def _within(place: Span, seen: Span) -> Span:
    """A place in the coordinates of what is seen."""
    z, y, x = (slice(s.start - g.start, s.stop - g.start) for s, g in zip(place, seen, strict=True))
    return z, y, x


def _grown(span: Span, shape: list[int]) -> Span:
    """What a block looks at: a section more behind it, `HALO_PX` more around it."""
    z, y, x = span
    wide = [slice(max(s.start - HALO_PX, 0), min(s.stop + HALO_PX, n))
            for s, n in zip((y, x), shape[1:], strict=True)]  # fmt: skip
    return slice(z.start, min(z.stop + 1, shape[0])), wide[0], wide[1]


def _fragments_file(block: int) -> str:
    return f"links/{block:06}.npz"


def _table_file(block: int) -> str:
    return f"tables/{block:06}.npz"


def _joined(edges: list[Edges]) -> Edges:
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *(a for a, _ in edges)]), np.concatenate(
        [none, *(b for _, b in edges)]
    )


def _replaced(
    values: NDArray[np.int64], names: NDArray[np.int64], by: NDArray[np.int64]
) -> NDArray[np.int64]:
    """`values`, those among the sorted `names` by what stands beside them."""
    if not len(names):
        return values
    at = np.minimum(np.searchsorted(names, values), len(names) - 1)
    return np.where(names[at] == values, by[at], values)


def _packed(values: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **values)
    return buffer.getvalue()


def _unpacked(content: bytes) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def _write(tree: Any, path: str, values: dict[str, Any]) -> None:
    tree.write(path, _packed(values))


def _read(tree: Any, path: str) -> dict[str, NDArray[Any]]:
    return _unpacked(tree.read(path))
