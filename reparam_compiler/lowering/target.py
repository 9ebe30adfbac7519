"""What a person calls a target -> `tvm.target.Target`, and what the schedules need to know of it.

    None, "native"                        this machine: its triple, its cpu, its cores
    "llvm", "cuda"                        a kind: "llvm" is the portable baseline of the architecture
    "llvm -mcpu=znver3 -num-cores 2"      the strings of the old tvmc, which TVM itself no longer reads
    "nvidia/nvidia-a100"                  a tag
    {"kind": "llvm", "mcpu": "znver3"}    TVM's own form, also as a JSON string

`VectorUnit` is all that the schedules by rule read: a GEMM tile of mr x nr needs mr * nr / lanes accumulators,
nr / lanes weights and one broadcast row in registers at once.
"""

import difflib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import tvm
import tvm_ffi
from tvm.target import Target
from tvm.target.codegen import (
    llvm_cpu_has_features,
    llvm_get_cpu_archlist,
    llvm_get_cpu_features,
    llvm_get_vector_width,
)

from reparam_compiler.errors import LoweringError, first_line

TargetLike: TypeAlias = str | Mapping[str, Any] | Any | None  # Any: a tvm.target.Target

KINDS = ("llvm", "cuda")
OLDEST_ARCH_OF_CUDA_13 = "sm_75"
DEFAULT_ARCH = "sm_80"
HALF_RATE = ("znver4", "tigerlake", "icelake-client", "rocketlake")  # one 512-bit multiply-add a cycle
VECTOR_FEATURES = ("sse", "avx", "amx", "fma", "f16c", "bmi", "neon", "sve", "sme", "dotprod")  # what LLVM emits unasked
ACCEPTED = (
    'None (this machine), "llvm", "cuda", a string like "llvm -mcpu=znver3 -num-cores 2", '
    'a tag like "nvidia/nvidia-a100", or a dict like {"kind": "llvm", "mcpu": "znver3"}'
)


