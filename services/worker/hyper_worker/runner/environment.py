"""What a task finds in its environment."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from hyper.context import ATTEMPT, PARAMETERS, TASK
from hyper_worker.core.model import Job

# Settings of services (HYPER_STORAGE__S3__SECRET_KEY, ...) are not the tasks' business.
_SETTING = re.compile(r"HYPER_[A-Z]+__")


def base_environment(endpoint: str, extra: Mapping[str, str]) -> dict[str, str]:
    """The worker's own environment without settings of services, plus the recipe's.

    `python` is the worker's interpreter, so that commands find what functions find.
    """
    environment = {k: v for k, v in os.environ.items() if not _SETTING.match(k)}
    programs = [str(Path(sys.executable).parent), *filter(None, [environment.get("PATH")])]
    environment["PATH"] = os.pathsep.join(programs)
    environment["PYTHONUNBUFFERED"] = "1"
    if endpoint:
        environment["HYPER_ENDPOINT"] = endpoint
    environment.update(extra)
    return environment


def command_environment(endpoint: str, job: Job, folder: Path) -> dict[str, str]:
    """The environment of a command: the above, the work folder's modules, which attempt it is."""
    environment = base_environment(endpoint, dict(job.env))
    if job.workdir:
        others = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{folder}{os.pathsep}{others}" if others else str(folder)
    return {
        **environment,
        TASK: job.key.task,
        ATTEMPT: f"{job.key.epoch}.{job.key.number}",
        PARAMETERS: job.parameters_json,
    }
