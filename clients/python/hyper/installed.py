"""How this Hyper was installed, and so what brings what is missing.

There is no release on a package index: a clone is installed with `pip install -e`, or from a wheel
that was built from one. Advice names the one that this Hyper came from.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

NAME = "hyper-dl"
# Packages that functions of tasks import -> the extra that brings them.
EXTRAS = {
    "cryptography": "certs",
    "docker": "worker",
    "fsspec": "fsspec",
    "h5py": "hdf5",
    "hyper_inference": "inference",
    "hyper_matcher": "matcher",
    "hyper_worker": "worker",
    "lightgbm": "examples",
    "matplotlib": "matcher",
    "mfusepy": "mount",
    "neuroglancer": "view",
    "numba": "matcher",
    "onnx": "inference",
    "optuna": "scheduler",
    "pooch": "local",
    "scipy": "matcher",
    "torch": "torch",
}


def install_command(*extras: str) -> str:
    """The command that adds extras to this Hyper: `pip install -e '.[view]'` in its clone."""
    wanted = f"[{','.join(extras)}]" if extras else ""
    return f"pip install {_requirement(wanted)}"


def _requirement(wanted: str) -> str:
    url, editable = _origin()
    clone = Path(unquote(urlparse(url).path)) if url.startswith("file:") else None
    if editable and clone is not None:
        where = "." if clone == Path.cwd() else str(clone)
        return f"-e '{where}{wanted}'"
    if clone is not None and clone.exists():  # a wheel, or a folder that was not editable
        return f"'{NAME}{wanted} @ {url}'"
    if url and not url.startswith("file:"):
        return f"'{NAME}{wanted} @ {url}'"
    return f"'{NAME}{wanted}' from the wheel that it was installed from"


def _origin() -> tuple[str, bool]:
    """Where pip has it from (PEP 610), and whether that is used as it lies there."""
    try:
        text = distribution(NAME).read_text("direct_url.json")
    except PackageNotFoundError:  # a source tree on the path
        clone = Path(__file__).resolve().parents[3]
        return (clone.as_uri(), True) if (clone / "pyproject.toml").exists() else ("", False)
    if text is None:  # from an index
        return "", False
    facts = json.loads(text)
    return str(facts["url"]), bool(facts.get("dir_info", {}).get("editable"))
