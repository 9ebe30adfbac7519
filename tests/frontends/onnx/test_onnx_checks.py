"""A model that no reader could make sense of is refused by a typed error that names the place; a sound one is taken."""

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import reparam_compiler
from reparam_compiler.errors import InfeasiblePruneError, UnsupportedModelError
from reparam_compiler.frontends.onnx import reader
from reparam_compiler.frontends.onnx.call import Call, Read
from reparam_compiler.frontends.onnx.checks import check
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.frontends.onnx.ops.table import read
from reparam_compiler.frontends.onnx.shapes.inference import opset_of
from reparam_compiler.frontends.onnx.tensors import MADE
from reparam_compiler.ir import ops
from reparam_compiler.ir.windows import Conv
from tests.support.fuzz_seeds import SEEDS
from tests.support.onnx_models import model_of, normal

Change = Callable[[ModelProto], object]
NODE = helper.make_node


@pytest.mark.parametrize("name", SEEDS)
def test_a_sound_model_is_taken(name: str) -> None:
    check(SEEDS[name]())


def conv_net() -> ModelProto:
    """Two convs, a pool between them."""
    nodes = [
        NODE("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        NODE("MaxPool", ["a"], ["p"], kernel_shape=[2, 2]),
        NODE("Conv", ["p", "v"], ["y"]),
    ]
    return model_of(nodes, {"x": (1, 3, 8, 7)}, ["y"], {"w": normal(4, 3, 3, 3), "v": normal(2, 4, 1, 1)})


def test_an_unnamed_one_of_any_number_is_taken() -> None:
    nodes = [NODE("Split", ["x"], ["", "y"], axis=1)]
    check(model_of(nodes, {"x": (1, 4)}, ["y"], opset=13))


def test_of_the_two_names_of_the_domain_the_empty_one_counts() -> None:
    model = conv_net()
    model.opset_import.insert(0, helper.make_opsetid("ai.onnx", 9))
    check(model)
    assert opset_of(model) == 17


def test_an_overload_that_calls_another_is_no_recursion() -> None:
    model = conv_net()
    for overload, body in (
        ("outer", NODE("Same", ["a"], ["b"], domain="own", overload="inner")),
        ("inner", NODE("Relu", ["a"], ["b"])),
    ):
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        model.functions.append(helper.make_function("own", "Same", ["a"], ["b"], [body], imports, overload=overload))
    check(model)
    model.functions[0].node[0].overload = "outer"
    with pytest.raises(UnsupportedModelError, match="the functions own::Same:outer call themselves"):
        check(model)


def numbers(model: ModelProto, node: int, attribute: str, values: list[int]) -> None:
    kept = [each for each in model.graph.node[node].attribute if each.name != attribute]
    del model.graph.node[node].attribute[:]
    model.graph.node[node].attribute.extend([*kept, helper.make_attribute(attribute, values)])


def as_float(model: ModelProto) -> None:
    next(each for each in model.graph.node[0].attribute if each.name == "pads").CopyFrom(helper.make_attribute("pads", 1.0))


def called_by_itself(model: ModelProto) -> None:
    body = [NODE("Again", ["a"], ["b"], domain="own")]
    model.functions.append(helper.make_function("own", "Again", ["a"], ["b"], body, [helper.make_opsetid("own", 1)]))


def of_opset(version: int) -> Change:
    """A function that imports this one."""

    def change(model: ModelProto) -> None:
        imports = [helper.make_opsetid("", version)]
        model.functions.append(helper.make_function("own", "Same", ["a"], ["b"], [NODE("Relu", ["a"], ["b"])], imports))

    return change


def twice(model: ModelProto) -> None:
    body = [NODE("Relu", ["a"], ["b"])]
    one = helper.make_function("own", "Same", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model.functions.extend([one, one])


WRONG: dict[str, tuple[Change, str]] = {
    "no output": (lambda m: m.graph.node[0].output.pop(), "gives no value"),
    "an input too few": (lambda m: m.graph.node[2].input.pop(), r"y \(Conv\) has the inputs \['p'\]; expected 2 to 3"),
    "an input without a name": (lambda m: m.graph.node[2].input.__setitem__(1, ""), r"y \(Conv\) has the inputs"),
    "inputs too many": (lambda m: m.graph.node[1].input.extend("ab"), r"p \(MaxPool\) has the inputs .* expected 1 of them"),
    "an attribute less": (lambda m: m.graph.node[1].attribute.pop(), r"p \(MaxPool\) lacks its attribute kernel_shape"),
    "a float for numbers": (as_float, r"a \(Conv\): its attribute pads is of type FLOAT; expected INTS"),
    "a type that lies": (
        lambda m: setattr(m.graph.node[0].attribute[0], "type", AttributeProto.STRING),
        "says that it is of type STRING, and holds ints",
    ),
    "data cut": (lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(16)), "w: found 16 bytes; its shape .* takes 432"),
    "a size below 0": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -1), r"w: found the shape \[-1, 3, 3, 3\]"),
    "a size of 2^40": (
        lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**40),
        "w: found the shape .* which no tensor has",
    ),
    "an attribute twice": (lambda m: m.graph.node[1].attribute.append(m.graph.node[1].attribute[0]), "has an attribute twice"),
    "no such dtype": (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "w: found the dtype 99"),
    "two opsets": (lambda m: m.opset_import.append(helper.make_opsetid("", 9)), r"opsets \[9, 17\] of ONNX; expected one"),
    "an opset of 2^40": (lambda m: setattr(m.opset_import[0], "version", 2**40), "opset is 1099511627776, at least 7"),
    "a function of opset 2^40": (of_opset(2**40), "the function own::Same's opset is 1099511627776, at least 7"),
    "two functions of a name": (twice, "several functions are called own::Same; expected one"),
    "recursion": (called_by_itself, "the functions own::Again call themselves"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str) -> None:
    change, words = WRONG[name]
    model = conv_net()
    change(model)
    with pytest.raises(UnsupportedModelError, match=words):
        reparam_compiler.inspect(model)


