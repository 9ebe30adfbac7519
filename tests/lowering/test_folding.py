"""What constants alone decide is computed by numpy: the sizes of tensors, and what is taken from them, too."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("tvm")

from tvm import relax, tirx
from tvm.ir import GenericConst

from reparam_compiler.lowering.relax.folding import folded, shared

pytestmark = pytest.mark.tvm
FLOAT = relax.TensorType((2, 3, 4), "float32")


@pytest.fixture
def without_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM's own folding, which takes what numpy leaves, is left out."""
    monkeypatch.setattr(relax.transform, "FoldConstant", relax.transform.CanonicalizeBindings)


def module_of(expression: Callable[[Any, Callable[[Any], Any]], Any], type_of_x: Any = FLOAT) -> Any:
    """A function of `x` that gives the expression."""
    builder, x = relax.BlockBuilder(), relax.Var("x", type_of_x)
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(expression(x, builder.emit))
        builder.emit_func_output(out)
    return builder.get()


def result(module: Any) -> Any:
    """The array that a function gives, or the expression where it is no constant."""
    (block,) = module["main"].body.blocks or [None]
    value = module["main"].body.body if block is None else block.bindings[-1].value
    return value.value.numpy() if isinstance(value, GenericConst) else value


def constant(*values: int) -> Any:
    """A number, or a line of several."""
    return relax.const(np.array(values[0] if len(values) == 1 else values), "int64")


@given(arrays.arrays(np.int64, arrays.array_shapes(max_dims=3, max_side=4), elements=st.integers(-9, 9)), st.data())
def test_what_is_taken_from_a_constant_is_what_numpy_takes(values: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, values.ndim - 1))
    places = np.array(data.draw(st.lists(st.integers(0, values.shape[axis] - 1), min_size=1, max_size=3)))
    operands = relax.const(values, "int64"), relax.const(places, "int64")
    found = result(folded(module_of(lambda _, emit: emit(relax.op.take(*operands, axis=axis)))))
    np.testing.assert_array_equal(found, np.take(values, places, axis), strict=True)


@pytest.mark.parametrize("place", [-1, 3])
def test_what_is_taken_from_beyond_an_axis_is_left_to_tvm(place: int, without_tvm: None) -> None:
    taken = relax.op.take(constant(7, 8, 9), constant(place), axis=0, mode="wrap")
    assert not isinstance(result(folded(module_of(lambda _, emit: emit(taken)))), np.ndarray)


def test_the_sizes_of_a_tensor_are_known_where_they_are_fixed() -> None:
    def last_but_one(x: Any, emit: Callable[[Any], Any]) -> Any:
        sizes = emit(relax.op.shape_to_tensor(emit(relax.op.shape_of(x))))
        return emit(relax.op.add(emit(relax.op.take(sizes, constant(1), axis=0)), constant(-1)))

    np.testing.assert_array_equal(result(folded(module_of(last_but_one))), np.int64(2), strict=True)
    open_sizes = relax.TensorType((tirx.Var("n", "int64"), 3, 4), "float32")
    left = folded(module_of(last_but_one, open_sizes))["main"].script(show_meta=False)
    assert "R.shape_of" in left
    assert "R.take" in left


def test_a_place_of_any_index_that_reads_below_zero_is_folded_away() -> None:
    """So TVM imports ONNX's Gather: x[where(i < 0, i + size, i)]."""

    def gathered(x: Any, emit: Callable[[Any], Any]) -> Any:
        index, zero = constant(0, -1), constant(0)
        sizes = emit(relax.op.shape_to_tensor(emit(relax.op.shape_of(x))))
        size = emit(relax.op.take(sizes, constant(2), axis=0))
        below = emit(relax.op.less(index, zero))
        places = emit(relax.op.where(below, emit(relax.op.add(index, size)), index))
        return emit(relax.op.take(x, places, axis=2))

    taken = result(folded(module_of(gathered)))
    np.testing.assert_array_equal(taken.args[1].value.numpy(), [0, 3])


@pytest.mark.parametrize(("op", "here"), [(relax.op.divide, False), (relax.op.multiply, True)], ids=["divide", "multiply"])
def test_what_numpy_computes_otherwise_for_integers_is_left_to_tvm(
    op: Callable[..., Any], here: bool, without_tvm: None
) -> None:
    found = result(folded(module_of(lambda _, emit: emit(op(constant(7, -7), constant(2, 2))))))
    assert isinstance(found, np.ndarray) is here


def test_what_is_computed_twice_is_computed_once() -> None:
    def twice(x: Any, emit: Callable[[Any], Any]) -> Any:
        return relax.op.multiply(emit(relax.op.exp(x)), emit(relax.op.exp(x)))

    module = module_of(twice)
    for changed, calls in ((folded(module), 3), (shared(module), 2)):
        (block,) = changed["main"].body.blocks
        assert len(block.bindings) == calls
