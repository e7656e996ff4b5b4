"""LLVM in a process of its own: the same machine code, and an error where it fails."""

from __future__ import annotations

import numpy as np
import pytest

import hyper_inference
from hyper_inference.compiler.codegen import jit
from hyper_inference.compiler.codegen.object_file import emit, emit_elsewhere
from hyper_inference.compiler.codegen.target import find_target
from tests.compiler.nets import small_unet_model

MODULE = """
define void @add(ptr %out, ptr %a) {
  %x = load <8 x float>, ptr %a
  %y = fadd <8 x float> %x, %x
  store <8 x float> %y, ptr %out
  ret void
}
"""


def machine() -> tuple[str, str, str]:
    import llvmlite.binding as llvm

    target = find_target()
    return llvm.get_process_triple(), target.cpu, target.features


def test_it_is_the_same_code() -> None:
    here = emit(MODULE, *machine())
    assert here.startswith(b"\x7fELF")
    assert emit_elsewhere(MODULE, *machine()) == here


def test_an_invalid_module_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 1: .*expected"):
        emit_elsewhere("define nothing", *machine())


def test_a_net_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1, 1, 6, 20, 38)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected = hyper_inference.compile(small_unet_model(), shape)(x)
    monkeypatch.setattr(jit, "_LARGE_TEXT", 0)
    assert np.array_equal(hyper_inference.compile(small_unet_model(), shape)(x), expected)
