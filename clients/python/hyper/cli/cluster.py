"""`hyper up | down | status | restart | doctor`: the cluster on this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from hyper.cli import output

if TYPE_CHECKING:
    from hyper.cluster.status import Status

Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (up, down, status, restart, doctor):
        app.command(command.__name__)(command)


def up(
    workers: Annotated[int, typer.Option(min=1, max=256, help="worker processes")] = 2,
    slots: Annotated[int, typer.Option(min=1, max=256, help="tasks a worker runs at once")] = 1,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="of the scheduler's gRPC (0: any free one)")
    ] = 0,
    json_output: Json = False,
) -> None:
    """Start a cluster on this machine; its data are in HYPER_HOME (~/.hyper)."""
    from hyper.cluster.home import Home
    from hyper.cluster.status import status as look
    from hyper.cluster.up import UpOptions
    from hyper.cluster.up import up as start

    home = Home.default()
    with output.working("starting the cluster") as say:
        cluster = start(home, UpOptions(workers=workers, slots=slots, port=port), say)
    output.say(
        "access control is off: it listens on 127.0.0.1 alone, to whoever is on this machine"
    )
    text = (
        f"the cluster runs: scheduler on {cluster.endpoint}, {workers} workers, "
        f"data in {home.root}\nstop it with `hyper down`"
    )
    output.emit(look(home).facts() if json_output else None, text, as_json=json_output)


def down(
    grace: Annotated[
        float, typer.Option(min=0, max=3600, help="seconds that services and workers have to end")
    ] = 15.0,
    json_output: Json = False,
) -> None:
    """Stop the cluster of HYPER_HOME; its data stay."""
    from hyper.cluster.down import down as stop
    from hyper.cluster.home import Home

    home = Home.default()
    with output.working("stopping the cluster") as say:
        done = stop(home, say, grace)
    facts = {
        "home": str(home.root),
        "stopped": list(done.stopped),
        "dead": list(done.dead),
        "strays": done.strays,
    }
    if done.stopped or done.dead or done.strays:
        dead = f"; had died before: {', '.join(done.dead)}" if done.dead else ""
        strays = f"; {done.strays} stray processes ended" if done.strays else ""
        text = f"stopped{dead}{strays}; the data stay in {home.root}"
    else:
        text = f"no cluster was running in {home.root}"
    output.emit(facts, text, as_json=json_output)


def status(
    json_output: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="only the exit status")] = False,
) -> None:
    """Show every process of the cluster: exit status 0 all well, 1 not, 3 there is none.

    Of a cluster elsewhere (HYPER_ENDPOINT), its services and workers, as its scheduler knows them.
    """
    from hyper.cluster import status as cluster_status
    from hyper.cluster.home import Home

    now = cluster_status.status(Home.default())
    endpoint = os.environ.get("HYPER_ENDPOINT")
    if endpoint and (now.cluster is None or now.cluster.endpoint != endpoint):
        _status_elsewhere(endpoint, json_output=json_output, quiet=quiet)
    if not quiet:
        waiting = _waiting(now) if now.state == cluster_status.RUNNING else []
        facts = now.facts() | {"waiting": waiting} if json_output else None
        text = "\n".join([_status_text(now), *(f"waiting: {line}" for line in waiting)])
        output.emit(facts, text, as_json=json_output)
    codes = {
        cluster_status.RUNNING: 0,
        cluster_status.DEGRADED: 1,
        cluster_status.STOPPED: 3,
        cluster_status.STARTING: 3,
    }
    raise typer.Exit(codes[now.state])


def _status_elsewhere(endpoint: str, *, json_output: bool, quiet: bool) -> None:
    from hyper.cli import elsewhere

    facts, text = elsewhere.look(endpoint)
    if not quiet:
        output.emit(facts, text, as_json=json_output)
    raise typer.Exit(0 if facts["state"] == elsewhere.RUNNING else 1)


def _waiting(now: Status) -> list[str]:
    """Why workflows wait, a line each."""
    from hyper.cli.elsewhere import waits
    from hyper.client import Client

    assert now.cluster is not None
    with Client(now.cluster.endpoint, patience_s=2.0) as client:
        return waits(client)


def _status_text(now: Status) -> str:
    """The status for people."""
    if now.cluster is None and now.state == "starting":
        return f"the cluster in {now.home.root} is being started or stopped"
    if now.cluster is None:
        text = f"no cluster is running in {now.home.root}: start one with `hyper up`"
        if now.strays:
            pids = ", ".join(str(pid) for pid in now.strays)
            text += f"\nleft over from an earlier one (pid {pids}): end them with `hyper down`"
        return text
    layout, s3 = now.cluster.layout, now.cluster.s3_facts()
    rows = [
        (
            one.member.name,
            one.state,
            one.member.process.pid,
            one.member.address or "-",
            one.member.metrics_address or "-",
            output.human_bytes(one.memory_bytes),
        )
        for one in now.members
    ]
    lines = [
        f"cluster {now.state} in {now.home.root} "
        f"({output.human_bytes(now.home.free_bytes())} free on disk)",
        f"endpoint {now.cluster.endpoint}",
        *(
            f"page http://{one.member.metrics_address}"
            for one in now.members
            if one.member.name.startswith("scheduler") and one.member.metrics_address
        ),
        f"etcd {layout.etcd_version} ({layout.etcd_source})",
        f"s3 {s3['endpoint']} bucket {s3['bucket']}, credentials in {s3['credentials_file']}",
        "",
        output.table(("NAME", "STATE", "PID", "ADDRESS", "METRICS", "MEMORY"), rows),
    ]
    for one in now.members:
        if one.log_tail:
            name = one.member.name
            lines += [
                "",
                f"{name} is {one.state}; start it again with `hyper restart {name}`; "
                f"its log {one.log} ends:",
                *(f"  {line}" for line in one.log_tail.splitlines()),
            ]
    return "\n".join(lines)


def restart(
    name: Annotated[str, typer.Argument(help="a name that `hyper status` shows")],
    json_output: Json = False,
) -> None:
    """Start one process of the cluster again, dead or alive, on the same addresses."""
    from hyper.cluster.home import Home
    from hyper.cluster.up import restart as start_again

    with output.working(f"starting {name} again") as say:
        member = start_again(Home.default(), name, say).members[name]
    facts = {"name": name, "pid": member.process.pid, "address": member.address or None}
    output.emit(facts, f"{name} runs again (pid {member.process.pid})", as_json=json_output)


def doctor(json_output: Json = False) -> None:
    """Say what this machine has and lacks: exit status 0 if a cluster can be started here."""
    from hyper.cluster import doctor as examiner
    from hyper.cluster.home import Home

    findings = examiner.examine(Home.default())
    good = all(one.state != examiner.MISSING for one in findings)
    facts = {
        "ok": good,
        "findings": {
            one.name: {"state": one.state, "found": one.found, "advice": one.advice}
            for one in findings
        },
    }
    rows = [(one.name, one.state, one.found, one.advice) for one in findings]
    text = output.table(("WHAT", "STATE", "FOUND", "TO DO"), rows)
    text += "\n\n" + ("a cluster can run here: `hyper up`" if good else "not ready: see TO DO")
    output.emit(facts, text, as_json=json_output)
    raise typer.Exit(0 if good else 1)
