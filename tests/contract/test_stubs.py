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
    committed_root = ROOT / "protos" / "gen"
    names = {"*.py", "*.pyi"}
    made = {p.relative_to(tmp_path): p.read_bytes() for n in names for p in tmp_path.rglob(n)}
    committed = {
        p.relative_to(committed_root): p.read_bytes()
        for n in names
        for p in committed_root.rglob(n)
    }
    assert sorted(made) == sorted(committed)
    stale = [str(name) for name, content in made.items() if committed[name] != content]
    assert not stale, f"run `make protos`: {stale}"
