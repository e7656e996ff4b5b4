"""A net over a whole volume, as tasks of a recipe: `hyper infer MODEL SRC DST`.

The caller's machine opens a session, makes the destination array and submits a recipe; every task
has the inference service compute one slab of whole shards; the last task commits. A task that is
lost runs again and writes the same bytes, so that a volume goes on where it stopped.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hyper.arrays import get_array
from hyper.compute_inference import model_name
from hyper.config import INFERENCE
from hyper.errors import InvalidArgumentError
from hyper.names import parse_address

if TYPE_CHECKING:
    from hyper.client import Client
    from hyper.compute_inference import VolumeProgress
    from hyper.context import TaskContext
    from hyper.sessions import Session
    from hyper.workflows import Workflow

BLOCK_VOXELS = 2**27
"""About how many a task computes."""


@dataclass(frozen=True, slots=True)
class InferOptions:
    """How a volume is computed; see `hyper.compute_inference.infer_volume`.

    Args:
        dtype: of the destination.
        channels: of the net's result; 0: as the model says.
        mask: address of an array, or nothing.
    """

    dtype: str = "float32"
    channels: int = 0
    patch: tuple[int, ...] = ()
    overlap: tuple[int, ...] = ()
    mode: str = "fast"
    scale: float = 1.0
    shift: float = 0.0
    output_scale: float = 1.0
    output_shift: float = 0.0
    blending: str = "crop"
    augmentation: str = "none"
    mask: str = ""


def submit(
    client: Client, model: str, source: str, destination: str, options: InferOptions
) -> Workflow:
    """Start the job; the session is aborted if it cannot start.

    Args:
        client: of the cluster.
        model: a local ONNX file, which is kept beside the result as `models/NAME`, or
            `tenant/name[@version]/path.onnx`.
        source: `tenant/name[@version]/array`.
        destination: `tenant/name/array`, which is new in its next version.
        options: how.
    """
    target = parse_address(destination)
    if target.array is None or target.version is not None:
        raise InvalidArgumentError(
            f"{destination}: the destination is an array: write tenant/name/array",
            field="destination",
        )
    array = client.open_array(source)
    mask = client.open_array(options.mask).name if options.mask else ""
    session = client.session(f"{target.tenant}/{target.dataset}")
    try:
        found = _place_model(session, model)
        channels = options.channels or _channels(client, found)
        shape = ((channels,) if channels > 1 else ()) + array.shape[-3:]
        made = session.create_array(
            target.array, shape, options.dtype, voxel_size_nm=array.voxel_size_nm,
            attributes={"model": model, "source": array.name},
        )  # fmt: skip
        settings = {**asdict(options), "mask": mask, "model": found, "source": array.name,
                    "array": made.name}  # fmt: skip
        count = len(slabs(made.shape[-3:], made.shards[-3:]))
        name = f"infer-{target.dataset}"[:64]
        return client.submit(recipe(name, session.name, json.dumps(settings), count))
    except BaseException:
        session.abort()
        raise


def recipe(name: str, session: str, settings: str, count: int) -> str:
    """The job as YAML: `count` slabs, then the commit."""
    each = {"retries": 3, "timeout": "6h"}
    shared = {"session": session, "settings": settings}
    compute = {
        "function": "hyper.infer:compute",
        "parameters": {**shared, "slab": {"range": [0, count]}},
        **each,
    }
    commit = {
        "function": "hyper.infer:commit",
        "depends_on": ["compute"],
        "parameters": shared,
        **each,
    }
    document = {"version": 1, "name": name, "experiments": {"compute": compute, "commit": commit}}
    return yaml.safe_dump(document, sort_keys=False)


def compute(context: TaskContext, *, session: str, settings: str, slab: int) -> dict[str, Any]:
    """One slab of the destination, on the inference service."""
    asked = json.loads(settings)
    client = context.client
    source, destination = get_array(client, asked["source"]), get_array(client, asked["array"])
    box = slabs(destination.shape[-3:], destination.shards[-3:])[slab]
    patches = 0

    def progress(step: VolumeProgress) -> None:
        nonlocal patches
        patches = step.done_patches
        context.report(done_patches=step.done_patches, total_patches=step.total_patches)

    passed = (
        "mode", "scale", "shift", "output_scale", "output_shift", "blending", "augmentation",
    )  # fmt: skip
    client.infer_volume(
        asked["model"], source, destination, box=box,
        patch=asked["patch"] or None, overlap=asked["overlap"] or None,
        mask=get_array(client, asked["mask"]) if asked["mask"] else None,
        on_progress=progress, **{name: asked[name] for name in passed},
    )  # fmt: skip
    return {"patches": patches}


def commit(context: TaskContext, *, session: str, settings: str) -> dict[str, Any]:
    """Make the result a version."""
    asked = json.loads(settings)
    version = context.client.attach(session).commit(
        f"{asked['model']} on {asked['source']}",
        request_id=str(uuid.uuid5(uuid.NAMESPACE_URL, context.task)),
    )
    return {"version": version.number}


def slabs(
    shape: Sequence[int], shards: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Boxes of whole shards that tile (z, y, x), each of about `BLOCK_VOXELS` or one shard high."""
    steps = [shards[0], shards[1], shape[2]]
    while steps[1] < shape[1] and steps[0] * (steps[1] + shards[1]) * steps[2] <= BLOCK_VOXELS:
        steps[1] += shards[1]
    if steps[1] >= shape[1]:
        while steps[0] < shape[0] and (steps[0] + shards[0]) * shape[1] * shape[2] <= BLOCK_VOXELS:
            steps[0] += shards[0]
    edges = [
        [(at, min(at + step, size)) for at in range(0, size, step)]
        for size, step in zip(shape, steps, strict=True)
    ]
    return [
        (tuple(low for low, _ in spans), tuple(high for _, high in spans))
        for spans in itertools.product(*edges)
    ]


def _place_model(session: Session, model: str) -> str:
    """The model's resource name; a local file goes into the session."""
    file = Path(model).expanduser()
    if not file.is_file():
        return model_name(model)
    path = f"models/{file.name}"
    session.write(path, file.read_bytes())
    return f"{session.name}/files/{path}"


def _channels(client: Client, model: str) -> int:
    """Of the model's result, as the service knows it."""
    from hyperapi.inference.v1 import inference_service_pb2 as api
    from hyperapi.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

    request = api.GetModelRequest(name=model)
    response = client.call(INFERENCE, InferenceServiceStub, "GetModel", request, timeout_s=300)
    shape = list(response.outputs[0].shape) if response.outputs else []
    if len(shape) < 2 or shape[1] < 1:
        raise InvalidArgumentError(
            f"{model} does not say how many channels it gives; give --channels", field="channels"
        )
    return int(shape[1])
