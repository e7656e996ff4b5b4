"""`hyper submit` with bad recipes: one line, the place, exit status 2, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.local_cluster import LocalCluster

pytestmark = pytest.mark.timeout(300)

CYCLE = """\
version: 1
name: x
experiments:
  a:
    command: "true"
    depends_on: [b]
  b:
    command: "true"
    depends_on: [a]
"""
UNKNOWN_KEY = """\
version: 1
name: x
experiments:
  a:
    comand: "true"
"""
WRONG_TYPE = """\
version: 1
name: x
experiments:
  a:
    command: "true"
    retries: many
"""
UNDEFINED = """\
version: 1
name: x
experiments:
  a:
    command: "echo {{depth}}"
    parameters: {lr: [1, 2]}
"""
EMPTY = """\
version: 1
name: x
experiments:
  a:
    command: "echo {{lr}}"
    parameters: {lr: []}
"""


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (CYCLE, ["cycle", "a", "b"]),
        (UNKNOWN_KEY, ["line 5", "comand"]),
        (WRONG_TYPE, ["line 6", "retries"]),
        (UNDEFINED, ["line 5", "depth"]),
        (EMPTY, ["line 6", "lr"]),
        ("just text", []),
        ("a: [1, 2", ["line"]),
        ("version: 1\nname: ../up\nexperiments: {a: {command: x}}", ["name"]),
    ],
    ids=["cycle", "unknown key", "wrong type", "undefined", "empty", "text", "yaml", "dots"],
)
def test_bad_recipes(
    local_cluster: LocalCluster, tmp_path: Path, recipe: str, words: list[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    before = local_cluster.json("ps")
    done = local_cluster.run("submit", str(file))
    assert done.returncode == 2, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in errors[0], errors[0]
    assert local_cluster.json("ps") == before


def test_a_recipe_that_does_not_exist(local_cluster: LocalCluster) -> None:
    done = local_cluster.run("submit", "nowhere.yaml")
    assert done.returncode == 2 and "nowhere.yaml" in done.stderr


def test_hello(local_cluster: LocalCluster) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "hello" / "recipe.yaml"
    done = local_cluster.run("submit", str(example), "--watch")
    assert done.returncode == 0, f"{done.stderr}\n{local_cluster.logs()}"


def test_a_failing_task_is_shown_with_its_log(local_cluster: LocalCluster, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "version: 1\nname: broken\nexperiments:\n  a:\n"
        '    command: "echo the reason is on this line; exit 7"\n    retries: 1\n'
    )
    done = local_cluster.run("submit", str(file), "--watch")
    assert done.returncode == 1
    assert "status 7" in done.stderr and "the reason is on this line" in done.stderr
