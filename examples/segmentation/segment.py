"""A volume's objects, block by block: membranes on the CPU engine, fragments, links, labels.

Blocks overlap; what two of them see of the same place says which of their fragments are one. So
labels go across blocks, however many there are and in whatever order they are computed.
"""

from __future__ import annotations

import io
import itertools
import json
import uuid
from typing import Any

import numpy as np
from numpy.typing import NDArray
from partition import Edges, Settings, cut, join, overlaps

from hyper import TaskContext
from hyper.arrays import Array

SETTINGS, TABLE = "settings.json", "table.npz"
HALO_PX = 96  # that a block sees beyond itself
OVERLAP_PX = 32  # of this, where it is compared with the next block
_LINK_Z = 0.3  # least share of the smaller of two fragments on neighbouring sections
_LINK_XY = 0.5
_MULTIPLE_PX = 16  # of the net's input, in y and x
_ID_BITS = 32
Span = tuple[slice, slice, slice]


def begin(
    context: TaskContext, *, source: str, model: str, destination: str, depth: int, edge: int,
    settings: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Open the session, make the arrays, cut the volume into blocks of (depth, edge, edge)."""
    settings = {"cut": dict(settings)}
    client = context.client
    array = client.open_array(source)
    Settings(**settings["cut"])  # refuses what is not a setting
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
    job.create_array("segmentation", array.shape, "uint32", chunks=shards, shards=shards, **sizes)
    asked = {"source": array.name, "model": model, "shape": list(array.shape),
             "block": list(made.shards), **settings}  # fmt: skip
    job.write(SETTINGS, json.dumps(asked))
    depth_step = job["membranes"].shards[0]
    return {
        "session": job.name,
        "slabs": {"range": [0, array.shape[0], depth_step]},
        "blocks": {"range": [0, len(_blocks(asked))]},
    }


def membranes(context: TaskContext, *, session: str, slab: int) -> dict[str, int]:
    """The net over some sections, on the inference service; 255 is surely membrane."""
    job, asked = _job(context, session)
    client = context.client
    source, found = client.open_array(asked["source"]), job["membranes"]
    stop = min(slab + found.shards[0], found.shape[0])
    box = ((slab, 0, 0), (stop, *found.shape[1:]))
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
    return {"sections": stop - slab}


def fragments(context: TaskContext, *, session: str, block: int) -> dict[str, int]:
    """One block's fragments, linked across its sections, and what it sees of the next blocks."""
    job, asked = _job(context, session)
    span, shape = _blocks(asked)[block], asked["shape"]
    seen = _grown(span, shape)
    values = job["membranes"][seen].astype(np.float32) / 255
    settings = Settings(**asked["cut"])
    found = np.zeros(values.shape, np.int64)
    count = 0
    for z, section in enumerate(values):
        labels = cut(section, settings)
        found[z] = labels.astype(np.int64) + (((block + 1) << _ID_BITS) + count)
        count += int(labels.max())
    inner = tuple(
        slice(s.start - g.start, s.stop - g.start) for s, g in zip(span, seen, strict=True)
    )
    job["fragments"][span] = found[inner].astype(np.uint64)
    links = [overlaps(a, b, _LINK_Z) for a, b in itertools.pairwise(found)]
    none = np.zeros(0, np.int64)
    strips = {
        "link_a": np.concatenate([none, *(a for a, _ in links)]),
        "link_b": np.concatenate([none, *(b for _, b in links)]),
    }
    for axis, (own, whole) in enumerate(zip(span, seen, strict=True)):
        beyond = slice(own.stop, min(own.stop + OVERLAP_PX, whole.stop))
        if beyond.stop > beyond.start:
            place = tuple(beyond if a == axis else s for a, s in enumerate(span))
            inside = tuple(
                slice(s.start - g.start, s.stop - g.start) for s, g in zip(place, seen, strict=True)
            )
            strips[f"strip_{axis}"] = found[inside]
            strips[f"place_{axis}"] = np.array([(s.start, s.stop) for s in place])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **strips)
    job.write(f"links/{block:06}.npz", buffer.getvalue())
    return {"fragments": count}


def link(context: TaskContext, *, session: str) -> dict[str, int]:
    """Which fragments of which blocks are one object."""
    job, asked = _job(context, session)
    array = job["fragments"]
    flat: list[Edges] = []
    deep: list[Edges] = []
    names = [np.zeros(0, np.int64)]
    for block in range(len(_blocks(asked))):
        with np.load(io.BytesIO(job.read(f"links/{block:06}.npz")), allow_pickle=False) as file:
            deep.append((file["link_a"], file["link_b"]))
            for axis in range(3):
                if f"strip_{axis}" not in file:
                    continue
                place = tuple(slice(*pair) for pair in file[f"place_{axis}"].tolist())
                mine, other = file[f"strip_{axis}"], array[place].astype(np.int64)
                share = _LINK_Z if axis == 0 else _LINK_XY
                edges = [overlaps(a, b, share) for a, b in zip(mine, other, strict=True)]
                (deep if axis == 0 else flat).extend(edges)
        names.append(np.unique(array[_blocks(asked)[block]].astype(np.int64)))
    every = np.unique(np.concatenate(names))
    # a fragment of which only the halo was seen is in no block: links through it still count
    known = np.unique(np.concatenate([every, *(e for pair in flat + deep for e in pair)]))
    objects, cells = join(known, flat + deep), join(known, flat)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, names=known, objects=objects, cells=cells)
    job.write(TABLE, buffer.getvalue())
    return {"fragments": len(every), "objects": len(np.unique(objects))}


def label(context: TaskContext, *, session: str, block: int) -> dict[str, int]:
    """One block of the segmentation."""
    job, asked = _job(context, session)
    span = _blocks(asked)[block]
    names, objects, _ = table(job)
    part = job["fragments"][span].astype(np.int64)
    job["segmentation"][span] = objects[np.searchsorted(names, part)].astype(np.uint32)
    return {"voxels": part.size}


def commit(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Make everything one version."""
    job = context.client.attach(session)
    request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, context.task))
    return {"version": job.commit("segmentation", request_id=request_id).number}


def table(tree: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Fragments in order; the object of each (3D); the cell of each within its section (2D)."""
    with np.load(io.BytesIO(tree.read(TABLE)), allow_pickle=False) as file:
        return file["names"], file["objects"], file["cells"]


def cells(tree: Any, fragments: Array, span: Any) -> NDArray[np.int64]:
    """A part of the segmentation as it is within sections, before links from one to the next."""
    names, _, numbers = table(tree)
    found: NDArray[np.int64] = numbers[np.searchsorted(names, fragments[span].astype(np.int64))]
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


def _grown(span: Span, shape: list[int]) -> Span:
    """What a block looks at: a section more behind it, `HALO_PX` more around it."""
    z, y, x = span
    wide = [slice(max(s.start - HALO_PX, 0), min(s.stop + HALO_PX, n))
            for s, n in zip((y, x), shape[1:], strict=True)]  # fmt: skip
    return slice(z.start, min(z.stop + 1, shape[0])), wide[0], wide[1]
