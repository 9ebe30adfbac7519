"""Every kind of model comes in with fixed shapes; what is missing or cannot come in is said, with what to type."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")
pytest.importorskip("onnx")

import onnx
from onnx import helper, numpy_helper

import reparam_compiler
from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError, UnsupportedModelError
from reparam_compiler.lowering.importing.from_onnx import open_batches

pytestmark = pytest.mark.tvm
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 10, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(10, 6, 1)).eval()


def conv_onnx(dtype: type = np.float32, dims: tuple[object, ...] = (1, 5, 8, 7)) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((12, 5, 3, 3)).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixels/0", "w"], ["c"], pads=[1, 1, 1, 1], name="conv0"),
            helper.make_node("Relu", ["c"], ["scores"]),
        ],
        "g",
        [helper.make_tensor_value_info("pixels/0", kind, dims)],
        [helper.make_tensor_value_info("scores", kind, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def conv_reference(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    weight = torch.from_numpy(numpy_helper.to_array(model.graph.initializer[0]).copy())
    return nn.functional.conv2d(torch.from_numpy(x), weight, padding=1).relu().numpy()


def test_module_graph_module_and_exported_program_compute_the_same() -> None:
    model, x = net(), torch.randn(1, 3, 9, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        exported = torch.export.export(model, (x,))
    results = [
        lowering.compile(model, x).run(x)[0],
        lowering.compile(torch.fx.symbolic_trace(model), (x,)).run(x)[0],
        lowering.compile(exported).run(x)[0],
    ]
    for found in results:
        np.testing.assert_allclose(found, model(x).detach().numpy(), **FLOAT32)


def test_onnx_keeps_its_names_and_matches_torch() -> None:
    model, x = conv_onnx(), np.random.default_rng(1).standard_normal((1, 5, 8, 7)).astype("float32")
    compiled = lowering.compile(model)
    assert [spec.name for spec in (*compiled.inputs, *compiled.outputs)] == ["pixels/0", "scores"]
    np.testing.assert_allclose(compiled.run(**{"pixels/0": x})[0], conv_reference(model, x), **FLOAT32)


def test_float64_stays_float64() -> None:
    model, x = conv_onnx(np.float64), np.random.default_rng(1).standard_normal((1, 5, 8, 7))
    np.testing.assert_allclose(lowering.compile(model).run(x)[0], conv_reference(model, x), **FLOAT64)


def test_the_bias_of_a_float64_conv_stays_float64() -> None:
    model, x = nn.Conv2d(5, 8, 3, padding=1).double().eval(), torch.randn(1, 5, 8, 7, dtype=torch.float64)
    np.testing.assert_allclose(lowering.compile(model, x).run(x)[0], model(x).detach().numpy(), **FLOAT64)


def test_symbolic_onnx_shape_is_refused_with_the_argument_and_fixed_by_input_shapes() -> None:
    model = conv_onnx(dims=("N", 5, 8, 7))
    with pytest.raises(
        LoweringError, match=r"pixels/0: found the shape \(N, 5, 8, 7\).*pass input_shapes={'pixels/0': \(1,5,8,7\)}"
    ):
        lowering.compile(model)
    compiled = lowering.compile(model, input_shapes={"pixels/0": (2, 5, 8, 7)})
    x = np.random.default_rng(1).standard_normal((2, 5, 8, 7)).astype("float32")
    np.testing.assert_allclose(compiled.run(x)[0], conv_reference(model, x), **FLOAT32)


def test_symbolic_exported_shape_is_refused_and_fixed_by_input_shapes() -> None:
    model, x = net(), torch.randn(2, 3, 9, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    with pytest.raises(LoweringError, match=r"input: found the shape .*pass input_shapes={'input': \(1,3,9,8\)}"):
        lowering.compile(exported)
    with pytest.raises(LoweringError, match=r"input: input_shapes says \(2, 4, 9, 8\)"):
        lowering.compile(exported, input_shapes={"input": (2, 4, 9, 8)})
    compiled = lowering.compile(exported, input_shapes={"input": (2, 3, 9, 8)})
    np.testing.assert_allclose(compiled.run(x)[0], model(x).detach().numpy(), **FLOAT32)


def test_open_sizes_are_those_of_the_example_inputs() -> None:
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        exported = torch.export.export(net(), (torch.zeros(2, 3, 9, 8),), dynamic_shapes=({0: batch},))
    assert lowering.compile(exported, (torch.zeros(3, 3, 9, 8),)).inputs[0].shape == (3, 3, 9, 8)
    shapes = {"input": (1, 3, 9, 8)}
    assert lowering.compile(exported, (torch.zeros(3, 3, 9, 8),), input_shapes=shapes).inputs[0].shape == (1, 3, 9, 8)
    with pytest.raises(LoweringError, match=r"input: the example input has the shape \(3, 3, 9, 7\), the model"):
        lowering.compile(exported, (torch.zeros(3, 3, 9, 7),))
    proto = conv_onnx(dims=("N", 5, 8, "W"))
    assert lowering.compile(proto, (np.zeros((2, 5, 8, 6)),)).inputs[0].shape == (2, 5, 8, 6)
    with pytest.raises(LoweringError, match="pass input_shapes="):
        lowering.compile(proto, (np.zeros((5, 8, 6)),))


def test_module_without_inputs_is_refused_with_what_to_pass() -> None:
    with pytest.raises(LoweringError, match=r"example_inputs=.*input_shapes="):
        lowering.compile(net())


def test_module_takes_input_shapes_for_example_inputs() -> None:
    assert lowering.compile(net(), input_shapes={"input": (1, 3, 9, 8)}).inputs[0].shape == (1, 3, 9, 8)


def test_unknown_input_name_is_refused() -> None:
    with pytest.raises(LoweringError, match="nobody is no input; the inputs are pixels/0"):
        lowering.compile(conv_onnx(), input_shapes={"nobody": (1,)})


def test_training_mode_is_refused() -> None:
    with pytest.raises(LoweringError, match=r"training=True; call model\.eval\(\)"):
        lowering.compile(net().train(), torch.zeros(1, 3, 9, 8))


def test_example_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LoweringError, match=r"torch\.export refuses it"):
        lowering.compile(net(), torch.zeros(1, 4, 9, 8))


def test_op_that_tvm_cannot_import_is_named_with_its_node() -> None:
    model = conv_onnx()
    model.graph.node[0].op_type = "MadeUp"
    model.graph.node[1].op_type = "AlsoMadeUp"
    advice = r"the ONNX importer of TVM .* refuses it: .*MadeUp.* rewrite that op"
    with pytest.raises(LoweringError, match=rf"^conv0 \(MadeUp\), scores \(AlsoMadeUp\): {advice}"):
        lowering.compile(model)


def test_node_that_the_onnx_importer_stops_at_is_named_without_a_print(capfd: pytest.CaptureFixture[str]) -> None:
    model = conv_onnx()
    depth = helper.make_tensor_value_info("depth", onnx.TensorProto.INT64, [1])
    model.graph.input.append(depth)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1], "float32"), "values"))
    model.graph.node.append(helper.make_node("OneHot", ["scores", "depth", "values"], ["hot"], name="hot0"))
    model.graph.output[0].name = "hot"
    with pytest.raises(LoweringError, match=r"^hot0 \(OneHot\): .*its depth is computed by the model"):
        lowering.compile(model)
    assert capfd.readouterr() == ("", "")


def test_torch_op_that_tvm_cannot_import_is_named_with_its_layer(capfd: pytest.CaptureFixture[str]) -> None:
    class Bessel(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i0(x)

    with pytest.raises(LoweringError, match=r"^i0 \(aten\.i0\.default, in 1\): the torch\.export importer"):
        lowering.compile(nn.Sequential(nn.ReLU(), Bessel()).eval(), torch.zeros(2, 3))
    assert capfd.readouterr().err == ""


class Bordered(nn.Module):
    """Takes a number or None beside its picture, and gives what it makes of both."""

    def __init__(self, give: Callable[[torch.Tensor, Any], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: torch.Tensor, other: Any) -> Any:
        return self.give(x.relu(), other)


@pytest.mark.parametrize(
    ("give", "other", "message"),
    [
        (lambda y, times: y * times, 2, r"^other: an input that is 2; expected tensors alone"),
        (lambda y, mask: y if mask is None else y * mask, None, r"^other: an input that is None"),
        (lambda y, bias: (y, [None, y + bias]), torch.ones(1), r"^output 1: an output that is None"),
        (lambda y, bias: {"y": y + bias, "width": 7}, torch.ones(1), r"^output 1: an output that is 7"),
    ],
)
def test_what_is_no_tensor_is_refused_at_the_border(give: Any, other: Any, message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        lowering.compile(Bordered(give).eval(), (torch.zeros(1, 3, 4, 5), other))


def test_open_batches_are_those_inputs_that_only_lack_their_first_size() -> None:
    assert open_batches(conv_onnx(dims=("N", 5, 8, 7))) == {"pixels/0": (1, 5, 8, 7)}
    assert open_batches(conv_onnx(dims=("N", 5, "H", 7))) == {}
    assert open_batches(conv_onnx()) == {}
    assert open_batches(net()) == {}


@pytest.mark.parametrize("model", [7, "model.pt", Path("absent.onnx"), None])
def test_other_kinds_are_unsupported(model: object) -> None:
    with pytest.raises(UnsupportedModelError):
        lowering.compile(model)


def test_caller_s_model_is_unchanged() -> None:
    model, x = net(), torch.randn(1, 3, 9, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lowering.compile(model, x)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_tvm_importing_the_room_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['tvm'] = None\n"
        "from reparam_compiler.errors import TvmMissingError\n"
        "try:\n    import reparam_compiler.lowering\n"
        "except TvmMissingError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'reparam_compiler[tvm]'" in done.stdout


class Two(nn.Module):
    """Two inputs of different rank, and one with a default between them."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None) -> torch.Tensor:
        y = torch.relu(x) if scale is None else torch.relu(x) * scale
        return y if shift is None else y + shift


