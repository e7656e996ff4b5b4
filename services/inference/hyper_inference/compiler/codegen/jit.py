"""LLVM IR -> machine code in memory, by way of object code that can be cached."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import llvmlite.binding as llvm

from hyper_inference.compiler.codegen.abi import FUNCTION, NET
from hyper_inference.compiler.codegen.target import Target

_LARGE_TEXT = 4 << 20  # bytes of LLVM IR; its Python objects take some ten times as much


class Code:
    """A loaded net; keeps its machine code alive."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.function: Any = FUNCTION(engine.get_function_address(NET))

    def call(self, *pointers: int) -> None:
        """Run it on these addresses; other Python threads go on."""
        self.function(*(ctypes.c_void_p(pointer) for pointer in pointers))


def compile_object(text: str, target: Target) -> bytes:
    """Optimise a module and translate it to an object file."""
    machine = _machine(target)
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = False
    options.slp_vectorization = False
    options.loop_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    data: bytes = machine.emit_object(module)
    module.close()
    if len(text) > _LARGE_TEXT:
        gc.collect()  # llvmlite's IR is full of cycles; a collection takes 0.3 s beside torch
    return data


def load_object(data: bytes, target: Target) -> Code:
    """Link an object file into this process.

    Raises:
        RuntimeError: it is no object file of this machine.
    """
    empty = llvm.parse_assembly("")
    engine = llvm.create_mcjit_compiler(empty, _machine(target))
    engine.add_object_file(llvm.ObjectFileRef.from_data(data))
    engine.finalize_object()
    return Code(engine)


def _machine(target: Target) -> Any:
    triple = llvm.Target.from_triple(llvm.get_process_triple())
    return triple.create_target_machine(cpu=target.cpu, features=target.features, opt=3, jit=True)
