"""Quantized nets are refused by what is quantized, with what to do; what is float beside them is cut."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.ao import quantization

import reparam_compiler
from reparam_compiler.errors import ReparamError
from tests.support.small_models import normal

X = normal(1, 3, 6, 5).float()
ADVICE = "prune the float model, and quantize what comes of it$"
pytestmark = [
    pytest.mark.filterwarnings("ignore::reparam_compiler.errors.UnrepairedPruneWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:torch"),
]
RANDOM = np.random.RandomState(0)


def quantized_weights(*, float_first: bool, scales: int = 16) -> onnx.ModelProto:
    """Convs whose weights are int8 with a scale for each output channel; the first two may be float."""
    nodes, tensors, value = [], {}, "x"
    for index, (into, out) in enumerate(((3, 16), (16, 16), (16, 16), (16, 4))):
        weight = f"w{index}"
        if float_first and index < 2:
            tensors[weight] = RANDOM.randn(out, into, 1, 1).astype(np.float32)
        else:
            tensors[f"q{index}"] = RANDOM.randint(-127, 128, (out, into, 1, 1)).astype(np.int8)
            tensors[f"s{index}"] = np.full(out if scales > 1 else (), 0.01, np.float32)
            nodes.append(helper.make_node("DequantizeLinear", [f"q{index}", f"s{index}"], [weight], axis=0))
        nodes.append(helper.make_node("Conv", [value, weight], [f"y{index}"]))
        value = f"y{index}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("n", c, 6, 5)) for n, c in (("x", 3), (value, 4))]
    weights = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "quantized", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("scales", [1, 16])
@pytest.mark.parametrize("calibration", [None, normal(8, 3, 6, 5).float().numpy()])
def test_int8_weights_of_a_file_are_named(scales: int, calibration: Any) -> None:
    """The data is not run: at opset 17 onnx's own reference has no DequantizeLinear with an axis."""
    with pytest.raises(ReparamError, match=rf"y0 \(Conv\) has a quantized weight.*{ADVICE}"):
        reparam_compiler.prune(quantized_weights(float_first=False, scales=scales), ratio=0.5, calibration=calibration)


def test_float_layers_beside_quantized_ones_are_cut() -> None:
    pruned, report = reparam_compiler.prune(quantized_weights(float_first=True), ratio=0.5, return_report=True)
    assert [(cut.name, cut.after) for cut in report.plan.families] == [("y0", 8)]
    assert [(pin.name, pin.reason) for pin in report.plan.pinned] == [("y1", "y2 (Conv) has a quantized weight")]
    sizes = {tensor.name: tuple(tensor.dims) for tensor in pruned.graph.initializer}
    assert (sizes["w0"], sizes["w1"], sizes["q2"], sizes["s2"]) == ((8, 3, 1, 1), (16, 8, 1, 1), (16, 16, 1, 1), (16,))


