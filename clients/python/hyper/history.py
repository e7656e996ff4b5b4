"""What became of a dataset: tags, differences between versions, garbage, damage."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyper.config import STORAGE
from hyper.datasets import Dataset, is_resource_name, version_name
from hyper.errors import DataLossError, InvalidArgumentError
from hyper.names import is_tag, parse_address
from hyperapi.storage.v1 import history_service_pb2 as api
from hyperapi.storage.v1.history_service_pb2_grpc import HistoryServiceStub

if TYPE_CHECKING:
    from hyper._files import FileInfo
    from hyper.arrays import Array
    from hyper.client import Client

GC_TIMEOUT_S = 24 * 3600.0
_CHANGES = {
    api.CHANGE_ADDED: "added",
    api.CHANGE_REMOVED: "removed",
    api.CHANGE_MODIFIED: "modified",
}
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Difference:
    """One name that differs between two versions.

    Args:
        change: "added", "removed" or "modified".
        kind: "file" or "array".
        name: a path, or an array's name.
        before: size in bytes of a file in the older one.
        after: the same in the newer one.
    """

    change: str
    kind: str
    name: str
    before: int | None = None
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Garbage:
    """What a collection found, and whether it has deleted it."""

    kept_objects: int
    kept_bytes: int
    garbage_objects: int
    garbage_bytes: int
    applied: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """One file or shard that a scrub has read; `problem` is "" if it is whole."""

    kind: str
    name: str
    size_bytes: int
    problem: str


# Tags


def set_tag(client: Client, dataset: str, tag: str, version: int) -> None:
    """Let `tag` name a version of `tenant/name`, whatever it named before."""
    name = _tag_name(dataset, tag)
    request = api.SetTagRequest(
        tag=api.Tag(name=name, version=version), request_id=str(uuid.uuid4())
    )
    _call(client, "SetTag", request)


def delete_tag(client: Client, dataset: str, tag: str) -> None:
    """Remove a tag; the version stays."""
    request = api.DeleteTagRequest(name=_tag_name(dataset, tag), request_id=str(uuid.uuid4()))
    _call(client, "DeleteTag", request)


def list_tags(client: Client, dataset: str) -> dict[str, int]:
    """The version that each tag names."""
    request = api.ListTagsRequest(parent=parse_address(dataset).dataset_name)
    tags: dict[str, int] = {}
    while True:
        response = _call(client, "ListTags", request)
        tags.update((tag.name.rpartition("/")[2], tag.version) for tag in response.tags)
        if not response.next_page_token:
            return tags
        request.page_token = response.next_page_token


def _tag_name(dataset: str, tag: str) -> str:
    if not is_tag(tag):
        raise InvalidArgumentError(
            f"{tag!r} cannot be a tag: begin with a letter, then letters, digits, '.', '_', '-'; "
            "'head' is taken",
            reason="INVALID_NAME",
        )
    return f"{parse_address(dataset).dataset_name}/tags/{tag}"


# Differences


def diff(client: Client, base: str, target: str, *, prefix: str = "") -> Iterator[Difference]:
    """What differs between two versions: arrays first, then files in order of path.

    Both are `tenant/name[@version]` or resource names; pages that they share are not read.
    """
    request = api.DiffVersionsRequest(
        base=_version(base), target=_version(target), prefix=prefix, page_size=_PAGE
    )
    while True:
        response = _call(client, "DiffVersions", request)
        for array in response.arrays:
            yield Difference(_CHANGES[array.change], "array", array.array)
        for file in response.files:
            before = file.before if file.HasField("before") else None
            after = file.after if file.HasField("after") else None
            yield Difference(
                _CHANGES[file.change],
                "file",
                (after or file.before).path,
                None if before is None else before.size_bytes,
                None if after is None else after.size_bytes,
            )
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def _version(text: str) -> str:
    return text if is_resource_name(text) else version_name(parse_address(text))


# Garbage


def collect_garbage(
    client: Client, *, apply: bool = False, grace_s: float | None = None
) -> Iterator[Garbage]:
    """Totals so far; the last ones are the result. Nothing is deleted without `apply`."""
    request = api.CollectGarbageRequest(apply=apply)
    if grace_s is not None:
        request.grace.FromNanoseconds(int(grace_s * 1e9))
    for part in client.stream(
        STORAGE, HistoryServiceStub, "CollectGarbage", request, timeout_s=GC_TIMEOUT_S
    ):
        yield Garbage(
            part.kept_objects,
            part.kept_bytes,
            part.garbage_objects,
            part.garbage_bytes,
            part.applied,
        )


# Damage


def scrub(dataset: Dataset) -> Iterator[Checked]:
    """Read everything that a version holds and check it.

    Files against SHA-256, which crc32c is checked on the way to; shards against the checksums of
    their index and chunks.
    """
    for info in dataset.files():
        yield _check_file(dataset, info)
    for name in dataset.arrays():
        yield from _check_array(name, dataset[name].cached(0))  # what is stored, not remembered


def _check_file(dataset: Dataset, info: FileInfo) -> Checked:
    problem = ""
    try:
        digest = hashlib.sha256()
        for part in dataset.read_parts(info):
            digest.update(part)
        if digest.hexdigest() != info.sha256:
            problem = "does not match its SHA-256"
    except DataLossError as error:
        problem = str(error)
    return Checked("file", info.path, info.size_bytes, problem)


def _check_array(name: str, array: Array) -> Iterator[Checked]:
    grid = [range(0, n, s) for n, s in zip(array.shape, array.shards, strict=True)]
    for corner in itertools.product(*grid):
        box = tuple(
            slice(at, min(at + s, n))
            for at, s, n in zip(corner, array.shards, array.shape, strict=True)
        )
        problem, size = "", 0
        try:
            size = array[box].nbytes
        except DataLossError as error:
            problem = str(error)
        index = ".".join(str(at // s) for at, s in zip(corner, array.shards, strict=True))
        yield Checked("shard", f"{name}/{index}", size, problem)


def _call(client: Client, method: str, request: Any) -> Any:
    return client.call(STORAGE, HistoryServiceStub, method, request)
