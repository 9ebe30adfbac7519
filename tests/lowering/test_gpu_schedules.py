"""What the general GPU schedule decides: which functions take a thread an output, how wide, in which grid."""

from typing import Any

import pytest

pytest.importorskip("tvm")

import tvm
from tvm import te, tirx

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.gpu.schedules import THREADS, WINDOW, per_output, schedule_gpu, unbound
from reparam_compiler.lowering.target import resolve

pytestmark = pytest.mark.tvm


def scheduled(out: Any, *inputs: Any) -> Any:
    """The function by `per_output`, as a text; None where it is left to dlight."""
    func = per_output(te.create_prim_func([*inputs, out]))
    return None if func is None else func.script()


def extent(text: str, axis: str) -> int:
    """Of a bound axis of the grid; 1 where there is none."""
    line = next((line for line in text.splitlines() if f'thread="{axis}"' in line), "(1,")
    return int(line.partition("(")[2].partition(",")[0].partition(")")[0])


def row(*shape: int, dtype: str = "float32") -> Any:
    return te.placeholder(shape, dtype, "x")


@pytest.mark.parametrize(
    ("width", "dtype", "lanes"), [(64, "float32", 4), (66, "float32", 2), (65, "float32", 1), (64, "float64", 1)]
)
def test_a_thread_takes_as_many_outputs_as_divide_the_row(width: int, dtype: str, lanes: int) -> None:
    x = row(3, width, dtype=dtype)
    text = scheduled(te.compute((3, width), lambda i, j: x[i, j] + x[i, j]), x)
    assert (f"T.vectorized({lanes})" in text) == (lanes > 1)
    assert extent(text, "threadIdx.x") == THREADS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a column", lambda x, i, j: x[j, i]),
        ("every other element", lambda x, i, j: x[i, 2 * j % 64]),
        ("a choice", lambda x, i, j: tirx.if_then_else(j < 5, x[i, j], 0.0)),
        ("another dtype", lambda x, i, j: x[i, j].astype("float16")),
    ],
)
def test_what_is_not_read_in_a_row_is_not_taken_as_a_vector(name: str, value: Any) -> None:
    x = row(64, 64)
    assert "T.vectorized" not in scheduled(te.compute((64, 64), lambda i, j: value(x, i, j)), x)


def test_a_thread_takes_a_short_sum_alone_and_leaves_a_long_one() -> None:
    def sums(terms: int) -> Any:
        x, k = row(100, terms), te.reduce_axis((0, terms), "k")
        return scheduled(te.compute((100,), lambda i: te.sum(x[i, k], axis=k), "sums"), x)

    assert "threadIdx.x" in sums(WINDOW)
    assert "sums_init" in sums(WINDOW)
    assert sums(WINDOW + 1) is None


def test_a_sum_of_everything_a_symbolic_size_and_a_call_are_left() -> None:
    x, k, n = row(8), te.reduce_axis((0, 8), "k"), te.var("n", "int64")
    assert scheduled(te.compute((), lambda: te.sum(x[k], axis=k)), x) is None
    open_row = te.placeholder((n,), "float32", "x")
    assert scheduled(te.compute((n,), lambda i: open_row[i] + 1.0), open_row) is None
    called = te.extern((8,), [x], lambda ins, outs: tirx.call_packed("f", ins[0], outs[0]), dtype="float32")
    assert scheduled(called, x) is None


def test_leading_axes_make_a_grid_axis_where_the_rest_fills_blocks() -> None:
    large, small = row(7, 128, 128), row(7, 4, 16)
    text = scheduled(te.compute((7, 128, 128), lambda i, j, k: large[i, j, k] * 2.0), large)
    assert extent(text, "blockIdx.y") == 7
    assert extent(text, "blockIdx.x") * THREADS * 4 == 128 * 128
    text = scheduled(te.compute((7, 4, 16), lambda i, j, k: small[i, j, k] * 2.0), small)
    assert extent(text, "blockIdx.y") == 1
    assert extent(text, "blockIdx.x") == 1


def test_a_chain_is_one_kernel() -> None:
    x = row(64, 64)
    y = te.compute((64, 64), lambda i, j: x[i, j] + 1.0, "y")
    text = scheduled(te.compute((64, 64), lambda i, j: y[i, j] * 2.0, "z"), x)
    assert 'sblock("z")' in text
    assert 'sblock("y")' not in text


def test_a_call_of_the_host_is_refused_by_name() -> None:
    x = row(8)
    called = te.extern((8,), [x], lambda ins, outs: tirx.call_packed("f", ins[0], outs[0]), dtype="float32")
    module = tvm.IRModule({"host": te.create_prim_func([x, called]).without_attr("global_symbol")})
    assert unbound(module) == ["host"]
    with resolve("cuda"), pytest.raises(LoweringError, match="host: no GPU schedule rule binds it to threads"):
        schedule_gpu(module)
