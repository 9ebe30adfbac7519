"""One scheduled kernel on the device at hand, by itself: for a search, which times it, and for tests."""

from typing import Any

from tvm.target import Target

from reparam_compiler.lowering.gpu.opencl.devices import device_here
from reparam_compiler.lowering.gpu.opencl.machines import Loaded, OpenClMachines
from reparam_compiler.lowering.gpu.opencl.translate import program_of_kernel


def kernel_on_device(func: Any, target: Target) -> OpenClMachines:
    """What runs a scheduled PrimFunc: `run(arrays)` gives its last buffer, `measured(arrays, repeat, number)` seconds.

    Raises: LoweringError where there is no device, it has not the kernel's threads or memory, or its compiler refuses it.
    """
    return OpenClMachines(Loaded(program_of_kernel(func, target), device_here()), threads=1)
