"""What tasks that cannot read the agent's certificates get instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyper.errors import FailedPreconditionError
from hyper_worker.core.model import Around, Job, Key
from hyper_worker.runner.container import ContainerRunner, ContainerSettings
from hyper_worker.runner.environment import base_environment
from hyper_worker.runner.place import Place
from hyper_worker.runner.trust import Trust

PLACES = {
    "HYPER_TLS_CA": "/hyper/tls/ca.pem",
    "HYPER_TLS_CERT": "/hyper/tls/cert.pem",
    "HYPER_TLS_KEY": "/hyper/tls/key.pem",
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.delenv("HYPER_S3_CA", raising=False)
    made = {}
    for name in PLACES:
        made[name] = tmp_path / name
        made[name].write_text(f"of {name}")
        made[name].chmod(0o600)
        monkeypatch.setenv(name, str(made[name]))
    return made


def test_copies_that_anybody_can_read(tmp_path: Path, files: dict[str, Path]) -> None:
    trust = Trust(tmp_path)
    (bind,) = trust.binds()
    assert bind.target == "/hyper/tls" and not bind.writable
    for name, place in PLACES.items():
        copy = bind.source / Path(place).name
        assert copy.read_text() == f"of {name}" and copy.stat().st_mode & 0o777 == 0o444
    files["HYPER_TLS_CERT"].write_text("renewed")
    (bind,) = trust.binds()
    assert (bind.source / "cert.pem").read_text() == "renewed"
    files["HYPER_TLS_CERT"].unlink()
    with pytest.raises(FailedPreconditionError, match="HYPER_TLS_CERT cannot be read"):
        trust.binds()


def test_without_tls_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PLACES, "HYPER_S3_CA"):
        monkeypatch.delenv(name, raising=False)
    assert Trust(tmp_path).binds() == ()


@pytest.mark.parametrize("network", [True, False])
def test_containers_with_a_network_have_them(
    tmp_path: Path, files: dict[str, Path], network: bool
) -> None:
    runner = ContainerRunner(
        "host:1", ContainerSettings("1:1", 1, 0, 1, guard_metadata=False), tmp_path, 1
    )
    (tmp_path / "cwd").mkdir()
    job = Job(Key("t", 1, 1), command="x", image="i", around=Around(network=network))
    place = Place(tmp_path, tmp_path / "cwd")
    environment = runner._environment(job, place)
    mounts = [each["Target"] for each in runner._mounts(job, place)[0]]
    runner.threads.shutdown()
    assert {name: environment.get(name) for name in PLACES} == (
        PLACES if network else dict.fromkeys(PLACES)
    )
    assert ("/hyper/tls" in mounts) == network


def test_isolated_processes_have_them(files: dict[str, Path]) -> None:
    assert PLACES.items() <= base_environment("", {}, isolated=True).items()
    own = {name: str(path) for name, path in files.items()}
    assert own.items() <= base_environment("", {}).items()  # they are the agent's user
