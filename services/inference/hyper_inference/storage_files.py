"""Model files and arrays through the SDK."""

from __future__ import annotations

from hyper.client import Client
from hyper.datasets import Dataset
from hyper.errors import InvalidArgumentError
from hyper.sessions import Session
from hyper_inference.models import ModelFile


class StorageFiles:
    """Reads models from datasets and open sessions."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def stamp(self, file: ModelFile) -> str:
        """The sha256: a session's file may be replaced, "head" may move."""
        return self._tree(file).file(file.path).sha256

    def read(self, file: ModelFile, limit_bytes: int) -> bytes:
        """The file's bytes.

        Raises:
            InvalidArgumentError: it is larger than `limit_bytes`.
        """
        tree = self._tree(file)
        size = tree.file(file.path).size_bytes
        if size > limit_bytes:
            raise InvalidArgumentError(
                f"model {file.name} has {size} bytes; this service reads up to {limit_bytes}",
                reason="INVALID_MODEL",
            )
        return tree.read(file.path)

    def _tree(self, file: ModelFile) -> Dataset | Session:
        if "/sessions/" in file.parent:
            return self._client.attach(file.parent)
        return self._client.open_dataset(file.parent)
