"""examples/run_artifact.cc, compiled against the wheels' headers and libraries, and run."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi

from reparam_compiler.lowering import Executable

SOURCE = Path(__file__).parents[2] / "examples" / "run_artifact.cc"
TVM = Path(tvm.__file__).parent
FFI = Path(tvm_ffi.__file__).parent


def build_runner(folder: Path, compiler: str, tvm_libraries: Path, ffi_libraries: Path) -> Path:
    """The program, built as docs/tvmc.md says; skips the test where there is no compiler or the wheels have no headers."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    headers = FFI / "include"
    if not (headers / "tvm" / "ffi" / "extra" / "module.h").is_file():
        pytest.skip(f"{headers} has no headers of tvm_ffi")
    program = folder / "run_artifact"
    libraries = [f"-L{tvm_libraries}", f"-L{ffi_libraries}", "-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", "-ldl"]
    paths = f"-Wl,-rpath,{tvm_libraries}:{ffi_libraries}"
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", str(SOURCE), "-isystem", str(headers)]
    built = subprocess.run([*command, *libraries, paths, "-o", str(program)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return program


def run_program(
    command: list[str], library: Path, arrays: list[np.ndarray], compiled: Executable, folder: Path
) -> list[np.ndarray]:
    """What the program writes for these inputs."""
    files = []
    for index, array in enumerate(arrays):
        array.tofile(folder / f"input_{index}.bin")
        files.append(f"input_{index}.bin")
    done = subprocess.run([*command, str(library), *files], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [
        np.fromfile(folder / f"output_{index}.bin", spec.dtype).reshape(spec.shape)
        for index, spec in enumerate(compiled.outputs)
    ]
