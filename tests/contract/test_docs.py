"""The documentation that is generated is up to date; what it points at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from examples.workloads import WORKLOADS
from scripts import api_docs, cli_docs, run_tutorial

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md"),
                ROOT / "README.md", ROOT / "CONTRIBUTING.md"])  # fmt: skip
_LINK = re.compile(r"\]\(([^)#:]+)\)")


def test_the_api_reference_is_fresh() -> None:
    assert api_docs.PAGE.read_text() == api_docs.render(), "run `make docs`"


def test_the_page_of_the_command_line_is_fresh() -> None:
    assert cli_docs.PAGE.read_text() == cli_docs.render(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = _LINK.findall(page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_diagrams_name_calls_that_there_are() -> None:
    protos = (ROOT / "protos" / "hyperapi").rglob("*.proto")
    calls = {call for file in protos for call in re.findall(r"rpc (\w+)\(", file.read_text())}
    page = (ROOT / "docs" / "diagrams.md").read_text()
    diagrams = re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL)
    named = {word for each in diagrams for word in re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", each)}
    assert len(diagrams) >= 3 and len(named) > 15
    assert named <= calls
    for each in diagrams:
        assert each.split()[0] in ("flowchart", "stateDiagram-v2", "sequenceDiagram")


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_every_workload_has_its_sizes(name: str) -> None:
    for size in ("machine", "test", "full"):
        assert WORKLOADS[name].recipe(size).is_file(), size


def test_tutorials_have_commands() -> None:
    for audience in ("scientist", "ml-engineer", "operator"):
        script = run_tutorial.commands((ROOT / "docs" / f"tutorial-{audience}.md").read_text())
        assert "hyper down" in script
