"""LLVM in a process of its own, and its object files in ours without it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

import hyper_inference
from hyper_inference.compiler.codegen import jit, llvm_process, target
from hyper_inference.compiler.codegen.jit import load_by_llvm, load_object
from hyper_inference.compiler.codegen.llvm_process import emit_elsewhere
from hyper_inference.compiler.codegen.loader import LoadedObject, ObjectFileError, can_load
from hyper_inference.compiler.codegen.object_file import emit
from hyper_inference.compiler.codegen.target import find_target, targets
from tests.compiler.nets import small_unet_model

SHAPE = (1, 1, 6, 20, 38)
MODULE = """
@numbers = internal constant [4 x float] [float 1.0, float 2.0, float 3.0, float 4.0]

declare float @fmaf(float, float, float)

define void @net(ptr %out, ptr %a, ptr %b, ptr %c, ptr %d, ptr %e) {
  %n = load i32, ptr %a
  switch i32 %n, label %other [i32 0, label %l0  i32 1, label %l1  i32 2, label %l2
                               i32 3, label %l3  i32 4, label %l4]
l0:
  br label %end
l1:
  br label %end
l2:
  br label %end
l3:
  br label %end
l4:
  br label %end
other:
  br label %end
end:
  %i = phi i64 [3, %l0], [0, %l1], [2, %l2], [1, %l3], [0, %l4], [3, %other]
  %at = getelementptr [4 x float], ptr @numbers, i64 0, i64 %i
  %x = load float, ptr %at
  %y = call float @fmaf(float %x, float %x, float 0.5)
  store float %y, ptr %out
  ret void
}
"""


def machine() -> tuple[str, str]:
    return find_target().cpu, find_target().features


def net_output() -> np.ndarray:
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    return np.asarray(hyper_inference.compile(small_unet_model(), SHAPE)(x))


def test_it_is_the_same_code() -> None:
    here = emit(MODULE, *machine())
    assert here.startswith(b"\x7fELF")
    assert emit_elsewhere(MODULE, *machine()) == here


def test_an_invalid_module_is_an_error_and_the_process_goes_on() -> None:
    emit_elsewhere(MODULE, *machine())
    before = llvm_process._process
    with pytest.raises(RuntimeError, match=r"refuses the module: .*expected"):
        emit_elsewhere("define nothing", *machine())
    assert emit_elsewhere(MODULE, *machine())
    assert llvm_process._process is before


def test_a_process_that_ended_is_started_again() -> None:
    expected = emit_elsewhere(MODULE, *machine())
    process = llvm_process._process
    assert process is not None
    process._child.kill()
    assert emit_elsewhere(MODULE, *machine()) == expected  # whether its end was seen or not
    assert llvm_process._process is not process


def test_a_crash_of_llvm_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "crash.py"
    program.write_text("import os, sys\nsys.stdin.buffer.readline()\nos.abort()\n")
    monkeypatch.setattr(llvm_process, "PROGRAM", program)
    if llvm_process._process is not None:
        llvm_process._process._child.kill()
        llvm_process._process._child.wait()
    with pytest.raises(RuntimeError, match=rf"ended with {-signal.SIGABRT}"):
        emit_elsewhere(MODULE, *machine())


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for nothing but to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_the_process_ends_with_its_parent_and_a_fork_has_its_own() -> None:
    script = f"""
import os, sys
from hyper_inference.compiler.codegen import llvm_process as p
module = {MODULE!r}
first = p.emit_elsewhere(module, *{machine()!r})
pid = p._process._child.pid
child = os.fork()
if child == 0:
    same = p.emit_elsewhere(module, *{machine()!r}) == first
    os._exit(0 if same and p._process._child.pid != pid else 1)
print(pid, os.waitpid(child, 0)[1], p.emit_elsewhere(module, *{machine()!r}) == first)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    pid, status, same = done.stdout.split()
    assert (status, same) == ("0", "True")
    ended = threading.Event()
    for _ in range(500):
        if has_ended(int(pid)):
            ended.set()
            break
        ended.wait(0.02)
    assert ended.is_set()


@pytest.mark.skipif(not can_load(), reason="object files of Linux on x86-64")
def test_the_loader_does_what_llvm_does() -> None:
    data = emit(MODULE, *machine())
    for load in (load_object, load_by_llvm):
        code = load(data, find_target())
        for number, expected in enumerate((16.5, 1.5, 9.5, 4.5, 1.5, 16.5)):
            out, a = np.zeros(1, np.float32), np.array([number], np.int32)
            code.call(out.ctypes.data, a.ctypes.data, 0, 0, 0, 0)
            assert out[0] == expected


@pytest.mark.skipif(not can_load(), reason="object files of Linux on x86-64")
def test_nets_need_no_llvm_to_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = net_output()
    monkeypatch.setattr(jit, "can_load", lambda: False)
    assert np.array_equal(net_output(), expected)
    script = (
        "import sys, hyper_inference\n"
        "from tests.compiler.nets import small_unet_model\n"
        f"hyper_inference.compile(small_unet_model(), {SHAPE})\n"
        "assert 'llvmlite.binding' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.skipif(not can_load(), reason="object files of Linux on x86-64")
def test_what_the_loader_does_not_know_is_refused() -> None:
    data = emit(MODULE, *machine())
    for damaged in (b"", b"\x7fELF", data[:100], data[:-200], b"\x7fELF\x01" + data[5:]):
        with pytest.raises(ObjectFileError):
            LoadedObject(damaged)
    with pytest.raises(ObjectFileError, match="no function 'other'"):
        LoadedObject(data).address("other")
    unknown = emit(MODULE.replace("@fmaf", "@hyper_nowhere"), *machine())
    with pytest.raises(ObjectFileError, match="'hyper_nowhere', which is not in this process"):
        LoadedObject(unknown)
    changing = MODULE.replace("internal constant", "global")
    with pytest.raises(ObjectFileError, match="data that changes"):
        LoadedObject(emit(changing, *machine()))
    assert load_object(emit(changing, *machine()), find_target()).function


def test_the_target_has_no_feature_that_llvm_does_not_find() -> None:
    have = {f"+{name}" for name, on in llvm.get_host_cpu_features().items() if on}
    for found in targets():
        asked = {name for name in found.features.split(",") if name.startswith("+")}
        assert asked
        assert asked <= have
    assert target._of_llvm()[1] == target._of_linux()
