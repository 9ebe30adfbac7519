"""What the schedules must know of a CPU, and whether it is this machine's.

`VectorUnit` is all that the schedules by rule read: a GEMM tile of mr x nr needs mr * nr / lanes accumulators,
nr / lanes weights and one broadcast row in registers at once.
"""

import difflib
import math
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm.target import Target
from tvm.target.codegen import (
    llvm_cpu_has_features,
    llvm_get_cpu_archlist,
    llvm_get_cpu_features,
    llvm_get_vector_width,
)

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.cpu.families import ZEN3, Costs, CpuFamily, family_of

KIND = "llvm"
SMALL = 4096  # elements below which starting threads costs more than it saves
WHICH_MACHINE = ("mcpu", "mtriple", "mattr", "mabi", "mfloat-abi")
"""The attributes that say for which machine code is; without any, it is for this one."""
VECTOR_FEATURES = ("sse", "avx", "amx", "fma", "f16c", "bmi", "neon", "sve", "sme", "dotprod")  # what LLVM emits unasked


@dataclass(frozen=True, slots=True)
class DotProduct:
    """An instruction that adds to each 32-bit integer of a vector the products of four bytes with four signed ones, exactly.

    intrinsic: LLVM's name of it. data: the dtype of the first four.
    """

    intrinsic: str
    data: str


