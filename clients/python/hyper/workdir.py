"""Work folders of recipes: uploaded by content, so that every worker can run the recipe's code.

In a recipe, `workdir: .` of an experiment is a folder beside the recipe file. Submitting uploads
its files as a dataset named after their hash (the same files are uploaded once) and puts that
dataset's address in its place; everything else of the recipe keeps its line.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from hyper.errors import AlreadyExistsError, ConflictError, InvalidArgumentError, NotFoundError
from hyper.gitignore import GitIgnore
from hyper.names import check_path

if TYPE_CHECKING:
    from hyper.client import Client

FOLDER_BYTES_MAX = 64 << 20
FILES_MAX = 10_000
_SCHEME = "hyper://"
_SKIPPED = {"__pycache__", "node_modules"}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the text a work folder is named."""

    start: int
    end: int
    line: int
    folder: str


def upload_folders(client: Client, text: str, base: Path) -> str:
    """The recipe with the addresses of its uploaded work folders.

    Args:
        client: of the cluster.
        text: the recipe's YAML.
        base: the folder that relative work folders start from.

    Raises:
        InvalidArgumentError: a work folder is missing or too large.
    """
    addresses: dict[Path, str] = {}
    for place in sorted(_places(text), key=lambda place: -place.start):
        folder = (base / place.folder).resolve()
        if not folder.is_dir():
            raise InvalidArgumentError(
                f"line {place.line}: workdir {place.folder!r} is not a folder ({folder})",
                reason="INVALID_RECIPE",
                metadata={"line": str(place.line), "key": "workdir"},
            )
        if folder not in addresses:
            addresses[folder] = _upload(client, folder)
        text = f"{text[: place.start]}{addresses[folder]}{text[place.end :]}"
    return text


def _places(text: str) -> Iterator[_Place]:
    """Local work folders of all experiments; nothing if the text is no recipe (the scheduler
    says why).
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return
    for experiment in _values(_child(root, "experiments")):
        node = _child(experiment, "workdir")
        if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
            continue
        if node.value and not node.value.startswith(_SCHEME):
            start, end = node.start_mark, node.end_mark
            yield _Place(start.index, end.index, start.line + 1, node.value)


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    for name, value in node.value:
        if isinstance(name, yaml.ScalarNode) and name.value == key:
            found: yaml.Node = value
            return found
    return None


def _values(node: yaml.Node | None) -> list[yaml.Node]:
    return [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else []


def _upload(client: Client, folder: Path) -> str:
    """Store the folder's files unless they are there already; returns their address."""
    return upload_files(client, dict(_files(folder)), label=folder.name)


def upload_files(client: Client, files: Mapping[str, bytes], *, label: str) -> str:
    """Store a work folder by its content, once; returns its address for `workdir`.

    Args:
        client: of the cluster.
        files: contents by path.
        label: what they are, for people.
    """
    digest = hashlib.sha256()
    for path, content in files.items():
        digest.update(f"{len(path.encode())} {path} {len(content)}\n".encode() + content)
    name = f"{client.tenant}/workdir-{digest.hexdigest()[:32]}"
    address = f"{name}@1"
    try:
        client.open_dataset(address)
    except NotFoundError:
        try:
            with client.session(name) as session:
                session.write_many(files.items())
                session.commit(f"work folder {label}")
        except (AlreadyExistsError, ConflictError):
            client.open_dataset(address)  # someone else stored the same files meanwhile
    return _SCHEME + address


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the regular files in `folder`, in order.

    Hidden ones are left out, and what git would ignore.
    """
    count = size_bytes = 0
    ignore = GitIgnore(folder)
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(
            n for n in folders
            if n not in _SKIPPED and not n.startswith(".")
            and not ignore.ignores(Path(root, n), is_folder=True)
        )  # fmt: skip
        for name in sorted(names):
            file = Path(root) / name
            if name.startswith(".") or file.is_symlink() or not file.is_file():
                continue
            if ignore.ignores(file, is_folder=False):
                continue
            count += 1
            size_bytes += file.stat().st_size
            if count > FILES_MAX or size_bytes > FOLDER_BYTES_MAX:
                raise InvalidArgumentError(
                    f"work folder {folder} holds more than {FILES_MAX} files or "
                    f"{FOLDER_BYTES_MAX >> 20} MiB: keep code in it and data in datasets, or "
                    "name in its .gitignore what is not needed",
                    reason="INVALID_RECIPE",
                )
            yield check_path(file.relative_to(folder).as_posix()), file.read_bytes()
