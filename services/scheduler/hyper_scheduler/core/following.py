"""Which tasks of an experiment may start: all of it at once, or task by task behind others."""

from __future__ import annotations

from hyper_scheduler.core.pages import PAGE_TASKS, PageKey, Status
from hyper_scheduler.core.state import ExperimentRun, State, WorkflowRun


def begin(workflow: WorkflowRun, run: ExperimentRun) -> None:
    """An experiment runs from now on: what may start is put in line."""
    run.rewind()
    for page in run.pages.values():
        for index, record in page.records.items():
            if record.status is Status.PENDING:
                run.wait_again(index, record)
    if not run.spec.each:
        if run.spec.gang > 1:
            run.gangs.add_below(run.units)
        return
    first, *others = (workflow.experiments[name] for name in run.spec.each)
    for number, page in first.pages.items():
        _open(workflow, run, first, number, page.durable, only=not others)


def follow(state: State, key: PageKey, new: int) -> None:
    """Tasks of a page are durably done: those that follow them one by one may start."""
    workflow = state.workflows[key.workflow]
    before = workflow.experiments[key.experiment]
    for name in before.feeds:
        run = workflow.experiments[name]
        if run.state.value == "running":
            _open(workflow, run, before, key.page, new, only=len(run.spec.each) == 1)
            state.wake = True


def _open(
    workflow: WorkflowRun, run: ExperimentRun, before: ExperimentRun, number: int, bits: int,
    *, only: bool,
) -> None:  # fmt: skip
    """Put in line what follows the tasks `bits` of page `number`."""
    if only and run.spec.gang == before.spec.gang == 1:
        run.open.add_page(number, bits)
        return
    units: set[int] = set()
    while bits:
        place = (bits & -bits).bit_length() - 1
        bits &= bits - 1
        units.add((number * PAGE_TASKS + place) // before.spec.gang)
    needed = [workflow.experiments[name] for name in run.spec.each]
    for unit in units:
        if all(_is_durable(each, unit) for each in needed):
            (run.open if run.spec.gang == 1 else run.gangs).add(unit)


def _is_durable(run: ExperimentRun, unit: int) -> bool:
    """Whether a task, or all of a gang, is durably done."""
    for index in run.gang_of(unit * run.spec.gang):
        page = run.pages.get(index // PAGE_TASKS)
        if page is None or not page.durable >> (index % PAGE_TASKS) & 1:
            return False
    return True
