"""`hyper ls | versions | cp | export | rm` against a real gateway."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyper import images
from hyper.cli import main
from hyper.client import Client
from hyper_servicekit.config import S3Settings
from tests.support.gateway import run_gateway, storage_client
from tests.support.servers import EtcdServer, S3Server

Run = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> S3Settings:
    return s3_server.settings(f"cli-{secrets.token_hex(8)}")


@pytest.fixture(scope="module")
def client(
    etcd_server: EtcdServer, bucket: S3Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("gateway")
    prefix = f"/test-{secrets.token_hex(8)}"
    with (
        run_gateway(folder, etcd_server.endpoint, bucket, prefix) as gateway,
        storage_client(gateway.address) as client,
    ):
        yield client


@pytest.fixture
def name() -> str:
    return f"lab/set-{secrets.token_hex(6)}"


@pytest.fixture
def run(client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line: exit status, JSON result (or text), what it said."""
    monkeypatch.setenv("HYPER_ENDPOINT", "127.0.0.1:1")

    def run(*arguments: str | Path) -> tuple[int, Any, str]:
        status = main.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        as_json = "--json" in arguments and said.out
        return status, json.loads(said.out.splitlines()[-1]) if as_json else said.out, said.err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "sub").mkdir(parents=True)
    for number in range(5):
        (root / "sub" / f"{number}.txt").write_text(f"file {number}")
    (root / "top.bin").write_bytes(bytes(range(256)))
    (root / "empty").touch()
    return root


def _tree(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def test_copy_in_and_out(run: Run, name: str, folder: Path, tmp_path: Path) -> None:
    status, result, _ = run("cp", folder, f"hyper://{name}/data", "--json", "-m", "first")
    assert (status, result) == (0, {"dataset": name, "version": 1, "files": 7})
    status, result, _ = run("cp", f"hyper://{name}/data", tmp_path / "back", "--json")
    assert (status, result["files"], result["version"]) == (0, 7, 1)
    assert _tree(tmp_path / "back") == _tree(folder)
    assert run("cp", f"hyper://{name}@1/data/top.bin", tmp_path)[0] == 0
    assert (tmp_path / "top.bin").read_bytes() == bytes(range(256))
    assert run("cp", f"hyper://{name}/data/sub/3.txt", tmp_path / "three")[0] == 0
    assert (tmp_path / "three").read_text() == "file 3"
    status, result, _ = run("versions", name, "--json")
    assert status == 0
    assert [(v["version"], v["message"], v["files"]) for v in result] == [(1, "first", 7)]


def test_list(run: Run, client: Client, name: str) -> None:
    with client.session(name) as session:
        session.write("notes/a.txt", "hello")
        session.create_array("raw", (2, 8, 9), "uint8", voxel_size_nm=(40, 4, 4))
    status, result, _ = run("ls", "lab", "--json")
    assert status == 0
    assert name in [dataset["dataset"] for dataset in result]
    status, result, _ = run("ls", f"{name}@1", "--json")
    assert status == 0
    assert [(a["name"], a["shape"], a["dtype"]) for a in result["arrays"]] == [
        ("raw", [2, 8, 9], "uint8")
    ]
    assert result["files"] == [{"path": "notes/a.txt", "size_bytes": 5}]
    status, text, _ = run("ls", name)
    assert status == 0
    assert "notes/a.txt" in text and "2 x 8 x 9" in text
    assert run("ls", "nobody")[0] == 0


def test_export_sections(run: Run, client: Client, name: str, tmp_path: Path) -> None:
    expected = np.random.default_rng(0).integers(0, 255, (12, 30, 40), dtype=np.uint8)
    with client.session(name) as session:
        session.create_array("raw", expected.shape, "uint8")[...] = expected
        session.create_array("field", (2, 3, 3), "float32")[...] = 0.5
        session.create_array("map", (3, 3), "uint16")[...] = 7
    out = tmp_path / "out"
    status, result, _ = run("export", f"{name}/raw", out, "--json")
    assert (status, result["sections"]) == (0, 12)
    sections = images.list_sections(out)
    assert [p.name for p in sections] == [f"{z:04d}.png" for z in range(12)]
    for z, path in enumerate(sections):
        np.testing.assert_array_equal(images.read_section(path), expected[z])
    status, _, said = run("export", f"{name}/raw", out)
    assert status == 2 and "not empty" in said and "--force" in said
    assert run("export", f"{name}/raw", out, "--force", "--format", "tiff")[0] == 0
    status, _, said = run("export", f"{name}/field", tmp_path / "field")
    assert status == 2 and "--format tiff" in said
    assert not (tmp_path / "field").exists()
    assert run("export", f"{name}/field", tmp_path / "field", "--format", "tiff")[0] == 0
    assert run("export", f"{name}/map", tmp_path / "map")[0] == 0
    np.testing.assert_array_equal(images.read_section(tmp_path / "map" / "0000.png"), 7)


def test_delete(run: Run, client: Client, name: str) -> None:
    with client.session(name) as session:
        session.write("x", "1")
    status, _, said = run("rm", name)
    assert status == 2 and "--yes" in said
    assert run("rm", name, "--yes", "--json")[:2] == (0, {"deleted": name})
    assert run("ls", name)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ls", "lab/.."), "not a valid name"),
        (("ls", "lab/none"), "no dataset"),
        (("versions", "lab"), "tenant/name"),
        (("cp", "a", "b"), "hyper://"),
        (("cp", "hyper://lab/a", "hyper://lab/b"), "local"),
        (("cp", "/no/such/file", "hyper://lab/a"), "no such file"),
        (("cp", "hyper://lab/a/../x", "out"), "not a valid file path"),
        (("cp", "hyper://lab/none", "out"), "no dataset"),
        (("export", "lab/none", "out"), "no dataset"),
        (("export", "lab/none/raw", "out", "--format", "gif"), "png or tiff"),
        (("rm", "lab/set@2", "--yes"), "whole dataset"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: tuple[str, ...], words: str) -> None:
    status, out, said = run(*arguments)
    assert status == 2
    assert not out
    assert said.startswith("error: ") and said.count("\n") == 1
    assert words in said


def test_links_out_are_refused_and_nothing_is_committed(
    run: Run, name: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("s")
    (folder / "link").symlink_to(tmp_path / "secret")
    status, _, said = run("cp", folder, f"hyper://{name}")
    assert status == 2 and "link" in said
    assert run("ls", name)[0] == 2
