"""CPUs that code is made for: vector width, registers, features.

The widths give the same bits: every output's sum has one order, multiply-adds are fused on all.
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass

import llvmlite.binding as llvm

from hyper.errors import InvalidArgumentError
from hyper_inference.compiler.codegen.object_file import initialize


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


@functools.cache
def targets() -> tuple[Target, ...]:
    """Those that this machine can run, the best first."""
    initialize()
    have = dict(llvm.get_host_cpu_features())
    cpu = llvm.get_host_cpu_name()
    found = []

    def features(drop: tuple[str, ...] = ()) -> str:
        kept = {k: v and not k.startswith(drop) for k, v in have.items()} if drop else have
        flags = [("+" if on else "-") + name for name, on in sorted(kept.items())]
        return ",".join([*flags, *(["-prefer-256-bit"] if have.get("avx512f") else [])])

    x86 = platform.machine() in ("x86_64", "AMD64")
    if x86 and have.get("avx512f") and have.get("fma"):
        found.append(Target("avx512", 16, 28, cpu, features()))
    if x86 and have.get("avx2") and have.get("fma"):
        flags = features(("avx512", "prefer-256")).removesuffix(",-prefer-256-bit")
        found.append(Target("avx2", 8, 12, "haswell", flags))
    found.append(Target("generic", 4, 24 if not x86 else 12, cpu, features(("avx512",))))
    return tuple(found)


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
