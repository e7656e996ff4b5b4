"""Settings of the matcher."""

from __future__ import annotations

import os

from pydantic import Field

from hyper_servicekit.config import ServiceSettings, settings_config


class Settings(ServiceSettings):
    """Settings of the matcher (environment: HYPER_MATCHER__...)."""

    model_config = settings_config("MATCHER")

    scheduler_endpoint: str | None = Field(
        default=None, description="host:port[,host:port] of schedulers; through them it finds data"
    )
    etcd_timeout_s: float = Field(default=5.0, gt=0, description="for each call to etcd")
    announce_ttl_s: float = Field(default=10.0, ge=1, description="of the entry others find it by")
    threads: int = Field(
        default=max(1, os.cpu_count() or 1), ge=1, description="pairs matched at once"
    )
    queue: int = Field(default=64, ge=0, description="calls that wait for a thread, at most")
    retry_after_s: float = Field(default=1.0, gt=0, description="told to those turned away")
    sections_cached: int = Field(
        default=8, ge=2, description="prepared sections kept for all calls"
    )
    section_pixels_max: int = Field(default=2**28, ge=1, description="of one section")
    pairs_max: int = Field(default=10_000, ge=1, description="of one call")
    points_max: int = Field(default=100_000, ge=1, description="of one call with inline images")
    matches_a_message: int = Field(default=20_000, ge=1, description="longer results are cut up")
