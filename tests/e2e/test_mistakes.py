"""The ten most likely mistakes (docs/mistakes.md): each message names the fix."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hyper.client import Client
from hyper.errors import InvalidArgumentError
from hyper.images import write_png
from tests.support.local_cluster import LocalCluster

pytestmark = pytest.mark.timeout(300)


def refused(done: subprocess.CompletedProcess[str], *words: str, status: int = 2) -> None:
    """One line, the status, and what to do."""
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def submitted(
    cluster: LocalCluster, folder: Path, experiment: str, code: str = ""
) -> subprocess.CompletedProcess[str]:
    """Submit a recipe of one experiment, with a module beside it, and wait."""
    (folder / "work.py").write_text(code)
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"version: 1\nname: wrong\nexperiments:\n  a: {experiment}\n")
    return cluster.run("submit", str(recipe), "--watch")


def test_no_cluster(tmp_path: Path) -> None:
    done = LocalCluster(tmp_path / "nothing", patience_s=1).run("ps")
    refused(done, "`hyper up`", "HYPER_ENDPOINT", status=3)


def test_a_misspelt_key(local_cluster: LocalCluster, tmp_path: Path) -> None:
    refused(submitted(local_cluster, tmp_path, "{comand: x}"), "line 4", "did you mean 'command'?")


def test_an_unknown_parameter(local_cluster: LocalCluster, tmp_path: Path) -> None:
    experiment = "{command: 'echo {{depth}}', parameters: {lr: [1]}}"
    refused(submitted(local_cluster, tmp_path, experiment), "line 4", "depth", "lr")


def test_a_module_that_did_not_travel(local_cluster: LocalCluster, tmp_path: Path) -> None:
    done = submitted(local_cluster, tmp_path, "{function: 'work:run', retries: 0}")
    assert done.returncode == 1 and "workdir: ." in done.stderr, done.stderr


def test_a_result_that_is_no_json(local_cluster: LocalCluster, tmp_path: Path) -> None:
    code = "def run(context):\n    return {1, 2}\n"
    done = submitted(local_cluster, tmp_path, "{function: 'work:run', workdir: .}", code)
    assert done.returncode == 1
    assert "return numbers, text, lists and dicts" in done.stderr, done.stderr


def test_writing_to_what_is_committed(local_cluster: LocalCluster) -> None:
    with Client(local_cluster.endpoint) as client:
        with client.session("default/mistakes") as session:
            session.create_array("a", (4,), "uint8")[...] = 1
        with pytest.raises(InvalidArgumentError, match="edit it in a session"):
            client.open_array("default/mistakes/a")[0] = 2


def test_no_address(local_cluster: LocalCluster) -> None:
    refused(local_cluster.run("export", "brain", "out"), "brain", "tenant/name")


def test_sections_of_two_sizes(local_cluster: LocalCluster, tmp_path: Path) -> None:
    for number, edge in enumerate((128, 128, 160)):
        write_png(tmp_path / f"{number}.png", np.full((edge, edge), 90, np.uint8))
    refused(
        local_cluster.run("align", str(tmp_path), "default/wrong"),
        "128 x 128", "160 x 160", "give one stack of equal sections",
    )  # fmt: skip


def test_a_lambda(local_cluster: LocalCluster) -> None:
    with (
        Client(local_cluster.endpoint) as client,
        pytest.raises(InvalidArgumentError, match="give it one with `def`"),
    ):
        client.map(lambda value: value, [1])


def test_more_than_any_worker_has(local_cluster: LocalCluster) -> None:
    experiment = {"command": "true", "hardware": {"gpu": 3}}
    with Client(local_cluster.endpoint) as client:
        workflow = client.submit({"version": 1, "name": "w", "experiments": {"a": experiment}})
        try:
            end = time.monotonic() + 60
            while not workflow.refresh().waiting and time.monotonic() < end:
                time.sleep(0.05)
            assert "gpu" in workflow.status.waiting.lower(), workflow.status.waiting
            shown = local_cluster.run("ps", workflow.name.rpartition("/")[2])
            assert "waiting: " in shown.stdout
        finally:
            workflow.cancel()


def test_a_module_that_maps_when_it_is_imported(
    local_cluster: LocalCluster, tmp_path: Path
) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        "import hyper\ndef work(value):\n    return value\n"
        "with hyper.connect() as client:\n    print(client.map(work, [1]).results())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=local_cluster.environment, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert '__name__ == "__main__"' in done.stderr, done.stderr
