"""`python -m hyper_scheduler`: settings, etcd, objects, the driver, the services."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from hyper.errors import FailedPreconditionError
from hyper_scheduler import metrics
from hyper_scheduler.autoscaler import Autoscaler
from hyper_scheduler.catalogue import parse_catalogue
from hyper_scheduler.config import SchedulerSettings
from hyper_scheduler.driver import Driver
from hyper_scheduler.issuing import machine_token, signer_of
from hyper_scheduler.measured import Prometheus
from hyper_scheduler.placement_servicer import PlacementServicer
from hyper_scheduler.providers.make import make_providers
from hyper_scheduler.relay import Relay
from hyper_scheduler.secret_servicer import SecretServicer
from hyper_scheduler.servicer import AgentServicer, ClusterServicer, NodeServicer
from hyper_scheduler.steady import SteadyClock
from hyper_scheduler.store import Store
from hyper_scheduler.term import Term
from hyper_scheduler.vault import Vault, read_keys
from hyper_scheduler.web.pages import StatusPages
from hyper_scheduler.workflow_servicer import WorkflowServicer
from hyper_servicekit.announce import announce
from hyper_servicekit.clock import Clock, SystemClock
from hyper_servicekit.config import load_settings, split_address
from hyper_servicekit.etcd import Etcd
from hyper_servicekit.objects import S3Store
from hyper_servicekit.owned import owned
from hyper_servicekit.revoked import watch_revoked
from hyper_servicekit.server import Running, Served, run_service
from hyperapi.scheduler.v1 import cluster_service_pb2_grpc as cluster
from hyperapi.scheduler.v1 import placement_service_pb2_grpc as placement
from hyperapi.scheduler.v1 import secret_service_pb2_grpc as secret
from hyperapi.scheduler.v1 import workflow_service_pb2_grpc as workflow
from hyperapi.worker.v1 import agent_service_pb2_grpc as agent

_COLLECT_EVERY_S = 600.0


def main() -> int:
    """Run the service; returns its exit status."""
    settings = load_settings(SchedulerSettings)

    async def build(running: Running) -> Sequence[Served]:
        clock = SteadyClock(SystemClock())
        etcd = await running.stack.enter_async_context(Etcd.of(settings))
        objects = await running.stack.enter_async_context(S3Store(settings.s3))
        store = Store(
            etcd, objects, settings.etcd_prefix, settings.request_ttl_s,
            compact_bytes=settings.compact_mb * 1e6,
        )  # fmt: skip
        vault = Vault(
            etcd, settings.etcd_prefix, read_keys(settings.secrets_key.get_secret_value()), clock
        )
        relay = Relay()
        make_autoscaler = _placement(settings, store, clock)
        driver = Driver(settings, etcd, store, clock, running.instance, make_autoscaler)

        async def lead() -> None:
            try:
                await driver.run(running.address)
            except Exception as error:
                running.failure = f"the scheduler's loop has failed: {error}"
                running.stop.set()
                raise

        async def start() -> None:
            await running.stack.enter_async_context(owned(lead(), "driver"))

        host = split_address(running.metrics_address)[0]
        pages = StatusPages(
            lambda: running.address, loopback=host in ("127.0.0.1", "::1", "localhost")
        )
        running.stack.callback(pages.close)
        running.pages = pages.answer
        await watch_revoked(running, etcd)
        await announce(running, etcd, prefix=settings.etcd_prefix)
        running.on_bound.append(start)
        running.on_drain.append(driver.drain)
        return [
            Served(
                "hyperapi.scheduler.v1.WorkflowService",
                workflow.add_WorkflowServiceServicer_to_server,
                WorkflowServicer(settings, driver, store, clock),
            ),
            Served(
                "hyperapi.scheduler.v1.NodeService",
                workflow.add_NodeServiceServicer_to_server,
                NodeServicer(settings, driver, clock, relay),
            ),
            Served(
                "hyperapi.scheduler.v1.ClusterService",
                cluster.add_ClusterServiceServicer_to_server,
                ClusterServicer(driver, etcd, settings.etcd_prefix, signer_of(settings), clock),
            ),
            Served(
                "hyperapi.worker.v1.AgentService",
                agent.add_AgentServiceServicer_to_server,
                AgentServicer(settings, driver, clock, relay, vault),
            ),
            Served(
                "hyperapi.scheduler.v1.PlacementService",
                placement.add_PlacementServiceServicer_to_server,
                PlacementServicer(driver),
            ),
            Served(
                "hyperapi.scheduler.v1.SecretService",
                secret.add_SecretServiceServicer_to_server,
                SecretServicer(vault),
            ),
        ]

    return run_service("scheduler", settings, build, collect_every_s=_COLLECT_EVERY_S)


def _placement(
    settings: SchedulerSettings, store: Store, clock: Clock
) -> Callable[[Term, str], Autoscaler] | None:
    """Makes the autoscaler of a term, if there is a catalogue of offers."""
    placed = settings.placement
    if placed.offers is None:
        return None
    try:
        catalogue = parse_catalogue(placed.offers.read_text())
    except OSError as error:
        raise FailedPreconditionError(
            f"the catalogue of offers {placed.offers} cannot be read ({error.strerror}); see "
            "HYPER_SCHEDULER__PLACEMENT__OFFERS"
        ) from error
    metrics.know_offers(offer.name for offer in catalogue.offers)
    providers = make_providers(catalogue.offers, placed.cluster, placed.options)
    prometheus = Prometheus(placed.prometheus, placed.window)

    def make(term: Term, address: str) -> Autoscaler:
        return Autoscaler(
            placed, catalogue, providers, prometheus, term, store, clock,
            placed.endpoint or address,
            lambda machine: machine_token(signer_of(settings), machine, clock.now()),
        )  # fmt: skip

    return make


if __name__ == "__main__":
    sys.exit(main())
