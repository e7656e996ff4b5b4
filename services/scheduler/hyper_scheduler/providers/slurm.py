"""A Slurm cluster: an agent is a batch job.

Programs `sbatch`, `squeue` and `scancel` are called. Options of an offer: `partition`, `account`,
`time` (a limit such as 12:00:00), `arguments` (more of sbatch's, as a shell has them), `python`.
The job's name is the machine's, its comment the cluster's. Slurm's SIGTERM before a time limit or
a preemption reaches the agent as a notice.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence

from hyper_scheduler.killing import killed
from hyper_scheduler.providers.base import Instance, Order, RefusedError, unreachable

TIMEOUT_S = 30.0
_GONE = ("Invalid job id",)
_REFUSALS = ("limit", "Invalid", "not available", "violates", "Unable to allocate")


class SlurmProvider:
    """Agents as jobs.

    Args:
        cluster: whose they are.
        environment: for Slurm's programs, such as SLURM_CONF; None: our own.
    """

    def __init__(self, cluster: str, environment: dict[str, str] | None = None) -> None:
        self._cluster, self._environment = cluster, environment

    async def launch(self, order: Order) -> str:
        """Hand in a job; one of this name that waits or runs is it."""
        for each in await self.instances():
            if each.machine == order.machine:
                return each.id
        options = order.options
        command = ["sbatch", "--parsable", f"--job-name={order.machine}",
                   f"--comment={self._tag}", "--no-requeue", "--signal=B:TERM@60",
                   "--export=NIL"]  # fmt: skip
        for name in ("partition", "account", "time"):
            if name in options:
                command.append(f"--{name}={options[name]}")
        command += shlex.split(options.get("arguments", ""))
        exports = "\n".join(
            f"export {name}={shlex.quote(value)}" for name, value in order.environment.items()
        )
        python = shlex.quote(options.get("python", "python3"))
        # the script goes by standard input: no secret is on a command line
        script = (
            f"#!/bin/sh\n{exports}\nexport HYPER_WORKER__WORKDIR="
            f'"${{TMPDIR:-/tmp}}/hyper-{order.machine}"\nexec {python} -m hyper_worker\n'
        )
        code, out, err = await self._run(command, script)
        if code:
            text = err.strip().splitlines()[-1] if err.strip() else f"exit status {code}"
            if any(word in err for word in _REFUSALS):
                raise RefusedError("SlurmRefused", text)
            raise unreachable("slurm", text)
        return out.strip().partition(";")[0]

    async def instances(self) -> Sequence[Instance]:
        """Jobs of this cluster that wait or run."""
        code, out, err = await self._run(
            ["squeue", "--noheader", "--states=PENDING,RUNNING,CONFIGURING", "--me",
             "--format=%i|%j|%T|%k"]
        )  # fmt: skip
        if code:
            raise unreachable("slurm", err.strip()[-300:])
        found = []
        for line in out.splitlines():
            job, name, state, comment = [*line.split("|"), "", "", ""][:4]
            if comment == self._tag:
                found.append(Instance(job, name, running=state == "RUNNING"))
        return found

    async def terminate(self, ids: Sequence[str]) -> None:
        """SIGTERM, then Slurm's own SIGKILL after its KillWait."""
        if not ids:
            return
        code, _, err = await self._run(["scancel", "--full", *ids])
        if code and not any(word in err for word in _GONE):
            raise unreachable("slurm", err.strip()[-300:])

    async def notices(self) -> Sequence[str]:
        """The agent itself gets Slurm's SIGTERM."""
        return ()

    async def tidy(self, networks: Sequence[str]) -> None:
        """Nodes have the network they have."""

    async def close(self) -> None:
        """Jobs go on: the next leader finds them."""

    @property
    def _tag(self) -> str:
        return f"hyper-cluster={self._cluster}"

    async def _run(self, command: Sequence[str], text: str = "") -> tuple[int, str, str]:
        try:
            process = await asyncio.create_subprocess_exec(
                *command, env=self._environment,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise unreachable("slurm", f"{command[0]}: {error.strerror}") from error
        try:
            async with asyncio.timeout(TIMEOUT_S):
                out, err = await process.communicate(text.encode())
        except TimeoutError:
            await killed(process)
            raise unreachable("slurm", f"{command[0]} took over {TIMEOUT_S:g} s") from None
        return process.returncode or 0, out.decode(), err.decode(errors="replace")
