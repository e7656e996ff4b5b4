"""CPUs that code is made for: vector width, registers, features.

The widths give the same bits: every output's sum has one order, multiply-adds are fused on all.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hyper.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class Target:
    """What kernels are generated for.

    Args:
        name: avx512, avx2 or generic.
        width: floats in a vector.
        accumulators: how many sums are kept in registers.
        cpu, features: as LLVM calls them.
    """

    name: str
    width: int
    accumulators: int
    cpu: str
    features: str

    @property
    def has_clock(self) -> bool:
        """Programs may read a counter of cycles."""
        return platform.machine() in ("x86_64", "AMD64")

    @property
    def has_bfloat(self) -> bool:
        """It multiplies bfloat16 numbers (AVX512_BF16)."""
        return self.name == "avx512" and "+avx512bf16" in self.features.split(",")

    @property
    def key(self) -> str:
        """All that distinguishes its machine code."""
        return f"{self.name}/{self.width}/{self.cpu}/{self.features}"


_LLVM_NAMES = {
    "sse4_1": "sse4.1", "sse4_2": "sse4.2", "ssse3": "ssse3", "popcnt": "popcnt", "avx": "avx",
    "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi1": "bmi", "bmi2": "bmi2", "abm": "lzcnt",
    "movbe": "movbe", "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512cd": "avx512cd",
    "avx512dq": "avx512dq", "avx512vl": "avx512vl", "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
}  # fmt: skip
"""What kernels may use of an x86 CPU: the names of Linux and those of LLVM."""


@functools.cache
def targets() -> tuple[Target, ...]:
    """Those that this machine can run, the best first.

    On Linux LLVM is not asked: its library alone takes 40 MB (`loader.py`).
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        cpu, have = _of_llvm()
        return (Target("generic", 4, 24, cpu, _written(have)),)
    have = _of_linux() if platform.system() == "Linux" else _of_llvm()[1]
    narrow = frozenset(name for name in have if not name.startswith("avx512"))
    found = []
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"} <= have:
        features = f"{_written(have)},-prefer-256-bit"
        found.append(Target("avx512", 16, 28, "x86-64-v4", features))
    wide = {"avx2", "fma"} <= have
    cpu = "haswell" if wide else "x86-64"
    if wide:
        found.append(Target("avx2", 8, 12, cpu, _written(narrow)))
    found.append(Target("generic", 4, 12, cpu, _written(narrow)))
    return tuple(found)


def _written(features: Iterable[str]) -> str:
    return ",".join(f"+{name}" for name in sorted(features))


def _of_linux() -> frozenset[str]:
    """Features of the CPU that the kernel lets programs use."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            return frozenset(llvm for name, llvm in _LLVM_NAMES.items() if name in flags)
    return frozenset()


def _of_llvm() -> tuple[str, frozenset[str]]:
    """The CPU's name and features, as LLVM finds them."""
    import llvmlite.binding as llvm

    have = {name for name, on in llvm.get_host_cpu_features().items() if on}
    x86 = set(_LLVM_NAMES.values()) if platform.machine() in ("x86_64", "AMD64") else have
    return llvm.get_host_cpu_name(), frozenset(have & x86)


def find_target(name: str | None = None) -> Target:
    """The target called `name`, or the best.

    Raises:
        InvalidArgumentError: this machine has no such vectors.
    """
    available = targets()
    for target in available:
        if name in (None, target.name):
            return target
    names = ", ".join(target.name for target in available)
    raise InvalidArgumentError(f"target {name!r} is not this machine's; choose one of {names}")
