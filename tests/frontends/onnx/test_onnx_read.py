"""What the format hides is made explicit, and what cannot be read is refused with its reason."""

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend, named_inputs
from reparam_compiler.frontends.onnx.node_runner import run_arrays
from reparam_compiler.frontends.onnx.shapes import sampled as onnx_derived
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Param, TensorType
from reparam_compiler.models.opening import frontend_for
from tests.support.onnx_models import FLOAT32, evaluated, model_of, normal, run


def read(model: ModelProto) -> Graph:
    return OnnxFrontend().read(model).graph


def conv(weight: str = "w", x: str = "x", y: str = "y") -> helper.NodeProto:
    return helper.make_node("Conv", [x, weight], [y])


X = {"x": (1, 2, 5, 4)}
WEIGHT = normal(3, 2, 1, 1)


def test_a_model_proto_is_taken_and_nothing_else() -> None:
    assert isinstance(frontend_for(model_of([conv()], X, ["y"], {"w": WEIGHT})), OnnxFrontend)
    assert not isinstance(frontend_for(torch.fx.symbolic_trace(torch.nn.Linear(1, 1))), OnnxFrontend)
    with pytest.raises(UnsupportedModelError, match=r"found a builtins\.str"):
        frontend_for("model.onnx")


def test_weights_are_not_read_until_they_are_asked_for() -> None:
    model = model_of([conv()], X, ["y"], {"w": WEIGHT})
    model.graph.initializer[0].raw_data = b"too short"
    weight = read(model)["y"].param(1)
    assert weight is not None
    assert (weight.role, weight.dtype, weight.shape, weight.origin) == ("weight", "f32", (3, 2, 1, 1), "w")
    with pytest.raises(ValueError, match="buffer size"):
        weight.load()


@pytest.mark.parametrize(("dtype", "word"), [(TensorProto.FLOAT16, "f16"), (TensorProto.BFLOAT16, "bf16"), (11, "f64")])
def test_weights_keep_their_dtype(dtype: int, word: str) -> None:
    model = model_of([conv()], X, ["y"], dtype=dtype)
    exact = np.array([[[[0.5]], [[-1.25]]]])
    model.graph.initializer.append(helper.make_tensor("w", dtype, exact.shape, exact.reshape(-1).tolist()))
    node = read(model)["y"]
    weight = node.param(1)
    assert weight is not None
    assert weight.dtype == word
    assert node.type == TensorType(word, (1, 1, 5, 4))
    np.testing.assert_array_equal(weight.float64(), exact)


def test_a_constant_node_is_a_parameter_of_its_name() -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT))
    weight = read(model_of([constant, conv()], X, ["y"]))["y"].param(1)
    assert weight is not None
    assert weight.origin == "w"
    np.testing.assert_array_equal(weight.load(), WEIGHT)


def test_a_shared_initializer_is_one_parameter_also_through_identities() -> None:
    alias = helper.make_node("Identity", ["w"], ["alias"])
    graph = read(model_of([alias, conv(y="a"), conv("alias", y="b")], X, ["a", "b"], {"w": WEIGHT}))
    assert graph["a"].inputs[1] is graph["b"].inputs[1]


