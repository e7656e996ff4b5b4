"""What separates processes from each other and from the agent.

Without isolation (`isolation: none`) a command is a process of the agent's user: it can read the
files that the agent can read, and other tasks' files and memory; the agent's own memory is closed
(`unseen.py`). That is for machines whose recipes are all trusted. With `isolation: user`, which
needs root, each attempt has

- a user id of its own, from a range that no one else uses: no signals, no ptrace, no reading of
  another's files, memory or environment; `no_new_privs`, so no set-uid program gives root back;
- a mount namespace in which the worker's scratch space shows its own folder alone, /tmp is its
  own, and /proc shows its own processes;
- an environment without the agent's;
- no route to the address where clouds hand out their machines' credentials.

What it is not: a container. The files of the machine that everybody may read can be read, and the
network is the machine's. Strangers' programs belong into containers (`image:`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hyper_servicekit.logs import get_logger
from hyper_worker.runner.place import Bind, Place
from hyper_worker.runner.trust import Trust

log = get_logger(__name__)

METADATA_ADDRESS = "169.254.169.254"
_SANDBOX = Path(__file__).with_name("sandbox.py")
_PROBE_S = 20.0
_SWEEPS = 500
_SWEEP_S = 0.002


class Isolation:
    """How processes are kept apart on this machine.

    Args:
        first_id: of the user ids; None: no isolation.
        ids: how many.
        hidden: folders that attempts must not look into, but for their own place.
        trust: certificates that attempts get a copy of.
    """

    def __init__(
        self,
        first_id: int | None,
        ids: int,
        hidden: Sequence[Path],
        trust: Trust | None = None,
    ) -> None:
        self._trust = trust
        self._hidden = [str(path.resolve()) for path in hidden]
        self._free = [] if first_id is None else list(range(first_id, first_id + ids))
        self.active = first_id is not None
        if first_id is not None:
            if os.geteuid() != 0:
                raise ValueError("isolation: user needs root; run tasks in containers instead")
            for each in self._free:
                end_all(each)  # of an agent that was killed
            block_metadata(["uidrange", f"{first_id}-{first_id + ids - 1}"])

    def take(self, place: Place) -> int | None:
        """A user id for an attempt, who then owns its place; None without isolation."""
        if not self.active:
            return None
        identity = self._free.pop()
        for folder in (place.cwd, *(each.source for each in place.binds if each.writable)):
            for root, _, names in os.walk(folder):
                for name in ("", *names):
                    os.chown(Path(root) / name, identity, identity, follow_symlinks=False)
        return identity

    def give_back(self, identity: int | None) -> None:
        """The attempt is over: whatever still runs under its id is ended."""
        if identity is not None:
            end_all(identity)
            self._free.append(identity)

    def command(self, arguments: Sequence[str], place: Place, identity: int | None) -> list[str]:
        """What to start so that `arguments` runs in its place.

        Raises:
            OSError: the folder for the new root cannot be made.
            ValueError: this machine cannot show the folders.
        """
        if identity is None and not place.binds:
            return list(arguments)
        if not self.active and (problem := cannot_bind()):
            raise ValueError(
                f"this worker cannot show {place.binds[0].target} to a process ({problem}): "
                "use relative paths, or an image"
            )
        root = place.root / ".root"
        root.mkdir(exist_ok=True)
        binds = [[str(b.source), _absolute(b, place), b.writable] for b in place.binds]
        hidden: list[str] = []
        if identity is not None:
            temporary = place.root / ".tmp"
            temporary.mkdir(exist_ok=True)
            os.chown(temporary, identity, identity)
            hidden = [*self._hidden, *_closed()]
            binds += [[str(temporary), "/tmp", True], [str(place.cwd), str(place.cwd), True]]
            binds += [[path, path, False] for path in _needed(("/tmp", *hidden))]
            if self._trust is not None:
                binds += [[str(b.source), b.target, False] for b in self._trust.binds()]
            if place.site is not None:
                binds.append([str(place.site), str(place.site), False])
        spec = {
            "root": str(root),
            "binds": binds,
            "hidden": hidden,
            "proc": identity is not None,
            "identity": identity,
            "cwd": str(place.cwd),
        }
        return [sys.executable, "-I", "-S", str(_SANDBOX), json.dumps(spec), *arguments]


def cannot_bind() -> str:
    """Why this machine lets us make no mount namespace; "" if it does. Asked once."""
    global _answer
    if _answer is None:
        _answer = _probe()
    return _answer


_answer: str | None = None


def _probe() -> str:
    with tempfile.TemporaryDirectory() as folder:
        root, shown = Path(folder) / "root", Path(folder) / "shown"
        root.mkdir()
        shown.mkdir()
        spec = {
            "root": str(root), "binds": [[str(shown), "/hyper-probe/a", False]], "hidden": [],
            "proc": False, "identity": None, "cwd": "/hyper-probe/a",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(_SANDBOX), json.dumps(spec), "/bin/true"],
            capture_output=True, text=True, timeout=_PROBE_S, check=False,
        )  # fmt: skip
    return "" if done.returncode == 0 else done.stderr.strip()[-200:] or "no mount namespace"


def end_all(identity: int) -> None:
    """SIGKILL to every process of a user id, and to what it starts meanwhile.

    Raises:
        OSError: they cannot be ended.
    """
    killed: set[int] = set()
    for _ in range(_SWEEPS):
        found = _processes(identity)
        for pid in killed:  # orphans are the agent's children: see orphans.py
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(found)
        time.sleep(_SWEEP_S)
    raise OSError(f"processes of user {identity} do not end")


def _processes(identity: int) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                status = Path(f"/proc/{entry.name}/status").read_text()
            except OSError:  # it has ended
                continue
            if f"\nUid:\t{identity}\t" in status and "\nState:\tZ" not in status:
                found.append(int(entry.name))
    return found


def _absolute(bind: Bind, place: Place) -> str:
    return bind.target if bind.target.startswith("/") else f"{place.cwd}/{bind.target}"


def _own_folders() -> set[Path]:
    """Where the interpreter and its packages are, as named and as they really are."""
    named = {Path(path) for path in (sys.prefix, sys.base_prefix, *sys.path) if path}
    return {path for path in (*named, *(each.resolve() for each in named)) if path.is_dir()}


def _closed() -> list[str]:
    """Folders on the way to the interpreter that only their owner may pass, such as /root.

    They are shown empty but for what is needed, which makes the interpreter usable to others.
    """
    return sorted(
        {
            str(parent)
            for path in _own_folders()
            for parent in path.parents
            if not parent.stat().st_mode & stat.S_IXOTH
        }
    )


def _needed(hidden: Sequence[str]) -> list[str]:
    """Folders of the interpreter and of its packages that would be hidden."""
    paths = set(map(str, _own_folders()))
    return sorted(
        path for path in paths
        if Path(path).is_dir() and any(path.startswith(f"{each}/") for each in hidden)
    )  # fmt: skip


def block_metadata(who: Sequence[str]) -> None:
    """Let them not reach the cloud's metadata service.

    Args:
        who: a selector of `ip rule`.

    Raises:
        OSError: the machine's routing cannot be changed.
    """
    program = shutil.which("ip") or "/sbin/ip"
    rule = [*who, "to", METADATA_ADDRESS, "unreachable"]
    subprocess.run([program, "rule", "del", *rule], capture_output=True, check=False)
    done = subprocess.run(
        [program, "rule", "add", *rule], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise OSError(f"`{program} rule add {' '.join(rule)}`: {done.stderr.strip()}")
