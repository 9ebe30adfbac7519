"""CUDA compiles here to machine code, every kernel bound to threads and none left for the host, within launch limits."""

import copy
import functools
import itertools
import math
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import tvm
import tvm_ffi
from torch import nn
from tvm import te
from tvm.ir import CallingConv
from tvm.s_tir.pipeline import default_s_tir_pipeline
from tvm.support import nvcc

from reparam_compiler import fuse, lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.build import build
from reparam_compiler.lowering.conv.algorithms import ConvShape, Step
from reparam_compiler.lowering.gpu.conv import gpu_conv
from reparam_compiler.lowering.gpu.cuda.chips import CHIPS
from reparam_compiler.lowering.gpu.schedules import schedule_gpu, unbound
from reparam_compiler.lowering.gpu.tensor_cores import tensor_conv
from reparam_compiler.lowering.gpu.tiles import FLOAT32_TILES, TENSOR_TILES, GpuTile, choose_gpu_tile
from reparam_compiler.lowering.gpu.winograd import choose_gpu_winograd, winograd_gemm
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.importing.shapes import Imported
from reparam_compiler.lowering.runtime.archive import LIBRARY
from reparam_compiler.lowering.runtime.executable import Executable
from reparam_compiler.lowering.target import resolve
from reparam_compiler.zoo import Architecture, RepVGG, randomise_batch_norm
from reparam_compiler.zoo.repvgg import place_layers
from tests.support.lowered import lower
from tests.support.small_models import Together

pytestmark = pytest.mark.tvm
FATBIN_MAGIC = (0xBA55ED50).to_bytes(4, "little")
BIAS_RELU = (Step("add", "channels"), Step("relu", "scalar"))
MOST_THREADS = 1024
MOST_STATIC, MOST_SHARED = 48 * 1024, 99 * 1024  # bytes: what needs no asking for, and what the smallest chip since sm_80 has
MOST_BLOCKS = {"blockIdx.x": 2**31 - 1, "blockIdx.y": 65535, "blockIdx.z": 65535}


def launches(module: Any, target: Any) -> dict[str, dict[str, int]]:
    """Of each kernel of scheduled functions, as `launches_of` gives it."""
    parts: dict[str, Any] = {}
    for name, func in prim_funcs(module).items():
        one = tvm.IRModule({name: func.with_attr("global_symbol", name)})
        one = tvm.tirx.transform.BindTarget(target.with_host(tvm.target.Target("llvm")))(one)
        parts |= prim_funcs(default_s_tir_pipeline()[0](one))
    return launches_of(parts)


