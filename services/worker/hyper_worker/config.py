"""Settings of the worker."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from hyper.config import split_endpoint
from hyper.errors import InvalidArgumentError
from hyper_servicekit.config import ServiceSettings, settings_config
from hyper_worker.notices import METADATA_URL


class WorkerSettings(ServiceSettings):
    """Settings of the worker: HYPER_WORKER__<NAME>, or a YAML file."""

    model_config = settings_config("WORKER")

    scheduler_endpoint: str = Field(
        default="", description="host:port[,host:port]; empty: HYPER_ENDPOINT, else `hyper up`'s"
    )
    slots: int = Field(
        default_factory=lambda: len(os.sched_getaffinity(0)), gt=0, le=4096,
        description="tasks that run at once; by default one a core",
    )  # fmt: skip
    labels: dict[str, str] = Field(default_factory=dict, description="facts for placement")
    workdir: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()) / f"hyper-worker-{os.getuid()}",
        description="scratch folders of tasks, and unpacked work folders",
    )
    isolation: Literal["none", "user"] = Field(
        default="none",
        description="of processes: 'user' gives each a user and a view of its own (needs root)",
    )
    first_user_id: int = Field(
        default=64_000, gt=0, lt=2**31, description="of those for tasks; one a slot and two more"
    )
    container_user: str = Field(
        default_factory=lambda: f"{os.getuid()}:{os.getgid()}" if os.getuid() else "64999:64999",
        pattern=r"^[0-9]+:[0-9]+$", description="uid:gid of programs in containers",
    )  # fmt: skip
    container_pids: int = Field(default=4096, gt=0, description="processes in one container")
    container_memory_bytes: int = Field(
        default=0, ge=0, description="of one whose recipe promises none; 0: no limit"
    )
    container_tmp_bytes: int = Field(default=1 << 30, gt=0, description="of its /tmp, in memory")
    guard_metadata: bool = Field(
        default=True, description="no network for containers that could reach a cloud's credentials"
    )
    cloud: Literal["", "aws", "gcp"] = Field(
        default="", description="whose notices of preemption are asked for; SIGTERM is one anyway"
    )
    metadata_url: str = Field(default=METADATA_URL, description="where that cloud answers")
    notice_every_s: float = Field(default=2.0, gt=0, description="between looks for a notice")
    cache_bytes: int = Field(
        default=20 << 30, ge=0, description="of work folders and inputs that nobody uses"
    )
    connect_timeout_s: float = Field(default=10.0, gt=0, description="for the scheduler's Welcome")
    fetch_patience_s: float = Field(
        default=60.0, ge=0, description="how long a work folder's gateway is waited for"
    )
    report_delay_s: float = Field(
        default=0.005, ge=0, le=1, description="reports are gathered for this long"
    )
    leave_reports_s: float = Field(
        default=3.0, ge=0, description="when leaving, how long reports and logs are waited for"
    )
    log_flush_s: float = Field(default=0.5, gt=0, description="output is shipped at least so often")
    log_spool_bytes: int = Field(
        default=256 << 20, gt=0, description="output kept while the gateway is away, all tasks"
    )
    log_memory_bytes: int = Field(
        default=1 << 20, gt=0, description="output of one task kept in memory; the rest on disk"
    )

    @field_validator("scheduler_endpoint")
    @classmethod
    def _addresses(cls, value: str) -> str:
        if value:
            try:
                split_endpoint(value)
            except InvalidArgumentError as error:
                raise ValueError(str(error)) from error
        return value