class AnyNumber(nn.Module):
    def forward(self, *xs: torch.Tensor) -> torch.Tensor:
        return torch.cat(xs, 1)


class ByName(nn.Module):
    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return x * scale


SHAPES = {"shift": (6,), "x": (2, 3, 5, 6), "scale": (5, 1)}


@pytest.mark.parametrize("names", [("x",), ("scale", "x"), ("shift", "x", "scale")])
@pytest.mark.parametrize("compile", [lowering.compile, reparam_compiler.compile])
def test_input_shapes_of_a_module_go_by_name(compile: Any, names: tuple[str, ...]) -> None:
    given = {name: SHAPES[name] for name in names}
    assert {spec.name: spec.shape for spec in compile(Two().eval(), input_shapes=given).inputs} == given


def test_input_shapes_of_a_graph_module_go_by_name() -> None:
    given = {"scale": (5, 1), "x": (2, 3, 5, 6)}
    traced = torch.fx.symbolic_trace(Two().eval(), concrete_args={"shift": None})
    assert {spec.name: spec.shape for spec in reparam_compiler.compile(traced, input_shapes=given).inputs} == given


def test_order_of_shapes_holds_where_forward_has_no_names() -> None:
    shapes = {"xs_0": (2, 3), "xs_1": (2, 4)}
    assert {spec.name: spec.shape for spec in lowering.compile(AnyNumber().eval(), input_shapes=shapes).inputs} == shapes


