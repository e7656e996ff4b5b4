"""`python -m build`: an sdist, and from it a wheel that holds everything and runs elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "hyper", "hyperapi", "hyper_servicekit", "hyper_voxels", "hyper_inference", "hyper_matcher",
    "hyper_scheduler", "hyper_storage", "hyper_worker",
)  # fmt: skip

SERVICES = ("scheduler", "worker", "storage", "inference", "matcher")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a release: `HYPER_DIST` (`make release`), else one that is built now."""
    if given := os.environ.get("HYPER_DIST"):
        return Path(given)
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """Made from the sdist, as `python -m build` does."""
    (found,) = dist.glob("hyper_dl-*.whl")
    return found


def test_the_sdist_is_the_source_and_nothing_else(dist: Path) -> None:
    (found,) = dist.glob("hyper_dl-*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"} <= names
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    sources = {name for name in tracked if name.startswith(("clients/", "services/", "protos/"))}
    assert sources <= names
    strange = names - set(tracked) - {"PKG-INFO"}
    assert not [name for name in strange if not (ROOT / name).is_file()]
    for built in ("clients/node/node_modules", "clients/cpp/build"):
        assert not [name for name in names if name.startswith(built)]


def test_everything_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        assert any(name.startswith(f"{package}/") for name in names), package
    for page in ("status.html", "status.js", "status.css"):
        assert f"hyper_scheduler/web/{page}" in names
    assert "hyper/py.typed" in names
    assert not any("test" in name.split("/")[0] or "node_modules" in name for name in names)
    (points,) = [name for name in names if name.endswith("entry_points.txt")]
    text = zipfile.ZipFile(wheel).read(points).decode()
    assert "hyper.cli.main:main" in text and "hyper.filesystem.HyperFileSystem" in text


def test_it_runs_from_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import hyper, hyper_scheduler; print(hyper.__file__)"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(tmp_path))


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_starts_from_the_wheel(service: str, wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert _import_main(sys.executable, service, environment).startswith(str(tmp_path))


def _import_main(python: str, service: str, environment: dict[str, str]) -> str:
    """Import what `python -m hyper_SERVICE` runs; returns where it lies."""
    code = f"import hyper_{service}.__main__ as m; print(m.__file__)"
    done = subprocess.run(
        [python, "-P", "-c", code], env=environment, cwd="/", capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


in_clean_environments = pytest.mark.skipif(
    os.environ.get("HYPER_TEST_WHEEL") != "1",
    reason="installs a clean environment: HYPER_TEST_WHEEL=1",
)


@in_clean_environments
@pytest.mark.parametrize("service", SERVICES)
def test_the_extra_of_a_service_is_all_it_needs(service: str, wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, f"{wheel}[{service}]"], check=True)
    assert str(tmp_path) in _import_main(python, service, {"HOME": str(tmp_path)})


@in_clean_environments
def test_it_runs_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """Client alone first; then with the services, a cluster and a workflow."""
    venv.create(tmp_path / "venv", with_pip=True)
    bin_ = tmp_path / "venv" / "bin"
    environment = {
        "PATH": f"{bin_}:{os.environ['PATH']}", "HOME": str(tmp_path),
        "HYPER_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    pip = [str(bin_ / "pip"), "install", "-q", "-c", str(ROOT / "constraints.txt")]

    def hyper(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(bin_ / "hyper"), *arguments], env=environment, cwd=tmp_path, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    subprocess.run([*pip, str(wheel)], check=True)
    assert "hyper 0" in hyper("--version").stdout
    missing = hyper("doctor")
    assert missing.returncode != 0 and "hyper-dl[local]" in missing.stdout
    subprocess.run([*pip, f"{wheel}[local]"], check=True)
    assert hyper("doctor").returncode == 0
    up = hyper("up")
    assert up.returncode == 0, up.stderr
    try:
        recipe = str(ROOT / "examples" / "hello" / "recipe.yaml")
        done = hyper("submit", recipe, "--watch")
        assert done.returncode == 0, done.stderr
    finally:
        assert hyper("down").returncode == 0