@pytest.mark.parametrize(
    ("node", "attribute", "values"),
    [(0, "pads", [1, 1]), (0, "strides", [0, 1]), (0, "dilations", [-1, 1]), (1, "strides", [2]), (2, "pads", [0] * 5)],
)
def test_numbers_that_do_not_fit_a_window_are_named(node: int, attribute: str, values: list[int]) -> None:
    model = conv_net()
    numbers(model, node, attribute, values)
    with pytest.raises(UnsupportedModelError, match=rf"\((Conv|MaxPool)\): found {attribute} .*expected [24] numbers"):
        reparam_compiler.inspect(model)


def test_a_padding_beyond_what_is_tried_stays_as_it_is() -> None:
    """A region is proven on maps that are larger than it reaches: this one would take a minute and five GiB."""
    nodes = [NODE("Conv", ["x", "w"], ["a"]), NODE("Pad", ["a", "p"], ["b"]), NODE("Conv", ["b", "v"], ["y"])]
    constants = {"w": normal(2, 2, 1, 1), "v": normal(2, 2, 1, 1), "p": np.array([0, 0, 0, 2**27, 0, 0, 0, 0])}
    assert not reparam_compiler.inspect(model_of(nodes, {"x": (1, 2, 4, 4)}, ["y"], constants)).fusions


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Tile"])
def test_a_constant_that_memory_does_not_hold_is_refused(op: str) -> None:
    given = ["n"] if op == "ConstantOfShape" else ["one", "n"]
    nodes = [NODE(op, given, ["w"]), NODE("Mul", ["x", "w"], ["y"])]
    model = model_of([nodes[1]], {"x": (1,), "w": (1,)}, ["y"])
    model.graph.input.pop()
    model.graph.node.insert(0, nodes[0])
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.array([2**40]), "n"), numpy_helper.from_array(np.ones(1, np.float32), "one")]
    )
    with pytest.raises(UnsupportedModelError, match=rf"w \({op}\) makes {2**42} bytes, by n; at most {MADE}"):
        reparam_compiler.inspect(model)


def test_a_constant_is_counted_in_bytes_of_its_dtype() -> None:
    """A mask of 16384 positions by as many and one is 256 MiB of bool, and sixteen of them are too many."""
    model = model_of([NODE("Where", ["m", "x", "x"], ["y"])], {"x": (1,), "m": (1,)}, ["y"])
    value = numpy_helper.from_array(np.zeros(1, np.bool_))
    made = [NODE("Constant", [], ["n"], value_ints=[1, 1, 16384, 16385]), NODE("ConstantOfShape", ["n"], ["m"], value=value)]
    model.graph.input.pop()
    nodes = [*made, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    check(model)
    model.graph.node[0].attribute[0].ints[0] = 16
    with pytest.raises(UnsupportedModelError, match=rf"m \(ConstantOfShape\) makes {16 * 16384 * 16385} bytes, by n"):
        check(model)


def test_more_bounds_than_a_tensor_has_axes_are_refused() -> None:
    nodes = [NODE("Slice", ["x", "starts", "ends"], ["y"])]
    model = model_of(nodes, {"x": (4,)}, ["y"], {"starts": np.zeros(1, np.int64), "ends": np.ones(1, np.int64)})
    del model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info("starts", TensorProto.INT64, [1000]))
    with pytest.raises(UnsupportedModelError, match=r"y \(Slice\) reads 1000 numbers for axes from starts"):
        reparam_compiler.inspect(model)


