"""Tensors made from numbers alone: torch makes them here, and they are constants. And sums of products with factors."""

from typing import Any

from torch import fx
from tvm import relax

from reparam_compiler.lowering.importing.torch_ops.table import Call, instead

UNKNOWN = "does not know it"


def _constant(call: Call) -> Any:
    keywords = {name: value for name, value in call.node.kwargs.items() if name not in ("device", "pin_memory", "layout")}
    made = call.node.target(*call.node.args, **keywords)  # type: ignore[operator]
    return relax.const(made.cpu().numpy(), call.dtype)


instead("tril_indices.default", "triu_indices.default", tvm=UNKNOWN)(_constant)


@instead("arange.default", "arange.start", "arange.start_step", tvm="gives the wrong number of elements for steps below zero")
def _range(call: Call) -> Any:
    if not any(isinstance(given, fx.Node) for given in call.node.args):
        return _constant(call)
    start, end, step = (call[name] for name in ("start", "end", "step"))
    bounds = [call.value(given) if isinstance(given, fx.Node) else given for given in (start or 0, end, step or 1)]
    return relax.op.arange(*bounds, dtype=call.dtype)


def _scaled(call: Call, value: Any, factor: str) -> Any:
    times = 1 if call[factor] is None else call[factor]
    return value if times == 1 else call.emit(relax.op.multiply(value, relax.const(times, call.dtype)))


@instead("addmv.default", tvm=UNKNOWN)
def _matrix_and_vector(call: Call) -> Any:
    product = call.emit(relax.op.matmul(call.tensor("mat"), call.tensor("vec")))
    return relax.op.add(_scaled(call, call.tensor("input"), "beta"), _scaled(call, product, "alpha"))


@instead("addbmm.default", tvm=UNKNOWN)
def _sum_of_products(call: Call) -> Any:
    product = call.emit(relax.op.sum(relax.op.matmul(call.tensor("batch1"), call.tensor("batch2")), [0]))
    return relax.op.add(_scaled(call, call.tensor("input"), "beta"), _scaled(call, product, "alpha"))
