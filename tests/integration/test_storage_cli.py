"""`hyper ls | versions | cp | export | rm` against a real gateway."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from hyper import images
from hyper.cli import main
from hyper.client import Client
from hyper.pyramids import downsample, open_levels
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
    status, result, _ = run("ls", "--json")  # of every tenant
    assert status == 0 and name in [each["dataset"] for each in result]


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


def test_a_stack_becomes_a_pyramid_and_leaves_as_a_volume(
    run: Run, client: Client, name: str, tmp_path: Path
) -> None:
    volume = np.random.default_rng(2).integers(0, 255, (5, 300, 200), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    for z, section in enumerate(volume):
        images.write_png(tmp_path / "in" / f"s{z}.png", section)
    status, value, _ = run(
        "import", tmp_path / "in", f"{name}/raw", "--voxel-size", "40,4,4", "--pyramid", "--json"
    )
    assert (status, value["levels"], value["shape"]) == (0, 4, [5, 300, 200])
    levels = open_levels(client.open_dataset(name), "raw")
    assert [level.shape for level in levels] == [
        (5, 300, 200), (5, 150, 100), (5, 75, 50), (5, 38, 25),
    ]  # fmt: skip
    assert levels[3].voxel_size_nm == (40, 32, 32)
    np.testing.assert_array_equal(levels[1][...], downsample(volume, (1, 2, 2)))

    assert run("export", f"{name}/raw", tmp_path / "ome", "--format", "zarr")[0] == 0
    group = zarr.open_group(str(tmp_path / "ome"), mode="r")
    multiscale = group.attrs["ome"]["multiscales"][0]
    for level, part in zip(levels, multiscale["datasets"], strict=True):
        np.testing.assert_array_equal(group[part["path"]][...], level[...])

    assert run("export", f"{name}/raw", tmp_path / "ng", "--format", "precomputed")[0] == 0
    info = json.loads((tmp_path / "ng" / "info").read_text())
    assert info["scales"][0]["size"] == [200, 300, 5]
    chunk = (tmp_path / "ng" / info["scales"][0]["key"] / "64-128_256-300_0-5").read_bytes()
    np.testing.assert_array_equal(
        np.frombuffer(chunk, np.uint8).reshape(5, 44, 64), volume[:, 256:, 64:128]
    )
    images.write_png(tmp_path / "in" / "s9.png", volume[0, :5])
    status, _, said = run("import", tmp_path / "in", f"{name}/bad")
    assert (status, "s9.png" in said) == (2, True)
    assert run("import", tmp_path / "in", f"{name}/bad", "--voxel-size", "4")[0] == 2


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
        (("export", "lab/none/raw", "out", "--format", "gif"), "choose png"),
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


def test_volumes_travel_in_every_form(run: Run, client: Client, name: str, tmp_path: Path) -> None:
    data = np.random.default_rng(3).integers(0, 2**40, (9, 40, 33)).astype(np.uint64)
    zarr.create_array(str(tmp_path / "in.zarr"), data=data, chunks=(4, 16, 16))
    source = tmp_path / "in.zarr"
    assert run("import", source, f"{name}/zarr", "--voxel-size", "40,4,4")[0] == 0
    for form, path in (("n5", ""), ("hdf5", "data.h5"), ("precomputed", ""), ("tiff", "")):
        out = tmp_path / form
        assert run("export", f"{name}/zarr", out, "--format", form)[0] == 0
        voxel = ("--voxel-size", "40,4,4") if form == "tiff" else ()
        status, result, said = run("import", out / path, f"{name}/{form}", "--json", *voxel)
        assert status == 0, said
        assert result["dtype"] == "uint64"
        back = client.open_array(f"{name}/{form}")
        np.testing.assert_array_equal(back[...], data)
        assert back.voxel_size_nm == pytest.approx((40, 4, 4))
    assert run("export", f"{name}/zarr", tmp_path / "x", "--format", "lua")[0] == 2
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "zarr.json").write_text("{")
    status, _, said = run("import", tmp_path / "bad", f"{name}/bad")
    assert status == 2
    assert "zarr.json is not JSON" in said


def test_register_edit_and_publish(
    run: Run, client: Client, name: str, bucket: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
    with client.session(name) as session:
        session.create_array("a", data.shape, data.dtype, voxel_size_nm=(40, 4, 4))[...] = data
    url = client.open_array(f"{name}/a").url
    path = url.removeprefix(f"s3://{bucket.bucket}/")
    secret = bucket.secret_key.get_secret_value()
    store = ("store", "set", "ours", bucket.endpoint, bucket.bucket, "--tenant", "lab")
    assert run(*store, "--access-key", bucket.access_key)[0] == 2  # nobody to ask for the secret
    monkeypatch.setenv("HYPER_STORE_SECRET_KEY", secret)
    status, shown, said = run(*store, "--access-key", bucket.access_key, "--json")
    assert status == 0
    assert secret not in json.dumps(shown) + said
    status, shown, _ = run("store", "ls", "--tenant", "lab")
    assert "ours" in shown and secret not in shown
    status, result, _ = run("register", "ours", path, f"{name}/there", "--json")
    assert (status, result["shape"], result["dtype"]) == (0, [10, 10, 10], "int16")
    status, result, _ = run("publish", f"{name}/there", f"{name}/copy", "--json")
    assert status == 0
    np.testing.assert_array_equal(client.open_array(f"{name}/copy")[...], data)
    with client.session(name) as session:
        session.edit_array("copy")[0] = 1
    status, text, _ = run("publish", f"{name}/copy")
    assert status == 0 and "plain Zarr v3 at s3://" in text
    assert run("publish", f"{name}/copy")[0] == 2  # is plain already
    assert run("publish", name)[0] == 2
    assert run("register", "nobody", path, f"{name}/x")[0] == 2
    assert run("store", "rm", "ours", "--tenant", "lab")[0] == 0
