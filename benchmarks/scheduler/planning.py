"""Time to plan a workflow over how many tasks it has: `--only plan --plot FILE`."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from benchmarks.scheduler.cluster import recipe
from hyper.client import Client
from hyper_scheduler.core.parameters import count, parameters_writer
from hyper_scheduler.recipe import parse_recipe

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)


def plan(client: Client, quick: bool) -> dict[str, Any]:
    """Seconds by tasks: handed in (durable, first tasks listed), and every task's parameters.

    The parameters of a task are made when it is given out; all of them at once is the work that
    grows with the workflow.
    """
    sizes = SIZES[:-1] if quick else SIZES
    submitted = [[tasks, _submit_s(client, tasks)] for tasks in sizes]
    written = [[tasks, _write_s(tasks)] for tasks in sizes]
    (fewest, least_s), (most, most_s) = written[0], written[-1]
    return {
        "plan_seconds_by_tasks": submitted,
        "parameters_seconds_by_tasks": written,
        "plan_growth_exponent": math.log(most_s / least_s) / math.log(most / fewest),
    }


def _submit_s(client: Client, tasks: int) -> float:
    start = time.perf_counter()
    workflow = client.submit(recipe(tasks, 1, "plan"))
    next(iter(workflow.tasks("noop")))
    seconds = time.perf_counter() - start
    workflow.cancel("measured")
    workflow.wait(timeout_s=120)
    return seconds


def _write_s(tasks: int) -> float:
    (spec,) = parse_recipe(json.dumps(recipe(tasks, 1, "plan"))).experiments
    start = time.perf_counter()
    write = parameters_writer(spec)
    for index in range(count(spec)):
        write(index)
    return time.perf_counter() - start


def plot(figures: dict[str, Any], path: Path) -> None:
    """Both, on logarithmic axes, with what linear growth looks like."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4))
    for name, label in (
        ("parameters_seconds_by_tasks", "parameters of every task"),
        ("plan_seconds_by_tasks", "submit: durable, first tasks listed"),
    ):
        axis.plot(*zip(*figures[name], strict=True), marker="o", label=label)
    written = figures["parameters_seconds_by_tasks"]
    (first, least_s), last = written[0], written[-1][0]
    axis.plot([first, last], [least_s, least_s * last / first], "k:", label="linear")
    axis.set(xscale="log", yscale="log", xlabel="tasks", ylabel="seconds", title="time to plan")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
