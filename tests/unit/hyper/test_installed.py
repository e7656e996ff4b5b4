"""The advice on installing fits how this Hyper was installed."""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from hyper import installed
from hyper.installed import EXTRAS, install_command

ROOT = Path(__file__).resolve().parents[3]


def installed_from(monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None) -> None:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr(installed, "distribution", lambda name: Distribution())


def test_a_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    origin = {"url": tmp_path.as_uri(), "dir_info": {"editable": True}}
    installed_from(monkeypatch, origin)
    assert install_command("view") == f"pip install -e '{tmp_path}[view]'"
    monkeypatch.chdir(tmp_path)
    assert install_command("worker", "torch") == "pip install -e '.[worker,torch]'"
    assert install_command() == "pip install -e '.'"


def test_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "hyper dl.whl"
    installed_from(monkeypatch, {"url": wheel.as_uri(), "archive_info": {}})
    assert "from the wheel" in install_command("local")  # it is gone
    wheel.touch()
    command = install_command("local")
    assert shlex.split(command) == ["pip", "install", f"hyper-dl[local] @ {wheel.as_uri()}"]


def test_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    installed_from(monkeypatch, {"url": "https://example.org/hyper.git", "vcs_info": {}})
    assert install_command("view").endswith("'hyper-dl[view] @ https://example.org/hyper.git'")
    installed_from(monkeypatch, None)
    assert "hyper-dl[view]" in install_command("view")


def test_a_source_tree_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installed, "distribution", none)
    monkeypatch.chdir(ROOT)
    assert install_command("view") == "pip install -e '.[view]'"


def test_no_code_advises_a_release_that_there_is_not() -> None:
    found = []
    for folder in ("clients", "services", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            if re.search(r"pip install '?hyper-dl", path.read_text()):
                found.append(str(path.relative_to(ROOT)))
    assert found == []


def test_the_extras_are_those_of_the_project() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for extra in set(EXTRAS.values()):
        assert re.search(rf"^{extra} = \[", text, re.MULTILINE), extra
