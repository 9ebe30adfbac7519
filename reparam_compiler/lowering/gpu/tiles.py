"""Which tile a GPU conv takes, by counting: no measurement, for there is no GPU where this is compiled.

    Y[g, m, n] = sum_k P[g, m, k] W[g, k, n]      m: output pixels, n: O/G, k = (r kw + s) Ig + i      (implicit GEMM)

A block of threads computes `rows x columns` of one group in steps of `depth`, and the sum over k may be cut into
`pieces` blocks where pixels and channels alone are too few to fill the chip (batch 1). Counted for a multiprocessor:

    cycles = ceil(blocks / multiprocessors) max(multiply-adds / rate, bytes staged / L2 bytes a cycle, latency) + edges
"""

import math
from dataclasses import dataclass, replace

from reparam_compiler.lowering.conv.algorithms import ConvShape, round_up

L2_BYTES = 32  # bytes a cycle that one multiprocessor gets from L2
DRAM_BYTES = 12  # bytes a cycle that one multiprocessor gets from memory: 1.5-3 TB/s over 108-132 of them at 1.2-1.8 GHz
STEP_LATENCY = 700  # cycles of a step of k that waits for memory and two barriers, where no other block hides it
LAUNCH = 4000  # cycles that a second kernel costs
HIDDEN_BY = 8  # warps on a multiprocessor that hide each other's latency
PIECES = (1, 2, 3, 4, 6, 8, 12, 16)
SMALLEST_PIECE = 4  # steps of `depth` that a piece keeps at least


@dataclass(frozen=True, slots=True)
class Chip:
    """What the rule must know of a GPU: how many multiprocessors, and the multiply-adds that one does in a cycle.

    tensor_rate: of float16 on tensor cores; 0 where there are none.
    shared_memory: bytes of it that a block of threads may have.
    """

    multiprocessors: int
    float32_rate: int
    tensor_rate: int
    shared_memory: int = 48 * 1024


@dataclass(frozen=True, slots=True)
class GpuTile:
    """The knobs of an implicit GEMM.

    rows, columns, depth: pixels, channels and steps of k that a block of threads stages in shared memory at a time.
    thread_rows, thread_columns: what of it one thread computes (float32), or one warp (tensor cores).
    pieces: blocks that share one sum over k.
    """

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int
    pieces: int = 1

    @property
    def workers(self) -> int:
        """Threads of a block in float32, warps on tensor cores."""
        return (self.rows // self.thread_rows) * (self.columns // self.thread_columns)

    @property
    def shared_bytes(self) -> int:
        """What a block stages in float32: rows are four numbers longer than the tile's."""
        return 4 * self.depth * (self.rows + 4 + self.columns)

    def padded(self, shape: ConvShape) -> tuple[int, int, int]:
        """Pixels, channels of a group, and k, each rounded up to whole tiles (and k to whole pieces)."""
        depth = self.depth * self.pieces
        k = shape.kernel[0] * shape.kernel[1] * shape.group_in
        return round_up(shape.pixels, self.rows), round_up(shape.group_out, self.columns), round_up(k, depth)

    def blocks(self, shape: ConvShape) -> int:
        """Blocks of threads that one piece of a conv takes."""
        pixels, channels, _ = self.padded(shape)
        return shape.groups * (pixels // self.rows) * (channels // self.columns)


FLOAT32_TILES = (
    GpuTile(128, 128, 16, 8, 8),
    GpuTile(128, 96, 16, 8, 8),
    GpuTile(128, 64, 16, 8, 8),
    GpuTile(64, 128, 16, 8, 8),
    GpuTile(128, 48, 16, 8, 4),
    GpuTile(64, 64, 16, 4, 8),
    GpuTile(64, 48, 16, 4, 4),
    GpuTile(64, 32, 16, 4, 4),
    GpuTile(32, 64, 16, 4, 4),
    GpuTile(32, 32, 16, 4, 4),
)
TENSOR_TILES = (
    GpuTile(128, 128, 32, 32, 64),
    GpuTile(128, 64, 32, 32, 32),
    GpuTile(64, 128, 32, 32, 32),
    GpuTile(64, 64, 32, 32, 32),
    GpuTile(128, 32, 32, 32, 16),
    GpuTile(64, 32, 32, 16, 16),
    GpuTile(32, 64, 32, 16, 16),
    GpuTile(32, 32, 32, 16, 16),
)


def choose_gpu_tile(shape: ConvShape, chip: Chip, *, tensor_cores: bool) -> GpuTile:
    """The tile of the fewest estimated cycles; among equals the larger one.

    Pieces are tried only where whole sums would leave multiprocessors idle, not to even out the last of many waves.
    """
    tiles = TENSOR_TILES if tensor_cores else [tile for tile in FLOAT32_TILES if tile.shared_bytes <= chip.shared_memory]
    k = shape.kernel[0] * shape.kernel[1] * shape.group_in
    choices = [
        replace(tile, pieces=pieces)
        for tile in tiles
        for pieces in PIECES
        if pieces == 1
        or (math.ceil(k / (tile.depth * pieces)) >= SMALLEST_PIECE and tile.blocks(shape) < 2 * chip.multiprocessors)
    ]
    return min(choices, key=lambda t: (gpu_cycles(shape, t, chip, tensor_cores=tensor_cores), -t.rows * t.columns))


def gpu_cycles(shape: ConvShape, tile: GpuTile, chip: Chip, *, tensor_cores: bool) -> float:
    """Cycles of the whole conv, by the count in the module's docstring."""
    size = 2 if tensor_cores else 4
    pixels, channels, k = tile.padded(shape)
    blocks = tile.blocks(shape) * tile.pieces
    depth = k // tile.pieces
    warps = tile.workers if tensor_cores else tile.workers / 32
    waves = math.ceil(blocks / chip.multiprocessors)
    rate = (chip.tensor_rate if tensor_cores else chip.float32_rate) * _density(tile, tensor_cores)
    compute = tile.rows * tile.columns * depth / rate
    staged = (tile.rows + tile.columns) * depth * size / L2_BYTES
    present = warps * min(waves, max(1, 2048 // (32 * max(1, math.ceil(warps)))))
    latency = STEP_LATENCY * (depth / tile.depth) * max(0.0, 1 - present / HIDDEN_BY) / waves
    cycles = waves * (max(compute, staged) + latency)
    if tile.pieces > 1:
        partial = 4 * (tile.pieces * pixels * channels + shape.pixels * shape.group_out) * shape.groups
        cycles += LAUNCH + partial / (DRAM_BYTES * chip.multiprocessors)
    return cycles


def _density(tile: GpuTile, tensor_cores: bool) -> float:
    """The share of issue slots that multiply: a thread tile of a x b does a b multiply-adds for a / 4 + b / 4 wide loads.

    On tensor cores the same for fragments of 16 x 16: a warp loads a / 16 + b / 16 of them for (a / 16) (b / 16) products.
    """
    unit = 16 if tensor_cores else 4
    a, b = tile.thread_rows / unit, tile.thread_columns / unit
    return a * b / (a * b + (a + b) / (2 if tensor_cores else 4))
