"""`hyper doctor`: is everything here that a cluster on this machine needs."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from hyper.cluster.home import MIN_FREE_BYTES, Home
from hyper.cluster.programs import find_etcds, find_prometheus, find_weed
from hyper.errors import HyperError
from hyper.installed import install_command
from hyper.mount import libfuse

_MIN_PYTHON = (3, 11)
_COMFORTABLE_FREE_BYTES = 5_000_000_000
_LEAST_MEMORY_BYTES = 3_000_000_000
_EXTRAS = (
    ("torch", "torch", "torch", "training nets"),
    ("neuroglancer", "neuroglancer", "view", "`hyper view`"),
    ("fsspec", "fsspec", "fsspec", "hyper:// in pandas, xarray, dask"),
    ("lightgbm", "lightgbm", "examples", "the example `boosting`"),
)
_DOCKER_HOST = "unix:///var/run/docker.sock"
_DOCKER_S = 1.0
OK = "ok"
MISSING = "missing"
OPTIONAL = "optional"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what it is.
        state: "ok", "missing" (a cluster cannot start) or "optional" (absent, and not needed).
        found: what is there.
        advice: what to do, empty if nothing.
    """

    name: str
    state: str
    found: str
    advice: str = ""


def examine(home: Home) -> list[Finding]:
    """Look at everything; nothing is started or changed."""
    return [
        _python(),
        _services(),
        _etcd(),
        _s3(),
        _disk(home),
        _memory(),
        _prometheus(),
        _fuse(),
        _docker(),
        _gpu(),
        _node(),
        _chromium(),
        *_extras(),
    ]


def _python() -> Finding:
    good = sys.version_info[:2] >= _MIN_PYTHON and sys.platform == "linux"
    advice = "" if good else "use Python 3.11 or later on Linux"
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("python", OK if good else MISSING, found, advice)


