"""How a thread waits for a counter in memory: pauses, then sleep until it is woken.

On Linux sleep is a futex on the counter's low 32 bits: the kernel compares them with what the
thread last saw before it lets it sleep, so that no wake is lost, and only the last chunk of a step
wakes. Elsewhere the thread gives way to others.
"""

from __future__ import annotations

import platform

import llvmlite.ir as ir

from hyper_inference.compiler.codegen.emitter import I32, I64, POINTER, Emitter, Value

_FUTEX = {"x86_64": 202, "aarch64": 98}
"""Number of the system call on little-endian machines."""
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129
_ALL = 2**31 - 1


class Waiting:
    """Emits pauses, sleeps and wakes."""

    def __init__(self, e: Emitter) -> None:
        self._e = e
        machine = platform.machine()
        self._number = _FUTEX.get(machine) if platform.system() == "Linux" else None
        kind = ir.FunctionType(I64, [I64], var_arg=True)
        if self._number is not None:
            self._call = ir.Function(e.module, kind, "syscall")
        else:
            self._call = ir.Function(e.module, ir.FunctionType(I32, []), "sched_yield")
        void = ir.FunctionType(ir.VoidType(), [])
        self._pause = None
        if machine in ("x86_64", "AMD64"):
            self._pause = ir.Function(e.module, void, "llvm.x86.sse2.pause")

    def pause(self) -> None:
        """A moment in which the core's other users go first."""
        if self._pause is not None:
            self._e.b.call(self._pause, [])

    def sleep(self, counter: Value, seen: Value) -> None:
        """Until woken, unless the counter is no longer `seen`."""
        b = self._e.b
        if self._number is None:
            b.call(self._call, [])
            return
        nothing = ir.Constant(POINTER, None)
        self._futex(counter, _WAIT_PRIVATE, b.trunc(seen, I32), nothing)

    def wake(self, counter: Value) -> None:
        """All who sleep on the counter."""
        if self._number is not None:
            nothing = ir.Constant(POINTER, None)
            self._futex(counter, _WAKE_PRIVATE, ir.Constant(I32, _ALL), nothing)

    def _futex(self, counter: Value, operation: int, value: Value, timeout: Value) -> None:
        number = ir.Constant(I64, self._number)
        self._e.b.call(self._call, [number, counter, ir.Constant(I32, operation), value, timeout])
