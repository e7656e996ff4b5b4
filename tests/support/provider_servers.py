"""What providers talk to in tests: a real sshd, a real Slurm, moto's EC2."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hyper.cluster.ports import HeldPorts
from hyper_scheduler.placement.offers import Offer

START_S = 30.0


def _program(name: str, package: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"needs {name}: apt-get install {package}")
    return found


def _ports(count: int) -> list[int]:
    held = HeldPorts()
    ports = [held.one() for _ in range(count)]
    held.release()
    return ports


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            text = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            pytest.fail(f"{process.args!r} is not ready:\n{text}")
        time.sleep(0.05)


@contextmanager
def _running(command: list[str], log: Path, **more: dict[str, str]) -> Iterator[subprocess.Popen]:
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **more
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def sshd(folder: Path) -> Iterator[dict[str, str]]:
    """A server for the user of the tests; yields an offer's options."""
    program, keygen = _program("sshd", "openssh-server"), _program("ssh-keygen", "openssh-client")
    _program("ssh", "openssh-client")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd refuses to start without
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (port,) = _ports(1)
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\n"
        f"AuthorizedKeysFile {folder / 'user.pub'}\nStrictModes no\nUsePAM no\n"
        f"PasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
    )
    known = folder / "known_hosts"
    public = (folder / "host.pub").read_text().split()
    known.write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
    log = folder / "sshd.log"
    with _running([program, "-D", "-e", "-f", str(config)], log) as process:
        _until(lambda: _answers(port), process, log)
        yield {"hosts": "127.0.0.1", "port": str(port), "user": getpass.getuser(),
               "identity": str(folder / "user"), "known_hosts": str(known),
               "folder": str(folder / "agents")}  # fmt: skip


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A controller and one node on this machine; yields the environment for its programs."""
    if os.geteuid() != 0:
        pytest.skip("slurmd needs root")
    slurmctld, slurmd = _program("slurmctld", "slurm-wlm"), _program("slurmd", "slurm-wlm")
    munged = _program("munged", "munge")
    control, node = _ports(2)
    host = socket.gethostname().partition(".")[0]
    key, run = folder / "munge.key", folder / "munge"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    run.mkdir(mode=0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    config.write_text(
        f"ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={control}\n"
        f"SlurmdPort={node}\nSlurmUser=root\nSlurmdUser=root\nAuthType=auth/munge\n"
        f"AuthInfo=socket={run / 'socket'}\nCredType=cred/munge\n"
        f"StateSaveLocation={folder / 'state'}\n"
        f"SlurmdSpoolDir={folder / 'spool'}\nSlurmctldPidFile={folder / 'ctld.pid'}\n"
        f"SlurmdPidFile={folder / 'slurmd.pid'}\nProctrackType=proctrack/pgid\n"
        "TaskPlugin=task/none\nSwitchType=switch/none\nMpiDefault=none\nReturnToService=2\n"
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nKillWait=5\n"
        "SchedulerParameters=batch_sched_delay=0,sched_interval=1\n"
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN\n"
        f"PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP "
        "OverSubscribe=FORCE:8\n"
    )
    environment = {**os.environ, "SLURM_CONF": str(config)}
    with _running([munged, "--foreground", "--force", f"--key-file={key}",
                   f"--socket={run / 'socket'}", f"--pid-file={run / 'pid'}",
                   f"--log-file={run / 'log'}", f"--seed-file={run / 'seed'}"],
                  folder / "munged.log") as process:  # fmt: skip
        _until((run / "socket").exists, process, folder / "munged.log")
        logs = folder / "ctld.log", folder / "slurmd.log"
        with (
            _running([slurmctld, "-D", "-c", "-f", str(config)], logs[0], env=environment) as first,
            _running([slurmd, "-D", "-f", str(config), "-N", host], logs[1], env=environment),
        ):
            _until(lambda: _idle(environment), first, logs[0])
            yield environment


def _idle(environment: dict[str, str]) -> bool:
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return "idle" in done.stdout


_moto: dict[str, str] = {}  # image -> endpoint


@contextmanager
def moto() -> Iterator[tuple[str, str]]:
    """EC2's API on a port of the kernel's; yields its URL and an image."""
    import boto3
    from moto.server import ThreadedMotoServer

    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            address, port = server.get_host_and_port()
            endpoint = f"http://{address}:{port}"
            client = boto3.client("ec2", region_name="us-east-1", endpoint_url=endpoint)
            image = str(client.describe_images()["Images"][0]["ImageId"])
            _moto[image] = endpoint
            yield endpoint, image
        finally:
            server.stop()


def moto_of(offer: Offer) -> tuple[str, str]:
    """Endpoint and image of an offer that `moto` has made."""
    image = offer.options["image"]
    return _moto[image], image
