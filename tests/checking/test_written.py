"""What was written is checked, whatever its kind: it runs, it is valid, and it computes the graph that it was written from."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.checking.runners import GraphRunner, TorchRunner
from reparam_compiler.errors import ReparamError, RewriteError, UnrepairedPruneWarning, UnsupportedModelError, VerificationError
from reparam_compiler.models import opening
from tests.support.every_kind import DATA, KINDS, X, as_onnx, net, off_by_a_tenth, reading_of, same, state_of
from tests.support.onnx_models import model_of, normal, run_on


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_model_that_is_off_raises_and_leaves_the_caller_its_own(
    kind: str, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = KINDS[kind](net())
    before = state_of(model)
    off_by_a_tenth(kind, monkeypatch)
    options: dict[str, Any] = {"ratio": 0.5, "calibration": DATA, "inplace": inplace}
    inputs = None if kind in ("program", "onnx") else (X,)
    with pytest.raises(VerificationError, match="output: the rewritten model differs by"):
        reparam_compiler.prune(model, inputs, **options)
    assert same(state_of(model), before)
    reparam_compiler.prune(model, inputs, verify=False, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_another_checkpoint_is_checked_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, report = reparam_compiler.prune(KINDS[kind](net()), (X,), ratio=0.5, calibration=DATA, return_report=True)
    reparam_compiler.apply_manifest(KINDS[kind](net()), report.manifest, (X,))
    off_by_a_tenth(kind, monkeypatch)
    with pytest.raises(VerificationError):
        reparam_compiler.apply_manifest(KINDS[kind](net()), report.manifest, (X,))
    reparam_compiler.apply_manifest(KINDS[kind](net()), report.manifest, (X,), verify=False)


@pytest.mark.parametrize("kind", KINDS)
def test_prune_in_place_gives_the_callers_model(kind: str) -> None:
    model, inputs = KINDS[kind](net()), None if kind in ("program", "onnx") else (X,)
    expected = reparam_compiler.prune(KINDS[kind](net()), inputs, ratio=0.5, calibration=DATA)
    found = reparam_compiler.prune(model, inputs, ratio=0.5, calibration=DATA, inplace=True)
    assert found is model
    assert same(state_of(found), state_of(expected))
    if kind == "module":
        assert model[0].out_channels == 16


def test_a_cut_detector_that_finds_nothing_is_as_near_its_graph_as_the_model_is() -> None:
    """ONNX Runtime's sigmoid is right to 1e-7 of its range, which is more than all of what it gives far below zero."""
    large, small = normal(4, 3, 3, 3).astype(np.float32), 1e-3 * normal(4, 3, 3, 3, seed=1).astype(np.float32)
    constants = {
        "w": np.concatenate([large, small]),
        "b": np.array([0.0] * 4 + [10.0] * 4, np.float32),
        "v": np.array([1e-3] * 4 + [0.5] * 4, np.float32).reshape(1, 8, 1, 1),
        "c": np.array([-20.5], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], pads=[1] * 4),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "v", "c"], ["l"]),
        helper.make_node("Sigmoid", ["l"], ["y"]),
    ]
    model = model_of(nodes, {"x": (1, 3, 8, 8)}, ["y"], constants)
    x = normal(1, 3, 8, 8).astype(np.float32)
    with pytest.warns(UnrepairedPruneWarning):
        pruned = reparam_compiler.prune(model, (x,), ratio=0.5, round_to=1)
    assert run_on(model, x)[0].min() > 0.1
    assert run_on(pruned, x)[0].max() < 1e-7


