"""What a core's cycles go to beside its arithmetic, by family of CPU: what `conv.choice` counts with.

Measured by `python -m benchmarks.cpu_costs` on RepVGG's and other nets' layers with cold weights, where such a machine was at
hand; what a family borrows from another says so. The sizes of caches are the makers'. A machine of a family that is not here
measures itself (`measured_family`).
"""

from dataclasses import dataclass, replace
from typing import Literal

KIB = 1024
MODEL = 1
"""The version of what `conv.choice` counts; raised where it counts otherwise, so that constants are measured anew for it."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a byte costs from where, and a transform.

    load: cycles of a load beyond its port.
    second_bytes: bytes a cycle from the second-level cache.
    stream_bytes: bytes a cycle from the third-level cache.
    cold_bytes: bytes a cycle from memory, on a machine that others use too.
    transform: cycles of each element of a Winograd tile for a vector, by the square of the tile's rows and columns.
    spill: cycles of a byte of scratch beyond the second-level cache, written and read.
    """

    load: float
    second_bytes: float
    stream_bytes: float
    cold_bytes: float
    transform: float
    spill: float


ZEN3 = Costs(load=0.1, second_bytes=20, stream_bytes=16, cold_bytes=2, transform=0.11, spill=1.0)
ZEN4 = Costs(load=0.1, second_bytes=20, stream_bytes=16, cold_bytes=8, transform=0.17, spill=1.0)
GOLDEN_COVE = Costs(load=0.25, second_bytes=15, stream_bytes=14, cold_bytes=2.6, transform=0.035, spill=0.2)
"""Of servers: measured on Emerald Rapids (AVX-512)."""
NEON = Costs(load=0.1, second_bytes=20, stream_bytes=16, cold_bytes=2, transform=0.11, spill=1.0)
"""A guess: no such machine was at hand."""


@dataclass(frozen=True, slots=True)
class CpuFamily:
    """CPUs that one table of costs serves.

    >>> str(CpuFamily(("znver1", "znver2"), 512 * KIB, ZEN3))[:37]
    'shipped for znver1/znver2: load=0.1, '

    cpus: LLVM's names of them. costs: see there.
    l2_bytes: what a kernel's scratch or weights may take of a core's second-level cache (`usable`).
    fmas: multiply-adds of the widest registers that a core starts each cycle.
    origin: of the costs: of this table, measured on the machine itself, or borrowed from a family that is like it.
    """

    cpus: tuple[str, ...]
    l2_bytes: int
    costs: Costs
    fmas: int = 2
    origin: Literal["shipped", "measured", "borrowed"] = "shipped"

    def __str__(self) -> str:
        costs = ", ".join(f"{name}={getattr(self.costs, name):.3g}" for name in Costs.__slots__)
        return f"{self.origin} for {'/'.join(self.cpus) or 'any cpu'}: {costs}, l2 {self.l2_bytes // KIB} KiB, fmas {self.fmas}"


FAMILIES = (
    CpuFamily(("znver1", "znver2", "znver3"), 512 * KIB, ZEN3),
    CpuFamily(("znver4",), 512 * KIB, ZEN4, fmas=1),
    CpuFamily(("znver5",), 512 * KIB, ZEN4),
    CpuFamily(("skylake-avx512", "skx", "cascadelake", "cooperlake"), 512 * KIB, GOLDEN_COVE),
    CpuFamily(("icelake-server",), 640 * KIB, GOLDEN_COVE),
    CpuFamily(("icelake-client", "rocketlake"), 512 * KIB, GOLDEN_COVE, fmas=1),
    CpuFamily(("tigerlake",), 640 * KIB, GOLDEN_COVE, fmas=1),
    CpuFamily(("sapphirerapids", "emeraldrapids", "graniterapids", "graniterapids-d"), 1024 * KIB, GOLDEN_COVE),
)


def usable(l2_bytes: int) -> int:
    """What a kernel's scratch or weights may take of a second-level cache: all of 512 KiB, half of a larger one."""
    return max(min(l2_bytes, 512 * KIB), l2_bytes // 2)


def family_of(cpu: str, width: int, *, arm: bool) -> CpuFamily:
    """The family of a CPU by LLVM's name of it; of another what its architecture and its vectors of `width` bytes suggest."""
    for family in FAMILIES:
        if cpu in family.cpus:
            return family if width == 64 else replace(family, fmas=2)  # half-rate units are those of the widest vectors
    costs = NEON if arm else GOLDEN_COVE if width == 64 else ZEN3
    return CpuFamily((cpu,) if cpu else (), 512 * KIB, costs, origin="borrowed")
