"""Many threads on one compiled model, for as long as asked: every output of every run must be the one that a lone run gave.

    python -m benchmarks.soak [ARTIFACT] [--threads 8] [--seconds 600]

Half of the threads call the Executable, half a clone of it that takes one core a run. Of one for any number of samples, runs
are of 1 to 9, in pieces of its batches. Every other run takes its inputs from tensors of TVM by DLPack, and gives its outputs
to some. Without an ARTIFACT the soak compiles RepVGG-A0 at 96 x 96 with random weights for batches of 1 and 4. It ends with 1
where an output differed or a run raised.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tvm
from jaxtyping import Shaped

from reparam_compiler.lowering import Executable, TensorSpec, load
from reparam_compiler.lowering.runtime.batches import of_samples
from reparam_compiler.lowering.runtime.description import filled
from reparam_compiler.lowering.runtime.stored import aligned

Array: TypeAlias = Shaped[np.ndarray, "..."]

INPUTS = 18
"""How many different inputs the threads take in turn."""
SAMPLES = 9
"""Of an input, at most."""


@dataclass(slots=True)
class Soaked:
    """What came of it. runs: of each thread. wrong: runs whose output differed. raised: the first lines of what runs raised."""

    runs: list[int]
    wrong: int = 0
    raised: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        total = sum(self.runs)
        return (
            f"{len(self.runs)} threads, {self.seconds:.0f} s: {total} runs ({total / self.seconds:.0f} a second, "
            f"{min(self.runs)} to {max(self.runs)} a thread), {self.wrong} wrong, {len(self.raised)} raised {self.raised[:1]}"
        )


def soak(executables: Sequence[Executable], threads: int, seconds: float) -> Soaked:
    """Run the executables, which are one model, in so many threads: each on every input at least."""
    inputs = [[filled(spec, "random", seed) for spec in _specs(executables[0], seed)] for seed in range(INPUTS)]
    expected = [executables[0].run(*arrays) for arrays in inputs]
    found, start = Soaked([0] * threads), time.monotonic()

    def work(index: int) -> None:
        executable = executables[index % len(executables)]
        while found.runs[index] < INPUTS or time.monotonic() < start + seconds:
            which, by_dlpack = (found.runs[index] + index) % INPUTS, found.runs[index] % 2 == 1
            try:
                given = map(exchanged, inputs[which]) if by_dlpack else inputs[which]
                outputs = executable.run(*given)
                outputs = list(map(exchanged, outputs)) if by_dlpack else outputs
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what a soak is for
                found.raised.append(f"{type(error).__name__}: {error}")
                return
            found.wrong += not all(map(np.array_equal, outputs, expected[which]))
            found.runs[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found.seconds = time.monotonic() - start
    return found


def exchanged(array: Array) -> Array:
    """A copy that went from numpy to TVM and back by DLPack."""
    return np.from_dlpack(tvm.runtime.from_dlpack(aligned(array)))


def _specs(executable: Executable, seed: int) -> Sequence[TensorSpec]:
    """The inputs, with a number of samples of their own where a run takes any."""
    return of_samples(executable.inputs, 1 + seed % SAMPLES) if executable.any_batch else executable.inputs


def main() -> int:
    """Soaks, and says what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=600.0)
    arguments = parser.parse_args()
    executable = load(arguments.artifact) if arguments.artifact else _compiled()
    before = _resident()
    found = soak((executable, executable.clone(threads=1)), arguments.threads, arguments.seconds)
    print(f"{found}; {_resident() - before:+.0f} MiB; {len(os.listdir('/proc/self/task'))} threads of the process at the end")
    return int(bool(found.wrong or found.raised))


def _compiled() -> Executable:
    import torch

    import reparam_compiler
    from reparam_compiler.zoo import randomise_batch_norm, repvgg_a0

    model = randomise_batch_norm(repvgg_a0()).eval()
    return reparam_compiler.compile(model, torch.zeros(1, 3, 96, 96), batches=(1, 4))


def _resident() -> float:
    """MiB of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
