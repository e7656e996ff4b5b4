"""The scheduler's settings; the environment sets them as `HYPER_SCHEDULER__...`."""

from __future__ import annotations

from pydantic import Field

from hyper_servicekit.config import S3Settings, ServiceSettings, settings_config


class SchedulerSettings(ServiceSettings):
    """Settings of the scheduler service."""

    model_config = settings_config("SCHEDULER")

    s3: S3Settings
    max_concurrent_rpcs: int = Field(default=20_000, gt=0, description="a stream a worker and more")
    heartbeat_s: float = Field(default=1.5, gt=0, description="how often a worker shows it lives")
    lease_s: float = Field(default=6.0, gt=0, description="a worker silent for longer is lost")
    leader_ttl_s: float = Field(default=5.0, ge=1, description="a silent leader loses the lead")
    gather_s: float = Field(default=0.05, ge=0, description="completions are gathered for this")
    watch_interval_s: float = Field(default=0.1, ge=0, description="least time between updates")
    request_ttl_s: float = Field(default=86_400, gt=0, description="answers to repeats are kept")
    max_events: int = Field(default=10_000, gt=0, description="events that wait for the loop")
    max_link_messages: int = Field(default=10_000, gt=0, description="that wait for one worker")
    max_page_size: int = Field(default=1_000, gt=0, description="items in a page of a list")
    max_slots: int = Field(default=4_096, gt=0, description="slots that one worker may offer")
