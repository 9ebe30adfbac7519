"""OpenCL as a kind of target: what is compiled, saved, loaded and run, on which device, and what is refused in words."""

import multiprocessing
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

import reparam_compiler
from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering import CompileOptions
from reparam_compiler.lowering.gpu.opencl import devices, machines
from reparam_compiler.lowering.gpu.opencl.devices import CHOICE, LEAST, MOST, device_here, why_none
from reparam_compiler.lowering.gpu.opencl.program import Program
from reparam_compiler.lowering.runtime.profile import profile
from reparam_compiler.lowering.target import resolve
from tests.support.opencl_device import needs_opencl, run_program

pytestmark = pytest.mark.tvm
NET = nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(320, 7), nn.Softmax(-1))


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def compiled(x: torch.Tensor) -> lowering.Executable:
    return reparam_compiler.compile(NET.eval(), x, target="opencl")


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Devices are looked for anew, in this test and after it."""
    devices._opened.cache_clear()
    yield monkeypatch
    devices._opened.cache_clear()


@needs_opencl
def test_a_model_is_verified_on_the_device_and_saved_with_its_source(
    compiled: lowering.Executable, x: torch.Tensor, tmp_path: Path
) -> None:
    assert compiled.verified
    assert (compiled.device, compiled.runs_here) == ("opencl", True)
    compiled.save(tmp_path / "m.tar")
    loaded = lowering.load(tmp_path / "m.tar")
    np.testing.assert_array_equal(loaded.run(x)[0], compiled.run(x)[0])
    loaded.save(tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "m.tar").read_bytes()
    program = Program.from_bytes(loaded.variants[0].library)
    assert {launch.function for launch in program.launches} <= set(program.source.replace("(", " ").split())


@needs_opencl
def test_weights_are_stored_as_the_model_has_them(compiled: lowering.Executable) -> None:
    (variant,) = compiled.variants
    conv = next(weight for weight in variant.weights if weight.packing)
    assert conv.stored.shape == (20, 3, 3, 3)
    assert sorted(weight.stored.size for weight in variant.weights) == [7, 20, 20 * 27, 7 * 320]
    assert sum(variant.library.sizes[1:5]) == sum(weight.value.numpy().nbytes for weight in variant.weights)


@needs_opencl
def test_any_number_of_threads_run_it_at_once(compiled: lowering.Executable) -> None:
    inputs = [np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype("float32") for seed in range(12)]
    expected = [compiled.run(array)[0] for array in inputs]
    served, found = compiled.clone(threads=1), [None] * len(inputs)

    def run(place: int) -> None:
        for _ in range(5):
            found[place] = served.run(inputs[place])[0]

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)


@needs_opencl
def test_each_kernel_is_timed_by_the_device(compiled: lowering.Executable) -> None:
    found = profile(compiled, runs=3)
    named = [layer.kernel for layer in found.layers]
    assert {kernel.name for kernel in compiled.kernels} == set(named)
    assert found.kernel_seconds == pytest.approx(sum(layer.seconds for layer in found.layers))
    assert all(layer.seconds > 0 for layer in found.layers)
    assert found.layers[-1].shape == (1, 7)
    assert compiled.time(repeat=3) > 0


@needs_opencl
def test_batches_share_weights_and_run_any_number(x: torch.Tensor, tmp_path: Path) -> None:
    made = reparam_compiler.compile(NET.eval(), x, target="opencl", batches=(1, 3))
    samples = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = NET(samples).numpy()
    made.save(tmp_path / "m.tar")
    for executable in (made, lowering.load(tmp_path / "m.tar")):
        np.testing.assert_allclose(executable.run(samples)[0], expected, rtol=1e-4, atol=1e-6)
    stored = {id(weight.stored) for variant in made.variants for weight in variant.weights}
    assert len(stored) == len(made.variants[0].weights)
    shared = set.intersection(*({*variant.weights} for variant in made.variants))
    assert shared  # of these the device has one buffer
    assert all(list(machines._UPLOADED[weight]) == [device_here()] for weight in shared)


class Passing(nn.Module):
    """Gives its input back, a view of it, a part of a tuple, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("constant", torch.arange(6.0).reshape(2, 3))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        masked = torch.where(torch.tensor([[True, False, True]]), x, 0.5), x > 0
        return x, y.reshape(3, 2), torch.split(x + 1, 1)[1], self.constant * 2, y.long() + 3, *masked