@dataclass(frozen=True, slots=True)
class VectorUnit:
    """The SIMD unit of one core.

    bytes: the width of a vector register.
    registers: how many of them code may use.
    threads: cores that the target has.
    fmas: multiply-adds of whole registers that a core starts each cycle.
    l2_bytes: the cache that should hold one column tile's weights.
    """

    bytes: int
    registers: int
    threads: int
    fmas: int = 2
    l2_bytes: int = 512 * 1024

    def lanes(self, dtype: str) -> int:
        """Elements of `dtype` in a register."""
        return max(1, self.bytes * 8 // int(tvm.DataType(dtype).bits))


def resolve(target: TargetLike) -> Target:
    """The TVM target that `target` means.

    Raises LoweringError where it cannot be read, names an unknown cpu or attribute, or a kind other than llvm and cuda.
    """
    if isinstance(target, Target):
        return _checked(target)
    if target is None or target == "native":
        return Target(_native())
    if isinstance(target, Mapping):
        config = dict(target)
    elif isinstance(target, str) and target.strip():
        config = _parse(target.strip())
    else:
        raise LoweringError(f"target: found {target!r}; expected {ACCEPTED}")
    if config.get("kind") == "cuda" and "arch" not in config:
        config["arch"] = _cuda_arch()
    try:
        resolved = Target(config)
    except (ValueError, TypeError, RuntimeError) as refusal:
        raise LoweringError(
            f"target: TVM refuses {target!r}: {first_line(refusal).rstrip('.')}. Expected {ACCEPTED}"
        ) from refusal
    return _checked(resolved)


def is_gpu(target: Target) -> bool:
    """Whether kernels of this target must be bound to threads."""
    return "gpu" in target.keys


def vector_unit(target: Target) -> VectorUnit:
    """The vector registers of an llvm target, from its triple, cpu and attributes."""
    threads = int(target.attrs.get("num-cores", 0)) or _cores()
    if llvm_cpu_has_features("avx512f", target):
        return VectorUnit(64, 32, threads, fmas=1 if target.attrs.get("mcpu") in HALF_RATE else 2)
    if llvm_cpu_has_features("avx", target):
        return VectorUnit(32, 16, threads)
    triple = str(target.attrs.get("mtriple", ""))
    width = max(16, int(llvm_get_vector_width(target)) // 8)
    return VectorUnit(min(width, 16), 32 if triple.startswith(("aarch64", "arm64")) else 16, threads)


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


def describe(target: Target) -> str:
    """One JSON object, from which `resolve` makes the same target again."""
    kept = {key: value for key, value in json.loads(str(target)).items() if key not in {"keys", "tag"}}
    return json.dumps(kept, sort_keys=True)


def _native() -> dict[str, Any]:
    here = Target.from_device("cpu")
    return {
        "kind": "llvm",
        "mtriple": str(here.attrs["mtriple"]),
        "mcpu": str(here.attrs["mcpu"]),
        "num-cores": _cores(),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cuda_arch() -> str:
    device = tvm.cuda(0)
    version = str(device.compute_version) if device.exist else ""
    return f"sm_{version.replace('.', '')}" if version else DEFAULT_ARCH


def _parse(text: str) -> dict[str, Any]:
    """The dict of a JSON text, a tag, or an old-style string (`kind -key=value -key value`)."""
    if text.startswith("{"):
        try:
            return dict(json.loads(text))
        except json.JSONDecodeError as refusal:
            raise LoweringError(f"target: {text!r} is no JSON object: {refusal}. Expected {ACCEPTED}") from refusal
    try:
        head, *words = shlex.split(text)
    except ValueError as refusal:
        raise LoweringError(f"target: {text!r} cannot be split into words: {refusal}. Expected {ACCEPTED}") from refusal
    if "," in head or any(word == "," or word in KINDS for word in words):
        raise LoweringError(
            f"target: {text!r} is a composite target; one target compiles the whole model here. Pass one of {KINDS}"
        )
    config: dict[str, Any] = {"tag": head} if head in tvm.target.list_tags() else {"kind": head}
    if "kind" in config and head not in KINDS:
        near = difflib.get_close_matches(head, [*KINDS, *map(str, tvm.target.list_tags())], n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise LoweringError(f"target: {head!r} is neither a kind {KINDS} nor a tag of TVM.{hint} Expected {ACCEPTED}")
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not name:
            raise LoweringError(f"target: {word!r} in {text!r} is no option; expected -key=value or -key value")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("-") else "true"
        config[name] = _typed(name, value)
    return config


def _typed(name: str, value: str) -> Any:
    if name in {"mattr", "keys", "libs"}:
        return value.split(",")
    if name in {"mcpu", "mtriple", "arch", "model", "device", "mabi", "mfloat-abi"}:
        return value
    if value.lstrip("-").isdigit():
        return int(value)
    return {"true": True, "false": False}.get(value.lower(), value)


def _checked(target: Target) -> Target:
    kind = str(target.kind.name)
    if kind not in KINDS:
        raise LoweringError(f"target: kind {kind!r} is not supported; expected one of {KINDS}")
    if kind == "llvm" and (cpu := str(target.attrs.get("mcpu", ""))):
        known = [str(name) for name in llvm_get_cpu_archlist(target)]
        if cpu not in known:
            near = difflib.get_close_matches(cpu, known, n=3) or known[:3]
            triple = target.attrs.get("mtriple") or "this machine"
            raise LoweringError(
                f"target: mcpu {cpu!r} is unknown for {triple}; near it are {', '.join(near)}. "
                "Pass one of LLVM's names, and for another architecture also its -mtriple"
            )
    if kind == "cuda":
        arch = str(target.attrs.get("arch", ""))
        if not arch.startswith("sm_") or not arch[3:5].isdigit():
            raise LoweringError(f"target: arch {arch!r} is no CUDA architecture; expected one like {DEFAULT_ARCH!r}")
    return target
