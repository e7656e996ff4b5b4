"""A whole local cluster for tests, driven through the `hyper` command as people do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

COMMAND_TIMEOUT_S = 240


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """A HYPER_HOME and the command that works on it."""

    home: Path
    patience_s: float = 30.0

    @property
    def environment(self) -> dict[str, str]:
        """Of every command and every program that uses this cluster."""
        kept = {k: v for k, v in os.environ.items() if k != "HYPER_ENDPOINT"}
        return {**kept, "HYPER_HOME": str(self.home), "HYPER_PATIENCE_S": str(self.patience_s)}

    @property
    def endpoint(self) -> str:
        """The scheduler's address."""
        return str(json.loads((self.home / "cluster.json").read_text())["endpoint"])

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `hyper ...`."""
        return subprocess.Popen(
            [sys.executable, "-m", "hyper.cli.main", *arguments],
            env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=self.home.parent,
        )  # fmt: skip

    def run(
        self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run `hyper ...` to its end."""
        process = self.popen(*arguments)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"hyper {' '.join(arguments)} took over {timeout_s} s:\n{out}\n{err}")
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Any:
        """Run `hyper ... --json`, which must succeed; its last line."""
        done = self.run(*arguments, "--json", timeout_s=timeout_s)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return json.loads(done.stdout.strip().splitlines()[-1])

    def processes(self, role: str) -> list[dict[str, Any]]:
        """name, pid, ... of the members of a role."""
        facts = json.loads((self.home / "cluster.json").read_text())
        return [one for one in facts["processes"] if one["role"] == role]

    def logs(self) -> str:
        """The end of every log, for a failing test's message."""
        parts = []
        for log in sorted((self.home / "logs").glob("*.log")):
            parts.append(f"--- {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]))
        return "\n".join(parts)


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """`hyper up` with two workers in a temporary HYPER_HOME; `hyper down` at the end."""
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster") / "home")
    started = cluster.run("up", timeout_s=120)
    try:
        assert started.returncode == 0, f"{started.stderr}\n{cluster.logs()}"
        yield cluster
    finally:
        stopped = cluster.run("down", timeout_s=120)
        assert stopped.returncode == 0, stopped.stderr
