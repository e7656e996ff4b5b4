"""`python -m hyper_matcher`: the matcher."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hyper
from hyper.arrays import get_array
from hyper_matcher.config import Settings
from hyper_matcher.sections import ArrayLike, warm_up
from hyper_matcher.servicer import MatcherServicer, Pool
from hyper_servicekit.announce import announce
from hyper_servicekit.config import load_settings
from hyper_servicekit.etcd import Etcd
from hyper_servicekit.revoked import watch_revoked
from hyper_servicekit.server import Running, Served, run_service
from hyperapi.matcher.v1 import matcher_service_pb2_grpc as api_grpc

SERVICE = "matcher"


async def build(settings: Settings, running: Running) -> Sequence[Served]:
    """Join the parts."""
    client = running.stack.enter_context(hyper.Client(settings.scheduler_endpoint))
    pool = Pool(settings.threads, settings.queue, settings.retry_after_s)
    running.stack.callback(pool.close)
    pool.submit(warm_up)

    def open_array(name: str) -> ArrayLike:
        return get_array(client, name)

    if settings.etcd_endpoints:
        etcd = await running.stack.enter_async_context(
            Etcd.of(settings, timeout_s=settings.etcd_timeout_s)
        )
        await watch_revoked(running, etcd)
        await announce(running, etcd, prefix=settings.etcd_prefix, ttl_s=settings.announce_ttl_s)
    return [
        Served(
            "hyperapi.matcher.v1.MatcherService",
            api_grpc.add_MatcherServiceServicer_to_server,
            MatcherServicer(settings, pool, open_array),
        )
    ]


def main() -> int:
    """Read the settings and serve."""
    settings = load_settings(Settings)
    return run_service(SERVICE, settings, lambda running: build(settings, running))


if __name__ == "__main__":
    sys.exit(main())
