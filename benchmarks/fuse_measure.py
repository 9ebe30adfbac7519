"""What `fuse.py` measures of one model: each function runs in a process of its own (`fuse_zoo.boxed`).

Speed-up: the median seconds of the training form over those of the fused one; both forms in both engines take turns, in
rotating order. All on one thread: the engines' pools of threads would wait for each other on the same cores.

Peak memory: what the process holds at most while it fuses, less what it held before there was a model, over the bytes of the
model's weights: 1 is the model itself. Another fuse has gone before, so that what is loaded once is there.
"""

import contextlib
import io
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import reparam_compiler
from benchmarks import page
from benchmarks.fuse_zoo import Subject, converted, counts, fusable, graph_of, outputs, reasons, whole, worst
from benchmarks.sessions import session
from reparam_compiler.zoo.blocks import Site, repvgg_block

LEAST, MOST = 5, 41
"""Rounds of a timing."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Median milliseconds of the training form and of the fused one."""

    training: float
    fused: float

    @property
    def speed_up(self) -> float:
        """How many times as fast the fused form is."""
        return self.training / self.fused


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found in one model; None for what its tracer, exporter or library does not give.

    merges, left: adds, concats and stacks of computed values before and after. own: convs after the library's own conversion.
    refused: reasons why merges and norms stayed, with their number.
    exact: the error of the whole model in float64, the new weights not rounded; proof: of the worst region; shipped: of the
        models as they are, in float32. All relative to the largest output.
    proven, quick: seconds of a fuse with and without `verify`. peak: memory. weights: their bytes. eager, onnx: speeds.
    """

    name: str
    inputs: tuple[tuple[int, ...], ...]
    merges: int | None
    left: int | None
    convs: tuple[int, int]
    own: int | None
    refused: Mapping[str, int]
    exact: float | None
    proof: float | None
    shipped: float
    proven: float
    quick: float
    peak: float
    weights: int
    eager: Pair
    onnx: Pair | None


def measure(subject: Subject, rounds: float) -> Measured:
    """All figures of one model. rounds: seconds for those of the timing."""
    warm_up()
    peak = _memory(subject)
    model, inputs = subject.make()
    weights = byte_count(model)
    trace = whole(model, inputs)
    given = fusable(model, trace, inputs)
    needed = inputs if given is model else None
    quick = _seconds(lambda: reparam_compiler.fuse(given, needed, verify=False))
    proven = _seconds(lambda: reparam_compiler.fuse(given, needed))
    fused, report = reparam_compiler.fuse(given, inputs, return_report=True)
    before, after = graph_of(trace, inputs), graph_of(fused, inputs)
    compared = report.whole_model
    sessions = onnx_pair(model, inputs)
    own = converted(subject, model, inputs)
    shipped = worst(outputs(given, inputs), outputs(fused, inputs))
    runs = {"training": lambda: outputs(given, inputs), "fused": lambda: outputs(fused, inputs)}
    times = interleaved(runs | sessions, rounds)
    return Measured(
        subject.name,
        tuple(tuple(x.shape) for x in inputs),
        None if before is None else counts(before).merges,
        None if after is None else counts(after).merges,
        (report.before.convs, report.after.convs),
        None if own is None else own.convs,
        reasons(report),
        None if compared is None or "float64" not in compared.how else compared.difference.relative,
        None if report.max_error is None else report.max_error.relative,
        shipped,
        proven,
        quick,
        peak / weights,
        weights,
        Pair(times["training"], times["fused"]),
        Pair(times["onnx, training"], times["onnx, fused"]) if sessions else None,
    )


def _memory(subject: Subject) -> int:
    """The most bytes that a fuse with its proofs holds, the model included."""
    base = status("VmRSS")
    model, inputs = subject.make()
    trace = whole(model, inputs, copy=False)
    forget_peak()
    given = fusable(model, trace, inputs)
    reparam_compiler.fuse(given, inputs if given is model else None)
    return status("VmHWM") - base


def forget_peak() -> None:
    """From now on VmHWM counts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def status(key: str) -> int:
    """Bytes, from Linux's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def byte_count(model: nn.Module) -> int:
    """Of all tensors of a model."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def warm_up() -> None:
    """A small fuse, so that what is loaded once is there."""
    model = torch.nn.Sequential(repvgg_block(Site(4, 4)))
    inputs = (torch.randn(1, 4, 8, 8),)
    reparam_compiler.fuse(whole(model.eval(), inputs), inputs)