@needs_opencl
def test_inputs_views_parts_and_other_dtypes_are_given_back() -> None:
    model, inputs = Passing(), (torch.randn(2, 3), torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32))
    found = lowering.compile(model.eval(), inputs, target="opencl").run(*inputs)
    for ours, theirs in zip(found, model(*inputs), strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())
        assert str(ours.dtype) == str(theirs.numpy().dtype)


@needs_opencl
@pytest.mark.parametrize("target", ["qcom/adreno-opencl", "opencl -device=mali -max_shared_memory_per_block=16384"])
def test_code_for_a_smaller_chip_runs_here_too(target: str, x: torch.Tensor) -> None:
    made = lowering.compile(NET.eval(), x, target=target)
    with torch.no_grad():
        np.testing.assert_allclose(made.run(x)[0], NET(x).numpy(), rtol=1e-4, atol=1e-6)


@needs_opencl
def test_limits_are_the_devices_and_code_for_larger_ones_is_not_run(x: torch.Tensor) -> None:
    here = resolve("opencl").attrs
    assert {name: int(here[name]) for name in LEAST} == dict(device_here().limits)
    large = MOST["max_shared_memory_per_block"] + 1
    made = lowering.compile(NET.eval(), x, target=f"opencl -max_shared_memory_per_block={large}")
    assert not made.runs_here
    with pytest.raises(LoweringError, match=rf"has max_shared_memory_per_block=\d+, where code for {large} was made"):
        made.run(x)


@needs_opencl
def test_half_precision_is_compiled_and_run_where_the_device_has_it(x: torch.Tensor, tmp_path: Path) -> None:
    model, half = nn.Sequential(*NET[:4]).half().eval(), x.half()
    made = lowering.compile(model, half, target="opencl", options=CompileOptions(sources="cl"))
    model.float()
    assert "cl_khr_fp16" in made.listings["cl"]
    assert made.runs_here == ("cl_khr_fp16" in device_here().extensions)
    made.save(tmp_path / "m.tar")
    if made.runs_here:
        np.testing.assert_allclose(made.run(half)[0], model(half.float()).detach().numpy(), rtol=2e-3, atol=2e-3)
    else:
        for executable in (made, lowering.load(tmp_path / "m.tar")):
            with pytest.raises(LoweringError, match="lacks cl_khr_fp16"):
                executable.run(half)


@needs_opencl
def test_double_precision_is_run_where_the_device_has_it() -> None:
    x = torch.randn(3, 50, dtype=torch.float64)
    made = lowering.compile(nn.Softmax(1).eval(), x, target="opencl")
    assert made.runs_here == ("cl_khr_fp64" in device_here().extensions)
    if made.runs_here:
        np.testing.assert_allclose(made.run(x)[0], torch.softmax(x, 1).numpy(), rtol=1e-12)


@needs_opencl
def test_what_the_drivers_compiler_refuses_is_quoted() -> None:
    broken = Program("__kernel void f(__global float* x) { x[0] = nonsense; }", (4,), 1, (), ())
    with pytest.raises(LoweringError, match=r"refuses the kernels: .*nonsense"):
        run_program(broken, np.zeros(1, "float32"))