@pytest.mark.parametrize("compile", [lowering.compile, reparam_compiler.compile])
@pytest.mark.parametrize(
    ("model", "shapes", "message"),
    [
        (Two, {"y": (2, 3, 5, 6)}, r"y is no input of the model; the inputs are x, scale, shift"),
        (Two, {"scale": (5, 1)}, r"no shape for x; the inputs are x, scale, shift"),
        (Two, {"x": (2, 3, 5, 6), "shift": (6,)}, r"no shape for scale; the inputs are x, scale, shift"),
        (
            ByName,
            {"x": (2, 3), "scale": (3,)},
            r"scale is no input of the model, which takes it by keyword only: .* x",
        ),
        (net, {"input": "abc"}, r"found 'abc' for input; expected sizes from 1"),
        (net, {"input": (1, 0, 9, 8)}, r"found \(1, 0, 9, 8\) for input"),
        (net, {"input": (1, -3, 9, 8)}, r"found \(1, -3, 9, 8\) for input"),
        (net, {"input": (1, 3.5, 9, 8)}, r"found \(1, 3\.5, 9, 8\) for input"),
        (net, {"input": None}, "found None for input"),
        (net, {"input": 7}, "found 7 for input"),
        (net, [("input", (1, 3, 9, 8))], r"found \[\('input'"),
        (conv_onnx, {"pixels/0": (0, 5, 8, 7)}, r"found \(0, 5, 8, 7\) for pixels/0"),
    ],
)
def test_input_shapes_that_do_not_fit_are_refused(compile: Any, model: Any, shapes: Any, message: str) -> None:
    made = model()
    with pytest.raises(LoweringError, match=f"input_shapes: {message}"):
        compile(made.eval() if isinstance(made, nn.Module) else made, input_shapes=shapes)


def test_input_shapes_that_contradict_the_inputs_are_refused() -> None:
    with pytest.raises(LoweringError, match=r"input: input_shapes says \(1, 3, 9, 9\)"):
        lowering.compile(net(), torch.zeros(1, 3, 9, 8), input_shapes={"input": (1, 3, 9, 9)})


class OpenPool(nn.Module):
    """Reads its batch size, and has an op whose conversion needs sizes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(x.shape[0])[:, None, None, None]
        return torch.nn.functional.avg_pool2d(x + steps, 3, 2, ceil_mode=True)


def test_programs_of_open_sizes_are_imported_at_the_sizes_that_are_known() -> None:
    x = torch.randn(3, 2, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        exported = torch.export.export(OpenPool(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    found = lowering.compile(exported, input_shapes={"x": (3, 2, 6, 6)}).run(x)[0]
    np.testing.assert_allclose(found, OpenPool()(x).numpy(), rtol=1e-5)
    with pytest.raises(LoweringError, match=r"x: input_shapes says \(3, 2, 6, 7\), the model \(.*, 2, 6, 6\)"):
        lowering.compile(exported, input_shapes={"x": (3, 2, 6, 7)})
