"""Work folders leave out what git would; git itself is asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hyper.errors import InvalidArgumentError
from hyper.workdir import _files

RULES = """\
# data
*.npy
!keep.npy
/build
out/
deep/**/x.txt
sub/only.txt
a b
\\#odd
"""
NAMES = [
    "main.py", "a.npy", "keep.npy", "build/x.py", "pkg/build/x.py", "out/keep.npy", "pkg/out/y.py",
    "out.py", "deep/x.txt", "deep/1/2/x.txt", "sub/only.txt", "pkg/sub/only.txt", "a b", "#odd",
    "pkg/a.npy", "pkg/inner.npy", "pkg/other.py",
]  # fmt: skip


def fill(folder: Path, names: list[str]) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)


def git(folder: Path) -> set[str]:
    """What git would add of a folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-o", "--exclude-per-directory=.gitignore"],
        cwd=folder, capture_output=True, check=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    return {name for name in listed if name and ".gitignore" not in name}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def test_what_git_would_leave_out(repository: Path) -> None:
    fill(repository, NAMES)
    (repository / ".gitignore").write_text(RULES)
    (repository / "pkg" / ".gitignore").write_text("other.py\n!inner.npy\n")
    found = {name for name, _ in _files(repository)}
    assert found == git(repository)
    assert {"main.py", "keep.npy", "pkg/inner.npy", "pkg/build/x.py"} <= found
    assert not {"a.npy", "build/x.py", "out/keep.npy", "pkg/other.py", "#odd"} & found


def test_rules_above_hold_unless_they_leave_out_the_folder(repository: Path) -> None:
    fill(repository, ["code/main.py", "code/big.npy", "made/main.py", "made/in/big.npy"])
    (repository / ".gitignore").write_text("*.npy\n/made\n")
    assert [name for name, _ in _files(repository / "code")] == ["main.py"]
    for folder, names in (("made", ["main.py", "in/big.npy"]), ("made/in", ["big.npy"])):
        assert [name for name, _ in _files(repository / folder)] == names


def test_a_folder_in_no_repository_has_its_own_rules_alone(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*\n")
    inner = tmp_path / "inner"
    fill(inner, ["a.py", "b.txt"])
    (inner / ".gitignore").write_text("*.txt\n")
    assert [name for name, _ in _files(inner)] == ["a.py"]


def test_a_pattern_that_is_none_is_named(tmp_path: Path) -> None:
    fill(tmp_path, ["a.py"])
    (tmp_path / ".gitignore").write_text("a[\n!\n")
    with pytest.raises(InvalidArgumentError, match="gitignore"):
        list(_files(tmp_path))
