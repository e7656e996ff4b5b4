"""The tree of names of one version, loaded folder by folder as it is looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hyper._files import FileInfo


class Stored(NamedTuple):
    """A file whose bytes are in the bucket."""

    size_bytes: int
    object: str
    offset: int
    crc32c: int
    sha256: bytes
    modified_ns: int


@dataclass(eq=False, slots=True)
class Local:
    """A file that was written here; its bytes are in a local one.

    Args:
        path: in the dataset; "" once it is deleted.
        staged: the local file.
        modified_ns: of its last change.
        fd: open as long as someone has it open.
        users: how many have.
        changes: counts writes.
        saved: `changes` when it was last uploaded.
    """

    path: str
    staged: Path
    modified_ns: int
    fd: int = -1
    users: int = 0
    changes: int = 1
    saved: int = 0


@dataclass(eq=False, slots=True)
class Folder:
    """A folder; `children` is None until it is loaded."""

    path: str
    children: dict[str, Node] | None = None
    modified_ns: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


Node = Stored | Local | Folder
Listing = Callable[[str], tuple[list[FileInfo], list[str]]]


class Names:
    """Looks names up.

    Args:
        listing: of a folder's path ("" or with a slash at its end): its files, and the names of
            the folders in it.
        created_ns: when the version was made; the time of its folders.
    """

    def __init__(self, listing: Listing, created_ns: int) -> None:
        self._listing = listing
        self._created_ns = created_ns
        self.root = Folder("", modified_ns=created_ns)

    def children(self, folder: Folder) -> dict[str, Node]:
        """What is in a folder."""
        if folder.children is None:
            with folder.lock:
                if folder.children is None:
                    folder.children = self._load(folder)
        return folder.children

    def _load(self, folder: Folder) -> dict[str, Node]:
        files, folders = self._listing(f"{folder.path}/" if folder.path else "")
        found: dict[str, Node] = {}
        for name in folders:
            path = f"{folder.path}/{name}" if folder.path else name
            found[name] = Folder(path, modified_ns=self._created_ns)
        for info in files:
            found[info.path.rpartition("/")[2]] = stored(info)
        return found

    def find(self, path: str) -> Node | None:
        """The node at `path` ("" is the root), or None."""
        node: Node | None = self.root
        if not path:
            return node
        for part in path.split("/"):
            if not isinstance(node, Folder):
                return None
            known = node.children
            node = (known if known is not None else self.children(node)).get(part)
        return node

    def walk(self, folder: Folder) -> Iterator[tuple[str, Stored | Local]]:
        """Every file below a folder, by its path."""
        for name, node in list(self.children(folder).items()):
            if isinstance(node, Folder):
                yield from self.walk(node)
            else:
                yield (f"{folder.path}/{name}" if folder.path else name), node


def stored(info: FileInfo) -> Stored:
    """The node of a listed file."""
    return Stored(
        info.size_bytes, info.object, info.offset, info.crc32c, bytes.fromhex(info.sha256),
        int(info.modified.timestamp() * 1e9),
    )  # fmt: skip
