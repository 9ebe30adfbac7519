"""What `fuse.py` measures of one model: each function runs in a process of its own (`fuse_zoo.boxed`).

Speed-up: the median seconds of the training form over those of the fused one; both forms in both engines take turns, in
rotating order. Peak memory: what the process holds at most while it fuses, less what it held before there was a model, over the
bytes of the model's weights: 1 is the model itself.
"""

import io
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from fuse_zoo import Subject, counts, graph_of, outputs, reasons, worst
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.frontends.modules import traced

LEAST, MOST = 5, 41
"""Rounds of a timing."""


@dataclass(frozen=True, slots=True)
class Budget:
    """rounds: seconds for the rounds of one model. repeats: of each timed fuse."""

    rounds: float = 6.0
    repeats: int = 3


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
    proven, quick: seconds of a fuse with and without `verify`. peak: memory. eager, onnx: speeds.
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
    eager: Pair
    onnx: Pair | None


def measure(subject: Subject, budget: Budget) -> Measured:
    """All figures of one model."""
    base = _resident()
    model, inputs = subject.make()
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    trace = traced(model, inputs, copy=False)
    given = model if trace is None else trace
    _reset_peak()
    reparam_compiler.fuse(given, None if trace is not None else inputs)
    peak = (_peak() - base) / weights
    fused, report = reparam_compiler.fuse(given, inputs, return_report=True)
    before, after = graph_of(given, inputs), graph_of(fused, inputs)
    whole = report.whole_model
    engines: dict[str, Callable[[], object]] = {
        "eager, training": lambda: outputs(given, inputs),
        "eager, fused": lambda: outputs(fused, inputs),
    }
    sessions = onnx_pair(model, inputs)
    engines |= sessions
    times = interleaved(engines, budget.rounds)
    return Measured(
        subject.name,
        tuple(tuple(x.shape) for x in inputs),
        None if before is None else counts(before).merges,
        None if after is None else counts(after).merges,
        (report.before.convs, report.after.convs),
        _own(subject, model, inputs),
        reasons(report),
        None if whole is None or "float64" not in whole.how else whole.difference.relative,
        None if report.max_error is None else report.max_error.relative,
        worst(outputs(given, inputs), outputs(fused, inputs)),
        seconds(lambda: reparam_compiler.fuse(given, None if trace is not None else inputs), budget.repeats),
        seconds(lambda: reparam_compiler.fuse(given, None if trace is not None else inputs, verify=False), budget.repeats),
        peak,
        Pair(times["eager, training"], times["eager, fused"]),
        Pair(times["onnx, training"], times["onnx, fused"]) if sessions else None,
    )


def _own(subject: Subject, model: nn.Module, inputs: tuple[Tensor, ...]) -> int | None:
    if subject.own is None:
        return None
    trace = traced(subject.own(model), inputs, copy=True)
    graph = graph_of(trace, inputs)
    return None if graph is None else counts(graph).convs


def interleaved(runs: Mapping[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """The median milliseconds of each, from rounds in which all take turns in rotating order."""
    order, taken = list(runs), {name: list[float]() for name in runs}
    for name in order:
        runs[name]()
    end = time.perf_counter() + budget
    for index in range(MOST):
        for name in order[index % len(order) :] + order[: index % len(order)]:
            start = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - start)
        if index + 1 >= LEAST and time.perf_counter() > end:
            break
    return {name: statistics.median(values) * 1e3 for name, values in taken.items()}


def seconds(run: Callable[[], object], repeats: int) -> float:
    """The median of so many runs."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def onnx_pair(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Callable[[], object]]:
    """The model in ONNX Runtime, as exported and as fused in ONNX; nothing where it cannot be exported."""
    buffer = io.BytesIO()
    try:
        torch.onnx.export(model, inputs, buffer, dynamo=False)
    except Exception:  # noqa: BLE001 - the exporter runs the model's code, which raises what it likes
        return {}
    training = onnx.load_from_string(buffer.getvalue())
    fused = reparam_compiler.fuse(training, verify=False)
    return {"onnx, training": _session(training, inputs), "onnx, fused": _session(fused, inputs)}


def _session(model: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    feeds = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feeds)


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    """Bytes, from Linux's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


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
