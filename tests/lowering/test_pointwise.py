"""One table says what an epilogue computes, for every kind of target, in the vocabulary's words."""

import numpy as np
import pytest

pytest.importorskip("tvm")

import tvm
from tvm import te
from tvm.ir import Op

from reparam_compiler.lowering.conv.algorithms import ConvShape, Step
from reparam_compiler.lowering.conv.pointwise import FUSED, POINTWISE, epilogue_operands, epilogue_value, legalizations
from reparam_compiler.vocabulary.resolve import ROWS

pytestmark = pytest.mark.tvm
SHAPE = ConvShape(1, 1, 3, 1, 4, (1, 1), groups=2)


def test_each_row_is_an_op_of_the_vocabulary() -> None:
    forms = {row.name: row.form for row in ROWS.values()}
    assert set(POINTWISE) <= set(forms)
    assert {forms[name] for name, row in POINTWISE.items() if row.takes == "nothing"} <= {"pointwise", "elementwise"}
    assert {forms[name] for name, row in POINTWISE.items() if row.takes == "value"} == {"elementwise"}
    assert {forms[name] for name, row in POINTWISE.items() if row.takes == "dtype"} == {"recast"}


def test_each_row_is_an_op_of_relax() -> None:
    assert all(Op.get(f"relax.{row.relax}") for row in POINTWISE.values())
    assert FUSED["relax.subtract"] == "sub"
    assert "exp" not in FUSED.values()


def test_functions_replace_those_of_the_c_library_where_they_stand_alone() -> None:
    names = {name for name, row in POINTWISE.items() if f"relax.{row.relax}" in legalizations()}
    assert names == {"exp", "erf", "sigmoid", "silu", "tanh", "gelu", "gelu_tanh"}


def test_an_epilogue_takes_scalars_channels_and_tensors_in_order() -> None:
    epilogue = (
        Step("sub", "channels", swapped=True),
        Step("mul", "tensor"),
        Step("maximum", "scalar", value=0.25),
        Step("relu"),
    )
    size = (3, 2, 2)
    sums = te.placeholder(size, "float32", "sums")
    operands = epilogue_operands(SHAPE, epilogue, size)
    assert [tuple(map(int, each.shape)) for each in operands] == [(4,), size]
    out = te.compute(size, lambda *at: epilogue_value(sums[at], SHAPE, epilogue, operands, at), "out")
    func = te.create_prim_func([sums, *operands, out])
    source = np.random.default_rng(0)
    total, channels, tensor = (source.standard_normal(shape).astype("float32") for shape in (size, (4,), size))
    result = tvm.runtime.tensor(np.zeros(size, "float32"))
    tvm.compile(tvm.IRModule({"main": func}), target="llvm")["main"](
        *map(tvm.runtime.tensor, (total, channels, tensor)), result
    )
    np.testing.assert_allclose(result.numpy(), np.maximum((channels.reshape(2, 2) - total) * tensor, 0.25), rtol=1e-6)


def test_operands_of_a_half_precision_conv_are_read_in_the_dtype_of_the_sums() -> None:
    shape = ConvShape(1, 1, 3, 1, 4, (1, 1), dtype="float16")
    epilogue, size = (Step("add", "tensor"), Step("relu")), (3, 1, 4)
    sums, operands = te.placeholder(size, "float32", "sums"), epilogue_operands(shape, epilogue, size)
    out = te.compute(size, lambda *at: epilogue_value(sums[at], shape, epilogue, operands, at, "float32"), "out")
    assert (operands[0].dtype, out.dtype) == ("float16", "float32")


def test_an_epilogue_of_integers_goes_on_in_floats() -> None:
    """Of two pixels a group's channels get what is added to the pixel, and are rounded to even."""
    shape = ConvShape(1, 1, 2, 1, 4, (1, 1), groups=2, dtype="int32")
    epilogue = (
        Step("add", "pixels"),
        Step("to", dtype="float32"),
        Step("mul", "channels", dtype="float32"),
        Step("round", dtype="float32"),
        Step("to", dtype="int8"),
    )
    size = (2, 2, 2)
    sums, operands = te.placeholder(size, "int32", "sums"), epilogue_operands(shape, epilogue, size)
    assert [(tuple(map(int, each.shape)), str(each.dtype)) for each in operands] == [((2,), "int32"), ((4,), "float32")]
    out = te.compute(size, lambda *at: epilogue_value(sums[at], shape, epilogue, operands, at), "out")
    found = tvm.runtime.tensor(np.zeros(size, "int8"))
    total = np.arange(8, dtype="int32").reshape(size)
    arrays = total, np.array([1, -10], "int32"), np.array([0.5, 1, -0.5, 2], "float32")
    tvm.compile(tvm.IRModule({"main": te.create_prim_func([sums, *operands, out])}), target="llvm")["main"](
        *map(tvm.runtime.tensor, arrays), found
    )
    np.testing.assert_array_equal(found.numpy().ravel(), [0, 2, -2, 8, -3, -5, 2, -6])


def test_an_epilogue_reads_its_own_values_again() -> None:
    """(s - s / 2) (s / 2): the sum twice, the half three times."""
    epilogue = (Step("mul", "scalar", value=0.5), Step("sub", "earlier", source=0, other=1), Step("mul", "earlier", other=1))
    size = (3, 2, 2)
    sums = te.placeholder(size, "float32", "sums")
    out = te.compute(size, lambda *at: epilogue_value(sums[at], SHAPE, epilogue, [], at), "out")
    total, result = np.random.default_rng(0).standard_normal(size).astype("float32"), np.zeros(size, "float32")
    found = tvm.runtime.tensor(result)
    tvm.compile(tvm.IRModule({"main": te.create_prim_func([sums, out])}), target="llvm")["main"](
        tvm.runtime.tensor(total), found
    )
    np.testing.assert_allclose(found.numpy(), total * total / 4, rtol=1e-6)