@pytest.mark.parametrize(
    "node",
    [
        NODE("Unsqueeze", ["x", "axes"], ["y"]),
        NODE("Resize", ["x", "", "scales"], ["y"], mode=b"\xff"),
        NODE("Concat", ["x", "flat"], ["y"], axis=1),
        NODE("Pad", ["x", "far"], ["y"]),
    ],
    ids=lambda node: node.op_type,
)
def test_a_node_that_makes_no_sense_is_left_where_it_is_or_named(node: NodeProto) -> None:
    constants = {"w": normal(4, 3, 1, 1), "axes": np.array([9, 9]), "scales": np.ones(4, np.float32), "flat": normal(4)}
    constants["far"] = np.array([0, 2**59, 0, 0, 0, 0, 0, 0])
    used = {name: array for name, array in constants.items() if name in ("w", *node.input)}
    model = model_of([NODE("Conv", ["i", "w"], ["x"]), node], {"i": (1, 3, 4, 4)}, ["y"], used)
    with contextlib.suppress(UnsupportedModelError, InfeasiblePruneError):
        reparam_compiler.prune(model, ratio=0.5, round_to=1)


def test_weights_that_do_not_fit_what_they_are_read_with_are_named() -> None:
    """ONNX infers no type for the product, and says nothing."""
    nodes = [NODE("Conv", ["x", "w"], ["a"]), NODE("Flatten", ["a"], ["f"]), NODE("Gemm", ["f", "v"], ["y"])]
    model = model_of(nodes, {"x": (1, 3, 2, 2)}, ["y"], {"w": normal(8, 3, 1, 1), "v": normal(8, 5)})
    with pytest.raises(UnsupportedModelError, match=r"v: found the shape .*8.* expected 32 positions along axis [01]"):
        reparam_compiler.prune(model, ratio=0.5, round_to=1)


def test_more_axes_than_a_tensor_has_are_refused() -> None:
    nodes = [
        NODE("Tile", ["one", "times"], ["shape"]),
        NODE("ConstantOfShape", ["shape"], ["k"]),
        NODE("ReduceMean", ["k"], ["m"]),
        NODE("Mul", ["x", "m"], ["y"]),
    ]
    model = model_of(nodes, {"x": (4,)}, ["y"], {"one": np.ones(1, np.int64), "times": np.array([1000])})
    with pytest.raises(UnsupportedModelError, match="k has 1000 axes; no tensor has so many"):
        reparam_compiler.inspect(model)


def test_a_resize_by_one_number_for_all_axes_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """No runtime takes it, and ONNX's inference does."""
    nodes = [NODE("Resize", ["k", "", "scale"], ["r"]), NODE("Add", ["x", "r"], ["y"])]
    model = model_of(nodes, {"x": (4,)}, ["y"], {"k": normal(1, 2, 4, 4), "scale": np.float32(2).reshape(())})
    assert not reparam_compiler.inspect(model).fusions
    assert "r (Resize) stays as it is" in caplog.text


def test_a_valid_node_that_its_reader_stumbles_over_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumbling(call: Call) -> Read:
        return {}["no such key"] if call.node.op_type == "MaxPool" else read(call)

    monkeypatch.setattr(reader, "read", stumbling)
    found = OnnxFrontend().read(conv_net()).graph
    assert [type(node.op) for node in found][1:] == [Conv, ops.Opaque, Conv]
    assert "p (MaxPool) stays as it is" in caplog.text


def test_a_name_that_is_no_text_is_refused() -> None:
    content = conv_net().SerializeToString().replace(b"MaxPool", b"Max\xff\xfeol")
    with pytest.raises(UnsupportedModelError, match="no UTF-8"):
        reparam_compiler.inspect(ModelProto.FromString(content))


def test_a_function_of_another_opset_is_not_inlined() -> None:
    """ONNX's inliner raises for it: the call stays where it is."""
    model = ModelProto()
    model.CopyFrom(SEEDS["functions"]())
    for function in model.functions:
        function.opset_import[0].version = 9
    assert [node.op_type for node in reparam_compiler.fuse(model).graph.node] == ["Outer", "Relu"]
    assert [node.op_type for node in reparam_compiler.fuse(SEEDS["functions"]()).graph.node] == ["Conv", "Relu"]
