"""Models by name: loaded from storage, compiled for each shape, kept under a memory cap.

Blocking; called from the service's executor threads.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hyper.errors import InvalidArgumentError
from hyper.names import check_path
from hyper_inference import metrics
from hyper_inference.compiler.compile import Compiled, compile_net
from hyper_inference.compiler.frontend import onnx as onnx_frontend
from hyper_inference.compiler.frontend import onnx_file
from hyper_inference.errors import InvalidModelError


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Where a model lies: a version or session, and a path in it."""

    parent: str
    path: str

    @property
    def name(self) -> str:
        """The resource name."""
        return f"{self.parent}/files/{self.path}"


def parse_model_name(name: str) -> ModelFile:
    """Read `tenants/{t}/datasets/{d}/versions|sessions/{v}/files/{path}`.

    Raises:
        InvalidArgumentError: INVALID_NAME.
    """
    parts = name.split("/", 7)
    shaped = (
        len(parts) == 8
        and (parts[0], parts[2], parts[6]) == ("tenants", "datasets", "files")
        and parts[4] in ("versions", "sessions")
        and all(parts)
    )
    if not shaped:
        raise InvalidArgumentError(
            f"{name[:120]!r} is not a model: write tenants/T/datasets/D/versions/V/files/PATH or "
            "tenants/T/datasets/D/sessions/S/files/PATH",
            reason="INVALID_NAME",
            field="model",
        )
    return ModelFile("/".join(parts[:6]), check_path(parts[7]))


class Files(Protocol):
    """Reads models; `StorageFiles` in the service, a fake in tests."""

    def stamp(self, file: ModelFile) -> str:
        """What changes when the file's bytes do."""

    def read(self, file: ModelFile, limit_bytes: int) -> bytes:
        """The file's bytes."""


@dataclass(frozen=True, slots=True)
class Model:
    """A parsed model file."""

    name: str
    stamp: str
    parsed: onnx_file.OnnxModel
    size_bytes: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Declared, with -1 where any size goes."""
        return onnx_frontend.input_shape(self.parsed)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Declared, with -1 where it depends on the input; empty if not declared."""
        return onnx_frontend.output_shape(self.parsed)

    @property
    def spatial(self) -> int:
        """2 or 3."""
        return len(self.input_shape) - 2


class Models:
    """The loaded models and compiled nets of this process.

    Args:
        files: where models are read from.
        cache_bytes: the least recently used go when there is more.
        model_bytes: of the largest file.
        make_net: (model, shape, mode) -> net.
    """

    def __init__(
        self,
        files: Files,
        *,
        cache_bytes: int,
        model_bytes: int,
        make_net: Callable[[Any, tuple[int, ...], str], Compiled] | None = None,
    ) -> None:
        self._files = files
        self._cache_bytes = cache_bytes
        self._model_bytes = model_bytes
        self._make_net = make_net or (
            lambda parsed, shape, mode: compile_net(parsed, shape, mode=mode)
        )
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], Model | Compiled] = OrderedDict()
        self._making: dict[tuple[Any, ...], threading.Lock] = {}

    def model(self, name: str) -> Model:
        """The model of this name, as its file is now.

        Raises:
            NotFoundError: there is no such file.
            InvalidModelError: it is no model.
        """
        file = parse_model_name(name)
        if file.path.endswith(".pt2"):
            raise InvalidModelError(
                f"{file.path[:80]!r}: the service reads ONNX; export the net to ONNX"
            )
        stamp = self._files.stamp(file)

        def load() -> Model:
            data = self._files.read(file, self._model_bytes)
            parsed = onnx_file.read_model(io.BytesIO(data))
            rank = len(onnx_frontend.input_shape(parsed))
            if rank not in (4, 5):
                raise InvalidModelError(
                    f"the model's input has {rank} axes; 4 (n, c, y, x) or 5 are covered"
                )
            return Model(name, stamp, parsed, len(data))

        found = self._get(("model", name, stamp), load)
        if not isinstance(found, Model):
            raise AssertionError("the cache mixes up its keys")
        return found

    def net(self, model: Model, shape: tuple[int, ...], mode: str) -> Compiled:
        """The model compiled for an input of `shape`; any batch."""
        shape = (1, *shape[1:])

        def make() -> Compiled:
            net = self._make_net(model.parsed, shape, mode or "fast")
            metrics.COMPILE_SECONDS.observe(net.compile_s)
            return net

        found = self._get(("net", model.name, model.stamp, shape, mode or "fast"), make)
        if not isinstance(found, Compiled):
            raise AssertionError("the cache mixes up its keys")
        return found

    def _get(self, key: tuple[Any, ...], make: Callable[[], Model | Compiled]) -> Model | Compiled:
        """From the cache, or made by the first who asks while the others wait."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            try:
                value = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                self._kept[key] = value
                self._evict(key)
            return value

    def _evict(self, newest: tuple[Any, ...]) -> None:
        total = sum(_size_of(value) for value in self._kept.values())
        for key in list(self._kept):
            if total <= self._cache_bytes or key == newest:
                break
            total -= _size_of(self._kept.pop(key))
        metrics.CACHE_BYTES.set(total)


def _size_of(value: Model | Compiled) -> int:
    return value.size_bytes if isinstance(value, Model) else value.memory_bytes
