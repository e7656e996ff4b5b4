"""Where a client looks for its cluster, and what it tells people when there is none."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

import hyper
from hyper import config
from hyper.cli.targets import Target, parse_target
from hyper.cli.watch import duration
from hyper.client import Client, may_repeat
from hyper.errors import InvalidArgumentError, UnavailableError
from hyper.workdir import _places
from hyper.workflows import recipe_folder, recipe_text
from hyperapi.scheduler.v1 import workflow_service_pb2 as workflows


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYPER_HOME", str(tmp_path))
    for name in ("HYPER_ENDPOINT", "HYPER_STORAGE_ENDPOINT", "HYPER_TENANT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_without_a_cluster_it_says_what_to_do() -> None:
    with pytest.raises(UnavailableError, match="run `hyper up` first") as caught:
        hyper.connect()
    assert caught.value.exit_code == 3


def test_the_endpoint_comes_from_the_argument_the_environment_or_the_home(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "cluster.json").write_text(json.dumps({"endpoint": "127.0.0.1:1"}))
    assert config.scheduler_addresses() == ("127.0.0.1:1",)
    monkeypatch.setenv("HYPER_ENDPOINT", "127.0.0.1:2, 127.0.0.1:3")
    assert config.scheduler_addresses() == ("127.0.0.1:2", "127.0.0.1:3")
    assert config.scheduler_addresses("host:4") == ("host:4",)


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x", ","])
def test_wrong_endpoints_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="host:port"):
        hyper.connect(text)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"endpoint": 3}', '{"other": 1}'])
def test_a_broken_cluster_file_is_named(home: Path, text: str) -> None:
    (home / "cluster.json").write_text(text)
    with pytest.raises(InvalidArgumentError, match=r"cluster\.json"):
        hyper.connect()


def test_overrides_of_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPER_STORAGE_ENDPOINT", "127.0.0.1:9")
    with Client("127.0.0.1:1") as client:
        assert client.addresses("storage-gateway") == ("127.0.0.1:9",)


def test_a_client_travels_without_its_connections() -> None:
    with Client("127.0.0.1:1", tenant="fly", patience_s=3.0) as client:
        client.addresses("scheduler")
        copy = pickle.loads(pickle.dumps(client))
    assert (copy.tenant, copy.patience_s) == ("fly", 3.0)
    assert copy.addresses("scheduler") == ("127.0.0.1:1",)


def test_a_closed_client_says_so() -> None:
    client = Client("127.0.0.1:1")
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.addresses("scheduler")


def test_a_tenant_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPER_TENANT", "../x")
    with pytest.raises(InvalidArgumentError, match="tenant"):
        Client("127.0.0.1:1")


def test_only_repeatable_requests_are_repeated() -> None:
    assert may_repeat(workflows.GetWorkflowRequest(name="x"))
    assert may_repeat(workflows.CreateWorkflowRequest(request_id="u"))
    assert not may_repeat(workflows.CreateWorkflowRequest())


def test_the_public_surface_is_there() -> None:
    for name in hyper.__all__:
        assert getattr(hyper, name) is not None
    with pytest.raises(AttributeError):
        hyper.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("w", Target("w")),
        ("w/e", Target("w", "e")),
        ("w/e/7", Target("w", "e", 7)),
        ("tenants/t/workflows/w", Target("tenants/t/workflows/w")),
        (
            "tenants/t/workflows/w/experiments/e/tasks/7",
            Target("tenants/t/workflows/w", "e", 7),
        ),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "a/b/c", "a/b/1/2", "../x", "tenants/t/models/w", "a//1"])
def test_wrong_targets(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_target(text)


def test_durations() -> None:
    assert [duration(s) for s in (4.21, 192, 7500, 273600)] == ["4.2 s", "3m12s", "2h05m", "3d04h"]


def test_recipes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("name: x\n")
    assert recipe_text(file) == recipe_text(str(file)) == "name: x\n"
    assert recipe_text({"name": "x"}) == "name: x\n"
    assert recipe_folder(file) == tmp_path
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        recipe_text(tmp_path / "missing.yaml")
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        recipe_text(tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        recipe_text(file)
    file.write_text("x" * (1 << 20) + "y")
    with pytest.raises(InvalidArgumentError, match="over 1 MiB"):
        recipe_text(file)


def test_local_work_folders_are_found() -> None:
    text = (
        "name: x\nexperiments:\n  a:\n    workdir: .\n  b: {workdir: 'sub dir', retries: 1}\n"
        "  c:\n    workdir: hyper://t/w@1\n  d:\n    workdir: 3\n"
    )
    found = [(p.line, p.folder, text[p.start : p.end]) for p in _places(text)]
    assert found == [(4, ".", "."), (5, "sub dir", "'sub dir'")]
    for wrong in (
        "",
        "- a",
        "experiments: [1]",
        "a: &x [*x, *x]",
        "{" * 1500,
        "experiments: {a: 1}",
    ):
        assert list(_places(wrong)) == []
