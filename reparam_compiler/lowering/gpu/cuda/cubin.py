"""What TVM needs to make a cubin where there is no GPU: nvcc, and a CUDA runtime that loads without a driver.

TVM's CUDA runtime library links against `libcuda.so.1`, which only a driver installs; without it TVM silently keeps
CUDA source instead of machine code. Where no driver is found, a stub of that name is built with the C compiler, in a
temporary folder, and loaded: its every function answers CUDA_ERROR_NO_DEVICE. It lets a cubin be made and saved; nothing
runs on it, and it is never loaded where there is a real driver.
"""

import contextlib
import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tvm.base import _LOADED_LIBS
from tvm_ffi.libinfo import load_lib_ctypes

log = logging.getLogger(__name__)

RUNTIME = "tvm_runtime_cuda"
DRIVER = "libcuda.so.1"
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
DRIVER_FUNCTIONS = (
    "cuDeviceGetName",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
)
SETTINGS = {"TVM_CUDA_COMPILE_MODE": "nvcc", "TVM_CUDA_NVCC_NO_FAST_MATH": "1"}


@contextlib.contextmanager
def cuda_toolchain() -> Iterator[bool]:
    """Compile CUDA kernels to machine code in this block; gives False, and says why, where only CUDA source can be had."""
    missing = _missing()
    if missing:
        log.warning("the library will hold CUDA source and no cubin: %s", missing)
    before = {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)
    try:
        yield not missing
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _missing() -> str:
    """What stands between this machine and a cubin; nothing where all is there."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return "nvcc is not on PATH; install the CUDA toolkit"
    if RUNTIME in _LOADED_LIBS:
        return ""
    _preload(("libcudart.so.13",), Path(nvcc).resolve().parent.parent)
    try:
        ctypes.CDLL(DRIVER, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        if refusal := _load_stub():
            return refusal
    try:
        folder = Path(_LOADED_LIBS["tvm_runtime"]._name).resolve().parent
        _LOADED_LIBS[RUNTIME] = load_lib_ctypes(package="tvm", target_name=RUNTIME, extra_lib_paths=[folder], mode="RTLD_LOCAL")
    except (OSError, RuntimeError) as refusal:
        return f"TVM's CUDA runtime does not load: {refusal}"
    return ""


def _preload(names: tuple[str, ...], toolkit: Path) -> None:
    """Load the toolkit's runtime by path, where the loader would not find it by name."""
    for name in names:
        for folder in ("lib64", "lib"):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(toolkit / folder / name), mode=ctypes.RTLD_GLOBAL)
                break


def _load_stub() -> str:
    """Build and load the driver's stub; what went wrong, or nothing."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return "there is no CUDA driver, and no C compiler to make a stub of it"
    source = "".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in DRIVER_FUNCTIONS)
    with tempfile.TemporaryDirectory(prefix="reparam-") as folder:
        library = Path(folder) / DRIVER
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{DRIVER}", "-o", str(library)]
        built = subprocess.run(command, input=source, text=True, capture_output=True, check=False)
        if built.returncode:
            return f"there is no CUDA driver, and {compiler} cannot make a stub of it: {built.stderr.strip()[-200:]}"
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return ""
