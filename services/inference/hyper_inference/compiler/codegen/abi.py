"""The one compiled function of a net, and how threads share its work.

    void net(float* arena, const float* constants, const float* input, float* output,
             float* scratch, i64* state)

Every thread calls it with the same arguments. Each step has two counters in `state`: chunks taken
and chunks done. A thread takes chunks until none is left, then waits until all are done, then goes
to the next step. Waiting is a short spin, then sleep (`waiting.py`). Nobody waits for a thread to
arrive: one that comes late finds all chunks taken, and a single thread finishes the net alone. The
first thing a thread takes is its number, and with it its part of the scratch memory. What a chunk
writes does not depend on who takes it, so any number of threads gives the same bits.

Where the CPU has a counter of cycles, the state also holds when each step was done, for `explain`.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import itertools
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.ir as ir

from hyper_inference.compiler.codegen.emitter import I64, POINTER, Emitter, Value
from hyper_inference.compiler.codegen.kernel import Arguments, Kernel, Step
from hyper_inference.compiler.codegen.target import Target
from hyper_inference.compiler.codegen.waiting import Waiting

NET = "net"
STATE_STRIDE = 16
"""64-bit numbers a step: the two counters lie on cache lines of their own."""
CLOCK = 9
"""Where in a step's state the time is noted at which it was done; behind all: of the start."""
FACTS = 7
"""Numbers of a step in the table of steps."""
LARGE_TEXT = 1 << 19
"""Bytes of LLVM IR whose objects are looked for at once: cycles go with the collector alone."""
SPINS = 5_000
"""Looks at a counter, each a pause of some ten nanoseconds, before the thread sleeps.

On a virtual machine whose other core was idle, who sleeps is often woken on the core of who wakes
it, and then two threads share one for many milliseconds. `benchmarks.inference --net monai_unet`,
which pauses before each run: 53 ms with 400 looks, 33 with these.
"""

FUNCTION = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 6)
"""ctypes releases the GIL while it runs."""