class Net(nn.Module):
    """Two convs between the stubs of torch.ao's eager quantization."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = quantization.QuantStub(), quantization.DeQuantStub()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(self.into(x)).relu()))


def prepared() -> nn.Module:
    model = Net().eval()
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    observed: nn.Module = quantization.prepare(model)
    observed(X)
    return observed


def converted() -> nn.Module:
    result: nn.Module = quantization.convert(prepared())
    return result


def trained_for_it() -> nn.Module:
    model = Net().train()
    model.qconfig = quantization.get_default_qat_qconfig(torch.backends.quantized.engine)
    result: nn.Module = quantization.prepare_qat(model).eval()
    return result


@pytest.mark.parametrize(
    ("build", "cause"),
    [
        (converted, rf"into \(torch\.ao\.nn\.quantized\.modules\.Quantize\) works on quantized numbers.*{ADVICE}"),
        (prepared, r"a \(Conv2d\) has a forward hook \(_observer_forward_hook\)"),
        (trained_for_it, rf"a \(torch\.ao\.nn\.qat\.modules\.conv\.Conv2d\) has a quantized weight.*{ADVICE}"),
    ],
)
@pytest.mark.parametrize("calibration", [None, normal(8, 3, 6, 5).float()])
def test_modules_of_torch_ao_are_opaque_and_named(build: Any, cause: str, calibration: Any) -> None:
    with pytest.raises(ReparamError, match=cause):
        reparam_compiler.prune(build(), (X,), ratio=0.5, calibration=calibration)


def test_a_linear_of_dynamic_quantization_pins_what_it_reads() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    quantized = quantization.quantize_dynamic(model, {"4"})
    pruned, report = reparam_compiler.prune(quantized, (normal(2, 8).float(),), ratio=0.5, return_report=True)
    assert [(cut.name, cut.after) for cut in report.plan.families] == [("0", 8)]
    ((name, reason),) = [(pin.name, pin.reason) for pin in report.plan.pinned]
    assert (name, reason) == ("2", "_4 (torch.ao.nn.quantized.dynamic.modules.linear.Linear) has a quantized weight")
    assert pruned(normal(3, 8).float()).shape == (3, 4)


def folded_and_converted() -> nn.Module:
    model = nn.Sequential(
        quantization.QuantStub(), nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1), quantization.DeQuantStub()
    )
    quantization.fuse_modules(model.eval(), [["1", "2"]], inplace=True)
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    observed = quantization.prepare(model)
    observed(X)
    result: nn.Module = quantization.convert(observed)
    return result


def test_what_a_quantized_net_is_left_as_is_said_of_each_layer() -> None:
    """A conv that took its ReLU in is a quantized one too; a stub has no weight."""
    for model in (folded_and_converted(), torch.fx.symbolic_trace(folded_and_converted())):
        refusals = reparam_compiler.inspect(model, (X,)).refusals
        assert [refusal.reason for refusal in refusals if "weight" in refusal.reason] == [
            "has a quantized weight; 1 more for that"
        ]
        assert {refusal.op.rpartition(".")[2] for refusal in refusals if "numbers" in refusal.reason} <= {
            "Quantize",
            "DeQuantize",
        }


def test_ops_without_a_fake_form_are_run_to_know_their_shapes() -> None:
    with pytest.raises(
        ReparamError, match=rf"_1 \(torch\.ao\.nn\.intrinsic\.quantized\.modules\.conv_relu\.ConvReLU2d\).*{ADVICE}"
    ):
        reparam_compiler.prune(torch.fx.symbolic_trace(folded_and_converted()), (X,), ratio=0.5)


class Leaves(torch.fx.Tracer):
    """Enters no container."""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, nn.Sequential) or super().is_leaf_module(module, path)


def test_layers_in_a_leaf_of_a_trace_are_named_as_what_is_not_read() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Sequential(nn.Conv2d(16, 4, 1), nn.BatchNorm2d(4))).eval()
    trace = torch.fx.GraphModule(model, Leaves().trace(model))
    said = "is a leaf of the trace, so the layers in it are not read"
    (refusal,) = reparam_compiler.inspect(trace, (X,)).refusals
    assert (refusal.node, refusal.reason) == ("_1", said)
    with pytest.raises(ReparamError, match=rf"no channel can be removed: 0: _1 \(Sequential\) {said}"):
        reparam_compiler.prune(trace, (X,), ratio=0.5)


def dynamically_quantized() -> onnx.ModelProto:
    """A conv of whole numbers between one of float and the output, whose batch is fixed."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("ConvInteger", ["q", "w", "z"], ["c"]),
        helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, size, 6, 5)) for name, size in (("x", 3), ("y", 4))]
    weight = numpy_helper.from_array(RANDOM.randint(0, 255, (4, 3, 1, 1)).astype(np.uint8), "w")
    graph = helper.make_graph(nodes, "int8", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_net_of_whole_numbers_is_refused_before_any_data_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reparam_compiler.api.pruning.fixed_batch", lambda graph: pytest.fail("it was run"))
    with pytest.raises(ReparamError, match=rf"c \(ConvInteger\) has a quantized weight.*{ADVICE}"):
        reparam_compiler.prune(dynamically_quantized(), ratio=0.5, calibration=normal(8, 3, 6, 5).float().numpy())
