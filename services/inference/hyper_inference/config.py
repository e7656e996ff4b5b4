"""Settings of the inference service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from hyper_servicekit.config import ServiceSettings, settings_config


class InferenceSettings(ServiceSettings):
    """Settings of the inference service (environment: HYPER_INFERENCE__...)."""

    model_config = settings_config("INFERENCE")

    scheduler_endpoint: str | None = Field(
        default=None, description="host:port[,host:port]; by which storage is found"
    )
    etcd_timeout_s: float = Field(default=5.0, gt=0, description="for each call to etcd")
    threads: int | None = Field(default=None, ge=1, description="that run one net; default all")
    workers: int = Field(default=4, ge=1, description="calls served at once; one computes")
    queue: int = Field(default=64, ge=0, description="calls that may wait; more are refused")
    model_bytes: int = Field(default=2**30, ge=1, description="largest model file")
    cache_bytes: int = Field(default=2**31, ge=1, description="memory of loaded models and nets")
    net_bytes: int = Field(default=2**33, ge=1, description="memory of one net at work")
    input_bytes: int = Field(default=2**30, ge=1, description="largest input of Predict")
    block_bytes: int = Field(default=2**27, ge=2**16, description="output kept by InferVolume")
    patch_voxels: int = Field(
        default=2**22, ge=1, description="about how many a patch has if none is asked for"
    )
    code_cache: Path | None = Field(default=None, description="folder of compiled code")
