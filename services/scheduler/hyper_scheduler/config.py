"""The scheduler's settings; the environment sets them as `HYPER_SCHEDULER__...`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from hyper_scheduler.core.state import Quota
from hyper_servicekit.config import S3Settings, ServiceSettings, settings_config
from hyper_servicekit.tokens import LIFETIME_MAX_S


class TenantSettings(BaseModel):
    """What one tenant may have; 0: no bound."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=1.0, gt=0, description="its share of slots that several want")
    workflows: int = Field(default=0, ge=0, description="that have not ended")
    tasks: int = Field(default=0, ge=0, description="of these workflows")
    slots: int = Field(default=0, ge=0, description="in use at once")

    def quota(self) -> Quota:
        """As the core has it."""
        return Quota(self.weight, self.workflows, self.tasks, self.slots)


class MachineTls(BaseModel):
    """How machines that the scheduler launches speak TLS to the cluster; PEM files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca: Path | None = Field(default=None, description="the cluster's authority; "
                            "None: HYPER_TLS_CA")  # fmt: skip
    cert: Path | None = Field(default=None, description="that machines show, where services ask "
                              "for one (`hyper certs --client`)")  # fmt: skip
    key: Path | None = Field(default=None, description="its private key")


class PlacementSettings(BaseModel):
    """Machines that the scheduler launches and ends by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    offers: Path | None = Field(
        default=None, description="the catalogue (YAML); None: machines are started by others"
    )
    prometheus: str = Field(default="", description="URL of the Prometheus that scrapes us")
    cluster: str = Field(default="", description="machines carry it as a tag; empty: `hyper-` and "
                         "digits of this deployment, kept in etcd")  # fmt: skip
    endpoint: str = Field(
        default="", description="of schedulers, as machines reach them; empty: our own address"
    )
    tls: MachineTls = Field(default=MachineTls())
    interval_s: float = Field(default=5.0, gt=0, description="between two looks")
    prices_every_s: float = Field(default=600.0, ge=0, description="live prices of spot machines "
                                  "are asked for, where providers tell; 0: never")  # fmt: skip
    drain_s: float = Field(default=30.0, ge=0, description="for a running task to save "
                           "its checkpoint on a machine that is replaced")  # fmt: skip
    join_s: float = Field(default=600.0, gt=0, description="a machine whose agent is not here "
                          "after this is given up")  # fmt: skip
    silent_s: float = Field(default=60.0, gt=0, description="a machine whose agent has gone away "
                            "for so long is replaced")  # fmt: skip
    max_machines: int = Field(default=100, ge=0, description="launched and not yet gone, in all")
    window: str = Field(
        default="30s", pattern=r"^[1-9][0-9]{0,5}[smh]$", description="the shortest over which "
        "throughput is measured; of 4 and 16 times this where few tasks have ended"
    )  # fmt: skip
    use_own_first: bool = Field(
        default=True, description="workers that are there anyway count before any is launched"
    )
    options: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="by provider; see its module"
    )


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
    kept_s: float = Field(
        default=30 * 86_400, ge=0, description="ended workflows are kept for this; 0: for ever"
    )
    kept_workflows: int = Field(
        default=1_000, ge=0, description="ended workflows kept at most; 0: no bound"
    )
    kept_pages: int = Field(
        default=50_000, ge=0, description="pages (4,096 tasks each) of these; 0: no bound"
    )
    kept_least_s: float = Field(
        default=600.0, ge=0, description="none goes sooner because there are too many"
    )
    compact_mb: float = Field(
        default=32.0, ge=0, description="written before etcd's history is cut; 0: never"
    )
    max_events: int = Field(default=10_000, gt=0, description="events that wait for the loop")
    max_link_messages: int = Field(default=10_000, gt=0, description="that wait for one worker")
    max_page_size: int = Field(default=1_000, gt=0, description="items in a page of a list")
    secrets_key: SecretStr = Field(
        default=SecretStr(""),
        description="32 bytes in base64; more after commas: the first encrypts, all decrypt",
    )
    task_token_s: float = Field(
        default=7 * 86_400, gt=0, le=LIFETIME_MAX_S,
        description="life of the tokens that tasks call services with",
    )  # fmt: skip
    max_slots: int = Field(default=4_096, gt=0, description="slots that one worker may offer")
    tenants: dict[str, TenantSettings] = Field(
        default_factory=dict, description="weights and quotas by tenant"
    )
    placement: PlacementSettings = Field(default=PlacementSettings())
    other_tenants: TenantSettings = Field(
        default=TenantSettings(), description="of tenants that `tenants` does not name"
    )