@dataclass(frozen=True, slots=True)
class VectorUnit:
    """The SIMD unit of one core.

    bytes: the width of a vector register.
    registers: how many of them code may use.
    threads: cores that the target has.
    fmas: multiply-adds of whole registers that a core starts each cycle.
    l2_bytes: the cache that should hold one column tile's weights.
    costs: of the family of CPU (`families.py`).
    dots: products of bytes, where it has an instruction for them.

    Example: `VectorUnit(bytes=32, registers=16, threads=2)` is a CPU of two cores with AVX2.
    """

    bytes: int
    registers: int
    threads: int
    fmas: int = 2
    l2_bytes: int = 512 * 1024
    costs: Costs = ZEN3
    dots: DotProduct | None = None

    def lanes(self, dtype: str) -> int:
        """Elements of `dtype` in a register."""
        return max(1, self.bytes * 8 // _bits(dtype))


@cache
def _bits(dtype: str) -> int:
    """Of an element; TVM reads the word anew each time, and the choice of a tile asks for it thousands of times."""
    return int(tvm.DataType(dtype).bits)


DOTS = {
    "avx512vnni": DotProduct("llvm.x86.avx512.vpdpbusd.512", "uint8"),
    "avxvnni": DotProduct("llvm.x86.avx512.vpdpbusd.256", "uint8"),
    "dotprod": DotProduct("llvm.aarch64.neon.sdot", "int8"),
}
"""By LLVM's feature, of vectors as wide as those of the CPUs that have it."""


def vector_unit(target: Target, family: CpuFamily | None = None) -> VectorUnit:
    """The vector registers of an llvm target, from its triple, cpu and attributes; its caches and costs from its family.

    family: None is the one that is shipped for its cpu, or whose costs it borrows.
    """
    threads = int(target.attrs.get("num-cores", 0)) or cores()
    width, registers = _registers(target)
    family = family or shipped_family(target)
    dots = next((dots for feature, dots in DOTS.items() if llvm_cpu_has_features(feature, target)), None)
    return VectorUnit(width, registers, threads, family.fmas, family.l2_bytes, family.costs, dots)


def shipped_family(target: Target) -> CpuFamily:
    """The family of an llvm target's cpu; of one that is in no table a family with borrowed costs."""
    return family_of(str(target.attrs.get("mcpu", "")), _registers(target)[0], arm=_arm(target))


def native_family() -> CpuFamily:
    """The family of this machine, as it is shipped."""
    return shipped_family(Target(native()))


def is_native(target: Target) -> bool:
    """Whether an llvm target is this machine, with all of its vector registers."""
    here = Target(native())
    return (
        target.attrs.get("mcpu") == here.attrs["mcpu"] and not missing_here(target) and _registers(target) == _registers(here)
    )


def _registers(target: Target) -> tuple[int, int]:
    """Bytes of a vector register, and how many there are."""
    if llvm_cpu_has_features("avx512f", target):
        return 64, 32
    if llvm_cpu_has_features("avx", target):
        return 32, 16
    width = max(16, int(llvm_get_vector_width(target)) // 8)
    return min(width, 16), 32 if _arm(target) else 16


def _arm(target: Target) -> bool:
    return str(target.attrs.get("mtriple", "")).startswith(("aarch64", "arm64"))


def missing_here(target: Target) -> str:
    """Why this machine cannot run code of an llvm target: its architecture or vector instructions; nothing where it can."""
    here = Target.from_device("cpu")
    ours, theirs = (str(t.attrs.get("mtriple", "")).partition("-")[0] for t in (here, target))
    if theirs and theirs != ours:
        return f"it is {theirs}, and this machine is {ours}"
    present = tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    wanted = sorted(name for name in llvm_get_cpu_features(target) if name.startswith(VECTOR_FEATURES))
    absent = [name for name in wanted if name in present and not present[name]]
    return f"this machine lacks {', '.join(absent)}" if absent else ""


def native() -> dict[str, Any]:
    """The attributes of the llvm target that this machine is."""
    here = Target.from_device("cpu")
    return {
        "kind": KIND,
        "mtriple": str(here.attrs["mtriple"]),
        "mcpu": str(here.attrs["mcpu"]),
        "num-cores": cores(),
    }


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an llvm target; this machine's where none of them says which machine it is, or `mcpu` is "native"."""
    named = {name: value for name, value in config.items() if (name, value) != ("mcpu", "native")}
    return named if any(name in named for name in WHICH_MACHINE) else native() | named


def forgone_here(target: Target) -> str:
    """What of this machine's arithmetic code for an llvm target leaves unused; nothing where it uses all or cannot run here."""
    if missing_here(target):
        return ""
    theirs, ours = (_arithmetic(one) for one in (target, Target(native())))
    return f"it uses {theirs}, and this machine has {ours}" if theirs != ours else ""


def strength(target: Target) -> tuple[int, int]:
    """The bytes of a vector of an llvm target, and how many features it has: the larger is the better of two that run."""
    return vector_unit(target).bytes, len(llvm_get_cpu_features(target))


def _arithmetic(target: Target) -> str:
    fused = llvm_cpu_has_features("fma", target) or llvm_cpu_has_features("neon", target)
    return f"vectors of {vector_unit(target).bytes} bytes {'with' if fused else 'without'} fused multiply-add"


def check_cpu(target: Target) -> None:
    """Raises LoweringError where LLVM does not know the target's mcpu, which TVM would take for a generic one."""
    cpu = str(target.attrs.get("mcpu", ""))
    names = [str(name) for name in llvm_get_cpu_archlist(target)] if cpu else []
    if cpu not in names and cpu:
        near = difflib.get_close_matches(cpu, names, n=3) or names[:3]
        triple = target.attrs.get("mtriple") or "this machine"
        raise LoweringError(
            f"target: mcpu {cpu!r} is unknown for {triple}; near it are {', '.join(near)}. "
            "Pass one of LLVM's names, and for another architecture also its -mtriple"
        )


def cores() -> int:
    """How many cores this process may keep busy: of the CPUs that it may run on those that share no core, within its quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return max(1, min(len({_siblings(cpu) for cpu in allowed}), _quota()))


def _siblings(cpu: int) -> str:
    """The CPUs on the same core, as Linux lists them; elsewhere the CPU is its own core."""
    text = _text(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return text or str(cpu)


def _quota() -> int:
    """CPUs' worth of time that the control group of a container gives, rounded up."""
    share, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    return math.ceil(int(share) / int(period)) if share.isdigit() and period.isdigit() else sys.maxsize


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
