"""LLVM IR -> an object file, here or in a process of its own, which takes LLVM's memory with it.

What LLVM needs for a large net it keeps: some 75 MB beside a net of 300. The process reads nothing
but its input, so this file imports nothing of ours.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import llvmlite.binding as llvm


@functools.cache
def initialize() -> None:
    """Make LLVM ready in this process."""
    # The scheduler would hoist loads and spill accumulators.
    llvm.set_option("hyper", "-enable-misched=false")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def emit(text: str, triple: str, cpu: str, features: str) -> bytes:
    """Optimise a module and translate it.

    Raises:
        RuntimeError: it is no valid module.
    """
    initialize()
    target = llvm.Target.from_triple(triple)
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3, jit=True)
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
    return data


def emit_elsewhere(text: str, triple: str, cpu: str, features: str) -> bytes:
    """The same bytes from a process of its own.

    Raises:
        RuntimeError: it did not end well.
    """
    head = json.dumps({"triple": triple, "cpu": cpu, "features": features})
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        input=f"{head}\n{text}".encode(), capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        reason = " ".join(done.stderr.decode(errors="replace").split())
        raise RuntimeError(f"LLVM's process ended with {done.returncode}: {reason[-300:]}")
    return done.stdout


def main() -> None:
    """What `emit_elsewhere` starts: a line of JSON and the module in, the object file out."""
    head, _, text = sys.stdin.buffer.read().decode().partition("\n")
    sys.stdout.buffer.write(emit(text, **json.loads(head)))


if __name__ == "__main__":
    main()
