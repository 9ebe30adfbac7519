"""`reparam_compiler.compile` fuses first, compiles as it is what `fuse` cannot read, and says so."""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

import reparam_compiler
from reparam_compiler.errors import LoweringError, UnsupportedModelError
from reparam_compiler.lowering import CompileOptions, Executable
from reparam_compiler.lowering.runtime.description import Kernel
from reparam_compiler.zoo.random_weights import randomise_batch_norm
from tests.support import instant_trials

pytestmark = pytest.mark.tvm
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}


class Branches(nn.Module):
    """3x3 and 1x1, each with its batch norm, and an identity's batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.point = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norms[0](self.dense(x)) + self.norms[1](self.point(x)) + self.norms[2](x))


@pytest.fixture
def model() -> nn.Module:
    net = Branches()
    randomise_batch_norm(net)
    return net.eval()


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that would have been compiled."""
    models: list[Any] = []
    monkeypatch.setattr("reparam_compiler.lowering.build.compile", lambda model, *_, **__: models.append(model))
    return models


def convs(compiled: Executable) -> int:
    return sum(kernel.name.startswith("conv_") for kernel in compiled.kernels)


@pytest.mark.parametrize("kind", ["module", "graph module", "exported", "path", "proto"])
def test_every_kind_is_fused_and_computes_the_same(model: nn.Module, kind: str, tmp_path: Path) -> None:
    x = torch.randn(1, 6, 7, 5)
    native: Any = model
    if kind == "graph module":
        native = torch.fx.symbolic_trace(model)
    elif kind == "exported":
        native = torch.export.export(model, (x,))
    elif kind in ("path", "proto"):
        onnx, native = pytest.importorskip("onnx"), tmp_path / "m.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of the older exporter, which leaves batch norms alone
            torch.onnx.export(model, (x,), native, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE)
        native = onnx.load(native) if kind == "proto" else native
    compiled = reparam_compiler.compile(native, (x,))
    assert convs(compiled) == 1
    np.testing.assert_allclose(compiled.run(x)[0], model(x).detach().numpy(), **FLOAT32)


def test_fuse_false_compiles_the_training_form(model: nn.Module) -> None:
    x = torch.randn(1, 6, 7, 5)
    compiled = reparam_compiler.compile(model, (x,), fuse=False)
    assert convs(compiled) == 2
    np.testing.assert_allclose(compiled.run(x)[0], model(x).detach().numpy(), **FLOAT32)


def test_caller_s_model_is_unchanged(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reparam_compiler.compile(model, torch.zeros(1, 6, 7, 5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("fuse", [True, False])
def test_an_input_too_many_of_a_program_is_refused(model: nn.Module, fuse: bool) -> None:
    x = torch.zeros(2, 6, 7, 5)
    program = torch.export.export(model, (x,))
    with pytest.raises(UnsupportedModelError, match="at most 1 example inputs; found 2"):
        reparam_compiler.compile(program, (x, x), fuse=fuse)
    for given in ((x,), x, None):
        assert convs(reparam_compiler.compile(program, given, fuse=fuse)) == (1 if fuse else 2)


def test_input_shapes_are_enough_for_a_module(model: nn.Module) -> None:
    assert convs(reparam_compiler.compile(model, input_shapes={"x": (2, 6, 7, 5)})) == 1


def test_what_fuse_cannot_read_is_compiled_as_it_is(
    model: nn.Module, handed: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise UnsupportedModelError("node 7: no such thing")

    monkeypatch.setattr("reparam_compiler.api.compiling.fuse_source", refuse)
    with caplog.at_level(logging.WARNING, "reparam_compiler"):
        reparam_compiler.compile(model, torch.zeros(1, 6, 7, 5), verify=False)
    assert handed == [model]
    assert "Branches is compiled as it is, unfused: node 7: no such thing" in caplog.text


@pytest.mark.parametrize("native", [7, None, "model.pt", "absent.onnx"])
def test_what_is_no_model_is_refused(native: object) -> None:
    with pytest.raises(UnsupportedModelError):
        reparam_compiler.compile(native)


def test_the_path_of_an_onnx_file_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    from reparam_compiler.frontends.onnx import io as onnx_io

    x = onnx.helper.make_tensor_value_info("pixels/0", onnx.TensorProto.FLOAT, (1, 5, 8, 7))
    y = onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, (1, 5, 8, 7))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["pixels/0"], ["scores"])], "g", [x], [y])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(proto, tmp_path / "m.onnx")
    loaded: list[Any] = []
    load = onnx_io.load
    monkeypatch.setattr(onnx_io, "load", lambda path: (loaded.append(path), load(path))[1])
    assert reparam_compiler.compile(tmp_path / "m.onnx").inputs[0].shape == (1, 5, 8, 7)
    assert loaded == [tmp_path / "m.onnx"]


