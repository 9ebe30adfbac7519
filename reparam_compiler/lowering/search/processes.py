"""The processes of a search: one measures every kernel, some build those of MetaSchedule.

Each takes seconds to start, for it imports TVM, so it starts for the first kernel that it is to have, and stays.
"""

import contextlib
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule
from tvm.s_tir.meta_schedule.builder import BuilderResult
from tvm.s_tir.meta_schedule.builder.local_builder import default_build, default_export
from tvm.support.popen_pool import PopenPoolExecutor, StatusKind

INTRINSICS = "tvm.s_tir.tensor_intrin"
BUILD_TIMEOUT = 30.0
"""Seconds that a candidate may take to build, as TVM has it."""
BUILDS = 64
"""Candidates that a process builds before another takes its place: TVM says that it loses memory with each."""


def measuring(number: int, repeat: int, timeout: float) -> Any:
    """MetaSchedule's runner, which measures kernels with cold caches; the arguments are those of `tune`."""
    config = meta_schedule.runner.EvaluatorConfig(number, repeat, 0, enable_cpu_cache_flush=True)
    return meta_schedule.runner.LocalRunner(timeout, config, initializer=skip_intrinsics)


@derived_object
class Building(meta_schedule.builder.PyBuilder):  # type: ignore[misc]
    """MetaSchedule's builder, in a process for each core that stays: its own starts them anew for each round of candidates."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PopenPoolExecutor(timeout=BUILD_TIMEOUT, initializer=skip_intrinsics, maximum_process_uses=BUILDS)

    def build(self, build_inputs: Sequence[Any]) -> list[Any]:
        """The library of each candidate, or why there is none."""
        given = [(each.mod, each.target) for each in build_inputs]
        return [
            BuilderResult(found.value, None)
            if found.status == StatusKind.COMPLETE
            else BuilderResult(None, f"{type(found.value).__name__}: {found.value}")
            for found in self.pool.map_with_error_catching(_built, given)
        ]

    def close(self) -> None:
        """Ends its processes."""
        self.pool.shutdown()


def _built(given: tuple[Any, Any]) -> str:
    """The path of the library of a module for a target."""
    module, target = given
    return str(default_export(default_build(module, target, None)))


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
