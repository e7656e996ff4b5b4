"""Hosts one has: agents started over ssh, one offer a kind of host.

Options of an offer: `hosts` (comma-separated), `user`, `port`, `identity` (a key file),
`known_hosts` (a file), `python` (of an environment where `hyper_worker` is installed), `folder`
(for logs and process ids, on the host). Authentication is ssh's own: agent, keys, configuration.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from hyper.errors import UnavailableError
from hyper_scheduler.placement.offers import Offer
from hyper_scheduler.providers.base import Instance, Order, RefusedError, unreachable

TIMEOUT_S = 20.0
_UNREACHABLE = 255  # what ssh says of a host that it did not reach


@dataclass(frozen=True, slots=True)
class Host:
    """One machine and how it is reached."""

    name: str
    user: str
    port: str
    identity: str
    known_hosts: str
    python: str
    folder: str

    @property
    def command(self) -> list[str]:
        """ssh up to the command on the host."""
        line = ["ssh", "-T", "-p", self.port, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        line += ["-i", self.identity] if self.identity else []
        if self.known_hosts:
            line += ["-o", f"UserKnownHostsFile={self.known_hosts}"]
        return [*line, f"{self.user}@{self.name}" if self.user else self.name]


def hosts_of(offer: Offer) -> list[Host]:
    """The hosts that an offer lists."""
    get = offer.options.get
    return [
        Host(
            name.strip(), get("user", ""), get("port", "22"), get("identity", ""),
            get("known_hosts", ""), get("python", "python3"), get("folder", ".hyper-agents"),
        )
        for name in get("hosts", "").split(",")
        if name.strip()
    ]  # fmt: skip


class SshProvider:
    """Starts agents on hosts that run anyway; one agent a host.

    Args:
        cluster: whose agents they are.
        offers: those that name this provider.
    """

    def __init__(self, cluster: str, offers: Sequence[Offer]) -> None:
        self._cluster = cluster
        self._hosts = {offer.name: hosts_of(offer) for offer in offers}
        self._last: dict[str, list[Instance]] = {}

    async def launch(self, order: Order) -> str:
        """Start an agent on a host of the offer that has none."""
        free: list[Host] = []
        for host in self._hosts.get(order.offer, []):
            try:
                there = await self._agents(host)
            except UnavailableError:
                continue
            for each in there:
                if each.machine == order.machine:
                    return each.id
            free += [host] if not there else []
        if not free:
            raise RefusedError("NoFreeHost", f"every host of {order.offer} is in use or away")
        host = free[0]
        variables = " ".join(
            f"{name}={shlex.quote(value)}" for name, value in order.environment.items()
        )
        base = f"{host.folder}/{self._cluster}"
        script = (
            f"umask 077; mkdir -p {_q(base)} && cd {_q(base)} || exit 3\n"
            f'env {variables} HYPER_WORKER__WORKDIR="$PWD/work" setsid {_q(host.python)} '
            f"-m hyper_worker </dev/null >>{_q(order.machine)}.log 2>&1 &\n"
            "pid=$!; sleep 0.2; kill -0 $pid || exit 4\n"
            f"echo $pid $(cut -d' ' -f22 /proc/$pid/stat) >{_q(order.machine)}.pid\n"
        )
        code, out = await _run(host, script)
        if code:
            raise RefusedError("CannotStart", f"{host.name}: {out[-300:]}")
        return f"{host.name}/{order.machine}"

    async def instances(self) -> Sequence[Instance]:
        """Agents that live; of a host that does not answer, those it had."""
        found: list[Instance] = []
        for host in self._all_hosts():
            try:
                self._last[host.name] = await self._agents(host)
            except UnavailableError:
                if host.name not in self._last:
                    raise
            found += self._last[host.name]
        return found

    async def terminate(self, ids: Sequence[str]) -> None:
        """SIGTERM, and SIGKILL after five seconds."""
        for each in ids:
            name, _, machine = each.rpartition("/")
            for host in self._all_hosts():
                if host.name == name:
                    await self._end(host, machine)

    async def notices(self) -> Sequence[str]:
        """Own hosts are not taken away."""
        return ()

    async def tidy(self, networks: Sequence[str]) -> None:
        """Hosts have the network they have."""

    async def close(self) -> None:
        """Agents go on: the next leader finds them."""

    def _all_hosts(self) -> list[Host]:
        unique = {each.name: each for hosts in self._hosts.values() for each in hosts}
        return list(unique.values())

    async def _agents(self, host: Host) -> list[Instance]:
        base = f"{host.folder}/{self._cluster}"
        script = (
            f"for f in {_q(base)}/*.pid; do [ -e \"$f\" ] || continue; read p s <\"$f\"; "
            '[ "$(cut -d" " -f22 /proc/$p/stat 2>/dev/null)" = "$s" ] && '
            'echo "agent $(basename "$f" .pid)" || rm -f "$f"; done; true'
        )  # fmt: skip
        code, out = await _run(host, script)
        if code:
            raise unreachable("ssh", f"{host.name}: {out[-300:]}")
        lines = [line.split() for line in out.splitlines()]
        machines = [words[1] for words in lines if len(words) == 2 and words[0] == "agent"]
        return [Instance(f"{host.name}/{machine}", machine) for machine in machines]

    async def _end(self, host: Host, machine: str) -> None:
        file = _q(f"{host.folder}/{self._cluster}/{machine}.pid")
        script = (
            f'[ -e {file} ] || exit 0; read p s <{file}; same() {{ [ "$(cut -d" " -f22 '
            '/proc/$p/stat 2>/dev/null)" = "$s" ]; }; same && kill -TERM $p; '
            "i=0; while same && [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done; "
            f"same && kill -KILL $p; rm -f {file}"
        )
        code, out = await _run(host, script)
        if code == _UNREACHABLE:
            raise unreachable("ssh", f"{host.name}: {out[-300:]}")


def _q(text: str) -> str:
    return shlex.quote(text)


async def _run(host: Host, script: str) -> tuple[int, str]:
    """Exit status and output of a script on the host; secrets go by its standard input."""
    process = await asyncio.create_subprocess_exec(
        *host.command, "sh", "-s",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, _ = await process.communicate(script.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        raise unreachable("ssh", f"{host.name} has not answered for {TIMEOUT_S:g} s") from None
    text = out.decode(errors="replace")
    if process.returncode == _UNREACHABLE:
        raise unreachable("ssh", f"{host.name}: {text.strip()[-300:]}")
    return process.returncode or 0, text
