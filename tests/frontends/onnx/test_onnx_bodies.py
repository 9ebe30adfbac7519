"""What nodes of a model have inside is fused and cut too: bodies in their place, functions where inlining exposes something."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

import reparam_compiler
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.frontends.onnx.subgraphs import with_functions_inlined
from reparam_compiler.frontends.onnx.writer import names_of
from tests.support.onnx_blocks import SHAPE, conv, norm, repvgg, together
from tests.support.onnx_models import FLOAT32, Shape, model_of, normal, run

FEEDS = {"x": normal(*SHAPE)}
FLAG = {"flag": np.array(True)}
BLOCK, CONSTANTS = repvgg()


def value(name: str, shape: Shape | None = None, dtype: int = 1) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def body_of(
    nodes: Sequence[NodeProto],
    outputs: Sequence[str],
    inputs: Sequence[onnx.ValueInfoProto] = (),
    constants: dict[str, np.ndarray] | None = None,
    prefix: str = "",
) -> GraphProto:
    """A body whose own values get a prefix; "x" and the names of weights stay those of the graph around it."""
    own = {name for node in nodes for name in node.output} | set(constants or {})
    made = []
    for node in nodes:
        copied = NodeProto()
        copied.CopyFrom(node)
        for field in (copied.input, copied.output):
            field[:] = [f"{prefix}{name}" if name in own else name for name in field]
        made.append(copied)
    tensors = [numpy_helper.from_array(array, f"{prefix}{name}") for name, array in (constants or {}).items()]
    outs = [value(f"{prefix}{name}" if name in own else name) for name in outputs]
    return helper.make_graph(made, f"{prefix}body", list(inputs), outs, tensors)


def choice(then: GraphProto, otherwise: GraphProto, output: str = "z") -> NodeProto:
    return helper.make_node("If", ["flag"], [output], name="choice", then_branch=then, else_branch=otherwise)


def bodies(model: ModelProto) -> list[GraphProto]:
    return [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]


def kinds(graph: GraphProto) -> list[str]:
    return [node.op_type for node in graph.node]


def check(model: ModelProto, feeds: dict[str, np.ndarray] | None = None) -> ModelProto:
    """Fuses a copy, which must be valid, unlike in no name, and give the same values."""
    original = model.SerializeToString(deterministic=True)
    fused, report = reparam_compiler.fuse(model, return_report=True)
    assert model.SerializeToString(deterministic=True) == original
    onnx.checker.check_model(fused, full_check=True)
    for found, expected in zip(run(fused, feeds or FEEDS), run(model, feeds or FEEDS), strict=True):
        np.testing.assert_allclose(found, expected, **FLOAT32)
    assert all(fusion.error is not None and fusion.error.relative < 1e-9 for fusion in report.fusions)
    same = ModelProto()
    same.CopyFrom(model)
    assert reparam_compiler.fuse(same, inplace=True) is same
    assert same == fused
    assert reparam_compiler.inspect(model).fusions == report.fusions
    return fused


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("where", ["around", "inside"])
def test_the_branches_of_an_if_are_fused(flag: bool, where: str) -> None:
    inside = CONSTANTS if where == "inside" else {}
    then = body_of(BLOCK, ["y"], constants=inside, prefix="t_")
    otherwise = body_of([*BLOCK, helper.make_node("Relu", ["y"], ["r"])], ["r"], constants=inside, prefix="e_")
    model = model_of(
        [choice(then, otherwise)], {"x": SHAPE}, ["z"], {"flag": np.array(flag)} | (CONSTANTS if not inside else {})
    )
    model.graph.node[0].doc_string = "kept"
    fused = check(model)
    assert [kinds(body) for body in bodies(fused)] == [["Conv", "Relu"], ["Conv"]] or [
        kinds(body) for body in bodies(fused)
    ] == [["Conv"], ["Conv", "Relu"]]
    assert fused.graph.node[0].doc_string == "kept"
    assert [tensor.name for tensor in fused.graph.initializer] == ["flag"]
    named = [tensor.name for graph in (fused.graph, *bodies(fused)) for tensor in graph.initializer]
    assert len(set(named)) == len(named)
    assert fused == reparam_compiler.fuse(fused)


def test_weights_that_are_still_read_around_a_body_stay() -> None:
    other = helper.make_node("Conv", ["x", "a1_w"], ["still"], pads=[1, 1, 1, 1])
    branch = body_of(BLOCK, ["y"], prefix="t_")
    model = model_of(
        [other, choice(branch, body_of([helper.make_node("Abs", ["x"], ["a"])], ["a"]))],
        {"x": SHAPE},
        ["z", "still"],
        CONSTANTS | FLAG,
    )
    fused = check(model)
    assert {tensor.name for tensor in fused.graph.initializer} == {"a1_w", "flag"}


def block_of(source: str) -> list[NodeProto]:
    """The block, which reads another value than x."""
    block = []
    for node in BLOCK:
        copied = NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = [source if name == "x" else name for name in node.input]
        block.append(copied)
    return block


def test_the_body_of_a_loop_is_fused_and_names_stay_unique() -> None:
    inputs = [value("i", (), 7), value("go_in", (), 9), value("state", SHAPE)]
    scaled = [helper.make_node("Tanh", ["y"], ["next"]), helper.make_node("Identity", ["go_in"], ["go"])]
    body = helper.make_graph([*block_of("state"), *scaled], "body", inputs, [value("go", (), 9), value("next", SHAPE)])
    loop = helper.make_node("Loop", ["count", "go_first", "x"], ["z"], name="loop", body=body)
    taken = helper.make_node("Relu", ["x"], ["y.weight"])
    constants = CONSTANTS | {"count": np.array(3), "go_first": np.array(True)}
    model = model_of([loop, taken], {"x": SHAPE}, ["z", "y.weight"], constants)
    model.graph.output[0].CopyFrom(value("z", SHAPE))
    fused = check(model)
    (inner,) = bodies(fused)
    assert kinds(inner) == ["Conv", "Tanh", "Identity"]
    assert [tensor.name for tensor in inner.initializer] == ["y.weight_1", "y.bias"]
    assert {tensor.name for tensor in fused.graph.initializer} == {"count", "go_first"}


def test_the_body_of_a_scan_is_fused() -> None:
    body = helper.make_graph(block_of("item"), "body", [value("item", SHAPE)], [value("y", SHAPE)])
    scan = helper.make_node("Scan", ["x"], ["z"], name="scan", body=body, num_scan_inputs=1)
    model = model_of([scan], {"x": (3, *SHAPE)}, ["z"], CONSTANTS)
    fused = check(model, {"x": normal(3, *SHAPE)})
    assert [kinds(inner) for inner in bodies(fused)] == [["Conv"]]


def test_bodies_in_bodies_are_fused() -> None:
    other = body_of([helper.make_node("Abs", ["x"], ["a"])], ["a"], prefix="o_")
    inner = choice(body_of(BLOCK, ["y"], prefix="ii_"), body_of([helper.make_node("Neg", ["x"], ["n"])], ["n"]), "inner")
    outer = choice(body_of([inner, helper.make_node("Relu", ["inner"], ["r"])], ["r"], prefix="i_"), other)
    model = model_of([outer, helper.make_node("Relu", ["z"], ["out"])], {"x": SHAPE}, ["out"], CONSTANTS | FLAG)
    fused = check(model)
    deepest = [
        body for graph in bodies(fused) for node in graph.node for a in node.attribute if a.HasField("g") for body in [a.g]
    ]
    assert sorted(map(kinds, deepest)) == [["Conv"], ["Neg"]]
    assert [tensor.name for tensor in fused.graph.initializer] == ["flag"]


def test_a_weight_that_the_caller_can_override_is_no_constant_in_a_body_either() -> None:
    branch = body_of(BLOCK, ["y"], prefix="t_")
    plain = body_of([helper.make_node("Abs", ["x"], ["a"])], ["a"])
    model = model_of([choice(branch, plain)], {"x": SHAPE, "a1_w": (4, 4, 3, 3)}, ["z"], CONSTANTS | FLAG)
    fused = check(model)
    assert sorted(kinds(body).count("Conv") for body in bodies(fused)) == [0, 2]
    assert "a1_w" in {tensor.name for tensor in fused.graph.initializer}


def test_a_body_that_cannot_be_read_stays_and_is_named() -> None:
    odd = body_of([helper.make_node("Abs", ["x"], ["q"]), helper.make_node("Neg", ["x"], ["q"])], ["q"])
    model = model_of([choice(odd, body_of(BLOCK, ["y"], prefix="t_"))], {"x": SHAPE}, ["z"], CONSTANTS | FLAG)
    fused, report = reparam_compiler.fuse(model, return_report=True)
    assert any(
        "choice.then_branch was left as it was" in remark and "two nodes give this value" in remark for remark in report.remarks
    )
    assert sorted(map(kinds, bodies(fused))) == [["Abs", "Neg"], ["Conv"]]


def function(name: str, nodes: Sequence[NodeProto], inputs: Sequence[str], output: str) -> onnx.FunctionProto:
    return helper.make_function("local", name, inputs, [output], nodes, [helper.make_opsetid("", 17)])


def with_functions(nodes: Sequence[NodeProto], functions: Sequence[onnx.FunctionProto], outputs: Sequence[str]) -> ModelProto:
    model = model_of(nodes, {"x": SHAPE}, outputs, CONSTANTS)
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("local", 1))
    for out in model.graph.output:
        out.CopyFrom(value(out.name, SHAPE))
    return model


def test_a_function_whose_inlining_exposes_a_block_is_inlined_and_no_other() -> None:
    names = list(CONSTANTS)
    block = function("Block", BLOCK, ["x", *names], "y")
    lone = function("Lone", [helper.make_node("Conv", ["x", "w"], ["r"], pads=[1] * 4)], ["x", "w"], "r")
    twice = function("Twice", [helper.make_node("Add", ["x", "x"], ["r"])], ["x"], "r")
    calls = [
        helper.make_node("Block", ["x", *names], ["a"], domain="local"),
        helper.make_node("Lone", ["x", "a1_w"], ["b"], domain="local"),
        helper.make_node("Twice", ["b"], ["c"], domain="local"),
    ]
    model = with_functions(calls, [block, lone, twice], ["a", "c"])
    fused = check(model)
    assert kinds(fused.graph) == ["Conv", "Lone", "Twice"]
    assert sorted(entry.name for entry in fused.functions) == ["Lone", "Twice"]


def test_a_model_whose_functions_have_nothing_to_fuse_stays_as_it_is() -> None:
    lone = function("Lone", [helper.make_node("Conv", ["x", "w"], ["r"], pads=[1] * 4)], ["x", "w"], "r")
    call = [helper.make_node("Lone", ["x", "a1_w"], ["a"], domain="local"), helper.make_node("Relu", ["a"], ["b"])]
    model = with_functions(call, [lone], ["b"])
    assert reparam_compiler.fuse(model) == model


def test_a_conv_in_one_function_and_its_norm_in_another_meet() -> None:
    nodes, constants = together(conv("x", "c", 3, 1), norm("c", "y", 5))
    first = function("First", nodes[:1], ["x", "c_w"], "c")
    second = function("Second", nodes[1:], ["c", *[name for name in constants if name != "c_w"]], "y")
    calls = [
        helper.make_node("First", ["x", "c_w"], ["c"], domain="local"),
        helper.make_node("Second", list(second.input), ["y"], domain="local"),
    ]
    model = with_functions(calls, [first, second], ["y"])
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    fused = check(model)
    assert kinds(fused.graph) == ["Conv"]
    assert not fused.functions


def test_every_name_of_a_fused_model_is_there_once() -> None:
    then, otherwise = (body_of(BLOCK, ["y"], constants=CONSTANTS, prefix=prefix) for prefix in "te")
    model = model_of([*BLOCK, choice(then, otherwise)], {"x": SHAPE}, ["y", "z"], CONSTANTS | FLAG)
    fused = check(model)
    given = [names_of(graph) - {"x"} for graph in bodies(fused)]
    assert not given[0] & given[1]


def scaling(name: str, *types: str) -> onnx.FunctionProto:
    """A function of these types, one after the other."""
    steps = [
        helper.make_node(kind, [f"v{k}", "w"] if kind == "Conv" else [f"v{k}"], [f"v{k + 1}"]) for k, kind in enumerate(types)
    ]
    return helper.make_function("mine", name, ["v0", "w"], [f"v{len(types)}"], steps, [helper.make_opsetid("", 17)])


def test_functions_are_inlined_where_that_lets_more_be_fused_and_no_others() -> None:
    """What counts is asked of the model: here the convs that stand in the graph itself, of which two are worth it."""
    nodes = [
        helper.make_node("Wide", ["x", "w"], ["a"], domain="mine"),
        helper.make_node("Narrow", ["a", "w"], ["b"], domain="mine"),
        helper.make_node("Gate", ["b", "w"], ["y"], domain="mine"),
    ]
    model = model_of(nodes, {"x": (1, 4, 5, 5)}, ["y"], {"w": normal(4, 4, 1, 1)})
    model.functions.extend([scaling("Wide", "Conv"), scaling("Narrow", "Conv", "Relu"), scaling("Gate", "Sigmoid")])
    model.opset_import.append(helper.make_opsetid("mine", 1))

    def convs(candidate: ModelProto) -> int:
        return kinds(candidate.graph).count("Conv")

    both = with_functions_inlined(model, convs)
    assert both is not None
    assert kinds(both.graph) == ["Conv", "Conv", "Relu", "Gate"]
    first = with_functions_inlined(model, lambda candidate: min(convs(candidate), 1))
    assert first is not None
    assert kinds(first.graph) in (["Conv", "Narrow", "Gate"], ["Wide", "Conv", "Relu", "Gate"])
    assert with_functions_inlined(model, lambda candidate: 0) is None
    assert kinds(model.graph) == ["Wide", "Narrow", "Gate"]
    del model.functions[:2]
    assert with_functions_inlined(model, convs) is None


@pytest.mark.filterwarnings("ignore::reparam_compiler.errors.UnrepairedPruneWarning")
def test_channels_are_followed_through_functions() -> None:
    calls = [("Narrow", ["x", "w1"], "a"), ("Gate", ["a", "w1"], "b"), ("Narrow", ["b", "w2"], "c"), ("Wide", ["c", "w3"], "y")]
    nodes = [helper.make_node(kind, inputs, [output], domain="mine") for kind, inputs, output in calls]
    widths = {"w1": (8, 4), "w2": (6, 8), "w3": (4, 6)}
    model = model_of(nodes, {"x": (1, 4, 5, 5)}, ["y"], {name: normal(*sizes, 1, 1) for name, sizes in widths.items()})
    model.functions.extend([scaling("Wide", "Conv"), scaling("Narrow", "Conv", "Relu"), scaling("Gate", "Sigmoid")])
    model.opset_import.append(helper.make_opsetid("mine", 1))
    original = model.SerializeToString(deterministic=True)

    pruned, report = reparam_compiler.prune(model, ratio=0.5, round_to=1, return_report=True)
    assert {tensor.name: tuple(tensor.dims[:2]) for tensor in pruned.graph.initializer} == {
        "w1": (4, 4),
        "w2": (3, 4),
        "w3": (4, 3),
    }
    assert kinds(pruned.graph) == ["Conv", "Relu", "Sigmoid", "Conv", "Relu", "Conv"]
    assert reparam_compiler.apply_manifest(model, report.manifest) == pruned
    with pytest.raises(InfeasiblePruneError):
        reparam_compiler.prune(model, ratio=0.1, round_to=8, inplace=True)
    assert model.SerializeToString(deterministic=True) == original
    assert reparam_compiler.prune(model, ratio=0.5, round_to=1, inplace=True) is model
    assert model == pruned
