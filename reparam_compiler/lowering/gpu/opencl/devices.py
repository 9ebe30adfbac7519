"""Which OpenCL device a model runs on, and what it allows.

    PYOPENCL_CTX=0, NVIDIA, 0:1, portable:pthread      platform[:device], each by its number or a part of its name
    nothing                                            the first GPU of any platform, else an accelerator, else a CPU

`pyopencl` finds the drivers that are installed; PoCL's (`pip install pocl-binary-distribution`) makes a device of any CPU. A
process opens a device once, for all models in it. What a driver holds does not survive a fork.
"""

import contextlib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reparam_compiler.errors import LoweringError, first_line

if TYPE_CHECKING:
    import pyopencl

CHOICE = "PYOPENCL_CTX"
LEAST = {"max_threads_per_block": 256, "max_shared_memory_per_block": 16384}
"""What our kernels take of a device, and what TVM assumes of one that nobody describes: OpenCL's own least of local memory, and
work-groups that every GPU has."""
MOST = {"max_threads_per_block": 1024, "max_shared_memory_per_block": 49152}
"""What code for a device takes of it at most: no rule gains by what a CPU's driver offers, and other devices run the code."""


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A device with a context, of the process that opened it."""

    device: "pyopencl.Device"
    context: "pyopencl.Context"
    process: int

    @property
    def name(self) -> str:
        """As its driver names it."""
        return str(self.device.name).strip()

    @property
    def limits(self) -> Mapping[str, int]:
        """What a target says of it."""
        found = (int(self.device.max_work_group_size), int(self.device.local_mem_size))
        return {name: min(has, most) for has, (name, most) in zip(found, MOST.items(), strict=True)}

    @property
    def extensions(self) -> frozenset[str]:
        """What it has of OpenCL beyond its least."""
        return frozenset(str(self.device.extensions).split())

    def check_process(self) -> None:
        """Raises LoweringError in a process that was forked after the device was opened."""
        if self.process != os.getpid():
            raise LoweringError(
                f"this process was forked from one that had opened {self.name}, which its driver does not survive; load models "
                'in the forked process alone, or start it anew (multiprocessing\'s "spawn")'
            )


def device_here() -> Opened:
    """The device that this process uses. Raises: LoweringError where there is none, with what to install or to set."""
    opened = _opened(os.environ.get(CHOICE, "").strip())
    opened.check_process()
    return opened


def why_none() -> str:
    """Why this process has no device; nothing where it has one."""
    try:
        device_here()
    except LoweringError as refusal:
        return str(refusal)
    return ""


@functools.cache
def _opened(choice: str) -> Opened:
    try:
        import pyopencl
    except ImportError as refusal:
        raise LoweringError(
            f"pyopencl, which asks for OpenCL devices, cannot be imported ({refusal}); pip install 'reparam_compiler[opencl]'"
        ) from refusal
    try:
        device = _chosen({platform: _devices(platform) for platform in pyopencl.get_platforms()}, choice)
        return Opened(device, pyopencl.Context([device]), os.getpid())
    except pyopencl.Error as refusal:
        raise LoweringError(
            f"this machine has no OpenCL driver that works ({first_line(refusal)}); install the device's, or PoCL, which makes "
            "a device of the CPU: pip install pocl-binary-distribution"
        ) from refusal


def _devices(platform: Any) -> list[Any]:
    """Those of a platform, which may have none."""
    import pyopencl

    with contextlib.suppress(pyopencl.Error):
        return list(platform.get_devices())
    return []


def _chosen(platforms: Mapping[Any, list[Any]], choice: str) -> Any:
    """The device that is asked for. Raises: LoweringError where there is none of that name."""
    named_platform, _, named_device = choice.partition(":")
    found = [
        device for platform in _named(list(platforms), named_platform) for device in _named(platforms[platform], named_device)
    ]
    if not found:
        names = "; ".join(
            f"{number} {platform.name}: {', '.join(f'{place} {device.name.strip()}' for place, device in enumerate(devices))}"
            for number, (platform, devices) in enumerate(platforms.items())
        )
        asked = f" for {CHOICE}={choice}" if choice else ""
        raise LoweringError(f"this machine has no OpenCL device{asked}; it has {names or 'no platform'}")
    return min(found, key=_rank)


def _named(things: list[Any], name: str) -> list[Any]:
    """Those of a number or of a name that holds `name`; all where nothing is asked for."""
    if name.isdigit():
        return things[int(name) : int(name) + 1]
    return [thing for thing in things if name.lower() in str(thing.name).lower()]


def _rank(device: Any) -> int:
    """GPUs first, CPUs last."""
    import pyopencl

    kinds = pyopencl.device_type
    order = (kinds.GPU, kinds.ACCELERATOR, kinds.CUSTOM, kinds.CPU)
    return next((rank for rank, kind in enumerate(order) if device.type & kind), len(order))
