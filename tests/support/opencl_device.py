"""Kernels and programs run on an OpenCL device: PoCL's, on this machine's CPU, where no other is installed.

Unlike `serial_gpu` it executes what TVM puts in later: barriers, local memory. `in_order` runs the same program with its
work-groups, or the threads of each, in another order: what is in a race gives other bits then.
"""

import functools
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("POCL_DEVICES", "pthread basic")  # both of PoCL's: work-groups on all cores, or one after the other
os.environ.setdefault(
    "POCL_WORK_GROUP_METHOD", "loops"
)  # threads in loops that PoCL does not vectorize: compiled a third sooner

from reparam_compiler.lowering.gpu.opencl.devices import device_here, why_none
from reparam_compiler.lowering.gpu.opencl.machines import Loaded, OpenClMachines
from reparam_compiler.lowering.gpu.opencl.program import Program
from reparam_compiler.lowering.gpu.opencl.translate import program_of_kernel
from reparam_compiler.lowering.target import resolve

needs_opencl = pytest.mark.skipif(bool(reason := why_none()), reason=f"no OpenCL device: {reason}")

BACKWARDS = "(get_{0}(d) - 1 - get_{1}(d))"
ROTATED = "((get_{1}(d) + get_{0}(d) / 2 + 1) % get_{0}(d))"
GROUPS, THREADS = ("num_groups", "group_id"), ("local_size", "local_id")
ORDERS = {
    "groups backwards": (BACKWARDS, GROUPS),
    "groups rotated": (ROTATED, GROUPS),
    "threads backwards": (BACKWARDS, THREADS),
    "threads rotated": (ROTATED, THREADS),
}


def in_order(program: Program, order: str) -> Program:
    """The program with its work-groups or threads renumbered, so that a device takes them in another order."""
    form, (count, number) = ORDERS[order]
    return replace(program, source=f"#define get_{number}(d) {form.format(count, number)}\n{program.source}")


def run_program(program: Program, *arrays: np.ndarray) -> list[np.ndarray]:
    """The outputs of a program without weights, on the device."""
    return OpenClMachines(Loaded(program, device_here()), threads=1).run(arrays)


def kernel_program(func: Any) -> Program:
    """The program of one scheduled PrimFunc."""
    return program_of_kernel(func, opencl())


def run_on_device(func: Any, *arrays: np.ndarray, out: object = None) -> np.ndarray:
    """What a scheduled PrimFunc writes into its last buffer, whose shape and dtype it states itself."""
    (found,) = run_program(kernel_program(func), *arrays)
    return found


@functools.cache
def opencl() -> Any:
    """The target of the device at hand."""
    return resolve("opencl")