def _services() -> Finding:
    modules = (
        "hyper_scheduler",
        "hyper_worker",
        "hyper_storage",
        "hyper_inference",
        "hyper_matcher",
    )
    brought = {"etcd stubs": "aetcd", "minio": "minio", "llvmlite": "llvmlite", "scipy": "scipy"}
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    missing += [
        name for name, module in brought.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        return Finding(
            "services", MISSING, f"without {', '.join(missing)}", install_command("local")
        )
    return Finding("services", OK, "installed")


def _etcd() -> Finding:
    every = find_etcds()
    if not every:
        advice = f"apt-get install etcd-server, or {install_command('local')}"
        return Finding("etcd", MISSING, "none", advice)
    found = ", ".join(f"{p.version} ({p.source}: {p.path})" for p in every)
    advice = ""
    if every[0].may_lose_data:
        advice = f"etcd {every[0].version} can lose data when killed: apt-get install etcd-server"
    return Finding("etcd", OK, found, advice)


def _s3() -> Finding:
    try:
        weed = find_weed()
    except HyperError as error:
        return Finding("s3", MISSING, "none", str(error))
    return Finding("s3", OK, f"SeaweedFS {weed.version} ({weed.path})")


def _disk(home: Home) -> Finding:
    folder = home.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free for {home.root}"
    if not os.access(folder, os.W_OK):
        return Finding("disk", MISSING, f"{folder} cannot be written", "set HYPER_HOME")
    if free < MIN_FREE_BYTES:
        return Finding("disk", MISSING, found, "free some space, or set HYPER_HOME")
    advice = "that is little for image stacks" if free < _COMFORTABLE_FREE_BYTES else ""
    return Finding("disk", OK, found, advice)


def _memory() -> Finding:
    total = psutil.virtual_memory().total
    found = f"{total / 1e9:.1f} GB, {os.cpu_count()} processors"
    if total < _LEAST_MEMORY_BYTES:
        advice = "a cluster and the demo take about 2 GB: use a machine with more, or `--workers 1`"
        return Finding("memory", OPTIONAL, found, advice)
    return Finding("memory", OK, found)


def _extras() -> list[Finding]:
    """What some commands and examples need beside a cluster."""
    found = []
    for name, module, extra, use in _EXTRAS:
        if importlib.util.find_spec(module) is None:
            advice = f"{install_command(extra)}, for {use}"
            found.append(Finding(name, OPTIONAL, "none", advice))
        else:
            found.append(Finding(name, OK, "installed"))
    return found


def _prometheus() -> Finding:
    program = find_prometheus()
    if program is None:
        advice = "apt-get install prometheus, for metrics over time"
        return Finding("prometheus", OPTIONAL, "none", advice)
    return Finding("prometheus", OK, f"{program.version} ({program.path})")


def _fuse() -> Finding:
    device = Path("/dev/fuse")
    if not device.exists() or not os.access(device, os.R_OK | os.W_OK):
        return Finding("fuse", OPTIONAL, "no usable /dev/fuse", "load it, to mount datasets")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return Finding(
            "fuse", OPTIONAL, "no fusermount3", "apt-get install fuse3, to mount datasets"
        )
    library = libfuse.find()
    if library is None:
        advice = "apt-get install fuse3, or as root `python -m hyper.mount.libfuse --fetch`"
        return Finding("fuse", OPTIONAL, "no libfuse 3", f"{advice}, to mount datasets")
    if importlib.util.find_spec("mfusepy") is None:
        advice = f"{install_command('mount')}, to mount datasets"
        return Finding("fuse", OPTIONAL, "no mfusepy", advice)
    return Finding("fuse", OK, f"{device}, {library}")


def _docker() -> Finding:
    """The daemon that workers would use: that of DOCKER_HOST, or this machine's."""
    host = os.environ.get("DOCKER_HOST") or _DOCKER_HOST
    kind, _, place = host.partition("://")
    if kind == "unix" and not Path(place).exists():
        advice = "install docker, to run tasks in containers"
        return Finding("docker", OPTIONAL, f"none at {place}", advice)
    if kind == "unix" and not os.access(place, os.R_OK | os.W_OK):
        return Finding("docker", OPTIONAL, f"{place} is closed to you", "join the group `docker`")
    if kind not in ("unix", "tcp"):  # ssh and others: the docker SDK's business
        return Finding("docker", OK, f"{host} (not tried)")
    try:
        with socket.socket(socket.AF_UNIX) if kind == "unix" else socket.socket() as tried:
            tried.settimeout(_DOCKER_S)
            tried.connect(place if kind == "unix" else _address(place))
    except (OSError, ValueError) as error:
        advice = "start the docker daemon, or set DOCKER_HOST to where one runs"
        return Finding("docker", OPTIONAL, f"{host} does not answer: {error}", advice)
    return Finding("docker", OK, host)


def _address(place: str) -> tuple[str, int]:
    name, _, port = place.rstrip("/").rpartition(":")
    return name.strip("[]"), int(port)


def _gpu() -> Finding:
    """GPUs by their driver's files; nothing is loaded."""
    found = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    if not found:
        return Finding("gpu", OPTIONAL, "none", "nothing needs one; nets train on processors")
    if importlib.util.find_spec("pynvml") is None:
        advice = f"{install_command('worker')}, for workers to see it"
        return Finding("gpu", OPTIONAL, f"{', '.join(found)}, no nvidia-ml-py", advice)
    return Finding("gpu", OK, ", ".join(found))


def _node() -> Finding:
    path = shutil.which("node")
    if path is None:
        return Finding("node", OPTIONAL, "none", "apt-get install nodejs npm, for the Node client")
    return Finding("node", OK, path)


def _chromium() -> Finding:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        advice = "apt-get install chromium, for the tests of the status page and of `hyper view`"
        return Finding("chromium", OPTIONAL, "none", advice)
    return Finding("chromium", OK, path)
