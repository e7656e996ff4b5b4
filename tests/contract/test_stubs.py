"""The committed stubs are what the protos generate today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)  # the first run installs the pinned generator into .venv-protos
def test_stubs_are_fresh(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, ROOT / "protos" / "generate.py", "--out", tmp_path],
        check=True,
        timeout=280,
    )

    def contents(root: Path) -> dict[Path, bytes]:
        paths = [path for name in ("*.py", "*.pyi") for path in root.rglob(name)]
        return {path.relative_to(root): path.read_bytes() for path in paths}

    made, committed = contents(tmp_path), contents(ROOT / "protos" / "gen")
    assert sorted(made) == sorted(committed)
    stale = [str(name) for name, content in made.items() if committed[name] != content]
    assert not stale, f"run `make protos`: {stale}"
