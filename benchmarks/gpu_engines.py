"""One net on the engines that a person could take: torch eager, eager in channels_last, `torch.compile(mode="max-autotune")`
(channels_last too), and ours by TVM.

Ours is compiled for the GPU that is present, by rule and without a search, and its output is compared with eager's: its
kernels were written where there is no GPU. Where tvm is missing, or TVM has no tensor-core path (TF32), that is said.
"""

import copy
import functools
import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_measure import (
    LAST,
    MODES,
    Budget,
    Call,
    Key,
    Mode,
    Results,
    peak_megabytes,
    precision,
    relative_error,
    report,
    time_calls,
)
from benchmarks.gpu_settings import Settings
from reparam_compiler import fuse
from reparam_compiler.errors import ReparamError, TvmMissingError
from reparam_compiler.zoo import REPVGG, RESNET, randomise_batch_norm

PART = "engines"
EAGER, EAGER_LAST, COMPILED, OURS = "eager", "eager, channels_last", "max-autotune", "ours"
ENGINES = (EAGER, EAGER_LAST, COMPILED, OURS)
NEEDS = {COMPILED: 40, OURS: 20}  # seconds that compiling for one configuration may take
FAILURES = (ReparamError, RuntimeError, ValueError, TypeError, AttributeError, ImportError, OSError)


Maker = Callable[[], Callable[[], Any]]  # makes what is timed


class UnavailableError(Exception):
    """An engine that cannot run a configuration here; the text says why."""


def measure(settings: Settings, results: Results, ends: float) -> None:
    """Time every net of `settings.engine_nets` on every engine, in every mode and batch, until the time is up."""
    modes = dict.fromkeys(mode.removesuffix("-channels-last") for mode in settings.modes)  # layouts are engines here
    plan = [(net, mode, batch) for net in settings.engine_nets for batch in settings.batches for mode in modes]
    budget = Budget(ends, len(ENGINES) * len(plan), settings.longest)
    for net, mode, batch in plan:
        seconds = budget.take(len(ENGINES))
        if seconds == 0:
            results.left_out.append(f"{PART}: {net}, {mode}, batch {batch}: no time left")
            continue
        measure_one(net, mode, batch, settings, results, seconds, ends)
        gc.collect()
        torch.compiler.reset()


def measure_one(name: str, mode: str, batch: int, settings: Settings, results: Results, seconds: float, ends: float) -> None:
    """Time one net in one configuration on every engine that has it."""
    chosen = MODES[mode]
    fused = fused_net(name)
    x = example(batch, settings.image, chosen, settings.device)
    cast = copy.deepcopy(fused).to(settings.device, chosen.dtype)
    last, x_last = copy.deepcopy(cast).to(memory_format=LAST), x.contiguous(memory_format=LAST)
    calls: dict[Key, Call] = {}
    with torch.inference_mode(), precision(chosen):
        expected = cast(x).float()
        makers: dict[str, Maker] = {
            EAGER: lambda: lambda: cast(x),
            EAGER_LAST: lambda: lambda: last(x_last),
            COMPILED: lambda: inductor(last, x_last, settings),
            OURS: lambda: ours(fused, x, chosen, settings),
        }
        memory = {EAGER: (cast, x), EAGER_LAST: (last, x_last)}
        for engine, run in available(makers, f"{PART}: {name}, {mode}, batch {batch}", results, ends).items():
            if engine != EAGER:
                results.errors[f"{name} by {engine}, {mode}, batch {batch}"] = relative_error(as_torch(run()), expected)
            calls[name, engine] = Call(run, peak_megabytes(*memory[engine]) if engine in memory else None)
        try:
            found = time_calls(PART, calls, mode, batch, seconds, settings.device)
        except torch.OutOfMemoryError:
            results.left_out.append(f"{PART}: {name}, {mode}, batch {batch}: out of memory")
        else:
            results.measurements += found
            report(found)


def available(makers: Mapping[str, Maker], where: str, results: Results, ends: float) -> dict[str, Callable[[], Any]]:
    """The engines that come up and run once before `ends`; of the others, `results` learns why not."""
    found = {}
    for engine, make in makers.items():
        try:
            if time.perf_counter() + NEEDS.get(engine, 0) > ends:
                raise UnavailableError("no time left to compile it")
            run = make()
            run()
        except UnavailableError as reason:
            results.left_out.append(f"{where}, {engine}: {reason}")
        except FAILURES as failure:
            results.left_out.append(f"{where}, {engine}: {type(failure).__name__}: {first_line(failure)}")
        else:
            found[engine] = run
    return found


@functools.cache
def fused_net(name: str) -> nn.Module:
    """The net of that name as one uses it: RepVGG fused, ResNet with its batch norms folded; float32, on the CPU."""
    torch.manual_seed(0)
    made = REPVGG[name]() if name in REPVGG else RESNET[name]()
    fused: nn.Module = fuse(randomise_batch_norm(made).eval(), verify=False)
    return fused


def example(batch: int, image: int, mode: Mode, device: torch.device) -> Tensor:
    """A random batch of images."""
    x = torch.randn(batch, 3, image, image, device=device, dtype=mode.dtype)
    return x.contiguous(memory_format=mode.memory_format)


def inductor(net: nn.Module, x: Tensor, settings: Settings) -> Callable[[], Any]:
    """The net by torch.compile, compiled at its first call; without a GPU by its tracer alone, enough for the smoke run."""
    on_gpu = settings.device.type == "cuda"
    compiled = torch.compile(net, mode="max-autotune") if on_gpu else torch.compile(net, backend="eager")
    return lambda: compiled(x)


def ours(net: nn.Module, x: Tensor, mode: Mode, settings: Settings) -> Callable[[], Any]:
    """The net by TVM on the device where `x` lies, its input there already.

    Raises: UnavailableError where tvm is missing, the mode is TF32, or the library cannot run here.
    """
    if mode.tf32:
        raise UnavailableError("TVM 0.27 has tensor-core intrinsics for float16, none for TF32")
    try:
        import reparam_compiler.lowering as lowering
    except (ImportError, TvmMissingError) as missing:
        raise UnavailableError(str(missing)) from missing
    import tvm

    shaped = torch.zeros(x.shape, dtype=mode.dtype)
    compiled = lowering.compile(copy.deepcopy(net).to(mode.dtype), (shaped,), target=tvm_target(settings.device))
    if not compiled.runs_here:
        raise UnavailableError("TVM's CUDA runtime does not load here")
    held = tvm.runtime.from_dlpack(x.contiguous())
    main, weights = compiled.with_machine(lambda machine, arguments, _device: (machine["main"], arguments[1:]))
    return lambda: main(held, *weights)


def tvm_target(device: torch.device) -> str | None:
    """The target of the GPU that is present; this machine's CPU where there is none."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"cuda -arch=sm_{major}{minor}"


def as_torch(result: Any) -> Tensor:
    """An engine's first output, as a float32 tensor of torch."""
    first = result
    while not (isinstance(first, Tensor) or hasattr(first, "__dlpack__")):
        first = first[0]
    tensor = first if isinstance(first, Tensor) else torch.from_dlpack(first)
    return tensor.clone().float()


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next((text.strip() for text in str(error).splitlines() if text.strip()), "no message")[:300]
