"""The most exact way to run a model is found, and never one that the model's own runtime contradicts."""

from typing import Any

import numpy as np
import pytest
import torch

from reparam_compiler.checking import subjects
from reparam_compiler.checking.runners import GraphRunner, OnnxRunner, TorchRunner
from reparam_compiler.errors import UnsupportedModelError
from tests.support.every_kind import X, as_onnx, exported, net
from tests.support.small_models import Float32Only


@pytest.mark.parametrize("made", [net, lambda: torch.fx.symbolic_trace(net()), lambda: exported(net())])
def test_a_torch_model_runs_in_float64(made: Any) -> None:
    found = subjects.subject(made(), (X,))
    assert isinstance(found.runner, TorchRunner)
    assert (found.runner.computed, found.runner.stored) == ("f64", "f32")
    assert found.examples[""].dtype == torch.float64


def test_one_that_fails_there_runs_in_its_own_dtype() -> None:
    model = Float32Only(net()).eval()
    assert subjects.subject(model, (X,)).runner.computed == "f32"
    with pytest.raises(UnsupportedModelError, match="Float32Only does not run on inputs of shapes"):
        subjects.subject(model, (X[:, :2],))


def test_an_onnx_model_runs_as_its_graph_where_onnx_runtime_agrees() -> None:
    found = subjects.subject(as_onnx(net()), (X.numpy(),))
    assert isinstance(found.runner, GraphRunner)
    assert found.runner.runtime == "the graph of the ONNX model, float64"
    torch.testing.assert_close(found.examples["['y']"], net().double()(X.double()))


def test_where_onnx_runtime_contradicts_the_graph_it_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = OnnxRunner.run
    monkeypatch.setattr(OnnxRunner, "run", lambda self, *given: {name: 1.1 * y for name, y in run(self, *given).items()})
    found = subjects.subject(as_onnx(net()), (X.numpy(),))
    assert isinstance(found.runner, OnnxRunner)
    assert "the graph as read gives something else, by 1.0e-01" in found.runner.runtime


def test_where_onnx_runtime_does_not_run_it_the_graph_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise UnsupportedModelError("no kernel for this dtype")

    monkeypatch.setattr(OnnxRunner, "run", refuse)
    assert isinstance(subjects.subject(as_onnx(net()), (X.numpy(),)).runner, GraphRunner)


def test_a_graph_is_read_once_for_each_shape_and_only_for_shapes_that_the_file_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    from reparam_compiler.frontends.onnx.frontend import OnnxFrontend

    model, reads = as_onnx(net()), list[tuple[int, ...]]()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    read = OnnxFrontend.read
    monkeypatch.setattr(
        OnnxFrontend, "read", lambda self, model, given: (reads.append(tuple(given[0].shape)), read(self, model, given))[1]
    )
    runner = subjects.subject(model, (X.numpy(),)).runner
    for batch in (2, 3, 2, 3):
        runner.run([np.zeros((batch, 3, 9, 7), np.float32)])
    assert reads == [(2, 3, 9, 7), (3, 3, 9, 7)]
    for shape in ((2, 3, 9, 8), (2, 3, 9)):
        with pytest.raises(UnsupportedModelError, match=r"the ONNX model fixes x to \['batch', 3, 9, 7\]; found"):
            runner.run([np.zeros(shape, np.float32)])


@pytest.mark.parametrize("name", ["1", ""])
def test_a_module_that_would_behave_as_in_training_is_refused_by_name(name: str) -> None:
    model = net()
    model.get_submodule(name).train()
    with pytest.raises(UnsupportedModelError, match=r"training=True; .*call model\.eval\(\) before equivalent\(\)"):
        subjects.subject(model, (X,))


def test_the_flag_of_a_trace_says_nothing_of_its_mode() -> None:
    trace = torch.fx.symbolic_trace(net())
    trace.training = True
    subjects.subject(trace, (X,))
