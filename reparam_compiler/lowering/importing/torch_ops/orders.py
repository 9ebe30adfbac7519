"""Orders: sorting, the k-th value, running extremes, places in a sorted sequence."""

from collections.abc import Callable
from typing import Any

from tvm import relax, te, tirx

from reparam_compiler.lowering.importing.torch_ops.table import Call, instead

UNKNOWN = "does not know it"


@instead("cumsum.default", "cumprod.default", tvm="keeps the dtype of short integers")
def _running(call: Call) -> Any:
    op = relax.op.cumsum if "cumsum" in str(call.node.target) else relax.op.cumprod
    return op(call.tensor("input", call.dtype), call["dim"], call.dtype)


def _sorted(call: Call, axis: int, *, descending: bool = False) -> tuple[Any, Any]:
    data = call.tensor("input")
    order = call.emit(relax.op.argsort(data, axis, descending, dtype="int64"))
    return call.emit(relax.op.gather_elements(data, order, axis)), order


@instead("sort.stable", tvm=UNKNOWN)
def _stable(call: Call) -> Any:
    return relax.Tuple(list(_sorted(call, call["dim"], descending=bool(call["descending"]))))


@instead("topk.default", tvm="refuses it where the order does not matter")
def _largest(call: Call) -> Any:
    axis, largest = call["dim"], bool(call["largest"])
    return relax.op.topk(call.tensor("input"), call["k"], axis, largest=largest, ret_type="both", dtype="int64")


@instead("kthvalue.default", tvm=UNKNOWN)
def _kth(call: Call) -> Any:
    """The element of rank k, from 1."""
    axis, place = call["dim"] % len(call["input"].meta["val"].shape), call["k"] - 1
    pair = [relax.op.strided_slice(found, [axis], [place], [place + 1]) for found in _sorted(call, axis)]
    return relax.Tuple(
        [each if call["keepdim"] else call.emit(relax.op.squeeze(each, [axis])) for each in map(call.emit, pair)]
    )


@instead("searchsorted.Tensor", tvm=UNKNOWN)
def _searched(call: Call) -> Any:
    if len(call["sorted_sequence"].meta["val"].shape) != 1 or call["sorter"] is not None:
        raise call.refusal("a sequence for each row", "search one sorted sequence for all")
    right = bool(call["right"]) or call["side"] == "right"
    return relax.op.bucketize(call.tensor("input"), call.tensor("sorted_sequence"), bool(call["out_int32"]), right)


def _running_extreme(value: Callable[..., Any]) -> Callable[[Call], Any]:
    """The largest or smallest so far, and where it stands, the last of equals."""

    def convert(call: Call) -> Any:
        sizes, data = call.sizes("input"), call.tensor("input")
        axis = call["dim"] % len(sizes)

        def swept(*at: Any, k: Any) -> tuple[Any, ...]:
            return (*at[:axis], tirx.min(k, at[axis]), *at[axis + 1 :])

        def values(data: Any) -> Any:
            k = te.reduce_axis((0, sizes[axis]), "k")
            return te.compute(sizes, lambda *at: value(data(*swept(*at, k=k)), axis=[k]), name="extreme")

        def places(data: Any, found: Any) -> Any:
            k = te.reduce_axis((0, sizes[axis]), "k")

            def place(*at: Any) -> Any:
                place = tirx.min(k, at[axis]).astype("int64")
                return te.max(tirx.Select(data(*swept(*at, k=k)) == found(*at), place, tirx.const(-1, "int64")), axis=[k])

            return te.compute(sizes, place, name="places")

        found = call.loops(values, data)
        return relax.Tuple([found, call.loops(places, data, found)])

    return convert


instead("cummax.default", tvm=UNKNOWN)(_running_extreme(te.max))
instead("cummin.default", tvm=UNKNOWN)(_running_extreme(te.min))


@instead("logcumsumexp.default", tvm=UNKNOWN)
def _running_logsumexp(call: Call) -> Any:
    """m + log of the sum of e^(x - m) so far, for the largest m so far."""
    sizes, data = call.sizes("input"), call.tensor("input")
    axis = call["dim"] % len(sizes)

    def swept(reduce: Callable[..., Any], element: Callable[..., Any], outside: Callable[[str], Any]) -> Callable[..., Any]:
        def compute(*tensors: Any) -> Any:
            k = te.reduce_axis((0, sizes[axis]), "k")

            def value(*at: Any) -> Any:
                read = (*at[:axis], k, *at[axis + 1 :])
                return reduce(tirx.if_then_else(k <= at[axis], element(read, at, *tensors), outside(call.dtype)), axis=[k])

            return te.compute(sizes, value, name="swept")

        return compute

    largest = call.loops(swept(te.max, lambda read, _, x: x(*read), tirx.min_value), data)
    total = call.loops(
        swept(te.sum, lambda read, at, x, m: tirx.exp(x(*read) - m(*at)), lambda dtype: tirx.const(0, dtype)), data, largest
    )
    return relax.op.add(relax.op.log(total), largest)