def interleaved(runs: Mapping[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """The median milliseconds of each, from rounds in which all take turns in rotating order."""
    taken = page.interleaved(runs, MOST, budget=budget, least=LEAST)
    return {name: statistics.median(values) * 1e3 for name, values in taken.items()}


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The median of so many runs."""
    return statistics.median(_seconds(run) for _ in range(repeats))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def onnx_pair(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Callable[[], object]]:
    """The model in ONNX Runtime, as exported and as fused in ONNX; nothing where that takes no model."""
    training = exported(model, inputs, dynamo=False) or exported(model, inputs, dynamo=True)
    try:
        before = None if training is None else _onnx_run(training, inputs)
    except Exception:  # noqa: BLE001 - what was exported is no valid model; ONNX Runtime's errors have no class of their own
        before = None
    if training is None or before is None:
        return {}
    return {"onnx, training": before, "onnx, fused": _onnx_run(reparam_compiler.fuse(training, verify=False), inputs)}


def exported(model: nn.Module, inputs: tuple[Tensor, ...], *, dynamo: bool) -> onnx.ModelProto | None:
    """The model in ONNX; None where this exporter does not take it."""
    buffer = io.BytesIO()
    try:
        with _silence():
            torch.onnx.export(model, inputs, buffer, dynamo=dynamo, verbose=False)
    except Exception:  # noqa: BLE001 - an exporter runs the model's code, which raises what it likes
        return None
    return onnx.load_from_string(buffer.getvalue())


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """An exporter that fails prints the whole graph, from C++."""
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def _onnx_run(model: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    loaded = session(model.SerializeToString())
    feeds = {given.name: x.numpy() for given, x in zip(loaded.get_inputs(), inputs, strict=True)}
    return lambda: loaded.run(None, feeds)


def onnx_blocks(blocks: int, channels: int = 8) -> onnx.ModelProto:
    """A chain of RepVGG blocks in ONNX, eight nodes each: conv 3x3, conv 1x1, three norms, two adds and a ReLU."""
    random = np.random.default_rng(0)
    nodes, constants = [], dict[str, np.ndarray]()

    def constant(name: str, array: np.ndarray) -> str:
        constants[name] = array.astype(np.float32)
        return name

    def add(op: str, sources: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, sources, [output], name=f"{op} of {output}", **attributes))
        return output

    def norm(source: str, name: str) -> str:
        scale, shift, mean = (constant(f"{name}.{i}", 0.5 + 0.1 * random.standard_normal(channels)) for i in range(3))
        var = constant(f"{name}.3", 0.5 + random.random(channels))
        return add("BatchNormalization", [source, scale, shift, mean, var], name)

    x = "x"
    for index in range(blocks):
        dense = constant(f"{index}.wide.weight", 0.1 * random.standard_normal((channels, channels, 3, 3)))
        point = constant(f"{index}.point.weight", 0.1 * random.standard_normal((channels, channels, 1, 1)))
        wide = norm(add("Conv", [x, dense], f"{index}.wide", pads=[1, 1, 1, 1]), f"{index}.wide.norm")
        small = norm(add("Conv", [x, point], f"{index}.point"), f"{index}.point.norm")
        total = add("Add", [add("Add", [wide, small], f"{index}.two"), norm(x, f"{index}.norm")], f"{index}.three")
        x = add("Relu", [total], f"{index}.out")
    shape = ["batch", channels, 16, 16]
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
