"""LLVM IR -> machine code in memory, by way of object code that can be cached."""

from __future__ import annotations

import ctypes
from typing import Any

from hyper_inference.compiler.codegen.abi import FUNCTION, NET
from hyper_inference.compiler.codegen.llvm_process import emit_elsewhere
from hyper_inference.compiler.codegen.loader import LoadedObject, ObjectFileError, can_load
from hyper_inference.compiler.codegen.target import Target


class Code:
    """A loaded net; keeps its machine code alive."""

    def __init__(self, address: int, keep_alive: Any) -> None:
        self.address = address
        self._keep_alive = keep_alive
        self.function: Any = FUNCTION(address)

    def call(self, *pointers: int) -> None:
        """Run it on these addresses; other Python threads go on."""
        self.function(*(ctypes.c_void_p(pointer) for pointer in pointers))


def compile_object(text: str, target: Target) -> bytes:
    """Optimise a module and translate it to an object file.

    Raises:
        RuntimeError: LLVM refuses it, or ends.
    """
    return emit_elsewhere(text, target.cpu, target.features)


def load_object(data: bytes, target: Target, name: str = NET) -> Code:
    """Link an object file into this process; `name`: of its function.

    Raises:
        RuntimeError: it is no object file of this machine.
    """
    if can_load():
        try:
            loaded = LoadedObject(data)
            return Code(loaded.address(name), loaded)
        except ObjectFileError:
            if not data.startswith(b"\x7fELF"):
                raise
    return load_by_llvm(data, target, name)


def load_by_llvm(data: bytes, target: Target, name: str = NET) -> Code:
    """The same by LLVM's own linker, for other machines."""
    import llvmlite.binding as llvm

    from hyper_inference.compiler.codegen.object_file import initialize

    initialize()
    empty = llvm.parse_assembly("")
    triple = llvm.Target.from_triple(llvm.get_process_triple())
    machine = triple.create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, jit=True
    )
    engine = llvm.create_mcjit_compiler(empty, machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(data))
    engine.finalize_object()
    return Code(engine.get_function_address(name), engine)
