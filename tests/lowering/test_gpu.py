"""CUDA compiles here to machine code, every kernel bound to threads and none left for the host."""

import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import tvm
from torch import nn
from tvm import te

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.artifact import LIBRARY
from reparam_compiler.lowering.build import lower
from reparam_compiler.lowering.importer import to_relax
from reparam_compiler.lowering.schedules_gpu import schedule_gpu, unbound
from reparam_compiler.lowering.target import resolve

pytestmark = pytest.mark.tvm
FATBIN_MAGIC = (0xBA55ED50).to_bytes(4, "little")


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.Softmax(-1),
    ).eval()  # fmt: skip


def prim_funcs(module: Any) -> dict[str, Any]:
    return {str(v.name_hint): f for v, f in module.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}


def test_every_kernel_is_bound_to_threads_and_built_for_the_device(tmp_path: Path) -> None:
    target, model = resolve("cuda -arch=sm_80"), net()
    with target:
        module = lower(to_relax(model, torch.zeros(1, 3, 16, 12)).module, target)
    kernels = prim_funcs(module)
    assert len(kernels) >= 5
    assert unbound(module) == []

    compiled = lowering.compile(model, torch.zeros(1, 3, 16, 12), target="cuda -arch=sm_80")
    device = [part for part in imports(compiled._library.mod) if part.kind == "cuda"]
    assert len(device) == 1
    built = set(re.findall(r"__global__ void\s+(?:__launch_bounds__\(\d+\)\s+)?(\w+)\(", device[0].inspect_source()))
    missing = [name for name in kernels if not any(function.startswith(f"{name}_kernel") for function in built)]
    assert missing == []

    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc: the library holds CUDA source, as the log says")
    compiled.save(tmp_path / "module.tar")
    with tarfile.open(tmp_path / "module.tar") as archive:
        library = archive.extractfile(LIBRARY).read()
    assert FATBIN_MAGIC in library
    assert b"sm_80" in library


def imports(module: Any) -> list[Any]:
    return [module, *(inner for part in module.imports for inner in imports(part))]


def test_running_without_a_device_is_refused(tmp_path: Path) -> None:
    if tvm.cuda(0).exist:
        pytest.skip("there is a CUDA device here")
    compiled = lowering.compile(nn.ReLU().eval(), torch.zeros(2, 3), target="cuda")
    with pytest.raises(LoweringError, match="compiled for cuda, and this machine has no device"):
        compiled.run(torch.zeros(2, 3))
    compiled.save(tmp_path / "module.tar")
    assert '"kind": "cuda"' in lowering.load(tmp_path / "module.tar").target


def test_function_without_bindings_is_found_and_refused() -> None:
    x = te.placeholder((8,), name="x")
    plain = te.create_prim_func([x, te.compute((8,), lambda i: x[i] + 1.0)])
    module = tvm.IRModule({"left": plain.with_attr("tirx.is_scheduled", True)})
    assert unbound(module) == ["left"]
    with resolve("cuda"), pytest.raises(LoweringError, match="left: no GPU schedule rule"):
        schedule_gpu(module)
