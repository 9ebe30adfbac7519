"""ONNX's Clip, of which TVM's importer makes loops, is in the epilogue of the conv before it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from reparam_compiler.lowering import compile
from reparam_compiler.lowering.conv.algorithms import Step
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.conv_sites import find_conv_sites
from reparam_compiler.lowering.relax.layout import channels_last, simplify

pytestmark = pytest.mark.tvm
X = np.random.default_rng(0).standard_normal((1, 8, 6, 5)).astype("float32") * 3


def clipped(*bounds: str, given: bool = False) -> onnx.ModelProto:
    """conv -> Clip -> conv; its bounds 0 and 1.5, or inputs of the model."""
    weights = [numpy_helper.from_array(np.eye(8, dtype="float32").reshape(8, 8, 1, 1), "w")]
    numbers = [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0.0), ("high", 1.5))]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("Clip", ["y", *bounds], ["z"]),
        helper.make_node("Conv", ["z", "w"], ["out"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in bounds if name and given]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, X.shape)]
    graph = helper.make_graph(nodes, "clipped", inputs, outputs, weights if given else [*weights, *numbers])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


LOW, HIGH = Step("maximum", "scalar", value=0.0), Step("minimum", "scalar", value=1.5)


@pytest.mark.parametrize(
    ("bounds", "steps"), [(("low", "high"), (LOW, HIGH)), (("low",), (LOW,)), (("", "high"), (HIGH,))], ids=str
)
def test_its_bounds_are_steps_of_the_epilogue(bounds: tuple[str, ...], steps: tuple[Step, ...]) -> None:
    main = channels_last(simplify(to_relax(clipped(*bounds)).module))["main"]
    assert [site.epilogue for site in find_conv_sites(main)] == [steps, ()]
    assert main.script(show_meta=False).count("permute_dims") == 2


def test_it_clips() -> None:
    np.testing.assert_allclose(compile(clipped("low", "high")).run(X)[0], X.clip(0, 1.5), rtol=1e-6)


def test_bounds_that_are_inputs_stay_kernels() -> None:
    module = channels_last(simplify(to_relax(clipped("low", "high", given=True)).module))
    assert [site.epilogue for site in find_conv_sites(module["main"])] == [(), ()]
    found = compile(clipped("low", "high", given=True)).run(X, np.float32(-1), np.float32(0.5))
    np.testing.assert_allclose(found[0], X.clip(-1, 0.5), rtol=1e-6)
