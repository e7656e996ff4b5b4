"""`compile_net` (`hyper_inference.compile`): a model and an input shape -> a callable."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hyper.errors import InvalidArgumentError
from hyper_inference.compiler.algorithm import Mode, parse_mode
from hyper_inference.compiler.autotune import autotune as tune
from hyper_inference.compiler.cache import CodeCache
from hyper_inference.compiler.codegen import abi
from hyper_inference.compiler.codegen.jit import Code, compile_object, load_object
from hyper_inference.compiler.codegen.kernel import Packed, Step, Transforms
from hyper_inference.compiler.codegen.lower import lower
from hyper_inference.compiler.codegen.target import Target, find_target
from hyper_inference.compiler.codegen.transform_weights import CachedTransforms
from hyper_inference.compiler.frontend import onnx as onnx_frontend
from hyper_inference.compiler.frontend import onnx_file, pt2, torch_export
from hyper_inference.compiler.ir import (
    Axes,
    Floats,
    Graph,
    Shape,
    plain_axes,
    seen_shape,
)
from hyper_inference.compiler.memory import aligned_zeros, give_back
from hyper_inference.compiler.memory_plan import MemoryPlan, plan_memory
from hyper_inference.compiler.outline import outline
from hyper_inference.compiler.pipeline import run_pipeline
from hyper_inference.errors import InvalidModelError, ShapeError

GIVE_BACK = 2**22
"""Floats of weights that are freed before the system gets them back."""


def load_graph(model: Any, shape: Sequence[Any]) -> Graph:
    """The graph of a model for inputs of `shape`, as its frontend makes it.

    Args:
        model: bytes or a path of an ONNX or `.pt2` file, an onnx.ModelProto, a torch.nn.Module,
            a torch.export.ExportedProgram, an `onnx_file.OnnxModel`, or a Graph.
        shape: (n, c, y, x) or (n, c, z, y, x), or a sequence of these for several inputs.
    """
    shapes = shapes_of(shape)
    if isinstance(model, Graph):
        return model
    if torch_export.is_torch_model(model):
        return torch_export.from_torch(model, shapes)
    if isinstance(model, (str, Path)):
        try:
            with Path(model).open("rb") as file:
                return _graph_of_file(file, shapes)
        except OSError as error:
            raise InvalidModelError(f"cannot read model file {model}: {error.strerror}") from error
    if isinstance(model, (bytes, bytearray, memoryview)):
        return _graph_of_file(io.BytesIO(model), shapes)
    if type(model).__name__ == "ModelProto":
        model = onnx_file.of_proto(model)
    if not isinstance(model, onnx_file.OnnxModel):
        raise InvalidArgumentError(
            f"cannot compile a {type(model).__name__}; give an ONNX file or a torch module"
        )
    return onnx_frontend.from_onnx(model, shapes)


def _graph_of_file(stream: BinaryIO, shapes: Sequence[tuple[int, ...]]) -> Graph:
    is_pt2 = stream.read(len(pt2.MAGIC)) == pt2.MAGIC
    stream.seek(0)
    if is_pt2:
        return torch_export.from_torch(pt2.load(stream.read()), shapes)
    return onnx_frontend.from_onnx(onnx_file.read_model(stream), shapes)


def compile_net(
    model: Any,
    example_or_shape: Any,
    *,
    mode: str = "fast",
    threads: int | None = None,
    target: str | None = None,
    cache: str | Path | None = None,
    autotune: bool = False,
    max_bytes: int = 2**36,
) -> Compiled:
    """Compile a net for one shape of its inputs.

    Args:
        model: see `load_graph`.
        example_or_shape: an array or tensor, or its shape: (n, c, y, x) or (n, c, z, y, x); for a
            net with several inputs a sequence of these. The callable takes any n.
        mode: exact, fast or faster: see `algorithm.py`.
        threads: how many work on one sample; all cores by default. Changes no bit of the result.
        target: avx512, avx2 or generic; the best by default. Changes no bit either.
        cache: folder of compiled code; None: it is compiled anew in each process.
        autotune: measure other blockings of the large convolutions first, which takes some
            seconds once for a cache. Changes no bit.
        max_bytes: of memory for one run.

    Raises:
        UnsupportedOp: names the op and the node that are not covered.
        InvalidModelError: the model is malformed.
        ShapeError: the shape does not fit the model, or is too large.
    """
    chosen_mode = parse_mode(mode)
    if threads is not None and not 1 <= threads <= 1024:
        raise InvalidArgumentError(f"threads {threads} is not between 1 and 1024", field="threads")
    shapes = shapes_of(example_or_shape)
    threads = threads or os.cpu_count() or 1
    start = time.perf_counter()
    chosen = find_target(target)
    stages: list[tuple[str, Graph]] = []
    graph = load_graph(model, shapes)
    give_back()
    source = outline(graph)
    graph = run_pipeline(graph, on_pass=lambda name, after: stages.append((name, outline(after))))
    plan = plan_memory(graph, mode=chosen_mode, align=chosen.width, max_bytes=max_bytes)
    store = CodeCache(None if cache is None else Path(cache))
    steps = lower(graph, plan, chosen, chosen_mode)
    tuned = tune(steps, plan.floats, chosen, store) if autotune else {}
    if tuned:
        steps = lower(graph, plan, chosen, chosen_mode, tuned)
    graph = outline(graph)
    steps, constants = _gather_constants(steps, threads, CachedTransforms(store))
    give_back()
    code = _machine_code(steps, chosen, store)
    give_back()
    return Compiled(
        source=source,
        graph=graph,
        plan=plan,
        steps=tuple(steps),
        target=chosen,
        mode=chosen_mode,
        threads=threads,
        compile_s=time.perf_counter() - start,
        stages=tuple(stages),
        _code=code,
        _constants=constants,
    )


def shapes_of(example_or_shape: Any) -> tuple[tuple[int, ...], ...]:
    """Shapes of one input or of several, from examples or shapes.

    Raises:
        InvalidArgumentError, ShapeError: they are none.
    """
    if hasattr(example_or_shape, "shape"):
        return (_shape_of(example_or_shape),)
    try:
        listed = list(example_or_shape)
    except TypeError as error:
        raise InvalidArgumentError("give an example array, or its shape as integers") from error
    several = bool(listed) and all(hasattr(item, "__len__") for item in listed)
    return tuple(_shape_of(item) for item in listed) if several else (_shape_of(listed),)


def _shape_of(example_or_shape: Any) -> tuple[int, ...]:
    shape = getattr(example_or_shape, "shape", example_or_shape)
    try:
        numbers = tuple(int(n) for n in shape)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError("give an example array, or its shape as integers") from error
    if len(numbers) not in (4, 5) or min(numbers) < 1:
        raise ShapeError(f"shape {numbers} is not (n, c, y, x) or (n, c, z, y, x)")
    return numbers


def _machine_code(steps: Sequence[Step], target: Target, cache: CodeCache) -> Code:
    key = abi.fingerprint(steps, target)
    data = cache.get(key)
    if data is None:
        data = compile_object(abi.build_module(steps, target), target)
        cache.put(key, data)
    return load_object(data, target)


def _gather_constants(
    steps: list[Step], threads: int, transforms: Transforms
) -> tuple[list[Step], Floats]:
    """All constants in one array, of which each step's become a part; empties `steps`.

    Weights weigh most of what a net holds, so there is never a second copy of all.
    """
    offsets, total = abi.constant_offsets(steps)
    constants = aligned_zeros(total)
    waiting = deque(enumerate(zip(steps, offsets, strict=True)))
    done: dict[int, Step] = {}
    steps.clear()

    def gather() -> None:
        freed = 0
        while True:
            try:
                number, (step, offset) = waiting.popleft()
            except IndexError:
                return
            part = constants[offset : offset + len(step.constants)]
            if isinstance(step.constants, Packed):
                step.constants.fill(part, transforms)
            else:
                part[:] = step.constants
            done[number] = replace(step, constants=part)
            freed += len(part)
            if freed > GIVE_BACK:
                del step
                give_back()
                freed = 0

    with ThreadPoolExecutor(threads) as pool:
        for worker in [pool.submit(gather) for _ in range(threads)]:
            worker.result()
    return [done[number] for number in sorted(done)], constants


def _seen(flat: Floats, shape: Shape, axes: Axes) -> Floats:
    """(n, elements) of a value as its users see it."""
    named = [axis for group in axes for axis in group]
    order = [*named, *(axis for axis in range(4) if axis not in named)]
    whole = flat.reshape(len(flat), *shape).transpose(0, *(axis + 1 for axis in order))
    return np.ascontiguousarray(whole.reshape(len(flat), *seen_shape(shape, axes)))


_HELPERS = ThreadPoolExecutor(
    max_workers=max(1, (os.cpu_count() or 1) * 2), thread_name_prefix="net"
)
"""Threads that help callers; who gets none finishes alone."""


@dataclass(slots=True)
class _Workspace:
    """Memory of one run at a time."""

    arena: Floats
    scratch: Floats
    state: Any


@dataclass(slots=True)
class Compiled:
    """A compiled net. Call it from any number of threads; each run has memory of its own.

    `source`, `graph` and `stages` are outlines: their weights are gone, their shapes are not.
    """

    source: Graph
    graph: Graph
    plan: MemoryPlan
    steps: tuple[Step, ...]
    target: Target
    mode: Mode
    threads: int
    compile_s: float
    stages: tuple[tuple[str, Graph], ...]
    _code: Code
    _constants: Floats
    _shares: list[float] | None = None
    _seconds: float = 0.0
    _free: deque[_Workspace] = field(default_factory=deque)
    _lock: Any = field(default_factory=threading.Lock)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of one sample of each input, without the batch: (c, y, x) or (c, z, y, x)."""
        plain = plain_axes(self.graph.spatial)
        return tuple(seen_shape(kind.shape, plain) for _, kind in self.graph.inputs)

    @property
    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of one sample of each output, without the batch."""
        return tuple(
            seen_shape(self.plan.places[name].shape, axes)
            for name, axes in zip(self.graph.outputs, self.graph.axes, strict=True)
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample of the first input."""
        return self.input_shapes[0]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one sample of the first output."""
        return self.output_shapes[0]

    @property
    def memory_bytes(self) -> int:
        """What it holds: constants, and the arenas of runs so far."""
        arenas = max(1, len(self._free))
        return 4 * (len(self._constants) + arenas * self.plan.floats)

    @property
    def flops(self) -> float:
        """Multiplications and additions of one sample, as the graph asks for them."""
        return sum(step.flops for step in self.steps)

    def __call__(self, *batches: Any) -> Any:
        """Run on `(n, c, [z,] y, x)`, one for each input; torch tensors give torch tensors.

        A net with several outputs gives a tuple of them.

        Raises:
            ShapeError: other shapes than it was compiled for.
        """
        dense = self._checked(batches)
        types = self.graph.types()
        sizes = [types[name].elements for name in self.graph.outputs]
        result = np.empty((len(dense[0]), sum(sizes)), np.float32)
        for index, output in enumerate(result):
            parts = [array[index] for array in dense]
            sample = parts[0] if len(parts) == 1 else np.concatenate([p.ravel() for p in parts])
            self._run(sample, output)
        outputs, at = [], 0
        for name, axes, size in zip(self.graph.outputs, self.graph.axes, sizes, strict=True):
            outputs.append(_seen(result[:, at : at + size], types[name].shape, axes))
            at += size
        if any(hasattr(batch, "detach") for batch in batches):
            import torch

            outputs = [torch.from_numpy(output) for output in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _checked(self, batches: Sequence[Any]) -> list[Floats]:
        """The inputs as dense float32."""
        arrays = [np.asarray(b.detach().cpu() if hasattr(b, "detach") else b) for b in batches]
        wanted = self.input_shapes
        if [array.shape[1:] for array in arrays] != list(wanted) or any(
            len(array) != len(arrays[0]) for array in arrays
        ):
            takes = " and ".join(f"(n, {', '.join(map(str, shape))})" for shape in wanted)
            given = " and ".join(str(array.shape) for array in arrays) or "nothing"
            raise ShapeError(f"the net was compiled for {takes}, not {given}")
        for array in arrays:
            if array.dtype.kind not in "fiub":
                raise InvalidArgumentError(f"an input of {array.dtype} is not numbers")
        return [np.ascontiguousarray(array, np.float32) for array in arrays]

    def _run(self, sample: Floats, output: Floats) -> None:
        with self._workspace() as work:
            work.state[:] = 0
            pointers = [
                array.ctypes.data
                for array in (work.arena, self._constants, sample, output, work.scratch)
            ]
            arguments = (*pointers, work.state.ctypes.data)
            start = time.perf_counter()
            helpers = [
                _HELPERS.submit(self._code.call, *arguments) for _ in range(self.threads - 1)
            ]
            self._code.call(*arguments)
            for helper in helpers:
                if not helper.cancel():
                    helper.result()  # it reads `state` until it returns
            self._seconds = time.perf_counter() - start
            self._shares = abi.step_shares(self.steps, work.state)

    @contextlib.contextmanager
    def _workspace(self) -> Iterator[_Workspace]:
        with self._lock:
            work = self._free.pop() if self._free else None
        if work is None:
            state = np.zeros(abi.state_words(self.steps), np.int64)
            scratch = aligned_zeros(abi.scratch_floats(self.steps) * self.threads)
            work = _Workspace(aligned_zeros(self.plan.floats), scratch, state)
        try:
            yield work
        finally:
            with self._lock:
                self._free.append(work)

    def layer_shares(self) -> dict[str, float]:
        """Each node's part of the time of the last run; empty before it, or without a clock."""
        shares: dict[str, float] = {}
        if self._shares is not None:
            for step, share in zip(self.steps, self._shares, strict=True):
                shares[step.name] = shares.get(step.name, 0.0) + share
        return shares

    def _traffic(self) -> dict[str, int]:
        """Bytes that each node reads and writes, its weights too, if nothing were in a cache."""
        found = {
            node.name: 4 * (node.type.elements + sum(kind.elements for kind in inputs))
            for node, inputs in self.graph.walk()
        }
        for step in self.steps:
            if step.name in found:
                found[step.name] += 4 * len(step.constants)
        return found

    def explain(self) -> str:
        """The graph as it came and as it runs, kernels, operations, memory, time of each step.

        The times are those of the last run, if there was one.
        """
        head = (
            f"{self.graph.name}: {self.target.name} x{self.target.width}, mode {self.mode}, "
            f"{self.threads} threads, compiled in {self.compile_s:.2f} s\n"
            f"{self.flops / 1e9:.3f} GFLOP a sample, arena {self.plan.floats * 4 / 2**20:.1f} MiB "
            f"in {self.plan.buffers} buffers, constants {len(self._constants) * 4 / 2**20:.1f} MiB"
        )
        lines = [
            head,
            "",
            "source:",
            str(self.source),
            "",
            "after all passes:",
            str(self.graph),
            "",
        ]
        shares: list[float | None] = [None] * len(self.steps)
        if self._shares is not None:
            shares = list(self._shares)
        traffic = self._traffic()
        lines.append(
            f"{'step':<28}{'kernel':<34}{'MFLOP':>10}{'MB':>9}{'rows':>8}{'chunk':>7}"
            f"{'time':>8}{'ms':>9}"
        )
        for step, share in zip(self.steps, shares, strict=True):
            kind = type(step.kernel).__name__
            block = getattr(step.kernel, "block", "")
            lines.append(
                f"{step.name[:27]:<28}{f'{kind} {block}'.strip()[:33]:<34}"
                f"{step.flops / 1e6:>10.1f}{traffic.get(step.name, 0) / 1e6:>9.2f}"
                f"{step.rows:>8}{step.chunk:>7}"
                f"{'' if share is None else f'{share:.1%}':>8}"
                f"{'' if share is None else f'{share * self._seconds * 1e3:.2f}':>9}"
            )
        return "\n".join(lines)
