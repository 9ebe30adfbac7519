"""The costs of a CPU that none are shipped for: measured on it once, in seconds, and kept for the next time.

    clock, rate of multiply-adds, second-level cache, the seconds of some thirty kernels (`LAYERS`)  --fit-->  CpuFamily
    <the user's cache>/reparam_compiler/cpu-costs-<cpu>-<vector bytes>.json                          --read-->  the same

The kernels are those that the constants are about: layers of many weights and few pixels, which memory bounds; Winograd convs
whose scratch spills, and the same in blocks; strided, pointwise and direct ones. `benchmarks/cpu_costs.py` measures eight times
as many for what is shipped.
"""

import json
import logging
import math
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from tvm.target import Target

from reparam_compiler.core.files import alone, cache_folder, written_whole
from reparam_compiler.core.locks import ProcessLock
from reparam_compiler.lowering.conv.algorithms import ConvShape, Direct
from reparam_compiler.lowering.conv.choice import candidates
from reparam_compiler.lowering.cpu.families import FAMILIES, MODEL, Costs, CpuFamily, usable
from reparam_compiler.lowering.cpu.fitting import fitted
from reparam_compiler.lowering.cpu.machine import VectorUnit, is_native, shipped_family, vector_unit
from reparam_compiler.lowering.cpu.peak import measure_clock, measure_peak
from reparam_compiler.lowering.cpu.timing import Kernel, Seconds, least_seconds

log = logging.getLogger(__name__)

MAGIC = "reparam_compiler costs of a cpu"
ROUNDS, ARENA = 10, 64_000_000
"""Of a measurement: rounds through all kernels, and float32 elements of weights, which is more than caches hold."""
FASTEST_UNITS = 4
"""Multiply-adds of vectors that a core starts each cycle, at most."""


