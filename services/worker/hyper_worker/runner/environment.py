"""What a task finds in its environment."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from hyper.context import ATTEMPT, PARAMETERS, TASK
from hyper_servicekit import tracing
from hyper_worker.core.model import Job
from hyper_worker.runner.place import Place
from hyper_worker.runner.trust import trust_environment

# Settings of services (HYPER_STORAGE__S3__SECRET_KEY, ...) are not the tasks' business.
_SETTING = re.compile(r"HYPER_[A-Z]+__")
_HARMLESS = re.compile(
    r"(PATH|LANG|LC_\w+|TZ|TERM|PYTHON\w+|VIRTUAL_ENV|LD_LIBRARY_PATH|CUDA_\w+|NVIDIA_\w+"
    r"|\w+_NUM_THREADS|NUMBA_\w+|SSL_CERT_FILE)\Z"
)


def base_environment(
    endpoint: str,
    extra: Mapping[str, str],
    *,
    token: str = "",
    isolated: bool = False,
    site: Path | None = None,
) -> dict[str, str]:
    """The worker's own environment without settings of services, plus the recipe's.

    Where tasks have a `token`, it stands in the place of the worker's.

    `python` is the worker's interpreter, so that commands find what functions find. An isolated
    task gets nothing of the worker's that is not harmless; what a setup has installed in `site`
    comes first.
    """
    own = {k: v for k, v in os.environ.items() if not _SETTING.match(k)}
    environment = {k: v for k, v in own.items() if not isolated or _HARMLESS.match(k)}
    if isolated:
        environment |= trust_environment()
    programs = [str(Path(sys.executable).parent), *filter(None, [environment.get("PATH")])]
    if site is not None:
        programs.insert(0, str(site / "bin"))
        _put_first(environment, "PYTHONPATH", str(site))
    environment["PATH"] = os.pathsep.join(programs)
    environment["PYTHONUNBUFFERED"] = "1"
    if endpoint:
        environment["HYPER_ENDPOINT"] = endpoint
    environment |= token_environment(token)
    if token:
        environment.pop("HYPER_TOKEN_FILE", None)
    environment.update(extra)
    return environment


def token_environment(token: str) -> dict[str, str]:
    """What makes the SDK show this token."""
    return {"HYPER_TOKEN": token} if token else {}


def command_environment(
    endpoint: str, job: Job, place: Place, *, isolated: bool = False
) -> dict[str, str]:
    """The environment of a command: the above, the work folder's modules, which attempt it is."""
    environment = base_environment(
        endpoint, dict(job.env), token=job.token, isolated=isolated, site=place.site
    )
    if job.workdir:
        _put_first(environment, "PYTHONPATH", str(place.cwd))
    if isolated:
        environment["HOME"] = str(place.cwd)
    return {
        **environment,
        **place.environment,
        **gpu_environment(place.gpus, job.around.needs.gpus),
        TASK: job.key.task,
        ATTEMPT: job.key.attempt,
        PARAMETERS: job.parameters_json,
        **trace_environment(job),
    }


def trace_environment(job: Job) -> dict[str, str]:
    """What makes the calls of a task a part of its attempt's trace; nothing without traces."""
    parent = tracing.traceparent(job.key.task, job.key.attempt)
    return {tracing.TRACEPARENT: parent} if parent else {}


def gpu_environment(indices: tuple[int, ...], wanted: int) -> dict[str, str]:
    """What makes a program use these GPUs alone."""
    if not wanted:
        return {}
    shown = ",".join(map(str, indices))
    return {"CUDA_VISIBLE_DEVICES": shown, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _put_first(environment: dict[str, str], name: str, path: str) -> None:
    others = environment.get(name)
    environment[name] = f"{path}{os.pathsep}{others}" if others else path
