"""`hyper plan | cost | chaos`."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict

from hyper import placement
from hyper.cli import output
from hyper.cli.watch import duration
from hyper.client import connect
from hyper.errors import InvalidArgumentError, WorkFailedError
from hyper.status import RunState
from hyperapi.scheduler.v1 import placement_service_pb2 as pb

Json = Annotated[bool, typer.Option("--json", help="print JSON on the last line")]
_SHOWN = 12
_OLD_DAYS = 90
_SUMS = ("USD", "HOURS", "ON DEMAND", "REWORK", "IDLE", "EGRESS", "LAUNCHED", "TAKEN")


def plan(
    recipe: Annotated[Path, typer.Argument(help="a recipe (YAML)")],
    task_time: Annotated[
        float | None, typer.Option(help="seconds of one task; else as measured", min=0)
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="EXPERIMENT=N: plan its full size instead")
    ] = None,
    samples: Annotated[int, typer.Option(help="of the estimate", min=0, max=1000)] = 0,
    json_output: Json = False,
) -> None:
    """Show what a recipe would run on, cost and take; nothing is launched."""
    sizes = {}
    for each in tasks or ():
        name, _, count = each.partition("=")
        if not count.isdecimal():
            raise InvalidArgumentError(f"{each!r} is no size: write EXPERIMENT=N")
        sizes[name] = int(count)
    with connect(notice=output.say) as client:
        found = placement.plan(client, recipe, task_s=task_time, tasks=sizes, samples=samples)
    facts = asdict(found)
    for experiment in facts["experiments"]:
        for offer in experiment["offers"]:  # JSON knows no infinity
            if math.isinf(offer["usd_per_unit"]):
                offer["usd_per_unit"] = None
    output.emit(facts, _plan_text(found), as_json=json_output)


def _plan_text(found: placement.Plan) -> str:
    lines = []
    for each in found.experiments:
        how = "measured" if each.measured else "assumed"
        lines.append(f"{each.experiment}: {each.tasks} tasks of {each.task_s:.4g} s ({how})")
        rows = [
            (
                one.offer,
                "spot" if one.spot else "on-demand",
                f"{one.usd_h:.4g}",
                "-" if math.isinf(one.usd_per_unit) else f"{one.usd_per_unit:.4g}",
                one.machines or "",
                "" if one.utilization is None else f"{one.utilization:.0%}",
                one.reason,
            )
            for one in each.offers[:_SHOWN]
        ]
        head = ("OFFER", "SORT", "USD/h", "USD/UNIT", "FIRST", "BUSY", "WHY")
        lines += [output.table(head, rows), ""]
        if len(each.offers) > _SHOWN:
            lines.insert(-1, f"and {len(each.offers) - _SHOWN} more (--json shows all)")
        if each.message:
            lines += [each.message, ""]
    usd, end = found.cost_usd, found.finish_s
    if usd is None or end is None:
        without = ", ".join(each.experiment for each in found.experiments if each.cost_usd is None)
        lines.append(f"cost and finish are not known: no offer is to be had for {without}")
    else:
        sure = f"; all on demand {found.on_demand_usd:.4g}" if found.on_demand_usd else ""
        lines.append(f"cost   {usd.mean:.4g} USD ({usd.p10:.4g} to {usd.p90:.4g}){sure}")
        lines.append(f"finish {duration(end.mean)} ({duration(end.p10)} to {duration(end.p90)})")
    if found.late_probability:
        lines.append(f"misses its deadline in {found.late_probability:.0%} of the samples")
    lines.append(f"{_prices_text(found)}; spread: tenth to ninetieth percentile")
    days = (datetime.now(UTC).date() - date.fromisoformat(found.catalogue_date)).days
    if days > _OLD_DAYS:
        lines.append(f"the catalogue's prices are {days} days old: compare them with today's")
    return "\n".join(lines)


def _prices_text(found: placement.Plan) -> str:
    """Of when the prices are."""
    ages = {
        one.offer: one.price_age_s
        for each in found.experiments for one in each.offers if one.price_age_s is not None
    }  # fmt: skip
    text = f"prices of {found.catalogue_date}"
    if ages:
        text += f"; spot of {len(ages)} offers live, {duration(max(ages.values()))} old"
    return text


def cost(json_output: Json = False) -> None:
    """Show what workflows have spent on machines, and what is paid for now."""
    with connect(notice=output.say) as client:
        found = placement.cost_message(client)
    facts = MessageToDict(
        found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )  # fmt: skip
    output.emit(facts, _cost_text(found), as_json=json_output)


def _cost_text(found: pb.GetCostResponse) -> str:
    rows, parts, notes = [], [], []
    for workflow in found.workflows:
        name = workflow.name.rpartition("/")[2]
        rows += [(name, each.offer, *_sums(each)) for each in workflow.offers]
        parts += [
            (name, each.experiment or "(the rest)", *_sums(each)) for each in workflow.experiments
        ]
        if workflow.message:
            notes.append(f"{name}: {workflow.message}")
    text = "nothing was spent"
    if rows:
        text = output.table(("WORKFLOW", "OFFER", *_SUMS), rows)
    if parts:
        text += "\n\n" + output.table(("WORKFLOW", "EXPERIMENT", *_SUMS), parts)
    if found.machines:
        machines = [
            (each.machine, each.offer, "spot" if each.spot else "on-demand", f"{each.usd_h:.4g}",
             each.workflow.rpartition("/")[2], "ending" if each.ending else "")
            for each in found.machines
        ]  # fmt: skip
        text += "\n\n" + output.table(("MACHINE", "OFFER", "SORT", "USD/h", "FOR", ""), machines)
    return "\n".join([text, *notes])


def _sums(each: pb.OfferCost | pb.ExperimentCost) -> tuple[object, ...]:
    return (
        f"{each.usd:.4g}", f"{each.machine_h:.3g}", f"{each.on_demand_usd:.4g}",
        f"{each.rework_usd:.3g}", f"{each.idle_usd:.3g}", f"{each.egress_usd:.3g}",
        each.launches, each.preemptions,
    )  # fmt: skip


def chaos(
    trace: Annotated[Path, typer.Option(help="a recording of spot machines (JSON or CSV)")],
    workflow: Annotated[str, typer.Argument(help="go on until it has ended")] = "",
    beside: Annotated[
        str, typer.Option(help="a command, such as 'hyper align SRC DST': until it has ended")
    ] = "",
    seconds: Annotated[float, typer.Option(help="else: for so long", min=1)] = 60.0,
    speed: Annotated[float, typer.Option(help="seconds of it a second", min=0.001)] = 600.0,
    least: Annotated[int, typer.Option(help="workers that are never killed", min=0)] = 0,
    spot_price: Annotated[float, typer.Option(help="USD an hour of one", min=0)] = 0.1,
    on_demand_price: Annotated[float, typer.Option(help="the same", min=0)] = 0.3,
    json_output: Json = False,
) -> None:
    """Kill and restart this machine's workers as a recording has it; report what it cost."""
    from hyper import chaos as drills
    from hyper.cluster.home import Home

    if workflow and beside:
        raise InvalidArgumentError("either a workflow or --beside: both say when to end")
    end = time.monotonic() + seconds
    with connect(notice=output.say) as client, drills.command(beside) as job:
        watched = client.workflow(workflow) if workflow else None
        before = drills.Spent.of(client)

        def going() -> bool:
            if job is not None:
                return job.poll() is None
            return not watched.refresh().state.ended if watched else time.monotonic() < end

        done = drills.drill(
            Home.default(), trace, going, output.say, speed=speed, least=least
        )  # fmt: skip
        status = watched.refresh() if watched else None
        spent = drills.Spent.of(client).since(before)
    whole_usd = done.workers * done.seconds / 3600 * on_demand_price
    facts = {
        "seconds": done.seconds,
        "kills": done.kills,
        "restarts": done.restarts,
        "usd": done.usd(spot_price),
        "on_demand_usd": whole_usd,
        "lost_attempts": status.tasks.lost if status else spent.lost_attempts,
        "state": str(status.state) if status else "",
        "exit_status": None if job is None else job.returncode,
        "ledger": spent.ledger,
    }
    text = (
        f"{done.kills} kills in {duration(done.seconds)}, {facts['lost_attempts']} attempts run "
        f"again; on spot machines {facts['usd']:.3g} USD, all on demand {whole_usd:.3g} USD"
    )
    if spent.ledger is not None:
        text += (
            f"\nmachines that were launched meanwhile: {spent.ledger['usd']:.3g} USD, of that "
            f"{spent.ledger['rework_usd']:.3g} for work done twice and "
            f"{spent.ledger['idle_usd']:.3g} idle; all on demand "
            f"{spent.ledger['on_demand_usd']:.3g} USD (`hyper cost`)"
        )
    output.emit(facts, text, as_json=json_output)
    if status is not None and status.state is not RunState.SUCCEEDED:
        raise WorkFailedError(f"{workflow} {status.state}: {status.message}")
    if job is not None and job.returncode:
        raise WorkFailedError(f"{beside!r} ended with status {job.returncode}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (plan, cost, chaos):
        app.command(command.__name__)(command)
