"""RNN, GRU and LSTM, unrolled over the length of the sequence, which is fixed.

The products of all steps with W are one MatMul; each step is a MatMul with R and the gates.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Node
from reparam_compiler.lowering.importing.onnx_ops.layers import activated
from reparam_compiler.lowering.importing.onnx_ops.table import MICROSOFT, instead_of

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
WITH_PARAMETERS = {"LeakyRelu": 1, "ThresholdedRelu": 1, "Elu": 1, "HardSigmoid": 2}
"""Activations that take alpha, or alpha and beta, from the node's lists in their order."""
LONGEST = 512
"""Steps that are unrolled: each one is a kernel or more."""
QUANTIZED = "quantized states"
"""The attribute of an LSTM of ours, which no model has: its inputs and states are rounded to eight bits before each product."""
State = dict[str, str]
Activation = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Way:
    """One direction of a layer.

    recurrent: R as `hidden x gates * hidden`; for a GRU that resets before it multiplies, of two gates and of the third.
    late_bias: what a GRU adds to the third product before it resets that; "" where it is in the sums already.
    """

    graph: Graph
    node: Node
    recurrent: list[str]
    late_bias: str
    peepholes: list[str]
    functions: list[Activation]

    def clipped(self, x: str) -> str:
        bound = self.node.attrs.get("clip")
        return x if bound is None else self.graph.emit("Clip", x, self.graph.like(-bound, x), self.graph.like(bound, x))

    def product(self, state: str, part: int = 0) -> str:
        """A state times R, or a part of it."""
        return self.graph.emit("MatMul", _seen(self.graph, self.node, state), self.recurrent[part])

    def gate(self, function: int, *terms: str) -> str:
        """An activation of a sum."""
        return self.functions[function](self.clipped(functools.reduce(functools.partial(self.graph.emit, "Add"), terms)))


@instead_of("RNN", "GRU", "LSTM", tvm="does not know it")
def recurrent(graph: Graph, node: Node) -> list[str]:
    """Unrolled: a product and the gates for each step and direction."""
    if node.attrs.get("layout", 0):
        return _batch_first(graph, node)
    steps = graph.shape(node.inputs[0])[0]
    if steps > LONGEST:
        raise node.refusal(f"a sequence of {steps} steps", f"expected at most {LONGEST}: give shorter input_shapes")
    direction = node.attrs.get("direction", "forward")
    ways = ["forward", "reverse"] if direction == "bidirectional" else [direction]
    outputs, hidden, cell = [], [], []
    for index, way in enumerate(ways):
        found, state = _one_way(graph, node, index, way == "reverse")
        outputs.append(graph.emit("Unsqueeze", found, graph.ints(1)))
        hidden.append(graph.emit("Unsqueeze", state["h"], graph.ints(0)))
        cell.append(graph.emit("Unsqueeze", state["c"], graph.ints(0)) if "c" in state else "")
    made = [_joined(graph, outputs, 1), _joined(graph, hidden, 0)]
    if node.op == "LSTM":
        made.append(_joined(graph, cell, 0))
    return made[: node.outputs]


@instead_of("DynamicQuantizeLSTM", domain=MICROSOFT, tvm="does not know it")
def quantized_lstm(graph: Graph, node: Node) -> list[str]:
    """An LSTM of dequantized weights, which sees inputs and states as quantizing leaves them."""
    weights = []
    for index, scale in ((1, 8), (2, 10)):
        if any(graph.rank(name) > 1 for name in node.inputs[scale : scale + 2] if name):
            raise node.refusal("a scale for each channel", "expected one for each direction")
        moved = graph.emit("DequantizeLinear", node.inputs[index], *node.inputs[scale : scale + 2], axis=0)
        weights.append(graph.emit("Transpose", moved, perm=[0, 2, 1]))
    return graph.emit_all(node.outputs, "LSTM", node.inputs[0], *weights, *node.inputs[3:8], **node.attrs, **{QUANTIZED: 1})


def _seen(graph: Graph, node: Node, x: str) -> str:
    """A value as a product sees it: quantized to eight bits and back, where the layer does that."""
    if not node.attrs.get(QUANTIZED, 0):
        return x
    return graph.emit("DequantizeLinear", *graph.emit_all(3, "DynamicQuantizeLinear", x))


def _joined(graph: Graph, parts: list[str], axis: int) -> str:
    return graph.emit("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


def _batch_first(graph: Graph, node: Node) -> list[str]:
    """layout=1: batch before steps, and before directions in the states."""
    inputs = list(node.inputs)
    for index in (0, 5, 6):
        if node.input(index):
            inputs[index] = graph.emit("Transpose", inputs[index], perm=[1, 0, 2])
    attrs = {name: value for name, value in node.attrs.items() if name != "layout"}
    made = graph.emit_all(node.outputs, node.op, *inputs, **attrs)
    orders = [[2, 0, 1, 3], [1, 0, 2], [1, 0, 2]]
    return [graph.emit("Transpose", name, perm=order) for name, order in zip(made, orders, strict=False)]


def _one_way(graph: Graph, node: Node, index: int, backwards: bool) -> tuple[str, State]:
    """The outputs of one direction, `steps batch hidden`, and the state after the last step."""
    x = node.inputs[0]
    (steps, batch, _), hidden = graph.shape(x), graph.shape(node.inputs[2])[2]
    way, bias = _way(graph, node, index)
    weight = graph.emit("Transpose", _of(graph, node.inputs[1], index), perm=[1, 0])
    given = graph.emit("MatMul", _seen(graph, node, x), weight)
    rows = _parts(graph, graph.emit("Add", given, bias) if bias else given, steps, 0)
    step = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}[node.op]
    start = graph.constant(np.zeros((batch, hidden)), graph.dtype(x))
    state = {"h": _of(graph, node.inputs[5], index) if node.input(5) else start}
    if node.op == "LSTM":
        state["c"] = _of(graph, node.inputs[6], index) if node.input(6) else start
    found: dict[int, str] = {}
    for at in reversed(range(steps)) if backwards else range(steps):
        after = step(way, graph.emit("Squeeze", rows[at], graph.ints(0)), state)
        found[at], state = _within(graph, node, at, after, state)
    return _joined(graph, [graph.emit("Unsqueeze", found[at], graph.ints(0)) for at in range(steps)], 0), state


