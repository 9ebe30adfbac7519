"""What a core's cycles go to beside its arithmetic, by family of CPU: what `conv.choice` counts with.

Measured by `python -m benchmarks.cpu_costs` on RepVGG's and other nets' layers with cold weights, where such a machine was at
hand; what a family borrows from another says so. The sizes of caches are the makers'.
"""

from dataclasses import dataclass

KIB = 1024


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
class Family:
    """CPUs that one table of costs serves.

    cpus: LLVM's names of them. costs: see there.
    l2_bytes: what a kernel's scratch or weights may take of a core's second-level cache: all of 512 KiB, half of a larger one.
    fmas: multiply-adds of the widest registers that a core starts each cycle.
    """

    cpus: tuple[str, ...]
    l2_bytes: int
    costs: Costs
    fmas: int = 2


FAMILIES = (
    Family(("znver1", "znver2", "znver3"), 512 * KIB, ZEN3),
    Family(("znver4",), 512 * KIB, ZEN4, fmas=1),
    Family(("znver5",), 512 * KIB, ZEN4),
    Family(("skylake-avx512", "skx", "cascadelake", "cooperlake"), 512 * KIB, GOLDEN_COVE),
    Family(("icelake-server",), 640 * KIB, GOLDEN_COVE),
    Family(("icelake-client", "rocketlake"), 512 * KIB, GOLDEN_COVE, fmas=1),
    Family(("tigerlake",), 640 * KIB, GOLDEN_COVE, fmas=1),
    Family(("sapphirerapids", "emeraldrapids", "graniterapids", "graniterapids-d"), 1024 * KIB, GOLDEN_COVE),
)


def family_of(cpu: str, width: int, *, arm: bool) -> Family:
    """The family of a CPU by LLVM's name of it; of another what its architecture and its vectors of `width` bytes suggest."""
    for family in FAMILIES:
        if cpu in family.cpus:
            return family
    return Family((cpu,), 512 * KIB, NEON if arm else GOLDEN_COVE if width == 64 else ZEN3)
