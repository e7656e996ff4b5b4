"""`hyper status` of a cluster elsewhere, as far as no cluster is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from hyper.cli import elsewhere
from hyper.cli import main as cli
from hyper.errors import PermissionDeniedError
from hyper.status import ClusterInfo, ServiceInstance, WorkerInfo, WorkflowStatus

SCHEDULER = ServiceInstance("scheduler", "s", "here:1", "here:2")
GATEWAY = ServiceInstance("storage-gateway", "g", "here:3", "")


class Cluster:
    """What a scheduler says; machines are not for everybody."""

    info = ClusterInfo((SCHEDULER, GATEWAY), "here:1", "1.2")

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def cluster(self) -> ClusterInfo:
        return self.info

    def workers(self) -> list[WorkerInfo]:
        assert self.info.leader  # nobody else would answer
        raise PermissionDeniedError("your token is for tenant lab")

    def workflows(self, *, every_tenant: bool = False) -> Iterator[WorkflowStatus]:
        return iter(())


@pytest.fixture(autouse=True)
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("HYPER_HOME", str(tmp_path))
    monkeypatch.setenv("HYPER_ENDPOINT", "here:1")
    monkeypatch.setattr(elsewhere, "Client", Cluster)


@pytest.mark.parametrize(
    ("info", "problems"),
    [
        (Cluster.info, []),
        (ClusterInfo((SCHEDULER, GATEWAY), "", "1.2"), ["no scheduler leads"]),
        (
            ClusterInfo((SCHEDULER,), "here:1", "1.2"),
            ["no storage gateway has announced itself"],
        ),
    ],
)
def test_what_is_missing_is_named(
    info: ClusterInfo, problems: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(Cluster, "info", info)
    assert cli.run(["status"]) == (1 if problems else 0)
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.startswith("problem: ")] == [
        f"problem: {each}" for each in problems
    ]
    assert f"cluster {'degraded' if problems else 'running'} at here:1, version 1.2" in text
    assert "slots busy" not in text  # this token may not see machines
    assert cli.run(["status", "--json"]) == (1 if problems else 0)
    facts = json.loads(capsys.readouterr().out)
    assert facts["state"] == ("degraded" if problems else "running")
    assert (facts["leader"], facts["workers"]) == (info.leader or None, None)
