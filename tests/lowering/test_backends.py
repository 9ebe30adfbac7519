"""Each kind of target has one backend; a third kind is one class and one line of the table."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from tvm import relax
from tvm.ir.transform import Sequential
from tvm.relax.backend.gpu_generic import pipeline

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering import CompileOptions
from reparam_compiler.lowering.backend import VirtualMachineBackend
from reparam_compiler.lowering.backends import BACKENDS, backend_for, code_listings
from reparam_compiler.lowering.gpu.schedules import schedule_gpu
from reparam_compiler.lowering.options import all_sources
from reparam_compiler.lowering.target import resolve
from reparam_compiler.tvmc.options import TARGET_OPTIONS

pytestmark = pytest.mark.tvm
LOWERING = Path(lowering.__file__).parent


def test_a_target_has_the_backend_of_its_kind() -> None:
    assert {kind: backend_for(resolve(kind)).device_name for kind in BACKENDS} == {
        "llvm": "cpu",
        "cuda": "cuda",
        "opencl": "opencl",
    }
    assert [kind for kind in BACKENDS if backend_for(resolve(kind)).tuning() is not None] == list(BACKENDS)
    assert backend_for(resolve("nvidia/nvidia-a100")).kind == "cuda"
    assert backend_for(resolve("cuda -arch=sm_90")).kind == "cuda"


def test_only_backends_name_a_kind_of_target() -> None:
    named = {}
    for path in sorted(LOWERING.rglob("*.py")):
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        if found := words & set(BACKENDS):
            named[str(path.relative_to(LOWERING))] = found
    backends = {"cpu/machine.py": {"llvm"}, "gpu/cuda/backend.py": {"cuda"}, "gpu/opencl/backend.py": {"opencl"}}
    of_rules = {"gpu/tuning.py": {"cuda"}}  # what MetaSchedule calls those of any GPU
    assert named == backends | of_rules


def test_kinds_of_target_share_through_what_is_above_them() -> None:
    for room, other in (
        *(("cpu", "gpu"), ("gpu", "cpu"), ("search", "cpu"), ("search", "gpu")),
        *(("gpu/cuda", "gpu.opencl"), ("gpu/opencl", "gpu.cuda")),
    ):
        for path in (LOWERING / room).rglob("*.py"):
            assert f"lowering.{other}" not in path.read_text(), path


def test_the_command_line_has_options_for_each_kind() -> None:
    assert set(TARGET_OPTIONS) == set(BACKENDS)


def test_each_listing_of_code_is_of_one_kind() -> None:
    assert code_listings() == {"ll": "llvm", "asm": "llvm", "cu": "cuda", "cl": "opencl"}
    assert all_sources() == ("relax", "tir", "ll", "asm", "cu", "cl")


def test_only_foreign_cpus_refuse_to_load() -> None:
    arm = backend_for(resolve("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76"))
    assert "aarch64" in arm.unloadable_here() == arm.unrunnable_here()
    assert backend_for(resolve(None)).unrunnable_here() == ""
    assert backend_for(resolve("cuda")).unloadable_here() == ""


def test_only_a_cpu_is_measured() -> None:
    assert backend_for(resolve("cuda")).peak() is None


@dataclass(frozen=True, slots=True)
class WebGpu(VirtualMachineBackend):
    """A whole backend: TVM's phases for any GPU, each function by the GPU's schedule rules."""

    kind: ClassVar = "webgpu"
    device_name: ClassVar = "webgpu"
    code: ClassVar = {"wgsl": ""}

    def lower(self, module: Any, *, measured: Any, max_error: float) -> Any:
        phases = [relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern(), relax.transform.FuseOps()]
        return schedule_gpu(Sequential([*phases, relax.transform.FuseTIR()])(module))

    def vm_passes(self) -> Any:
        return Sequential(pipeline.dataflow_lower_passes(self.target) + pipeline.finalize_passes(self.target))

    def unrunnable_here(self) -> str:
        return "this TVM has no runtime for it"


def test_a_third_kind_of_target_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval(), torch.zeros(1, 3, 9, 8)
    with pytest.raises(LoweringError, match="'webgpu' is neither a kind"):
        resolve("webgpu")
    monkeypatch.setitem(BACKENDS, WebGpu.kind, WebGpu)
    target = {"kind": "webgpu", "host": {"kind": "llvm"}}
    compiled = lowering.compile(model, x, target=target, options=CompileOptions(sources=("wgsl", "tir")))
    assert compiled.device == "webgpu"
    assert "@compute" in compiled.listings["wgsl"]
    assert not compiled.runs_here
    with pytest.raises(LoweringError, match="compiled for webgpu, and this TVM has no runtime for it"):
        compiled.run(x)
    with pytest.raises(LoweringError, match="nothing is searched for its kind"):
        lowering.tune(model, x, target=target, database=tmp_path)
