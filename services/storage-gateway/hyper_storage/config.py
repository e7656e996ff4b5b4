"""Settings of the storage gateway."""

from __future__ import annotations

from pydantic import Field, SecretStr

from hyper_servicekit.config import S3Settings, ServiceSettings, settings_config


class Settings(ServiceSettings):
    """Settings of the storage gateway (environment: HYPER_STORAGE__...)."""

    model_config = settings_config("STORAGE")

    s3: S3Settings
    etcd_timeout_s: float = Field(default=5.0, gt=0, description="for each call to etcd")
    sign_lifetime_s: int = Field(default=900, ge=60, le=900, description="of presigned URLs")
    session_ttl_s: int = Field(default=86_400, ge=60, description="of a session nobody uses")
    session_ttl_max_s: int = Field(default=30 * 86_400, ge=60)
    request_memory_s: int = Field(
        default=86_400, ge=60, description="how long request ids and closed sessions are kept"
    )
    sweep_interval_s: float = Field(
        default=600.0, gt=0, description="between looks at old sessions"
    )
    page_entries: int = Field(default=65_536, ge=16, description="files on one manifest page")
    root_entries: int = Field(
        default=128, ge=0, description="changes of files in a root manifest; more make pages"
    )
    page_cache_entries: int = Field(
        default=1_000_000, ge=0, description="file entries of pages kept in memory"
    )
    session_arrays_max: int = Field(default=1_000, ge=1, description="arrays made in one session")
    commit_attempts: int = Field(default=20, ge=1, description="rebases of one commit")
    fragment_readers: int = Field(default=16, ge=1, description="fragments read at once")
    fragment_cache_entries: int = Field(
        default=1_000_000, ge=0, description="files of open sessions kept in memory"
    )
    shard_lease_s: float = Field(
        default=120.0, gt=0, description="how long a shard is reserved for a partial write"
    )
    write_object_max_bytes: int = Field(
        default=2**32, ge=1, description="of an object that is sent through the gateway"
    )
    write_object_streams: int = Field(
        default=8, ge=1, description="objects taken through the gateway at once; more wait"
    )
    quotas: dict[str, int] = Field(
        default_factory=dict, description="bytes that tenants may keep, by name; '*' for all others"
    )
    session_reserve_bytes: int = Field(
        default=2**30, ge=1, description="reserved at begin, of a session of a tenant with a quota"
    )
    credentials_key: SecretStr | None = Field(
        default=None,
        description="seals the credentials of registered stores; without it the S3 secret key "
        "does, and they are lost with that",
    )
    external_private: bool = Field(
        default=True, description="registered stores may be on this cluster's own network"
    )
    gc_grace_s: float = Field(
        default=3600.0, ge=0, description="objects younger than this are never garbage"
    )
    gc_grace_min_s: float = Field(
        default=900.0, ge=0, description="least grace that a request may ask for"
    )
    log_poll_s: float = Field(default=0.5, gt=0, description="between looks at a growing log")
    log_followers: int = Field(default=200, ge=1, description="logs followed at once")
