"""How long kernels of convs take on this machine with their weights from memory, as in a net.

    round by round, each kernel three times in a row:  input, output, the next weights of an arena  ->  the least seconds

Every run reads other weights than the runs before it, so that no cache holds them. Other processes slow some runs and never
make one faster: hence the least, over rounds that lie apart.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import tvm
from jaxtyping import Float32
from tvm.target import Target

from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape
from reparam_compiler.lowering.cpu.kernels import kernel_of, output_size, packing_of
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.packing import PACKINGS
from reparam_compiler.lowering.cpu.registers import TIR_PIPELINE
from reparam_compiler.lowering.options import CONFIG
from reparam_compiler.lowering.runtime.launchers import on_launcher
from reparam_compiler.lowering.runtime.stored import aligned

Kernel: TypeAlias = tuple[ConvShape, Algorithm]
Seconds: TypeAlias = Mapping[Kernel, float]
LINE = 16
"""float32 elements of a cache line."""
IN_A_ROW = 3


class _Arena:
    """Weights that are in no cache: the next elements of more memory than caches hold, at addresses for whole vectors."""

    def __init__(self, elements: int) -> None:
        self._elements, self._next = aligned(np.ones(elements, "float32")), 0

    def take(self, count: int) -> Float32[np.ndarray, "N"]:
        start = self._next if self._next + count <= len(self._elements) else 0
        self._next = start + -(-count // LINE) * LINE
        return self._elements[start : start + count]


def least_seconds(
    kernels: Iterable[Kernel], target: Target, unit: VectorUnit, *, rounds: int, arena: int
) -> dict[Kernel, float]:
    """The least seconds of each kernel on one thread.

    Args:
        rounds: through all kernels. arena: float32 elements that weights are taken from in turn.
    """
    weights = _Arena(arena)
    runs = {kernel: _run(*kernel, target, unit, weights) for kernel in kernels}
    least = dict.fromkeys(runs, math.inf)

    def timed() -> dict[Kernel, float]:
        for _ in range(rounds):
            for kernel, run in runs.items():
                run()
                least[kernel] = min(least[kernel], *(run() for _ in range(IN_A_ROW)))
        return least

    return on_launcher(1, timed)


def _run(shape: ConvShape, algorithm: Algorithm, target: Target, unit: VectorUnit, arena: _Arena) -> Callable[[], float]:
    """A function that runs the kernel once, with weights that no run before it read, and tells the seconds."""
    kernel = kernel_of(shape, algorithm, (), unit).with_attr("global_symbol", "main")
    with tvm.transform.PassContext(opt_level=3, config=CONFIG), target:
        call: Any = tvm.tirx.build(tvm.IRModule({"main": kernel}), target=target, pipeline=TIR_PIPELINE)["main"]
    x = tvm.runtime.tensor(np.ones((shape.batch, shape.height, shape.width, shape.channels_in), "float32"))
    out = tvm.runtime.tensor(np.zeros(output_size(shape, algorithm), "float32"))
    weight = np.zeros((shape.channels_out, *shape.kernel, shape.group_in), "float32")
    size = packing_of(shape, algorithm).of(weight, PACKINGS).shape

    def run() -> float:
        given = tvm.runtime.from_dlpack(arena.take(math.prod(size)).reshape(size))
        start = time.perf_counter()
        call(x, given, out)
        return time.perf_counter() - start

    return run
