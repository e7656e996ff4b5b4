"""`python -m hyper_storage`: the storage gateway."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence

from hyper.errors import HyperError
from hyper_servicekit.announce import announce
from hyper_servicekit.clock import SystemClock
from hyper_servicekit.config import load_settings
from hyper_servicekit.etcd import Etcd
from hyper_servicekit.logs import get_logger
from hyper_servicekit.objects import S3Store
from hyper_servicekit.owned import owned
from hyper_servicekit.revoked import watch_revoked
from hyper_servicekit.server import Running, Served, run_service
from hyper_storage.array_servicer import ArrayServicer, ArraysShown
from hyper_storage.catalog import Catalog
from hyper_storage.commit import Committer
from hyper_storage.config import Settings
from hyper_storage.external import Externals
from hyper_storage.files.fragments import Fragments
from hyper_storage.garbage import Collector
from hyper_storage.history_servicer import HistoryServicer
from hyper_storage.locate import Locator
from hyper_storage.log_servicer import LogServicer
from hyper_storage.manifests import Manifests
from hyper_storage.probe import report
from hyper_storage.quotas import Quotas
from hyper_storage.servicer import DatasetServicer, Parts
from hyper_storage.sessions import Sessions
from hyper_storage.task_logs import TaskLogs
from hyper_storage.views import Views
from hyperapi.storage.v1 import array_service_pb2_grpc as array_grpc
from hyperapi.storage.v1 import dataset_service_pb2_grpc as api_grpc
from hyperapi.storage.v1 import history_service_pb2_grpc as history_grpc

SERVICE = "storage-gateway"
log = get_logger(__name__)


async def build(settings: Settings, running: Running) -> Sequence[Served]:
    """Join the parts."""
    store = await running.stack.enter_async_context(S3Store(settings.s3))
    etcd = await running.stack.enter_async_context(
        Etcd.of(settings, timeout_s=settings.etcd_timeout_s)
    )
    clock = SystemClock()
    catalog = Catalog(etcd, settings.etcd_prefix, memory_s=settings.request_memory_s)
    sessions = Sessions(catalog, clock, _new_id, arrays_max=settings.session_arrays_max)
    manifests = Manifests(store, cache_entries=settings.page_cache_entries)
    fragments = Fragments(
        store,
        readers=settings.fragment_readers,
        put_mark=catalog.count_fragment,
        get_mark=catalog.mark,
        cache_entries=settings.fragment_cache_entries,
    )
    views = Views(catalog, sessions, manifests, fragments)
    quotas = Quotas(catalog, store, settings.quotas, reserve_bytes=settings.session_reserve_bytes)
    committer = Committer(
        catalog, sessions, views, manifests, fragments, store, clock, quotas,
        page_entries=settings.page_entries, root_entries=settings.root_entries,
        attempts=settings.commit_attempts,
    )  # fmt: skip
    externals = Externals(catalog, settings)
    running.stack.callback(externals.close)
    locator = Locator(manifests, externals)
    arrays = ArraysShown(manifests, settings.s3)
    datasets = DatasetServicer(
        Parts(
            settings, store, catalog, sessions, views, manifests, fragments, committer, arrays,
            locator, quotas, clock, _new_id,
        )
    )  # fmt: skip
    array_service = ArrayServicer(
        store, catalog, sessions, views, manifests, arrays, externals, clock, _new_id
    )
    history = HistoryServicer(
        catalog, views, manifests, Collector(catalog, manifests, store, clock), clock,
        grace_s=settings.gc_grace_s, grace_min_s=settings.gc_grace_min_s,
    )  # fmt: skip
    logs = LogServicer(
        TaskLogs(store, clock, poll_s=settings.log_poll_s, followers=settings.log_followers)
    )
    await running.stack.enter_async_context(
        owned(_sweep(sessions, clock, settings.sweep_interval_s), "session-sweep")
    )
    await running.stack.enter_async_context(owned(report(settings.s3, clock), "s3-probe"))
    await watch_revoked(running, etcd)
    await announce(running, etcd, prefix=settings.etcd_prefix)
    return [
        Served(
            "hyperapi.storage.v1.DatasetService",
            api_grpc.add_DatasetServiceServicer_to_server,
            datasets,
        ),
        Served(
            "hyperapi.storage.v1.ArrayService",
            array_grpc.add_ArrayServiceServicer_to_server,
            array_service,
        ),
        Served(
            "hyperapi.storage.v1.HistoryService",
            history_grpc.add_HistoryServiceServicer_to_server,
            history,
        ),
        Served("hyperapi.storage.v1.LogService", api_grpc.add_LogServiceServicer_to_server, logs),
    ]


async def _sweep(sessions: Sessions, clock: SystemClock, interval_s: float) -> None:
    """Close unused sessions from time to time, as long as the service runs."""
    while True:
        await clock.sleep(interval_s)
        try:
            await sessions.sweep()
        except HyperError as error:
            log.warning("sweep of old sessions failed; tries again later", error=str(error))


def _new_id() -> str:
    return uuid.uuid4().hex


def main() -> int:
    """Read the settings and serve."""
    settings = load_settings(Settings)
    return run_service(SERVICE, settings, lambda running: build(settings, running))


if __name__ == "__main__":
    sys.exit(main())
