"""Tasks that compete: what they report, who is stopped early, whose parameters are chosen next."""

from __future__ import annotations

import json
from bisect import bisect_left, insort

from hyper_scheduler.core.commands import Suggest, TrialView
from hyper_scheduler.core.events import MetricReport
from hyper_scheduler.core.model import Asha, Objective, TaskId
from hyper_scheduler.core.pages import Record, Status, Trial
from hyper_scheduler.core.state import ExperimentRun, WorkflowRun


def _goodness(objective: Objective, value: float) -> float:
    return value if objective.maximize else -value


def take_metric(run: ExperimentRun, report: MetricReport) -> tuple[bool, bool]:
    """Work in what an attempt says of itself.

    Returns:
        Whether the page must be written, and whether the task is to be stopped.
    """
    objective = run.spec.objective
    value = dict(report.metrics).get(objective.metric) if objective is not None else None
    if objective is None or value is None:
        return False, False
    trial = run.page(report.task.index).trials.setdefault(report.task.index, Trial())
    trial.step, trial.value = report.step, value
    written = _take_best(run, objective, report.task.index, value)
    if objective.asha is not None and not trial.stopped:
        passed = _climb(run, objective.asha, trial, _goodness(objective, value))
        written = written or passed
    return written, trial.stopped


def _climb(run: ExperimentRun, asha: Asha, trial: Trial, goodness: float) -> bool:
    """Compare a task at the steps that it has come to; whether it has come to one."""
    passed = False
    while trial.step >= asha.min_steps * asha.reduction ** len(trial.rungs):
        passed = True
        number = len(trial.rungs)
        trial.rungs.append(goodness)
        if number == len(run.rungs):
            run.rungs.append([])
        rung = run.rungs[number]
        insort(rung, goodness)
        best = len(rung) // asha.reduction
        if best and goodness < rung[-best]:
            trial.stopped = True
            break
    return passed


def _take_best(run: ExperimentRun, objective: Objective, index: int, value: float) -> bool:
    better = run.best is None or _goodness(objective, value) > _goodness(objective, run.best[0])
    if better:
        run.best = (value, index)
        run.message = f"best {objective.metric} so far: {value:g}, by task {index}"
    return better


def take_result(run: ExperimentRun, index: int, result_json: str) -> None:
    """A task has succeeded: its result may name the objective's last value."""
    objective = run.spec.objective
    assert objective is not None
    result = json.loads(result_json) if result_json else None
    value = result.get(objective.metric) if isinstance(result, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        trial = run.page(index).trials.setdefault(index, Trial())
        trial.value = float(value)
        _take_best(run, objective, index, trial.value)


def restore_trials(run: ExperimentRun) -> None:
    """Rebuild what is known of all tasks together."""
    objective = run.spec.objective
    if objective is None:
        return
    for page in run.pages.values():
        for index, trial in page.trials.items():
            if trial.value is not None:
                _take_best(run, objective, index, trial.value)
            for number, goodness in enumerate(trial.rungs):
                if number == len(run.rungs):
                    run.rungs.append([])
                rung = run.rungs[number]
                rung.insert(bisect_left(rung, goodness), goodness)


def stopped_line(run: ExperimentRun, task: TaskId, record: Record, trial: Trial, now: float) -> str:
    """The result of a task that was stopped because others did better."""
    metric = run.spec.objective.metric if run.spec.objective is not None else ""
    result = {"stopped_early": True, "step": trial.step, metric: trial.value}
    line = {
        "i": task.index, "attempt": record.attempt, "worker": record.worker,
        "failures": record.failures, "losses": record.losses,
        "start": record.start_time, "end": now, "wall_s": max(0.0, now - record.start_time),
        "cpu_s": 0.0, "peak_rss_bytes": 0, "result": json.dumps(result),
    }  # fmt: skip
    return json.dumps(line, separators=(",", ":"))


def ask_for_parameters(workflow: WorkflowRun, run: ExperimentRun, index: int) -> Suggest:
    """Have the parameters of a task chosen, in the light of all before it."""
    run.suggesting = index
    history: list[TrialView] = []
    for number in sorted(run.pages):
        page = run.pages[number]
        for each, trial in sorted(page.trials.items()):
            record = page.records.get(each)
            failed = record is not None and record.status is Status.FAILED
            ended = page.is_done(each) or failed
            value = trial.value if ended and not failed else None
            history.append(TrialView(trial.parameters_json, value, not ended))
    return Suggest(workflow.name, run.spec.name, index, tuple(history))
