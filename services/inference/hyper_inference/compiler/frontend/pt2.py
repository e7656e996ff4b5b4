"""Saved `.pt2` files, checked before torch reads them.

`torch.export.load` unpickles weights, constants and example inputs where the file says so, and
evaluates the expressions of symbolic sizes: a file can run any code. Here only files are passed on
that hold plain tensors, a graph in JSON, and no expression but sums and products of sizes. What
remains trusted is torch's own reader of JSON and of raw tensors. In the service, models are ONNX.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import Any

from hyper_inference.errors import InvalidModelError

MAGIC = b"PK\x03\x04"
MAX_BYTES = 8 * 2**30
MAX_ENTRIES = 100_000
_EXPRESSION = re.compile(r"(?!.*\*\*)[su0-9+*/() -]{1,60}")
_PLAIN = re.compile(
    r"(data/(weights|constants)/((weight|tensor)_\d+|[\w.-]*config\.json)"
    r"|models/[\w.-]+\.json|data/sample_inputs/[\w.-]+\.pt|extra/.*"
    r"|archive_format|archive_version|byteorder|\.data/[\w.-]+|version)"
)


def load(data: bytes) -> Any:
    """The `torch.export.ExportedProgram` in a `.pt2` file.

    Raises:
        InvalidModelError: no such file, or one that could run code.
    """
    import torch

    try:
        _check(data)
        return torch.export.load(io.BytesIO(data))
    except InvalidModelError:
        raise
    except Exception as error:  # torch raises of many kinds, all about the file
        line = " ".join(str(error).split())[:200]
        raise InvalidModelError(f"the .pt2 file cannot be read: {line}") from error


def _check(data: bytes) -> None:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        raise InvalidModelError(
            "the .pt2 file is no archive, or it is cut off; save the program again"
        ) from error
    with archive:
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES or sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise InvalidModelError("the .pt2 file holds more than is read")
        for entry in entries:
            name = entry.filename.partition("/")[2]
            if not _PLAIN.fullmatch(name):
                raise InvalidModelError(
                    f"the .pt2 file holds {name[:80]!r}, which is neither tensors nor a graph"
                )
            if name.endswith(".json"):
                _check_json(json.loads(archive.read(entry)), name)
            elif name.endswith(".pt"):
                _check_inputs(archive.read(entry))


def _check_json(root: Any, name: str) -> None:
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if item.get("use_pickle"):
                raise InvalidModelError(
                    f"the .pt2 file has pickled values ({name[:80]}), which could run code; "
                    "export the net to ONNX"
                )
            text = item.get("expr_str", "0")
            if not isinstance(text, str) or not _EXPRESSION.fullmatch(text):
                raise InvalidModelError(
                    "the .pt2 file has sizes that are expressions; export it with fixed sizes"
                )
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _check_inputs(data: bytes) -> None:
    """Example inputs: tensors only, by torch's own safe reader."""
    import pickle

    import torch

    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidModelError(
            "the .pt2 file's example inputs are no plain tensors; they could run code"
        ) from error