def conv(into: int, out: int, side: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> ConvShape:
    """A padded conv over a square image, as nets have them."""
    return ConvShape(1, side, side, into, out, (kernel, kernel), (stride, stride), (1, 1), (kernel // 2,) * 4, groups)


LAYERS = (
    conv(512, 512, 7), conv(192, 192, 14), conv(64, 64, 56), conv(32, 32, 112), conv(48, 48, 112, stride=2),
    conv(2048, 512, 7, 1), conv(512, 128, 28, 1), conv(64, 256, 56, 1), conv(16, 96, 112, 1),
)  # fmt: skip
OUTPUTS = ((2, 2), (4, 4))
"""Of the Winograd convs among the kernels."""
Timer: TypeAlias = Callable[[Sequence[Kernel], Target, VectorUnit], Seconds]


def timed(kernels: Sequence[Kernel], target: Target, unit: VectorUnit) -> Seconds:
    """What the kernels take here."""
    return least_seconds(kernels, target, unit, rounds=ROUNDS, arena=ARENA)


def kernels(unit: VectorUnit) -> list[Kernel]:
    """Each layer directly and by Winograd's transforms, as the rule has them for a unit; what goes by blocks also at once."""
    found = [(shape, form) for shape in LAYERS for form in candidates(shape, unit)]
    taken = [(shape, form) for shape, form in found if isinstance(form, Direct) or form.outputs in OUTPUTS]
    return list(dict.fromkeys([*taken, *((shape, replace(form, block=0)) for shape, form in taken)]))


def measured(target: Target, timer: Timer = timed, starts: Sequence[Costs] = ()) -> CpuFamily:
    """The family that this machine is, measured.

    Args:
        target: this machine's.
        starts: tables that the fit starts at; none are those that are known, the machine's own or the borrowed one first.
    """
    shipped = shipped_family(target)
    starts = starts or list(dict.fromkeys((shipped.costs, *(family.costs for family in FAMILIES))))
    unit = replace(vector_unit(target, shipped), threads=1, costs=starts[0], l2_bytes=_second_level() or shipped.l2_bytes)
    per_second = measure_peak(target, 1) / (2 * unit.lanes("float32"))
    fmas = min(max(round(per_second / measure_clock(target)), 1), FASTEST_UNITS)
    unit = replace(unit, fmas=fmas)
    seconds = timer(kernels(unit), target, unit)
    costs = fitted(seconds, unit, per_second / fmas, starts)
    return CpuFamily((_cpu(target),), unit.l2_bytes, costs, fmas, "measured")


def family_for(target: Target, *, measure: bool, timer: Timer = timed) -> CpuFamily:
    """What kernels for a target are chosen by.

    Args:
        measure: for this machine's CPU, where none is shipped, what was measured on it; measured now where nothing is kept.
    """
    shipped = shipped_family(target)
    if shipped.origin == "shipped":
        return shipped
    if measure and is_native(target):
        return _kept_or_measured(target, timer)
    log.info("no costs of the cpu %s are known; its kernels are chosen by those of another family", _cpu(target) or "any")
    return shipped


def known_family(target: Target) -> CpuFamily:
    """The family without a measurement: what is shipped for its cpu, else what was measured and kept, else borrowed costs."""
    shipped = shipped_family(target)
    return shipped if shipped.origin == "shipped" else _read(_file(target), target) or shipped


def measure_now(target: Target, timer: Timer = timed) -> CpuFamily:
    """What this machine is found to cost, measured anew and kept. target: this machine's."""
    with _MEASURING.held(), alone(file := _file(target)):
        return _kept(file, target, measured(target, timer))


def _kept_or_measured(target: Target, timer: Timer) -> CpuFamily:
    """What is kept, else measured by one thread of one process; the others wait for it."""
    file = _file(target)
    with _MEASURING.held():
        if found := _KNOWN.get(file) or _read(file, target):
            return _KNOWN.setdefault(file, found)
        with alone(file):
            if found := _read(file, target):  # of the process that was waited for
                return _KNOWN.setdefault(file, found)
            log.warning(
                "the cpu %s is not known yet: what its kernels cost is measured once, in some ten seconds", _cpu(target)
            )
            return _kept(file, target, measured(target, timer))


def _kept(file: Path, target: Target, family: CpuFamily) -> CpuFamily:
    """The family, written and remembered; a log line where it cannot be written."""
    _KNOWN[file] = family
    try:
        with written_whole(file) as whole:
            whole.write_text(json.dumps(_about(target) | _constants(family), indent=1) + "\n")
    except OSError as refusal:
        log.warning("what the cpu %s costs is not kept for the next process: %s", _cpu(target), refusal)
    return family


def _constants(family: CpuFamily) -> dict[str, Any]:
    return {"l2_bytes": family.l2_bytes, "fmas": family.fmas, "costs": asdict(family.costs)}


def _about(target: Target) -> dict[str, Any]:
    """What must be equal where a measurement is taken for another."""
    return {
        "magic": MAGIC,
        "model": MODEL,
        "cpu": _cpu(target),
        "processor": processor(),
        "vector_bytes": vector_unit(target).bytes,
    }


def _file(target: Target) -> Path:
    """Where the measurement of a machine is kept."""
    words = f"{_cpu(target)}-{processor()}-{vector_unit(target).bytes}"
    return cache_folder() / f"cpu-costs-{re.sub('[^A-Za-z0-9]+', '-', words).strip('-')}.json"


def _read(file: Path, target: Target) -> CpuFamily | None:
    """The measurement that a file holds; None where there is none, with a log line where it is torn, foreign or outdated."""
    try:
        found = json.loads(file.read_bytes())
        differing = [name for name, value in _about(target).items() if found[name] != value]
        if differing:
            raise ValueError(f"another {', '.join(differing)}")
        sizes = [found["l2_bytes"], found["fmas"]]
        costs = {each.name: float(found["costs"][each.name]) for each in fields(Costs)}
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"sizes of {sizes}")
        if not all(math.isfinite(value) and value > 0 for value in costs.values()):
            raise ValueError(f"costs of {costs}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as refusal:
        log.warning("%s is ignored: it holds no measurement of this machine by this version (%r)", file, refusal)
        return None
    return CpuFamily((_cpu(target),), sizes[0], Costs(**costs), sizes[1], "measured")


def _cpu(target: Target) -> str:
    return str(target.attrs.get("mcpu", ""))


def processor() -> str:
    """The maker's name of this machine's processor: LLVM has one name for several, and "generic" for what it does not know."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part")))
    return next(named, platform.processor())


def _second_level() -> int:
    """What of this machine's second-level cache may be used, where Linux says how large it is; else 0."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
    except OSError:
        return 0
    return usable(int(text[:-1]) * 1024) if re.fullmatch(r"\d+K", text) else 0


_MEASURING = ProcessLock()
_KNOWN: dict[Path, CpuFamily] = {}
"""What this process has read or measured: a compilation gives the same kernels as the one before it."""
