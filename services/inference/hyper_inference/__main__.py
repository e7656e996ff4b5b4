"""`python -m hyper_inference`: the inference service."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hyper.client import Client
from hyper_inference.compiler.compile import Compiled, compile_net
from hyper_inference.config import InferenceSettings
from hyper_inference.engine import Engine
from hyper_inference.models import Models
from hyper_inference.servicer import InferenceServicer
from hyper_inference.slots import Slots
from hyper_inference.storage_files import StorageFiles
from hyper_servicekit.announce import announce
from hyper_servicekit.config import load_settings
from hyper_servicekit.etcd import Etcd
from hyper_servicekit.revoked import watch_revoked
from hyper_servicekit.server import Running, Served, run_service
from hyperapi.inference.v1 import inference_service_pb2_grpc as api_grpc

SERVICE = "inference"


async def build(settings: InferenceSettings, running: Running) -> Sequence[Served]:
    """Join the parts."""

    def make_net(model: Any, shape: tuple[int, ...], mode: str) -> Compiled:
        return compile_net(
            model, shape, mode=mode, threads=settings.threads, cache=settings.code_cache,
            max_bytes=settings.net_bytes,
        )  # fmt: skip

    client = running.stack.enter_context(Client(settings.scheduler_endpoint))
    models = Models(
        StorageFiles(client), cache_bytes=settings.cache_bytes, model_bytes=settings.model_bytes,
        make_net=make_net,
    )  # fmt: skip
    engine = Engine(models, patch_voxels=settings.patch_voxels, block_bytes=settings.block_bytes)
    executor = running.stack.enter_context(
        ThreadPoolExecutor(settings.workers, thread_name_prefix="inference")
    )
    servicer = InferenceServicer(
        engine, client, executor, Slots(settings.workers, settings.queue),
        input_bytes=settings.input_bytes,
    )  # fmt: skip
    if settings.etcd_endpoints:
        etcd = await running.stack.enter_async_context(
            Etcd.of(settings, timeout_s=settings.etcd_timeout_s)
        )
        await watch_revoked(running, etcd)
        await announce(running, etcd, prefix=settings.etcd_prefix)
    return [
        Served(
            "hyperapi.inference.v1.InferenceService",
            api_grpc.add_InferenceServiceServicer_to_server,
            servicer,
        )
    ]


def main() -> int:
    """Read the settings and serve."""
    settings = load_settings(InferenceSettings)
    return run_service(SERVICE, settings, lambda running: build(settings, running))


if __name__ == "__main__":
    sys.exit(main())