def test_file_that_is_no_onnx_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x00not a model" * 9)
    with pytest.raises(UnsupportedModelError, match=r"bad\.onnx"):
        reparam_compiler.compile(tmp_path / "bad.onnx")


SLOW = reparam_compiler.CostModel(1.0, 1.0)


@pytest.mark.parametrize("keyword", [{"policy": "always"}, {"keep_bn": True}, {"cost_model": SLOW}])
def test_compile_fuses_as_fuse_is_told_to(
    model: nn.Module, keyword: dict[str, Any], handed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def fuse_source(source: Any, options: Any) -> Any:
        told.append(options)
        return source.model, None

    monkeypatch.setattr("reparam_compiler.api.compiling.fuse_source", fuse_source)
    reparam_compiler.compile(model, torch.zeros(1, 6, 7, 5), verify=False, **keyword)
    assert handed == [model]
    ((name, value),) = keyword.items()
    assert getattr(told[0], name) == value
    with pytest.raises(TypeError, match=r"compile\(\) got an unexpected keyword argument 'ratio'"):
        reparam_compiler.compile(model, torch.zeros(1, 6, 7, 5), ratio=0.5)


def test_missing_shapes_and_training_mode_are_refused(model: nn.Module) -> None:
    with pytest.raises(LoweringError, match=r"example_inputs=.*input_shapes="):
        reparam_compiler.compile(model)
    with pytest.raises(LoweringError, match=r"call model\.eval\(\)"):
        reparam_compiler.compile(model.train(), torch.zeros(1, 6, 7, 5))
    with pytest.raises(LoweringError, match=r"training=True; call model\.eval\(\) before torch\.export"):
        reparam_compiler.compile(torch.export.export(model, (torch.zeros(2, 6, 7, 5),)))


def test_options_reach_tvm(model: nn.Module) -> None:
    options = CompileOptions(sources=("relax", "tir"), pass_times=True, after=("LegalizeOps",))
    compiled = reparam_compiler.compile(model, torch.zeros(1, 6, 7, 5), options=options)
    assert set(compiled.listings) == {"relax", "tir", "pass times", "after LegalizeOps"}
    with pytest.raises(LoweringError, match="max_error: found nan"):
        reparam_compiler.compile(model, torch.zeros(1, 6, 7, 5), options=CompileOptions(max_error=float("nan")))
    for bound in ("x", None, True, -1.0, 1j):
        with pytest.raises(LoweringError, match=r"max_error: found .*; expected a relative error, 0 or more"):
            reparam_compiler.compile(model, torch.zeros(1, 6, 7, 5), options=CompileOptions(max_error=bound))
    with pytest.raises(LoweringError, match="opt_level: found 9"):
        reparam_compiler.compile(model, torch.zeros(1, 6, 7, 5), options=CompileOptions(opt_level=9))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"target": "lvm"}, "neither a kind"),
        ({"target": "llvm -mcpu=nonsense"}, "mcpu 'nonsense' is unknown"),
        ({"database": "absent"}, "found no tuning records"),
        ({"options": CompileOptions(opt_level=9)}, "opt_level: found 9"),
        ({"options": CompileOptions(pass_config={"nonsense": "1"})}, "does not know 'nonsense'"),
    ],
)
def test_what_cannot_be_compiled_for_is_refused_before_the_model_is_fused(
    asked: dict[str, Any], message: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reparam_compiler.api.compiling.fuse_source", lambda *_: pytest.fail("the model was fused first"))
    with pytest.raises(LoweringError, match=message):
        reparam_compiler.compile(model, torch.zeros(1, 6, 7, 5), **asked)


def test_tune_fuses_too(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instant_trials.install(monkeypatch)
    words = {"trials": 1, "repeat": 1, "progress": False}
    fused = reparam_compiler.tune(model, torch.zeros(1, 6, 7, 5), database=tmp_path / "fused", **words)
    plain = reparam_compiler.tune(model, torch.zeros(1, 6, 7, 5), database=tmp_path / "plain", fuse=False, **words)
    counts = [sum(task.name.startswith("conv_") for task in result.tasks) for result in (fused, plain)]
    assert counts == [1, 2]


def test_error_of_an_algorithm_is_bounded_and_reported() -> None:
    net, x = nn.Conv2d(64, 64, 3, padding=1).eval(), torch.randn(1, 64, 28, 28)
    expected = copy.deepcopy(net).double()(x.double()).detach().numpy()

    def conv(**settings: float) -> tuple[Executable, Kernel]:
        compiled = reparam_compiler.compile(net, x, target="llvm -mcpu=x86-64-v3", options=CompileOptions(**settings))
        (found,) = (kernel for kernel in compiled.kernels if kernel.error is not None)
        assert np.abs(compiled.run(x)[0] - expected).max() < 4 * found.error * np.abs(expected).max()
        return compiled, found

    _, fast = conv()
    _, exact = conv(max_error=0.0)
    assert "winograd" in fast.algorithm
    assert exact.algorithm == "direct"
    assert 0 <= exact.error < fast.error < 1e-4
    assert fast.flops == exact.flops == 2 * 64 * 64 * 9 * 28 * 28


class Flagged(nn.Module):
    """A model that torch.fx cannot trace and torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Branches()

    def forward(self, x: torch.Tensor, twice: bool = False) -> torch.Tensor:
        return self.block(self.block(x)) if twice else self.block(x)


def test_what_only_export_takes_is_fused_and_compiled() -> None:
    net, x = Flagged(), torch.randn(1, 6, 7, 5)
    randomise_batch_norm(net)
    compiled = reparam_compiler.compile(net.eval(), (x,))
    assert convs(compiled) == 1
    np.testing.assert_allclose(compiled.run(x)[0], net(x).detach().numpy(), **FLOAT32)


def test_inputs_that_do_not_fit_are_refused_by_the_importer(model: nn.Module) -> None:
    with pytest.raises(LoweringError, match=r"torch\.export refuses it"):
        reparam_compiler.compile(model, torch.zeros(1, 5, 7, 5))
    with pytest.raises(LoweringError, match="nobody is no input; the inputs are x"):
        reparam_compiler.compile(model, torch.zeros(1, 6, 7, 5), input_shapes={"nobody": (1,)})
    with pytest.raises(UnsupportedModelError, match="example_inputs is a int"):
        reparam_compiler.compile(model, 7)


def test_shape_arithmetic_of_an_onnx_model_is_done_before_tvm_sees_it() -> None:
    pytest.importorskip("onnxruntime")
    from tests.frontends.onnx.test_onnx_bound import net
    from tests.support.onnx_models import normal, run

    x = normal(1, 3, 4, 6)
    compiled = reparam_compiler.compile(net("anchors"), (x,))
    assert compiled.verified
    np.testing.assert_allclose(compiled.run(x)[0], run(net("anchors"), {"x": x})[0], **FLOAT32)
