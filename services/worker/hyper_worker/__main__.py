"""`python -m hyper_worker`: one agent."""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

from hyper.client import Client
from hyper.config import scheduler_addresses
from hyper_servicekit.config import load_settings
from hyper_servicekit.logs import get_logger
from hyper_servicekit.server import Running, run_service
from hyper_worker.agent import Agent, Identity, Timing
from hyper_worker.config import WorkerSettings
from hyper_worker.folders import Folders
from hyper_worker.gpus import GpuPool, Nvml
from hyper_worker.logs import Gateway, Shipper
from hyper_worker.node import Node
from hyper_worker.notices import wait_for_notice
from hyper_worker.runner.container import ContainerRunner, ContainerSettings
from hyper_worker.runner.function import FunctionRunner
from hyper_worker.runner.guard import Guard
from hyper_worker.runner.isolation import Isolation
from hyper_worker.runner.orphans import adopt_orphans
from hyper_worker.runner.process import ProcessRunner
from hyper_worker.runner.trust import Trust
from hyper_worker.runner.unseen import hide_agent
from hyper_worker.secrets import read_with
from hyper_worker.staging.cache import Cache
from hyper_worker.staging.stage import Stage
from hyper_worker.told import write_certificates

log = get_logger(__name__)


async def build(settings: WorkerSettings, running: Running) -> None:
    """Join the parts; they close in reverse order."""
    endpoint = settings.scheduler_endpoint
    addresses = scheduler_addresses(endpoint or None)  # a wrong one is said now
    stack = running.stack
    logs_client = Client(endpoint or None, patience_s=0.0, notice=log.info)
    files_client = Client(endpoint or None, patience_s=settings.fetch_patience_s, notice=log.info)
    stack.callback(files_client.close)
    folders = Folders(settings.workdir)
    stack.callback(folders.close)
    cache = Cache(settings.workdir / "cache", settings.cache_bytes)
    threads = ThreadPoolExecutor(2 * settings.slots + 2, thread_name_prefix="staging")
    stack.callback(threads.shutdown, wait=False, cancel_futures=True)
    isolation = Isolation(
        settings.first_user_id if settings.isolation == "user" else None,
        2 * settings.slots + 2,
        [settings.workdir],
        Trust(folders.root),
    )
    adopt_orphans()
    guard = Guard()
    stack.callback(guard.close)
    endpoint_of_tasks = endpoint or ",".join(addresses)
    commands = ProcessRunner(guard, endpoint_of_tasks, isolation)
    functions = FunctionRunner(guard, endpoint_of_tasks, settings.slots, isolation, folders.root)
    containers = ContainerRunner(
        endpoint_of_tasks,
        ContainerSettings(
            settings.container_user,
            settings.container_pids,
            settings.container_memory_bytes,
            settings.container_tmp_bytes,
            settings.guard_metadata,
        ),
        folders.root,
        settings.slots,
    )
    stack.push_async_callback(containers.close)
    await containers.sweep()
    stack.push_async_callback(commands.close)
    stack.push_async_callback(functions.close)
    shipper = Shipper(
        Gateway(logs_client),
        folder=folders.root,
        flush_s=settings.log_flush_s,
        spool_bytes=settings.log_spool_bytes,
        memory_bytes=settings.log_memory_bytes,
    )
    stack.callback(shipper.close)
    stack.callback(logs_client.close)
    gpus = GpuPool(Nvml())
    identity = Identity(
        worker=f"{running.instance}-{secrets.token_hex(3)}",
        slots=settings.slots,
        labels={"host": socket.gethostname(), **settings.labels},
        gpus=gpus.count,
    )
    stage = Stage(
        files_client,
        cache,
        folders.root,
        threads,
        read_with(files_client, identity.worker),
        isolation,
        gpus,
    )
    agent = Agent(
        identity,
        lambda: scheduler_addresses(endpoint or None),
        {"command": commands, "function": functions, "container": containers},
        stage,
        Node(folders.root, gpus),
        shipper,
        containers.prefetch,
        Timing(settings.connect_timeout_s, settings.report_delay_s, settings.leave_reports_s),
    )
    group = await stack.enter_async_context(asyncio.TaskGroup())
    task = group.create_task(agent.run())
    stack.callback(task.cancel)
    if settings.cloud:
        watch = group.create_task(_leave_on_notice(settings, running))
        stack.callback(watch.cancel)
    running.on_drain.append(lambda: agent.leave(settings.drain_grace_s))


async def _leave_on_notice(settings: WorkerSettings, running: Running) -> None:
    """End as on SIGTERM once the cloud says that it takes the machine."""
    notice = await wait_for_notice(settings.cloud, settings.metadata_url, settings.notice_every_s)
    log.warning("the cloud takes this machine away", notice=notice)
    running.stop.set()


def main() -> int:
    """Run until SIGTERM; returns the exit status."""
    hide_agent()
    settings = load_settings(WorkerSettings)
    write_certificates(settings.workdir / "tls")

    async def build_it(running: Running) -> None:
        await build(settings, running)

    return run_service("worker", settings, build_it)


if __name__ == "__main__":
    sys.exit(main())
