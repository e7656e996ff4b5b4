"""LLVM IR -> an object file; as a program, for others (`llvm_process.py`).

The program reads nothing but its input, so this file imports nothing of ours.
"""

from __future__ import annotations

import functools
import json
import select
import sys

import llvmlite.binding as llvm

IDLE_S = 30.0
"""The program ends when nothing was asked for so long: LLVM keeps some 100 MB."""


@functools.cache
def initialize() -> None:
    """Make LLVM ready in this process."""
    # The scheduler would hoist loads and spill accumulators.
    llvm.set_option("hyper", "-enable-misched=false")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def emit(text: str, cpu: str, features: str) -> bytes:
    """Optimise a module for this system, with a CPU and features as LLVM names them.

    Raises:
        RuntimeError: it is no valid module.
    """
    initialize()
    triple = llvm.get_process_triple()
    target = llvm.Target.from_triple(triple)
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3, jit=True)
    module = llvm.parse_assembly(text)
    module.triple = triple
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = False
    options.slp_vectorization = False
    options.loop_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    data: bytes = machine.emit_object(module)
    module.close()
    return data


def main() -> None:
    """For each line {"size", "cpu", "features"} and module: {"size", "error"}, and object file."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while select.select([requests], [], [], IDLE_S)[0]:
        line = requests.readline()
        if not line:
            return
        head = json.loads(line)
        text = requests.read(head["size"]).decode()
        data, error = b"", ""
        try:
            data = emit(text, head["cpu"], head["features"])
        except RuntimeError as failure:
            error = " ".join(str(failure).split()) or "it gives no reason"
        answers.write(json.dumps({"size": len(data), "error": error}).encode() + b"\n" + data)
        answers.flush()


if __name__ == "__main__":
    main()
