"""A model of any kind is opened in one place: its kind is told; what is costly happens once, and only where it is asked for."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import reparam_compiler
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.torch.tensors import array_of
from reparam_compiler.models import opening
from reparam_compiler.models.io import save_model

X = torch.randn(1, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def test_each_kind_is_told_and_named() -> None:
    program = torch.export.export(net(), (X,))
    traced = torch.fx.symbolic_trace(net())
    for model, kind, name in (
        (net(), "torch.nn", "Sequential"),
        (traced, "torch.fx", type(traced).__name__),
        (program, "torch.export", "ExportedProgram"),
    ):
        source = opening.open(model, X)
        assert (source.kind, source.name, source.model, source.inputs) == (kind, name, model, (X,))
        assert source.is_own == (kind == "torch.nn")
        assert len(source.graph.outputs) == 1
        assert source.reading is source.reading


def test_nothing_is_traced_or_read_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[nn.Module] = []
    traced = opening.traced
    monkeypatch.setattr(
        opening, "traced", lambda model, *rest, **named: (traces.append(model), traced(model, *rest, **named))[1]
    )
    source = opening.open(net(), X)
    assert not traces
    assert source.trace is not None
    assert source.native is source.trace.graph_module
    assert source.graph is source.graph
    assert traces == [source.model]


def test_a_program_in_a_file_is_opened_as_a_program(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(net(), (X,)), tmp_path / "net.pt2")
    fused, report = reparam_compiler.fuse(tmp_path / "net.pt2", return_report=True)
    assert len(report.fusions) == 1
    torch.testing.assert_close(fused.module()(X), net()(X))
    assert opening.open(tmp_path / "net.pt2").name == str(tmp_path / "net.pt2")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (7, r"found a builtins\.int; expected an fx\.GraphModule, an ExportedProgram"),
        ({"weight": X}, r"found a builtins\.dict"),
        ("model.pt", r"found the path model\.pt; expected one that ends in \.onnx or \.pt2"),
        (Path("absent.onnx"), "absent.onnx: no such file"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        opening.open(model)


def test_a_suffix_in_capitals_is_the_same_suffix(tmp_path: Path) -> None:
    program = torch.export.export(net(), (X,))
    save_model(program, tmp_path / "M.PT2")
    assert opening.open(tmp_path / "M.PT2").kind == "torch.export"
    with pytest.raises(UnsupportedModelError, match=r"M\.ONNX: no such file"):
        opening.open(tmp_path / "M.ONNX")


def test_the_models_own_names_of_its_inputs_are_known() -> None:
    class Renamed(nn.Module):
        def forward(self, input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return input + 2 * other

    assert opening.open(Renamed().eval()).input_names == {"input_1": "input", "other": "other"}
    assert opening.open(torch.export.export(Renamed(), (X, X))).input_names == {}


def test_inputs_that_are_no_tuple_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"example_inputs is a dict; expected a tuple"):
        opening.open(net(), {"x": X})


class Picky(nn.Module):
    """A model that refuses some inputs in its own words."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`N 3 H W`, H even."""
        if x.shape[2] % 2:
            raise ValueError("the height must be even")
        return self.net(x)


@pytest.mark.parametrize("verb", [reparam_compiler.fuse, reparam_compiler.inspect, partial(reparam_compiler.prune, ratio=0.5)])
def test_what_the_model_itself_refuses_is_said_in_its_own_words(verb: Callable[..., Any]) -> None:
    words = r"Picky does not run on inputs of shapes \[\(1, 3, 9, 7\)\]: the height must be even$"
    with pytest.raises(UnsupportedModelError, match=words):
        verb(Picky().eval(), X)


def test_a_module_that_no_tracer_takes_has_no_graph() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x

    source = opening.open(Branching().eval())
    assert source.trace is None
    assert source.remarks == ()
    with pytest.raises(UnsupportedModelError, match="cannot be traced as a whole"):
        source.graph  # noqa: B018


def fake(model: nn.Module) -> nn.Module:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in model.modules():
            for name, tensor in module._parameters.items():
                module._parameters[name] = None if tensor is None else nn.Parameter(mode.from_tensor(tensor))
    return model


def unseen() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d()).eval()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: net().to("meta"), r"0\.weight is on the device meta: it has a shape and no values; load the weights first"),
        (lambda: fake(net()), r"0\.weight is a fake tensor: it has a shape and no values"),
        (unseen, r"1\.weight is made when its layer is first called; call the model once"),
    ],
)
@pytest.mark.parametrize("verb", [reparam_compiler.fuse, reparam_compiler.inspect, opening.open])
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_weights_without_values_are_refused_by_name(verb: Callable[..., Any], model: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        verb(model(), X)


class Whole(torch.Tensor):
    """A tensor of a class of its own, whose elements numpy does not get."""

    @staticmethod
    def __new__(cls) -> "Whole":
        return torch.Tensor._make_wrapper_subclass(cls, (8, 3, 1, 1))

    @classmethod
    def __torch_dispatch__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Whole() if function is torch.ops.aten.detach.default else NotImplemented


def test_elements_that_cannot_be_read_are_a_typed_error() -> None:
    with pytest.raises(UnsupportedModelError, match=r"the elements of a weight of \S*Whole cannot be read"):
        array_of(Whole())
