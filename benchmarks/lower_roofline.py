"""Where the time of a compiled net goes, kernel by kernel, and what dilation costs: both for `lower.py`, in this process alone.

    python -m benchmarks.lower_roofline net ARTIFACT                    time, FLOPs and bytes of each kernel, peaks
    python -m benchmarks.lower_roofline convs ROUNDS ARTIFACT …         milliseconds of each, taking turns

Kernels are timed inside whole runs of the net (`lowering.profile`), so weights come from wherever they lie then, mostly from
memory: a kernel in a loop of its own would find them in a cache. What a kernel reads and no kernel writes is its weights.
FLOPs are those of the direct form, so that Winograd may go beyond the peak.

The peaks: multiply-adds on registers alone (`lowering.profile`), and a dot product of two vectors that no cache holds, the
best of ten.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import benchmarks.without_torch  # noqa: F401
from benchmarks import page
from reparam_compiler.lowering import load
from reparam_compiler.lowering.runtime.description import filled
from reparam_compiler.lowering.runtime.executable import Executable
from reparam_compiler.lowering.runtime.profile import profile
from reparam_compiler.lowering.runtime.virtual_machines import BUILTIN

RUNS = 31
VECTOR = 2**24
"""Elements."""


def net(executable: Executable) -> dict[str, Any]:
    """A record for each kernel that a run calls, in order: name, algorithm, median seconds, FLOPs, bytes; and the peaks."""
    found = profile(executable, runs=RUNS)
    kernels = [
        {
            "kernel": layer.kernel,
            "algorithm": layer.algorithm,
            "seconds": layer.seconds,
            "flops": layer.flops,
            "weights": weights,
            "activations": activations,
        }
        for layer, (weights, activations) in zip(found.layers, traffic(executable), strict=True)
    ]
    return {"kernels": kernels, "peaks": {"flops": found.peak_flops, "bytes": bandwidth()}}


def traffic(executable: Executable) -> list[tuple[int, int]]:
    """Bytes of weights and of activations that each kernel of a run reads and writes, in order."""
    calls: list[list[tuple[int, int]]] = []
    inputs: list[int] = []

    def look(_function: Any, name: str, before: bool, _result: Any, *arguments: Any) -> int:
        if not before and not name.startswith(BUILTIN):
            calls.append([(tensor.data_ptr(), _bytes(tensor)) for tensor in arguments])
        return 0

    def watched(machine: Any, tensors: list[Any], _device: Any) -> None:
        inputs.extend(tensor.data_ptr() for tensor in tensors[: len(executable.inputs)])
        machine.set_instrument(look)
        machine["main"](*tensors)

    executable.with_machine(watched)
    variable = {call[-1][0] for call in calls} | set(inputs)
    weights = [sum(size for place, size in call if place not in variable) for call in calls]
    return [(fixed, sum(size for _, size in call) - fixed) for call, fixed in zip(calls, weights, strict=True)]


def bandwidth() -> float:
    """Bytes a second from memory, with the threads that numpy has."""
    x, y = (np.ones(VECTOR, np.float32) for _ in range(2))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        np.dot(x, y)
        times.append(time.perf_counter() - start)
    return 2 * x.nbytes / min(times)


def convs(artifacts: list[Path], rounds: int) -> list[float]:
    """Median milliseconds of each artifact, without the copies of its input and output."""
    loaded = [load(path) for path in artifacts]
    taken: list[list[float]] = [[] for _ in loaded]

    def timed(index: int) -> Callable[[], None]:
        executable = loaded[index]
        (spec,) = executable.inputs
        x = filled(spec, "random")
        return lambda: taken[index].append(executable.time(x, repeat=3))

    page.interleaved({index: timed(index) for index in range(len(loaded))}, rounds)
    return [statistics.median(values) * 1e3 for values in taken]


def _bytes(tensor: Any) -> int:
    return math.prod(tensor.shape) * np.dtype(str(tensor.dtype)).itemsize


def main() -> None:
    """One JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("net").add_argument("artifact", type=Path)
    turns = kinds.add_parser("convs")
    turns.add_argument("rounds", type=int)
    turns.add_argument("artifacts", type=Path, nargs="+")
    arguments = parser.parse_args()
    measured: Any = net(load(arguments.artifact)) if arguments.kind == "net" else convs(arguments.artifacts, arguments.rounds)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
