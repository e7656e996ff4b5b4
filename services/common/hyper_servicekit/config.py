"""Settings of a service: defaults < YAML file (`--config`) < environment < command line.

Each service subclasses `ServiceSettings` and sets `model_config = settings_config("SCHEDULER")`;
then `HYPER_SCHEDULER__LISTEN=...` sets `listen`, `HYPER_SCHEDULER__S3__BUCKET` sets `s3.bucket`.
Read once in `__main__`, passed down; frozen.
"""

from __future__ import annotations

import argparse
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from hyper_servicekit.signing import read_key
from hyper_servicekit.tls import EtcdTlsSettings, TlsSettings


def settings_config(service: str) -> SettingsConfigDict:
    """The model_config of a service's settings."""
    return SettingsConfigDict(
        env_prefix=f"HYPER_{service}__", env_nested_delimiter="__", frozen=True, extra="forbid"
    )


def split_address(address: str) -> tuple[str, int]:
    """`host:port` taken apart.

    Raises:
        ValueError: it is not host:port.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is not host:port")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name, which may mean anything; "" is every address
        return False


def _checked_address(address: str) -> str:
    split_address(address)
    return address


def _checked_endpoint(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
        raise ValueError(f"{endpoint!r} is not http(s)://host:port")
    return endpoint


def _checked_keys(keys: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for name, key in keys.items():
        try:
            read_key(key.get_secret_value())
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return keys


HostPort = Annotated[str, AfterValidator(_checked_address)]
Endpoint = Annotated[str, AfterValidator(_checked_endpoint)]


class S3Settings(BaseModel):
    """Where bytes live: one bucket, everything under `prefix`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: Endpoint = Field(description="http(s)://host:port as this service reaches it")
    bucket: str = "hyper"
    prefix: str = ""
    region: str = "us-east-1"
    access_key: str
    secret_key: SecretStr
    public_endpoint: Endpoint | None = Field(
        default=None, description="as clients reach it; presigned URLs name it"
    )
    public_by_address: bool = Field(
        default=False,
        description="presigned URLs hold its IP address, for clients that do not know its name",
    )
    ca: Path | None = Field(
        default=None, description="the authority of https endpoints, where it is a private one"
    )
    create_bucket: bool = Field(default=False, description="make the bucket if it is not there")


class ServiceSettings(BaseSettings):
    """What every service has."""

    listen: HostPort = Field(
        default="127.0.0.1:0", description="host:port of gRPC; port 0: any free"
    )
    advertise: HostPort | None = Field(
        default=None, description="host:port that others dial; port 0: the one that is bound"
    )
    metrics_listen: HostPort = Field(
        default="127.0.0.1:0", description="host:port of /metrics, /healthz"
    )
    etcd_endpoints: tuple[HostPort, ...] = Field(
        default=(), description="host:port of etcd members"
    )
    etcd_prefix: str = "/hyper"
    etcd_tls: EtcdTlsSettings | None = None
    etcd_user: str = Field(default="", description="where etcd asks who we are")
    etcd_password: SecretStr = Field(default=SecretStr(""), description="of that user")
    tls: TlsSettings | None = Field(default=None, description="of gRPC and of the metrics")
    instance: str | None = Field(default=None, description="unique name of this replica")
    ready_file: Path | None = Field(default=None, description="written once the service serves")
    log_format: str = Field(default="console", pattern="^(console|json)$")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    drain_grace_s: float = Field(default=10.0, ge=0, description="for calls in flight on SIGTERM")
    auth_keys: Annotated[dict[str, SecretStr], AfterValidator(_checked_keys)] = Field(
        default_factory=dict,
        description="keys of tokens by their ids (`hyper_servicekit.signing`), of schedulers the "
        "first signs; calls need no token where there are none",
    )
    allow_anyone: bool = Field(
        default=False,
        description="without auth_keys, listen where other machines can call: they may do all",
    )
    max_concurrent_rpcs: int = Field(
        default=1000, gt=0, description="served at once; more are refused until some have ended"
    )
    traces_endpoint: Endpoint | None = Field(
        default=None,
        description="http(s)://host:port of an OTLP/gRPC collector; no traces where it is not set",
    )
    calls_per_s: float = Field(
        default=0.0, ge=0, description="of one token's bearer, with bursts of as many; 0: no bound"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment beats the file, which arrives as init arguments."""
        return env_settings, init_settings


S = TypeVar("S", bound=ServiceSettings)


def load_settings(kind: type[S], argv: list[str] | None = None) -> S:
    """Read the settings; on a mistake print one line that names it and exit with 2."""
    parser = argparse.ArgumentParser(description=kind.__doc__)
    parser.add_argument("--config", type=Path, help="YAML file with settings")
    arguments = parser.parse_args(argv)
    values: dict[str, Any] = {}
    try:
        if arguments.config is not None:
            loaded = yaml.safe_load(arguments.config.read_text())
            if loaded is not None and not isinstance(loaded, dict):
                raise ValueError("the file must hold a mapping of settings")
            values = loaded or {}
        return kind(**values)
    except (OSError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            prefix = str(kind.model_config.get("env_prefix"))
            where = "__".join(str(part) for part in first["loc"])
            text = f"setting {prefix}{where.upper()}: {first['msg']}"
        else:
            text = f"settings in {arguments.config or 'the environment'}: {error}"
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)