@needs_opencl
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"path": "m.so"}, r"code for opencl, which is not linked: its device compiles it\. Write an archive"),
        ({"path": "m.tar", "compiler": "aarch64-linux-gnu-g++"}, "found compiler='aarch64-linux-gnu-g\\+\\+', but its device"),
    ],
)
def test_a_program_is_not_linked(compiled: lowering.Executable, tmp_path: Path, what: dict[str, str], message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        compiled.save(tmp_path / what.pop("path"), **what)


@needs_opencl
def test_a_damaged_program_is_refused(compiled: lowering.Executable) -> None:
    content = compiled.variants[0].library.to_bytes()
    for damaged in (content[:-9], b"{}", content.replace(b'"groups"', b'"group"')):
        with pytest.raises(ValueError, match=r"Expecting|Unterminated|not whole"):
            Program.from_bytes(damaged)


@needs_opencl
def test_no_virtual_machine_runs_it(compiled: lowering.Executable) -> None:
    with pytest.raises(LoweringError, match=r"no virtual machine of TVM's runs a model compiled for opencl"):
        compiled.with_machine(lambda *_: None)


class Sorted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x).values


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("opencl -max_threads_per_block=128", "found max_threads_per_block=128; kernels take 256 of a device"),
        ("opencl -max_shared_memory_per_block=8192", "found max_shared_memory_per_block=8192; kernels take 16384"),
        ("opencl -compute_units=3", "TVM refuses 'opencl -compute_units=3': Unknown config option 'compute_units'"),
    ],
)
def test_a_target_that_our_kernels_do_not_fit_is_refused(target: str, message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        resolve(target)


def test_without_pyopencl_a_model_is_compiled_and_run_is_told_what_to_install(
    no_device: pytest.MonkeyPatch, x: torch.Tensor
) -> None:
    no_device.setitem(sys.modules, "pyopencl", None)
    assert {name: int(resolve("opencl").attrs[name]) for name in LEAST} == LEAST
    made = lowering.compile(nn.ReLU().eval(), x, target="opencl")
    assert not made.runs_here
    with pytest.raises(LoweringError, match=r"pyopencl, which .* pip install 'reparam_compiler\[opencl\]'"):
        made.run(x)


@needs_opencl
def test_a_machine_without_a_driver_is_told_what_to_install(no_device: pytest.MonkeyPatch) -> None:
    import pyopencl

    def none() -> list[Any]:
        raise pyopencl.LogicError("clGetPlatformIDs failed: PLATFORM_NOT_FOUND_KHR")

    no_device.setattr(pyopencl, "get_platforms", none)
    assert "no OpenCL driver that works (clGetPlatformIDs failed: PLATFORM_NOT_FOUND_KHR)" in why_none()
    assert "pip install pocl-binary-distribution" in why_none()
    no_device.setattr(pyopencl, "get_platforms", list)
    assert why_none() == "this machine has no OpenCL device; it has no platform"


@needs_opencl
def test_the_environment_chooses_a_device_by_number_or_name(monkeypatch: pytest.MonkeyPatch) -> None:
    first = device_here()
    for choice in ("0:0", "0", f"{first.device.platform.name[:5].lower()}:{first.name[:6].upper()}"):
        monkeypatch.setenv(CHOICE, choice)
        assert device_here().name == first.name
    monkeypatch.setenv(CHOICE, "0:cray")
    assert "no OpenCL device for PYOPENCL_CTX=0:cray; it has 0 " in why_none()
    assert first.name in why_none()


def run_in_fork(executable: lowering.Executable, array: np.ndarray, answers: Any) -> None:
    try:
        answers.put(executable.run(array))
    except LoweringError as refusal:
        answers.put(str(refusal))


@needs_opencl
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_that_drivers_do_not_survive_it(compiled: lowering.Executable, x: torch.Tensor) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=run_in_fork, args=(compiled, x.numpy(), answers))
    process.start()
    assert "this process was forked from one that had opened" in answers.get(timeout=120)
    process.join()


@needs_opencl
def test_sizes_that_are_not_known_and_calls_of_the_host_are_refused() -> None:
    with pytest.raises(LoweringError, match="Compile for llvm, or rewrite the op in the model"):
        lowering.compile(Sorted().eval(), torch.randn(3, 70), target="opencl")


def test_a_program_knows_the_extensions_that_it_needs() -> None:
    line = "#pragma OPENCL EXTENSION cl_khr_fp16 : enable\n"
    program = Program(line * 2 + line.replace("fp16", "fp64") + line.replace("khr", "amd"), (), 0, (), ())
    assert program.extensions == ("cl_khr_fp16", "cl_khr_fp64")
    assert replace(program, source="").extensions == ()