def test_what_is_computed_from_constants_is_a_parameter() -> None:
    nodes = [helper.make_node("Add", ["w", "i"], ["sum"]), helper.make_node("Mul", ["s", "sum"], ["kernel"]), conv("kernel")]
    constants = {"w": WEIGHT, "i": normal(3, 2, 1, 1, seed=1), "s": normal(3, 1, 1, 1, seed=2)}
    model = model_of(nodes, X, ["y"], constants)
    graph = read(model)
    weight = graph["y"].param(1)
    assert list(graph.nodes) == ["x", "y"]
    assert weight is not None
    assert (weight.origin, weight.shape) == (None, (3, 2, 1, 1))
    np.testing.assert_allclose(weight.load(), (WEIGHT + constants["i"]) * constants["s"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["RandomNormalLike", "Dropout"])
def test_what_is_random_is_never_folded(kind: str) -> None:
    inputs = ["w"] if kind != "Dropout" else ["w", "ratio", "training"]
    constants = {"w": WEIGHT, "ratio": np.array(0.5, np.float32), "training": np.array(True)}
    graph = read(model_of([helper.make_node(kind, inputs, ["r"]), conv("r")], X, ["y"], constants))
    assert isinstance(graph["y"].op, ops.Opaque)
    assert graph["y"].inputs[1] == "r"


def test_quantized_weights_stay_quantized() -> None:
    constants = {"q": np.ones((3, 2, 1, 1), np.int8), "scale": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
    nodes = [helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"]), conv()]
    graph = read(model_of(nodes, X, ["y"], constants))
    assert isinstance(graph["y"].op, ops.Opaque)


def test_an_initializer_that_is_an_input_can_be_overridden_and_is_no_parameter() -> None:
    model = model_of([conv()], X | {"w": (3, 2, 1, 1)}, ["y"], {"w": WEIGHT})
    graph = read(model)
    assert graph["w"].op == ops.Input()
    assert isinstance(graph["y"].op, ops.Opaque)


def test_before_ir_version_4_every_initializer_is_listed_as_an_input_and_constant() -> None:
    model = model_of([conv()], X | {"w": (3, 2, 1, 1)}, ["y"], {"w": WEIGHT}, ir_version=3, opset=9)
    graph = read(model)
    assert list(graph.nodes) == ["x", "y"]
    assert isinstance(graph["y"].op, ops.Conv)


def branches(name: str) -> list[helper.GraphProto]:
    """Bodies for an If that read `name` from outside."""
    return [
        helper.make_graph(
            [helper.make_node(kind, [name, "c"], [f"{kind}_out"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"{kind}_out", 1, None)],
            [numpy_helper.from_array(np.array(2, np.float32), "c")],
        )
        for kind in ("Mul", "Add")
    ]


def test_what_the_body_of_an_if_reads_from_outside_is_read_by_the_if() -> None:
    then, otherwise = branches("a")
    choice = helper.make_node("If", ["flag"], ["z"], then_branch=then, else_branch=otherwise)
    nodes = [conv(y="a"), choice]
    model = model_of(nodes, X, ["z"], {"w": WEIGHT, "flag": np.array(True)})
    graph = read(model)
    assert graph["z"].sources == ("a",)
    assert graph.users["a"] == ("z",)
    feeds = {"x": normal(1, 2, 5, 4)}
    np.testing.assert_allclose(evaluated(graph, feeds)[0], run(model, feeds)[0], **FLOAT32)


def test_a_function_of_the_model_is_opaque_and_runs() -> None:
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "a"], ["b"])]
    function = helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model = model_of([helper.make_node("Twice", ["x"], ["y"], domain="local")], X, ["y"])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    graph = read(model)
    assert graph["y"].op.name == "local::Twice"
    feeds = {"x": normal(1, 2, 5, 4)}
    np.testing.assert_allclose(evaluated(graph, feeds)[0], run(model, feeds)[0], **FLOAT32)


def test_an_op_of_another_domain_is_opaque_and_cannot_be_run_alone() -> None:
    model = model_of([helper.make_node("Magic", ["x"], ["y"], domain="custom")], X, ["y"])
    model.opset_import.append(helper.make_opsetid("custom", 1))
    graph = read(model)
    with pytest.raises(UnsupportedModelError, match="y: custom::Magic cannot be run outside its model"):
        evaluate(graph, {"x": torch.zeros(1, 2, 5, 4)})


def test_several_outputs_are_items_of_one_opaque_node() -> None:
    node = helper.make_node("TopK", ["x", "k"], ["values", "places"], name="top", axis=1)
    model = model_of([node], {"x": (2, 6)}, ["values"], {"k": np.array([3])})
    graph = read(model)
    assert graph["top:outputs"].op.name == "TopK"
    assert graph["values"].op == ops.TupleGet(0)
    feeds = {"x": normal(2, 6)}
    np.testing.assert_allclose(evaluated(graph, feeds)[0], run(model, feeds)[0], **FLOAT32)


def test_a_mask_that_is_read_makes_dropout_opaque() -> None:
    nodes = [helper.make_node("Dropout", ["x"], ["y", "mask"]), helper.make_node("Not", ["mask"], ["z"])]
    assert read(model_of(nodes[:1], X, ["y"]))["y"].op == ops.Identity()
    assert isinstance(read(model_of(nodes, X, ["y", "z"]))["Dropout:outputs"].op, ops.Opaque)


def test_a_batch_norm_in_training_mode_says_so() -> None:
    constants = {name: abs(normal(2, seed=seed)) for seed, name in enumerate(("scale", "bias", "mean", "var"))}
    node = helper.make_node("BatchNormalization", ["x", *constants], ["y", "m", "v"], training_mode=1)
    assert read(model_of([node], X, ["y"], constants))["y"].op == ops.BatchNorm(training=True)
    assert isinstance(read(model_of([node], X, ["y", "m"], constants))["BatchNormalization:outputs"].op, ops.Opaque)


def test_sizes_taken_from_shapes_make_a_flatten() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "axis"], ["row"]),
        helper.make_node("Concat", ["row", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["x", "sizes"], ["y"]),
    ]
    constants = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}
    model = model_of(nodes, {"x": ("batch", 2, 5, 4)}, ["y"], constants)
    graph = read(model)
    assert graph["y"].op == ops.Flatten(1, 3)
    feeds = {"x": normal(3, 2, 5, 4)}
    np.testing.assert_allclose(evaluated(graph, feeds)[0], run(model, feeds)[0], **FLOAT32)


