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
from hyper_scheduler.killing import killed
from hyper_scheduler.placement.offers import Offer
from hyper_scheduler.providers.base import Instance, Order, RefusedError, all_of, unreachable
from hyper_servicekit.logs import get_logger

log = get_logger(__name__)

TIMEOUT_S = 20.0
_PORT = "22"
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
    def key(self) -> str:
        """What makes it another host: a name may have several ports."""
        return self.name if self.port == _PORT else f"{self.name}:{self.port}"

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
            name.strip(), get("user", ""), get("port", _PORT), get("identity", ""),
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
        self._silent: set[str] = set()
        self._taken: set[str] = set()  # hosts on which an agent is being started

    async def launch(self, order: Order) -> str:
        """Start an agent on a host of the offer that has none."""
        hosts = {each.key: each for each in self._hosts.get(order.offer, [])}
        there = await self._asked(list(hosts.values()))
        for each in (agent for agents in there.values() for agent in agents or ()):
            if each.machine == order.machine:
                return each.id
        free = [key for key, agents in there.items() if agents == [] and key not in self._taken]
        if not free:
            raise RefusedError("NoFreeHost", f"every host of {order.offer} is in use or away")
        self._taken.add(free[0])
        try:
            return await self._start(hosts[free[0]], order)
        finally:
            self._taken.discard(free[0])

    async def _start(self, host: Host, order: Order) -> str:
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
        return f"{host.key}/{order.machine}"

    async def instances(self) -> Sequence[Instance]:
        """Agents that live; of a host that does not answer, those it had."""
        found: list[Instance] = []
        asked = await self._asked(self._all_hosts())
        for key, agents in asked.items():
            if agents is not None:
                self._last[key] = agents
            found += self._last.get(key, [])
        if asked and all(agents is None for agents in asked.values()):
            raise unreachable("ssh", f"no host answers: {', '.join(asked)}")
        return found

    async def _asked(self, hosts: Sequence[Host]) -> dict[str, list[Instance] | None]:
        """Agents of hosts, side by side; None of a host that does not answer."""
        found: dict[str, list[Instance] | None] = {each.key: None for each in hosts}

        async def ask(host: Host) -> None:
            try:
                found[host.key] = await self._agents(host)
            except UnavailableError as error:
                if host.key not in self._silent:
                    log.warning("host does not answer", host=host.key, error=str(error))
                self._silent.add(host.key)
            else:
                self._silent.discard(host.key)

        await all_of(ask, hosts)
        return found

    async def terminate(self, ids: Sequence[str]) -> None:
        """SIGTERM, and SIGKILL after five seconds."""
        hosts = {each.name: each for each in self._all_hosts()}  # names that older versions gave
        hosts |= {each.key: each for each in self._all_hosts()}

        async def end(each: str) -> None:
            key, _, machine = each.rpartition("/")
            if key in hosts:
                await self._end(hosts[key], machine)

        await all_of(end, ids)

    async def notices(self) -> Sequence[str]:
        """Own hosts are not taken away."""
        return ()

    async def tidy(self, networks: Sequence[str]) -> None:
        """Hosts have the network they have."""

    async def close(self) -> None:
        """Agents go on: the next leader finds them."""

    def _all_hosts(self) -> list[Host]:
        unique = {each.key: each for hosts in self._hosts.values() for each in hosts}
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
        return [Instance(f"{host.key}/{machine}", machine) for machine in machines]

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
        await killed(process)
        raise unreachable("ssh", f"{host.name} has not answered for {TIMEOUT_S:g} s") from None
    text = out.decode(errors="replace")
    if process.returncode == _UNREACHABLE:
        raise unreachable("ssh", f"{host.name}: {text.strip()[-300:]}")
    return process.returncode or 0, text