def launches_of(parts: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Of each kernel: its extent along every axis, `dynamic` and `static` bytes of shared memory; from host and device code."""
    found: dict[str, dict[str, int]] = {}
    static: dict[str, int] = {}
    for name, part in parts.items():
        if int(part.attrs.get("calling_conv", 0)) == CallingConv.DEVICE_KERNEL_LAUNCH:
            static[name] = sum(static_bytes(part))
            continue
        for kernel, numbers, axes in re.findall(r'call_ffi_kernel\("(\w+)",(.*), launch_params=\[(.*)\], ret', part.script()):
            names = re.findall(r'"([\w.]+)"', axes)
            sizes = [int(size) for size in re.findall(r"(?:, | |\()(\d+)\)?(?=,|$)", numbers)][-len(names) :]
            found[kernel] = dict(zip(names, sizes, strict=True))
    return {kernel: {**sizes, "static": static[kernel]} for kernel, sizes in found.items()}


@dataclass(frozen=True)
class Built:
    """What one compilation gave, and what it was made of on the way."""

    executable: Executable
    lowered: Any
    launches: dict[str, dict[str, int]]


def built(imported: Imported, target: Any, monkeypatch: pytest.MonkeyPatch) -> Built:
    kind, modules, parts = type(backend_for(target)), [], []
    tir_build = sys.modules[tvm.tirx.build.__module__]  # whose name its function has
    lower_as_ever, split_as_ever = kind.lower, tir_build.split_host_device_mods

    def kept(backend: Any, module: Any, **options: Any) -> Any:
        modules.append(lower_as_ever(backend, module, **options))
        return modules[-1]

    def noted(module: Any) -> Any:
        parts.append(prim_funcs(module))
        return split_as_ever(module)

    monkeypatch.setattr(kind, "lower", kept)
    monkeypatch.setattr(tir_build, "split_host_device_mods", noted)
    variant = build(imported, target).variant
    (lowered,) = modules
    return Built(Executable((variant,)), lowered, launches_of(parts[-1]))  # the others fold constants


def static_bytes(func: Any) -> list[int]:
    """Of each buffer in static shared memory."""
    found: list[int] = []

    def note(node: Any) -> None:
        if node.buffer.scope() == "shared":
            dtype = tvm.DataType(str(node.buffer.ty.dtype))
            found.append(math.prod(int(size) for size in node.buffer.ty.shape) * dtype.bits * dtype.lanes // 8)

    tvm_ffi.structural_walk(func.body, (tvm.tirx.AllocBuffer, note), order="post")
    return found


def assert_within_limits(launch: dict[str, int]) -> None:
    threads = [extent for axis, extent in launch.items() if axis.startswith("threadIdx")]
    assert 1 <= math.prod(threads) <= MOST_THREADS
    assert threads
    assert launch["static"] <= MOST_STATIC
    assert launch["static"] + launch.get("tirx.use_dyn_shared_memory", 0) <= MOST_SHARED
    assert all(1 <= launch.get(axis, 1) <= most for axis, most in MOST_BLOCKS.items())


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.Softmax(-1),
    ).eval()  # fmt: skip


def prim_funcs(module: Any) -> dict[str, Any]:
    return {str(v.name_hint): f for v, f in module.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}


CONFIGURATIONS = [
    (1, torch.float32, "sm_80"),
    (1, torch.float16, "sm_90"),
    (128, torch.float32, "sm_90"),
    (128, torch.float16, "sm_80"),
]
"""Each two of batch, dtype and architecture meet once."""
LAYERS = {
    "small ones of many kinds": (net(), (3, 16, 12)),
    "by Winograd in float32": (nn.Sequential(nn.Conv2d(96, 96, 3, padding=1), nn.ReLU()), (96, 28, 28)),
    "in pieces at batch 1": (nn.Sequential(nn.Conv2d(1024, 32, 1), nn.ReLU()), (1024, 7, 7)),
    "in pieces at batch 128 in float32": (nn.Linear(1280, 1000), (1280,)),
}
"""Each kind of kernel, as small as it comes: nvcc takes seconds for a layer of a real net."""


@pytest.mark.parametrize(("batch", "dtype", "arch"), CONFIGURATIONS)
def test_every_kernel_is_bound_to_threads_and_built_for_the_device(
    batch: int, dtype: torch.dtype, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By nvcc at batch 1, where each kind of kernel is: a larger batch changes extents, and nvcc takes seconds."""
    if batch > 1:
        monkeypatch.setattr(nvcc, "_compile_cuda_nvcc", lambda *arguments, **named: bytearray(1))
    target = resolve(f"cuda -arch={arch}")
    model = Together(copy.deepcopy(layer).to(dtype) for layer, _ in LAYERS.values()).eval()
    inputs = tuple(torch.zeros(batch, *size, dtype=dtype) for _, size in LAYERS.values())
    found = built(to_relax(model, inputs), target, monkeypatch)
    kernels = prim_funcs(found.lowered)
    assert len(kernels) >= 5 + len(LAYERS)
    assert unbound(found.lowered) == []
    assert {name for name in kernels if not any(kernel.startswith(f"{name}_kernel") for kernel in found.launches)} == set()
    for launch in found.launches.values():
        assert_within_limits(launch)
    algorithms = " ".join(kernel.algorithm for kernel in found.executable.kernels)
    assert ("winograd" in algorithms) == (dtype == torch.float32)
    assert ("pieces" in algorithms) == (batch == 1 or dtype == torch.float32)

    device = [part for part in imports(found.executable.variants[0].library.mod) if part.kind == "cuda"]
    assert len(device) == 1
    written = set(re.findall(r"__global__ void\s+(?:__launch_bounds__\(\d+\)\s+)?(\w+)\(", device[0].inspect_source()))
    assert written == set(found.launches)

    if batch > 1:
        return
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc: the library holds CUDA source, as the log says")
    found.executable.save(tmp_path / "module.tar")
    with tarfile.open(tmp_path / "module.tar") as archive:
        library = archive.extractfile(LIBRARY).read()
    assert FATBIN_MAGIC in library
    assert arch.encode() in library


A0 = Architecture.scaled("A", 0.75, 2.5)


@functools.cache
def fused_a0() -> nn.Module:
    """RepVGG-A0 without the layers that repeat the second of their stage: they have its kernels."""
    short = replace(A0, layers=tuple(min(2, count) for count in A0.layers))
    return fuse(randomise_batch_norm(RepVGG(short)).eval(), verify=False)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "dtype", "arch"), CONFIGURATIONS)