def test_symbolic_sizes_keep_their_names_and_example_inputs_fill_all_but_the_batch() -> None:
    model = model_of([conv()], {"x": ("batch", 2, "height", "width")}, ["y"], {"w": WEIGHT})
    assert read(model)["y"].type == TensorType("f32", ("batch", 3, None, None))
    reading = OnnxFrontend().read(model, [torch.zeros(1, 2, 7, 5)])
    assert reading.graph["y"].type == TensorType("f32", ("batch", 3, 7, 5))


def test_an_output_that_is_constant_is_a_node() -> None:
    graph = read(model_of([conv()], X, ["y", "w"], {"w": WEIGHT}))
    assert graph["w"].op == ops.Identity()
    assert isinstance(graph["w"].inputs[0], Param)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: model_of([conv("absent")], X, ["y"]), "absent, which does not exist"),
        (lambda: model_of([conv(x="a"), conv(y="a")], X, ["y"], {"w": WEIGHT}), "a, which comes later"),
        (lambda: model_of([conv(), conv()], X, ["y"], {"w": WEIGHT}), "y: two nodes give this value"),
        (lambda: model_of([conv()], X, ["z"], {"w": WEIGHT}), "output z is given by no node"),
        (lambda: model_of([conv()], X, ["y"], {"w": WEIGHT}, opset=6), "opset is 6, at least 7 was expected"),
        (ModelProto, "opset is missing"),
    ],
)
def test_a_broken_model_is_refused_with_its_reason(broken: object, message: str) -> None:
    assert callable(broken)
    with pytest.raises(UnsupportedModelError, match=message):
        read(broken())


def test_the_wrong_number_of_example_inputs_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"takes 1 inputs, \['x'\], but 2"):
        OnnxFrontend().read(model_of([conv()], X, ["y"], {"w": WEIGHT}), [1, 2])


def test_a_kernel_that_is_computed_is_computed_in_float64() -> None:
    """Weight standardisation: scale (w - mean) / sqrt(var + eps), as an exporter leaves it."""
    nodes = [
        helper.make_node("ReduceMean", ["w"], ["mean"], axes=[1, 2, 3]),
        helper.make_node("Sub", ["w", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["var"], axes=[1, 2, 3]),
        helper.make_node("Add", ["var", "eps"], ["safe"]),
        helper.make_node("Sqrt", ["safe"], ["deviation"]),
        helper.make_node("Div", ["centred", "deviation"], ["normed"]),
        helper.make_node("Mul", ["normed", "scale"], ["kernel"]),
        conv("kernel"),
    ]
    w, scale, eps = normal(3, 2, 3, 3), normal(3, 1, 1, 1, seed=1), np.array(1e-5, np.float32)
    graph = read(model_of(nodes, X, ["y"], {"w": w, "scale": scale, "eps": eps}))
    weight = graph["y"].param(1)
    assert weight is not None
    assert weight.dtype == "f32"
    centred = w.astype(np.float64) - w.astype(np.float64).mean((1, 2, 3), keepdims=True)
    expected = scale * centred / np.sqrt((centred**2).mean((1, 2, 3), keepdims=True) + float(eps))
    np.testing.assert_allclose(weight.float64(), expected, rtol=1e-14)


def test_a_cast_on_purpose_rounds() -> None:
    nodes = [
        helper.make_node("Mul", ["w", "s"], ["exact"]),
        helper.make_node("Cast", ["exact"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["kernel"], to=TensorProto.FLOAT),
        conv("kernel"),
    ]
    scale = np.array(0.3, np.float32)
    weight = read(model_of(nodes, X, ["y"], {"w": WEIGHT, "s": scale}))["y"].param(1)
    assert weight is not None
    np.testing.assert_array_equal(weight.float64(), (WEIGHT * scale).astype(np.float16).astype(np.float64))


def test_a_shared_step_of_a_computed_kernel_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    monkeypatch.setattr(onnx_derived, "run_arrays", lambda *given: runs.append(given[1].output[0]) or run_arrays(*given))
    doublings = [helper.make_node("Add", [f"k{i}", f"k{i}"], [f"k{i + 1}"]) for i in range(20)]
    weight = read(model_of([*doublings, conv("k20")], X, ["y"], {"k0": WEIGHT}))["y"].param(1)
    assert weight is not None
    assert not runs
    np.testing.assert_array_equal(weight.float64(), 2.0**20 * WEIGHT)
    assert runs == [f"k{i + 1}" for i in range(20)]


def test_the_number_of_channels_taken_from_an_open_shape_is_constant() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "axis"], ["count"]),
        helper.make_node("Div", ["count", "axes"], ["half"]),
        helper.make_node("Slice", ["x", "start", "half", "axis"], ["y"]),
    ]
    constants = {"axis": np.array([1]), "axes": np.array([2]), "start": np.array([0])}
    model = model_of(nodes, {"x": ("batch", 6, 5, 4)}, ["y"], constants)
    graph = read(model)
    assert list(graph.nodes) == ["x", "y"]
    assert graph["y"].op == ops.Slice(1, 0, 3)
    assert graph["y"].type == TensorType("f32", ("batch", 3, 5, 4))