def constant_offsets(steps: Sequence[Step]) -> tuple[list[int], int]:
    """Where each step's constants begin, and how many floats all take."""
    offsets, total = [], 0
    for step in steps:
        offsets.append(total)
        total += -(-len(step.constants) // 16) * 16
    return offsets, total + 64


def scratch_floats(steps: Sequence[Step]) -> int:
    """Scratch memory of one thread."""
    most = max((step.kernel.scratch for step in steps), default=0)
    return -(-most // 1024) * 1024


def state_words(steps: Sequence[Step]) -> int:
    """64-bit numbers of state, zero when a run begins."""
    return STATE_STRIDE * (len(steps) + 1)


def step_cycles(steps: Sequence[Step], state: Any) -> list[int]:
    """Cycles between each step's end and the one before, in the run that left `state`.

    All 0 where there is no clock.
    """
    clocks = [int(n) for n in state.reshape(-1, STATE_STRIDE)[:, CLOCK]]
    ends = [clocks[-1], *clocks[: len(steps)]]
    return [max(0, after - before) for before, after in itertools.pairwise(ends)]


def step_shares(steps: Sequence[Step], state: Any) -> list[float] | None:
    """Each step's part of the time of the run that left `state`; None where there is no clock."""
    cycles = step_cycles(steps, state)
    total = sum(cycles)
    return [count / total for count in cycles] if total > 0 else None


class _Written(ir.Function):  # type: ignore[misc]  # llvmlite has no types
    """A function that is kept as text: its blocks are ten times as large, and full of cycles."""

    text = ""

    def write(self) -> int:
        """Put the text in the place of the blocks; its length."""
        self.text = super().__str__()
        self.blocks.clear()
        return len(self.text)

    def __str__(self) -> str:
        return self.text or super().__str__()


def build_module(steps: Sequence[Step], target: Target) -> str:
    """LLVM IR of the net."""
    module = ir.Module(name=NET)
    functions: dict[Kernel, Any] = {}
    written = 0
    for step in steps:
        if step.kernel not in functions:
            function = functions[step.kernel] = _kernel(module, step.kernel, len(functions), target)
            written += function.write()
            if written > LARGE_TEXT:
                gc.collect()
                written = 0
    _net(module, steps, functions, target)
    return str(module)


def _kernel(module: Any, kernel: Kernel, number: int, target: Target) -> Any:
    """`void kernel(out, a, b, constants, scratch, begin, end)`."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER] * 5 + [I64] * 2)
    function = _Written(module, kind, f"{type(kernel).__name__}_{number}")
    function.linkage = "internal"
    function.attributes.add("noinline")
    for pointer in function.args[:5]:
        pointer.add_attribute("noalias")
    emitter = Emitter(module, function, target)
    kernel.emit(emitter, Arguments(*function.args))
    emitter.b.ret_void()
    return function


def _net(module: Any, steps: Sequence[Step], functions: dict[Kernel, Any], target: Target) -> None:
    """One loop over a table of the steps: its size, and LLVM's time, do not grow with them."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER] * 6), NET)
    arena, constants, source, result, scratch, state = function.args
    e = Emitter(module, function, target)
    b, waiting, count = e.b, Waiting(e), len(steps)

    def word(of_step: Value, at: int) -> Value:
        offset = e.add(e.mul(of_step, STATE_STRIDE), at)
        return b.gep(state, [e.i64(offset)], source_etype=I64)

    _stamp(e, word(count, CLOCK))
    me = b.atomic_rmw("add", word(count, 0), e.i64(1), "monotonic")
    scratch = e.at(scratch, e.mul(me, scratch_floats(steps)))
    table = _table(module, steps, list(functions))
    with e.loop(0, count) as step:
        entry = b.gep(table, [e.mul(step.index, FACTS)], source_etype=I64)
        kernel, out, a, other, offset, rows, size = (
            b.load(b.gep(entry, [e.i64(n)], source_etype=I64), align=8, typ=I64)
            for n in range(FACTS)
        )

        def place(offset: Value, else_base: Value) -> Value:
            outside = b.icmp_signed("<", offset, e.i64(0))
            return b.select(outside, else_base, e.at(arena, offset))

        pointers = [
            place(out, result), place(a, source), place(other, arena), e.at(constants, offset),
            scratch,
        ]  # fmt: skip
        chunks = b.udiv(b.add(rows, b.sub(size, e.i64(1))), size)
        taken, done = word(step.index, 0), word(step.index, 8)
        take, work, worked, wait, check, passed = (
            function.append_basic_block(name)
            for name in ("take", "work", "worked", "wait", "check", "passed")
        )
        b.branch(take)
        b.position_at_end(take)
        chunk = b.atomic_rmw("add", taken, e.i64(1), "monotonic")
        b.cbranch(b.icmp_signed("<", chunk, chunks), work, wait)
        b.position_at_end(work)
        begin = b.mul(chunk, size)
        stop = b.add(begin, size)
        end = b.select(b.icmp_signed("<", stop, rows), stop, rows)
        _call(e, kernel, list(functions.values()), [*pointers, begin, end], worked)
        b.position_at_end(worked)
        before = b.atomic_rmw("add", done, e.i64(1), "release")
        with b.if_then(b.icmp_signed("==", b.add(before, e.i64(1)), chunks), likely=False):
            waiting.wake(done)
        b.branch(take)
        b.position_at_end(wait)
        spins = b.phi(I64)
        spins.add_incoming(e.i64(0), take)
        seen = b.load_atomic(done, "acquire", 8, typ=I64)
        b.cbranch(b.icmp_signed("<", seen, chunks), check, passed)
        b.position_at_end(check)
        more = b.add(spins, e.i64(1))
        with b.if_else(b.icmp_signed(">", more, e.i64(SPINS)), likely=False) as (sleep, spin):
            with sleep:
                waiting.sleep(done, seen)
            with spin:
                waiting.pause()
        spins.add_incoming(more, b.block)
        b.branch(wait)
        b.position_at_end(passed)
        _stamp(e, word(step.index, CLOCK))
    b.ret_void()


def _table(module: Any, steps: Sequence[Step], kernels: Sequence[Kernel]) -> Any:
    """`FACTS` numbers a step: kernel, offsets of out, a, b and constants, rows, chunk.

    An offset of -1 is the user's own array.
    """
    number = {kernel: n for n, kernel in enumerate(kernels)}
    facts: list[int] = []
    for step, offset in zip(steps, constant_offsets(steps)[0], strict=True):
        places = [-1 if at is None else at for at in (step.out, step.a, step.b)]
        facts += [number[step.kernel], *places, offset, step.rows, step.chunk]
    kind = ir.ArrayType(I64, len(facts))
    table = ir.GlobalVariable(module, kind, "steps")
    table.linkage, table.global_constant, table.align = "internal", True, 8
    table.initializer = ir.Constant(kind, facts)
    return table


def _call(
    e: Emitter, kernel: Value, functions: Sequence[Any], arguments: Sequence[Value], then: Any
) -> None:
    """The function of that number, then on to block `then`."""
    blocks = [e.function.append_basic_block("call") for _ in functions]
    switch = e.b.switch(kernel, blocks[0])
    for number, (block, function) in enumerate(zip(blocks, functions, strict=True)):
        if number:
            switch.add_case(ir.Constant(I64, number), block)
        e.b.position_at_end(block)
        e.b.call(function, arguments)
        e.b.branch(then)


def _stamp(e: Emitter, to: Any) -> None:
    """Note the time stamp counter; threads that pass a step together write nearly the same."""
    if not e.target.has_clock:
        return
    clock = e.module.globals.get("llvm.readcyclecounter")
    if clock is None:
        clock = ir.Function(e.module, ir.FunctionType(I64, []), "llvm.readcyclecounter")
    e.b.atomic_rmw("xchg", to, e.b.call(clock, []), "monotonic")


def fingerprint(steps: Sequence[Step], target: Target) -> str:
    """Names the machine code of these steps: what it is made from, the CPU, the compiler.

    Kernels are frozen values that hold all their code depends on; the generator itself counts by
    its source, so that no version number can be forgotten. Writing the IR is the slow part of
    loading from a cache: this does without.
    """
    digest = hashlib.sha256(_generator())
    digest.update(f"{llvmlite.__version__}\n{target}\n{platform.system()}\n".encode())
    for step in steps:
        facts = step.out, step.a, step.b, len(step.constants), step.rows, step.chunk
        digest.update(f"{step.kernel!r} {facts}\n".encode())
    return digest.hexdigest()


@functools.cache
def _generator() -> bytes:
    """Digest of the source of the code generator."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.digest()
