"""The stages round training and detection, without torch: begin, generate, commit."""

from __future__ import annotations

import contextlib
import random
import uuid
from typing import Any

from scenes import scene, write_labels

from hyper import TaskContext
from hyper.errors import FailedPreconditionError

CHECKPOINT = "checkpoint.pt"


def begin(context: TaskContext, *, dataset: str) -> dict[str, str]:
    """Open the session that the tasks write into, without the checkpoint of an earlier training."""
    session = context.client.session(dataset)
    if session.exists(CHECKPOINT):
        session.delete(CHECKPOINT)
    return {"session": session.name}


def generate(
    context: TaskContext, *, session: str, part: int, images: int, edge: int, seed: int
) -> dict[str, int]:
    """Write `images` scenes with their labels."""

    def files() -> Any:
        for number in range(part * images, (part + 1) * images):
            picture, boxes = scene(random.Random(f"{seed}.{number}").getrandbits(60), edge)
            yield f"images/{number:08}.png", picture
            yield f"labels/{number:08}.txt", write_labels(boxes)

    context.client.attach(session).write_many(files())
    return {"images": images}


def commit(context: TaskContext, *, session: str) -> dict[str, int]:
    """Make everything in the session one version."""
    request_id = str(uuid.uuid5(uuid.NAMESPACE_URL, context.task))
    job = context.client.attach(session)
    with contextlib.suppress(FailedPreconditionError):  # it is committed, but nobody heard of it
        if job.exists(CHECKPOINT):
            job.delete(CHECKPOINT)
    return {"version": job.commit("detector", request_id=request_id).number}
