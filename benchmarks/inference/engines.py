"""One engine with one net loaded: what a worker process runs. Engines import what they need.

`eager`, `eager_channels_last` and `compile` take the torch module; the others take the ONNX file
that torch exported from it (TensorFlow by way of this project's graph, `tensorflow_net.py`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.inference.peers import OPENVINO, TENSORFLOW

Run: TypeAlias = Callable[[], Any]
"""Computes once; gives an array or a tensor."""


class CannotRunError(Exception):
    """Why an engine is null in the results."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to load.

    Args:
        net: `module:function`, a function that gives a torch module.
        x: the input.
        onnx: the exported file.
        threads: how many to use.
        isa: "avx2" holds the engine to AVX2; "" is the machine's best.
        cache: folder for compiled code.
    """

    net: str
    x: np.ndarray
    onnx: Path
    threads: int
    isa: str
    cache: Path | None = None


def has_avx512() -> bool:
    """Whether this machine has more than AVX2."""
    return "avx512f" in Path("/proc/cpuinfo").read_text()


def make_net(net: str) -> Any:
    """The torch module, the same weights every time."""
    import torch

    torch.manual_seed(0)
    module, _, function = net.partition(":")
    return getattr(importlib.import_module(module), function)().eval()


def _torch(request: Request) -> tuple[Any, Any]:
    import torch

    torch.set_num_threads(request.threads)
    torch.set_grad_enabled(False)
    return make_net(request.net), torch.from_numpy(request.x)


def _channels_last(x: Any) -> Any:
    import torch

    return torch.channels_last_3d if x.ndim == 5 else torch.channels_last


def load_eager(request: Request) -> Run:
    """PyTorch as it comes."""
    net, x = _torch(request)
    return lambda: net(x)


def load_eager_channels_last(request: Request) -> Run:
    """PyTorch with the memory format that its convolutions like best."""
    net, x = _torch(request)
    form = _channels_last(x)
    net, x = net.to(memory_format=form), x.to(memory_format=form)
    return lambda: net(x)


def load_compile(request: Request) -> Run:
    """torch.compile with weights frozen into the code."""
    net, x = _torch(request)
    import torch
    import torch._inductor.config as settings

    settings.freezing = True
    if request.isa == "avx2":
        settings.cpp.simdlen = 256
    compiled = torch.compile(net)
    return lambda: compiled(x)


def load_onnxruntime(request: Request) -> Run:
    """ONNX Runtime with all graph optimisations."""
    if request.isa and has_avx512():
        raise CannotRunError("its kernels are chosen by CPUID; no setting holds them to AVX2")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request.threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        str(request.onnx), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: request.x}
    return lambda: session.run(None, feed)[0]


def load_openvino(request: Request) -> Run:
    """OpenVINO in float32 (by itself it may choose bfloat16)."""
    return _openvino(request, "f32")


def load_openvino_bf16(request: Request) -> Run:
    """OpenVINO in bfloat16."""
    if request.isa:
        raise CannotRunError("AVX2 has no bfloat16")
    return _openvino(request, "bf16")


def _openvino(request: Request, precision: str) -> Run:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": request.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    net = core.compile_model(core.read_model(str(request.onnx)), "CPU", settings)
    if request.isa == "avx2":
        _refuse_avx512(net)
    call, output = net.create_infer_request(), net.output(0)
    return lambda: call.infer([request.x])[output]


def _refuse_avx512(net: Any) -> None:
    """OpenVINO tells which kernels it chose: no row under AVX2 that is not."""
    kinds = {
        node.get_rt_info()["primitiveType"].astype(str)
        for node in net.get_runtime_model().get_ordered_ops()
        if "primitiveType" in node.get_rt_info()
    }
    wide = sorted(kind for kind in kinds if "avx512" in kind)
    if wide:
        raise CannotRunError(f"no setting holds it to AVX2: it chose {', '.join(wide)}"[:200])


def load_tensorflow(request: Request) -> Run:
    """TensorFlow's graph mode with oneDNN."""
    import tensorflow as tf

    from benchmarks.inference.tensorflow_net import make
    from hyper_inference.compiler.compile import load_graph
    from hyper_inference.compiler.passes.drop_dead import drop_dead
    from hyper_inference.compiler.passes.fold_affine import fold_affine

    tf.config.threading.set_intra_op_parallelism_threads(request.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    graph = fold_affine(drop_dead(load_graph(request.onnx, request.x.shape)))
    function, x = make(graph), tf.constant(np.moveaxis(request.x, 1, -1))
    return lambda: np.moveaxis(function(x).numpy(), -1, 1)


def _hyper(request: Request, mode: str) -> Run:
    import hyper_inference

    net = hyper_inference.compile(
        request.onnx, request.x.shape, mode=mode, threads=request.threads,
        target=request.isa or None, cache=request.cache,
    )  # fmt: skip
    return lambda: net(request.x)


LOADERS: dict[str, Callable[[Request], Run]] = {
    "hyper": lambda request: _hyper(request, "fast"),
    "hyper_exact": lambda request: _hyper(request, "exact"),
    "hyper_faster": lambda request: _hyper(request, "faster"),
    "hyper_bf16": lambda request: _hyper(request, "bf16"),
    "eager": load_eager,
    "eager_channels_last": load_eager_channels_last,
    "compile": load_compile,
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "openvino_bf16": load_openvino_bf16,
    "tensorflow": load_tensorflow,
}
MODES = {"exact": "hyper_exact", "faster": "hyper_faster", "bf16": "hyper_bf16"}
PEERS = tuple(name for name in LOADERS if not name.startswith("hyper"))
PACKAGES = {"openvino": OPENVINO, "openvino_bf16": OPENVINO, "tensorflow": TENSORFLOW}
"""What an engine needs beyond the project's own environment."""