def test_whole_net_compiles_within_launch_limits(
    batch: int, dtype: torch.dtype, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as its CUDA source, which nvcc takes half a minute for: it compiles each kind of kernel in the test above."""
    x = torch.zeros(batch, 3, 224, 224, dtype=dtype)
    monkeypatch.setattr(nvcc, "_compile_cuda_nvcc", lambda *arguments, **named: bytearray(1))
    found = built(to_relax(copy.deepcopy(fused_a0()).to(dtype), x), resolve(f"cuda -arch={arch}"), monkeypatch)
    for launch in found.launches.values():
        assert_within_limits(launch)
    algorithms = [kernel.algorithm for kernel in found.executable.kernels]
    on_tensor_cores = [name for name in algorithms if "tensor cores" in name]
    assert len(on_tensor_cores) == (8 + (batch > 1) if dtype == torch.float16 else 0)


@pytest.mark.parametrize("arch", CHIPS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch", [1, 128])
def test_every_layer_of_the_net_fits_the_grid_on_every_chip(batch: int, dtype: str, arch: str) -> None:
    """By the tile that it takes; what a tile launches, the tests below say."""
    chip, side = CHIPS[arch], 224
    for site in itertools.chain.from_iterable(place_layers(A0)):
        strides = (site.stride, site.stride)
        shape = ConvShape(
            batch, side, side, site.in_channels, site.out_channels, (3, 3), strides, padding=(1, 1, 1, 1), dtype=dtype
        )
        side = shape.out_height
        for gemm in (shape, *(winograd_gemm(shape, form) for form in choose_gpu_winograd(shape, chip))):
            tile = choose_gpu_tile(gemm, chip, tensor_cores=dtype == "float16")
            for axis, extent in grid(gemm, tile).items():
                assert 1 <= extent <= MOST_BLOCKS[axis]
    assert side == 7


def grid(shape: ConvShape, tile: GpuTile) -> dict[str, int]:
    """The blocks that an implicit GEMM launches along each axis."""
    rows, columns, _ = tile.padded(shape)
    return {
        "blockIdx.x": rows // tile.rows,
        "blockIdx.y": columns // tile.columns,
        "blockIdx.z": tile.pieces * shape.groups,
    }


@pytest.mark.parametrize("tile", FLOAT32_TILES, ids=str)
def test_float32_tile_stays_within_launch_limits(tile: GpuTile) -> None:
    shape, target = ConvShape(1, 14, 14, 96, 96, (3, 3), padding=(1, 1, 1, 1)), resolve("cuda")
    (launch,) = launches(tvm.IRModule({"conv": gpu_conv(shape, tile, BIAS_RELU)}), target).values()
    assert launch["threadIdx.x"] == tile.workers
    assert launch["static"] >= 4 * tile.depth * (tile.rows + tile.columns)
    assert {axis: launch[axis] for axis in MOST_BLOCKS} == grid(shape, tile)
    assert_within_limits(launch)


@pytest.mark.parametrize("tile", TENSOR_TILES, ids=str)
def test_tensor_core_tile_multiplies_fragments_within_launch_limits(tile: GpuTile) -> None:
    shape = ConvShape(1, 14, 14, 96, 96, (3, 3), padding=(1, 1, 1, 1), dtype="float16")
    module = tvm.IRModule({"conv": tensor_conv(shape, tile, BIAS_RELU)})
    text = module.script()
    assert all(name in text for name in ("tvm_load_matrix_sync", "tvm_mma_sync", "tvm_store_matrix_sync"))
    (launch,) = launches(module, resolve("cuda")).values()
    assert launch["threadIdx.x"] * launch["threadIdx.y"] == 32 * tile.workers
    assert launch["tirx.use_dyn_shared_memory"] >= 2 * 2 * tile.depth * (tile.rows + tile.columns)  # two steps of float16
    assert {axis: launch[axis] for axis in MOST_BLOCKS} == grid(shape, tile)
    assert_within_limits(launch)


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


def test_image_whose_fused_index_would_exceed_int32_compiles() -> None:
    target, model, x = resolve("cuda"), nn.UpsamplingBilinear2d(size=(713, 713)).eval(), torch.zeros(1, 19, 90, 90)
    with target:
        module = lower(to_relax(model, x).module, target)
    (launch,) = launches(module, target).values()
    assert launch["blockIdx.y"] == 19
    assert launch["blockIdx.x"] * launch["threadIdx.x"] >= 713 * 713 > (launch["blockIdx.x"] - 1) * launch["threadIdx.x"]
    assert_within_limits(launch)


class Lambda(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs)


WITHOUT_RECIPE = {
    "bfloat16 conv": (nn.Conv2d(16, 32, 3, padding=1), torch.bfloat16, (1, 16, 14, 14)),
    "float64 conv": (nn.Conv2d(16, 32, 3, padding=1), torch.float64, (1, 16, 14, 14)),
    "transposed conv": (nn.ConvTranspose2d(16, 8, 4, 2, 1), torch.float32, (1, 16, 9, 7)),
    "conv3d": (nn.Conv3d(4, 8, 3, padding=1), torch.float32, (1, 4, 5, 6, 7)),
    "float16 dense": (nn.Linear(300, 70), torch.float16, (1, 300)),
    "float16 transpose": (Lambda(lambda x: (x.permute(0, 2, 3, 1) + 1).relu()), torch.float16, (1, 16, 14, 14)),
    "argmax": (Lambda(lambda x: x.argmax(1)), torch.float32, (1, 100, 4)),
    "cumsum": (Lambda(lambda x: x.cumsum(2)), torch.float32, (1, 4, 100)),
}


@pytest.mark.parametrize("name", WITHOUT_RECIPE)
def test_op_without_a_recipe_is_bound_to_threads(name: str) -> None:
    (model, dtype, shape), target = WITHOUT_RECIPE[name], resolve("cuda -arch=sm_80")
    with target:
        module = lower(to_relax(model.to(dtype).eval(), torch.zeros(shape, dtype=dtype)).module, target)
    assert prim_funcs(module)
    assert unbound(module) == []


def test_ops_without_a_recipe_are_built_for_the_device() -> None:
    """All in one net: nvcc takes seconds to begin."""
    model = Together(net.to(dtype) for net, dtype, _ in WITHOUT_RECIPE.values()).eval()
    inputs = tuple(torch.zeros(shape, dtype=dtype) for _, dtype, shape in WITHOUT_RECIPE.values())
    compiled = lowering.compile(model, inputs, target="cuda -arch=sm_80")
    assert len(compiled.kernels) >= len(WITHOUT_RECIPE)
    assert [part.kind for part in imports(compiled.variants[0].library.mod)].count("cuda") == 1


def test_op_that_no_rule_binds_is_refused_by_name() -> None:
    with pytest.raises(LoweringError, match="topk: no GPU schedule rule binds it to threads"):
        lowering.compile(Lambda(lambda x: x.topk(3, 1)[0]).eval(), torch.zeros(4, 100), target="cuda")