def test_a_bound_that_follows_an_open_size_is_computed() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "axis"], ["count"]),
        helper.make_node("Div", ["count", "two"], ["half"]),
        helper.make_node("Slice", ["x", "start", "half", "axis"], ["y"]),
    ]
    constants = {"axis": np.array([2]), "two": np.array([2]), "start": np.array([0])}
    model = model_of(nodes, {"x": (2, 6, "height", 4)}, ["y"], constants)
    graph = read(model)
    assert isinstance(graph["y"].op, ops.Opaque)
    for height in (6, 9):
        feeds = {"x": normal(2, 6, height, 4)}
        np.testing.assert_allclose(evaluated(graph, feeds)[0], run(model, feeds)[0], **FLOAT32)


def test_constants_that_cannot_be_evaluated_say_which_node() -> None:
    nodes = [helper.make_node("Reshape", ["w", "odd"], ["kernel"]), conv("kernel")]
    model = model_of(nodes, X, ["y"])
    model.graph.initializer.extend([numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(np.array([5, 5]), "odd")])
    model.graph.value_info.append(helper.make_tensor_value_info("kernel", 1, (3, 2, 1, 1)))
    weight = read(model)["y"].param(1)
    assert weight is not None
    with pytest.raises(UnsupportedModelError, match=r"Reshape \(Reshape\) depends on constants alone"):
        weight.load()


def test_example_inputs_in_lists_and_mappings_are_inputs_each_and_none_is_none() -> None:
    two = model_of([helper.make_node("Add", ["x", "z"], ["y"])], {**X, "z": X["x"]}, ["y"], {})
    x, z = torch.rand(X["x"]), torch.rand(X["x"]).bfloat16()
    for given in ((x, z), ([x, z],), ({"a": x, "b": z}, None)):
        found = named_inputs(two, given)
        assert list(found) == ["x", "z"]
        assert np.array_equal(found["x"], x.numpy())
        assert np.array_equal(found["z"], z.float().numpy())
    with pytest.raises(UnsupportedModelError, match=r"the model takes 2 inputs, .*, but 1 example inputs were given"):
        named_inputs(two, ({"a": x},))


def test_a_sequence_of_tensors_of_several_sizes_is_evaluated() -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x", "sizes"], ["parts"], axis=2),
        *(helper.make_node("SequenceAt", ["parts", f"at{place}"], [f"part{place}"]) for place in range(2)),
        helper.make_node("Concat", ["part1", "part0"], ["y"], axis=2),
    ]
    model = model_of(nodes, X, ["y"], {"sizes": np.array([3, 2]), "at0": np.array(0), "at1": np.array(1)})
    x = normal(*X["x"])
    (found,) = evaluated(read(model), {"x": x})
    np.testing.assert_array_equal(found, np.concatenate([x[:, :, 3:], x[:, :, :3]], 2))