def _way(graph: Graph, node: Node, index: int) -> tuple[Way, str]:
    """A direction, and the bias that is added to the products with W."""
    gates = GATES[node.op]
    recurrent = [graph.emit("Transpose", _of(graph, node.inputs[2], index), perm=[1, 0])]
    bias = late = ""
    after = node.op == "GRU" and bool(node.attrs.get("linear_before_reset", 0))
    if node.op == "GRU" and not after:
        parts = _parts(graph, recurrent[0], gates, 1)
        recurrent = [graph.emit("Concat", *parts[:2], axis=1), parts[2]]
    if node.input(3):
        own, other = _parts(graph, _of(graph, node.inputs[3], index), 2, 0)
        if after:
            *early, late = _parts(graph, other, gates, 0)
            other = graph.emit("Concat", *early, graph.emit("Sub", late, late), axis=0)
        bias = graph.emit("Add", own, other)
    peepholes = _parts(graph, _of(graph, node.inputs[7], index), 3, 0) if node.input(7) else []
    return Way(graph, node, recurrent, late, peepholes, _functions(graph, node, index)), bias


def _of(graph: Graph, name: str, index: int) -> str:
    """The part of one direction."""
    return graph.emit("Gather", name, graph.constant(index, np.int64), axis=0)


def _parts(graph: Graph, name: str, count: int, axis: int) -> list[str]:
    return graph.emit_all(count, "Split", name, axis=axis, num_outputs=count) if count > 1 else [name]


def _functions(graph: Graph, node: Node, index: int) -> list[Activation]:
    """The activations of a direction, each with its parameters."""
    names = node.attrs.get("activations") or DEFAULTS[node.op] * 2
    alphas, betas = list(node.attrs.get("activation_alpha", ())), list(node.attrs.get("activation_beta", ()))
    made: list[Activation] = []
    for name in names:
        count = WITH_PARAMETERS.get(name, 0)
        params = [values.pop(0) for values in (alphas, betas)[:count] if values]
        made.append(lambda x, name=name, params=params: activated(graph, node, x, name, params))  # type: ignore[misc]
    count = len(DEFAULTS[node.op])
    return made[index * count : (index + 1) * count]


def _within(graph: Graph, node: Node, at: int, after: State, before: State) -> tuple[str, State]:
    """What a step gives, and the state behind it: beyond the length of a sequence zeros, and the state as it was."""
    if not node.input(4):
        return after["h"], after
    lengths = graph.emit("Unsqueeze", node.inputs[4], graph.ints(1))
    inside = graph.emit("Less", graph.constant(at, graph.dtype(node.inputs[4])), lengths)
    state = {name: graph.emit("Where", inside, after[name], before[name]) for name in after}
    return graph.emit("Where", inside, after["h"], graph.like(0, after["h"])), state


def _rnn(way: Way, given: str, state: State) -> State:
    return {"h": way.gate(0, given, way.product(state["h"]))}


def _gru(way: Way, given: str, state: State) -> State:
    """z, r and the new values, in the order of the weights."""
    graph, before = way.graph, state["h"]
    update, reset, new = _parts(graph, given, 3, 1)
    products = way.product(before)
    if len(way.recurrent) == 1:
        for_update, for_reset, kept = _parts(graph, products, 3, 1)
    else:
        for_update, for_reset = _parts(graph, products, 2, 1)
    update, reset = way.gate(0, update, for_update), way.gate(0, reset, for_reset)
    if len(way.recurrent) == 1:
        kept = graph.emit("Mul", reset, graph.emit("Add", kept, way.late_bias) if way.late_bias else kept)
    else:
        kept = way.product(graph.emit("Mul", reset, before), 1)
    new = way.gate(1, new, kept)
    return {"h": graph.emit("Add", new, graph.emit("Mul", update, graph.emit("Sub", before, new)))}


def _lstm(way: Way, given: str, state: State) -> State:
    """Input, output, forget and cell gates, in the order of the weights."""
    emit, before, cell = way.graph.emit, state["h"], state["c"]
    sums = emit("Add", given, way.product(before))
    into, out, forget, new = _parts(way.graph, sums, 4, 1)
    held = [emit("Mul", way.peepholes[at], cell) for at in (0, 2)] if way.peepholes else []
    into = way.gate(0, into, *held[:1])
    forget = (
        emit("Sub", way.graph.like(1, into), into) if way.node.attrs.get("input_forget", 0) else way.gate(0, forget, *held[1:])
    )
    cell = emit("Add", emit("Mul", forget, cell), emit("Mul", into, way.gate(1, new)))
    seen = [emit("Mul", way.peepholes[1], cell)] if way.peepholes else []
    return {"h": emit("Mul", way.gate(0, out, *seen), way.functions[2](cell)), "c": cell}
