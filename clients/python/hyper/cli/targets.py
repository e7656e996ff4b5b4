"""What people type to name a workflow, an experiment or a task."""

from __future__ import annotations

from dataclasses import dataclass

from hyper.errors import InvalidArgumentError
from hyper.names import check_part


@dataclass(frozen=True, slots=True)
class Target:
    """A place within the tree of a workflow.

    Args:
        workflow: its id, or its resource name.
        experiment: as the recipe has it.
        index: of a task.
    """

    workflow: str
    experiment: str | None = None
    index: int | None = None


def parse_target(text: str) -> Target:
    """Read `WORKFLOW[/EXPERIMENT[/INDEX]]`, or a full resource name.

    Raises:
        InvalidArgumentError: it is neither.
    """
    parts = text.split("/")
    prefix = ""
    if parts[0] == "tenants" and len(parts) in (4, 6, 8):
        fixed = ["tenants", "workflows", "experiments", "tasks"]
        if parts[::2] != fixed[: len(parts) // 2]:
            raise _wrong(text)
        prefix = f"tenants/{parts[1]}/workflows/"
        parts = parts[3::2]
    if not 1 <= len(parts) <= 3 or (len(parts) == 3 and not parts[2].isdecimal()):
        raise _wrong(text)
    workflow = prefix + check_part(parts[0], "workflow")
    experiment = check_part(parts[1], "experiment") if len(parts) > 1 else None
    return Target(workflow, experiment, int(parts[2][:18]) if len(parts) > 2 else None)


def _wrong(text: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{text[:80]!r} names no workflow or task: write WORKFLOW or WORKFLOW/EXPERIMENT/INDEX, "
        "as `hyper ps` and `hyper tasks` print them",
        reason="INVALID_NAME",
    )
