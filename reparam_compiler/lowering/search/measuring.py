"""The processes of a search: some build candidates, one measures them, and none of them takes the search with it.

    Layer module + algorithm --lowered, here--> kernels --Builders--> library --Meter--> seconds, or why there are none

A process takes seconds to start, for it imports TVM, so it starts for the first candidate that it is to have, and stays. One
that crashes or does not come back is ended, and the next candidate has another.
"""

import contextlib
import functools
import itertools
import os
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tvm.support.popen_pool import MapResult, PopenPoolExecutor, StatusKind

from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.runtime.description import TensorSpec, filled
from reparam_compiler.lowering.runtime.linking import export_library
from reparam_compiler.lowering.runtime.machines import Machines
from reparam_compiler.lowering.runtime.stored import Packing
from reparam_compiler.lowering.runtime.weights import Weight, all_packed
from reparam_compiler.lowering.search.pairs import Outcome, Repeats, in_pairs
from reparam_compiler.lowering.target import resolve

INTRINSICS = "tvm.s_tir.tensor_intrin"
BUILDS = 64
"""Candidates that a process builds before another takes its place: TVM says that it loses memory with each."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """What is to be built: a Relax module in scheduled kernels, for a target, as JSON."""

    module: Any
    target: str


@dataclass(frozen=True, slots=True)
class Runnable:
    """A built candidate.

    library: the path of it. weights: what `main` takes after the inputs: the path of an array as the model has it, and how that
        is packed.
    """

    library: str
    weights: tuple[tuple[str, Packing | None], ...] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be measured.

    inputs: what `main` takes first, filled at random, always the same.
    threads: of this machine's, that a run takes.
    rule: the rule's kernels for the same layer, which give the right output and are run by turns with the candidate; None: the
        candidate is the rule's itself.
    """

    candidate: Runnable
    rule: Runnable | None
    target: str
    threads: int
    inputs: tuple[TensorSpec, ...]
    repeats: Repeats


def cores_of(target: Any) -> int | None:
    """How many cores a target states: so many threads its kernels are measured on. None: as many as a run takes by itself."""
    return int(target.attrs.get("num-cores", 0)) or None


class Builders:
    """Builds the libraries of candidates, in as many processes as are asked for."""

    def __init__(
        self, parallel: int | None, timeout: float, compiler: str | None = None, *, scratch: Path | None = None
    ) -> None:
        """compiler: links them; None is this machine's. scratch: as for `started`."""
        self._compiler = compiler
        self._names = itertools.count()
        self._pool = PopenPoolExecutor(parallel, timeout, started, (scratch,), BUILDS)

    def build(self, kernels: Sequence[Kernels], folder: Path) -> list[str | Outcome]:
        """The path of each library, in `folder`; or an Outcome that says why there is none."""
        given = [(each, str(folder / f"{next(self._names)}.so"), self._compiler) for each in kernels]
        return [_value(each, "building") for each in self._pool.map_with_error_catching(_built, given)]

    def close(self) -> None:
        """Ends its processes."""
        self._pool.shutdown()


class Meter:
    """Measures on this machine, one candidate at a time, so that they do not disturb each other."""

    def __init__(self, repeats: Repeats) -> None:
        self.repeats = repeats
        self._pool = PopenPoolExecutor(1, repeats.timeout, started)

    def measure(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """What each took, or why it did not; each as soon as it is known."""
        return (_value(each, "running") for each in self._pool.map_with_error_catching(measured, jobs))

    def close(self) -> None:
        """Ends its process."""
        self._pool.shutdown()


def _value(found: "MapResult", doing: str) -> Any:
    """What a process gave; an Outcome that says what went wrong."""
    if found.status == StatusKind.COMPLETE:
        return found.value
    if found.status == StatusKind.TIMEOUT:
        return Outcome(failure=f"{doing} it took too long")
    lines = str(found.value).strip().splitlines() or [type(found.value).__name__]
    return Outcome(failure=f"{doing} it failed: {lines[-1].strip()}")  # the last line of a process's traceback


def _built(given: tuple[Kernels, str, str | None]) -> str:
    """In a process of its own: the library at a path."""
    kernels, path, compiler = given
    backend = backend_for(resolve(kernels.target))
    with backend.target:
        library = backend.compiled(kernels.module)
    if backend.linked:
        export_library(library, Path(path), compiler=compiler, target=kernels.target)
    else:
        Path(path).write_bytes(library.to_bytes())
    return path


def measured(job: Job) -> Outcome:
    """In a process of its own: what a candidate takes.

    Raises: LoweringError where its output is not what the rule's kernels give.
    """
    rule = None if job.rule is None else _machines(job.rule, job.target, job.threads)
    candidate = _machines(job.candidate, job.target, job.threads)
    return in_pairs(candidate, rule, [filled(spec, "random") for spec in job.inputs], job.repeats)


@functools.lru_cache(maxsize=2)
def _machines(runnable: Runnable, target: str, threads: int) -> Machines:
    """What runs a candidate; those of a layer come one after the other, each beside the same rule's."""
    backend = backend_for(resolve(target))
    stored = [Weight(np.load(path), packing, (), "") for path, packing in runnable.weights]
    library = backend.loaded(Path(runnable.library).read_bytes())
    return backend.machines(library, all_packed(stored, backend.packings), threads)


def started(scratch: Path | None = None) -> None:
    """How a process of a search starts. scratch: where its temporary files go, TVM's too; a killed one removes none."""
    skip_intrinsics()
    if scratch is not None:
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)


def skip_intrinsics() -> None:
    """Stand in for TVM's module of tensor intrinsics, which no `Tuning` needs and which takes 40 s to import."""
    sys.modules.setdefault(INTRINSICS, types.ModuleType(INTRINSICS))


@contextlib.contextmanager
def without_intrinsics() -> Iterator[None]:
    """`skip_intrinsics` in this process, for as long as the block runs: a GPU target of a later call needs the real one."""
    absent = INTRINSICS not in sys.modules
    skip_intrinsics()
    try:
        yield
    finally:
        if absent:
            sys.modules.pop(INTRINSICS, None)