@pytest.mark.parametrize("spoil", ["checker", "runtime"])
@pytest.mark.parametrize("function", ["fuse", "prune"])
@pytest.mark.parametrize("inplace", [False, True])
def test_an_onnx_file_that_nothing_loads_is_never_given(
    function: str, spoil: str, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = as_onnx(net())
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[3].dim_param = "w"  # no inputs can be made up: it is loaded, and not run
        value.type.tensor_type.shape.dim[2].dim_param = "h"
    before, reading = model.SerializeToString(), reading_of("onnx")
    write: Any = reading.write  # type: ignore[attr-defined]

    def broken(self: Any, after: Any, **named: Any) -> Any:
        written = write(self, after, **named)
        if spoil == "checker":
            written.graph.node[-1].input[0] = "nowhere"
        else:
            written.graph.node[-1].op_type = "Sigmoid"
            del written.graph.node[-1].input[1:], written.graph.node[-1].attribute[:]
            written.graph.node[-1].domain = "nobody.has.it"
            written.opset_import.add(domain="nobody.has.it", version=1)
        return written

    monkeypatch.setattr(reading, "write", broken)
    options: dict[str, Any] = {"ratio": 0.5, "calibration": DATA} if function == "prune" else {}
    inputs = (X.numpy(),) if function == "prune" else None
    refused = {"checker": "onnx.checker", "runtime": "ONNX Runtime"}[spoil]
    call = getattr(reparam_compiler, function)
    with pytest.raises(RewriteError, match=rf"{refused} .*the model, but not what was made of it: .*verify=False"):
        call(model, inputs, inplace=inplace, **options)
    assert model.SerializeToString() == before
    call(model, inputs, verify=False, **options)


def test_what_the_checker_refuses_of_the_callers_own_is_not_held_against_the_result() -> None:
    model = as_onnx(net())
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7  # 8 it is
    _, report = reparam_compiler.fuse(model, return_report=True)
    assert len(report.fusions) == 1


def test_a_program_of_keyword_inputs_is_fused_and_compared() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
            return self.body(x) * scale

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        program = torch.export.export(Scaled().eval(), (X,), {"scale": torch.tensor(2.0)})
    _, report = reparam_compiler.fuse(program, return_report=True)
    assert report.whole_model is not None
    assert "the program's own example inputs" in report.whole_model.how
    reparam_compiler.prune(program, ratio=0.5, calibration=[(DATA[:2], np.float32(2.0))])


class Draws(nn.Module):
    """Random numbers, a buffer that counts, and a product that autocast would round."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 7)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, *, more: dict[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        return {"y": self.linear(x) + torch.rand_like(x) + more["z"], "calls": self.calls}


@pytest.mark.parametrize("exact", [False, True])
def test_a_run_leaves_everything_as_it_was_and_can_be_repeated(exact: bool) -> None:
    model, z = Draws(), torch.ones(7)
    state, given = torch.get_rng_state(), X.clone()
    runner = TorchRunner(model, exact=exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = runner.run([given], {"more": {"z": z}})["['y']"]
        again = TorchRunner(model, exact=exact).run([given], {"more": {"z": z}})["['y']"]
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(given, X)
    assert float(model.calls) == 0
    assert first.dtype == (torch.float64 if exact else torch.float32)
    assert torch.equal(first, again)
    assert not torch.equal(first, runner.run([given], {"more": {"z": z}}, seed=1)["['y']"])


def test_what_does_not_run_is_said_with_its_shapes() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Sequential does not run on inputs of shapes \[\(1, 4, 5, 5\)\]"):
        TorchRunner(net()).run([torch.zeros(1, 4, 5, 5)])
    source = opening.open(net(), X)
    with pytest.raises(UnsupportedModelError, match="the graph takes 1 tensors; found 2 inputs"):
        GraphRunner.of(source.graph).run([X, X])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_read_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, reads = KINDS[kind](net()), list[object]()
    frontend = type(opening.open(model, (X,)).frontend)
    read = frontend.read
    monkeypatch.setattr(frontend, "read", lambda self, model, inputs=None: (reads.append(model), read(self, model, inputs))[1])
    reparam_compiler.prune(model, (X,), ratio=0.5, calibration=DATA)
    assert len(reads) == 1
    reads.clear()
    reparam_compiler.fuse(model, (X,))
    assert len(reads) == 1
    reads.clear()
    assert reparam_compiler.equivalent(model, model, (X,))
    assert len(reads) == (2 if kind == "onnx" else 0)


@pytest.mark.parametrize("kind", ["module", "graph module"])
def test_ignore_takes_a_name_a_module_or_several(kind: str) -> None:
    def widths(ignore: Any, of: nn.Module) -> list[int]:
        _, report = reparam_compiler.prune(of, (X,), ratio=0.5, calibration=DATA, round_to=1, ignore=ignore, return_report=True)
        return [family.after for family in report.plan.families]

    wide = nn.Sequential(net(), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    model = KINDS[kind](wide)
    every = widths((), model)
    first, second = model.get_submodule("0.0"), model.get_submodule("2")
    assert widths("0.0", model) == widths(first, model) == widths(["0.0"], model) == widths([first], model) != every
    assert widths([first, "2"], model) == widths({"0.0", "2"}, model) == widths([second, first], model)
    with pytest.raises(ReparamError, match=r"ignore: found a ReLU that is none of the model's modules"):
        widths(nn.ReLU(), model)


def test_rounds_ignore_a_module_of_the_first() -> None:
    model = nn.Sequential(net(), nn.ReLU(), nn.Conv2d(8, 32, 1), nn.ReLU(), nn.Conv2d(32, 4, 1)).eval()
    rounds = reparam_compiler.IterativePruner(model, (X,), ratio=0.5, steps=2, calibration=DATA, ignore=model[2])
    while not rounds.finished:
        rounds.step()
    assert rounds.model.get_submodule("2").out_channels == 32
    assert rounds.model.get_submodule("0.0").out_channels == 16
