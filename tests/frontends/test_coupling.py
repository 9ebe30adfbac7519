"""Ops that couple channels, through every frontend: the same ones leave, and what is written computes the masked reference."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from onnx import ModelProto, checker
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

import reparam_compiler
from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.frontends.base import Reading
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate, evaluate_node
from reparam_compiler.ir import ops
from reparam_compiler.models.opening import frontend_for
from reparam_compiler.passes.pruning.coupling.groups import channel_groups
from reparam_compiler.passes.pruning.pipeline import PruneResult, prune
from reparam_compiler.passes.pruning.slice_channels import masked
from tests.support.coupled_models import MODELS, ChannelShuffled, FusedAttention, Gated, LayerNormed, Model, Tokens, build
from tests.support.onnx_models import exported, run

Kind = Literal["fx", "export", "open", "onnx"]
GRAPH = 1e-9  # relative, float64: the cut graph against the masked one
FLOAT64 = 1e-7  # relative: the written model in float64; a kernel that is folded from parameters is stored in float32
FLOAT32 = 1e-5  # relative: the written model in ONNX Runtime
NO_ONNX = (ChannelShuffled,)  # aten::channel_shuffle has no form in the TorchScript exporter
pytestmark = pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")


@cache
def program_of(make: Callable[[], Model]) -> ExportedProgram:
    """A model of fixed sizes, exported once for all tests; pruning makes another program."""
    model, x = build(make)
    return torch.export.export(model, (x,))


def traced(model: nn.Module, x: Tensor, kind: Kind, folder: Path) -> Any:
    if kind == "fx":
        return fx.symbolic_trace(copy.deepcopy(model))
    if kind == "onnx":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, of what it fixes
            return exported(model, x, folder, dynamo=False, dynamic=False)
    shapes = ({0: Dim("batch", min=2, max=64)},) if kind == "open" else None
    return torch.export.export(copy.deepcopy(model), (x,), dynamic_shapes=shapes)


def pruned(native: Any, x: Tensor, ratio: float = 0.4) -> tuple[Reading[Any], PruneResult]:
    reading = frontend_for(native).read(native, (x,))
    return reading, prune(reading.graph, ratio=ratio, round_to=1)


def reference(reading: Reading[Any], result: PruneResult, x: Tensor) -> Tensor:
    """What the masked graph of full width gives, in float64."""
    hidden = masked(reading.graph, result.groups, result.keep)
    source = next(node.id for node in reading.graph if isinstance(node.op, ops.Input))
    (found,) = evaluate(hidden, {source: x}).values()
    return torch.as_tensor(found)


def outputs(model: Any, x: Tensor) -> Tensor:
    """Of the written model: in float64, or in ONNX Runtime."""
    if isinstance(model, ModelProto):
        checker.check_model(model, full_check=True)
        return torch.from_numpy(run(model, {model.graph.input[0].name: x.numpy()})[0])
    module = model.module() if isinstance(model, ExportedProgram) else model
    with torch.no_grad():
        return torch.as_tensor(copy.deepcopy(module).double()(x.double()))


@pytest.mark.parametrize("make", MODELS)
def test_every_frontend_keeps_the_same_channels_and_writes_the_masked_reference(
    make: Callable[[], Model], tmp_path: Path
) -> None:
    model, x = build(make)
    kinds: list[Kind] = ["fx", "export", "open", *(() if make in NO_ONNX else ("onnx",))]
    kept: list[list[tuple[int, int]]] = []
    first: Tensor | None = None
    for kind in kinds:
        reading, result = pruned(program_of(make) if kind == "export" else traced(model, x, kind, tmp_path), x)
        assert result.plan.relative_error <= GRAPH
        error = difference(reference(reading, result, x), outputs(reading.write(result.graph), x)).relative
        assert error <= (FLOAT32 if kind == "onnx" else FLOAT64), kind
        assert sum(p.count for p in result.graph.param_users) < sum(p.count for p in reading.graph.param_users)
        kept.append(sorted((family.before, family.after) for family in result.plan.families))
        masked_outputs = reference(reading, result, x)
        first = masked_outputs if first is None else first
        assert difference(first, masked_outputs).relative <= FLOAT64, kind  # so the same ones left
    assert all(widths == kept[0] for widths in kept)


@pytest.mark.parametrize("make", MODELS)
def test_likeness_computes_what_the_op_itself_does(make: Callable[[], Model]) -> None:
    """Where a likeness can be run by itself, its value is that of the opaque op."""
    native, (_, x) = program_of(make), build(make)
    graph = frontend_for(native).read(native).graph
    source = next(node.id for node in graph if isinstance(node.op, ops.Input))
    values = evaluate(graph, {source: x}, wanted=list(graph.nodes))
    own_rule = (ops.Slicewise, ops.Rearrange, ops.PerChannel, ops.Glu)
    alike = [n for n in graph if isinstance(n.op, ops.Opaque) and n.op.coupling and not isinstance(n.op.coupling, own_rule)]
    for node in alike:
        assert isinstance(node.op, ops.Opaque)
        assert node.op.coupling is not None
        alone = replace(node, op=node.op.coupling, inputs=node.inputs[: node.op.reads])
        assert difference(values[node.id], evaluate_node(alone, values)).relative <= GRAPH


@pytest.mark.parametrize("make", [FusedAttention, LayerNormed, Gated])
def test_pruned_models_are_ordinary_models(make: Callable[[], Model]) -> None:
    """A pruned program exports again, another batch runs, and the state dict of a pruned module loads."""
    model, x = build(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = reparam_compiler.prune(program_of(make), ratio=0.4, round_to=1)
        again = torch.export.export(program.module(), (x,))
        module = reparam_compiler.prune(fx.symbolic_trace(copy.deepcopy(model)), (x,), ratio=0.4, round_to=1)
    torch.testing.assert_close(again.module()(x), program.module()(x))
    wide = torch.cat([x, x.flip(0), x])
    torch.testing.assert_close(module(wide)[:2], module(x), rtol=1e-4, atol=1e-5)
    fresh = copy.deepcopy(module)
    fresh.load_state_dict(module.state_dict())
    torch.testing.assert_close(fresh(x), module(x))


def test_attention_keeps_the_scale_of_its_full_width() -> None:
    model, x = build(FusedAttention)
    reading, result = pruned(fx.symbolic_trace(model), x)
    written = reading.write(result.graph)
    call = next(node for node in written.graph.nodes if "attention" in str(node.target))
    assert call.kwargs["scale"] == pytest.approx(6**-0.5, rel=1e-15)
    assert written.get_submodule("qkv").out_features == 24


class ScaledByItsWidth(Tokens):
    """A scale that the model computes from a width when it runs."""

    def make(self) -> None:
        self.q, self.k = nn.Linear(12, 16), nn.Linear(12, 16)

    def middle(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        return (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ x


class SoftmaxOverChannels(Model):
    def middle(self, x: Tensor) -> Tensor:
        return torch.softmax(x, dim=1)


class RolledChannels(Model):
    def middle(self, x: Tensor) -> Tensor:
        return torch.roll(x, 1, 1)


class ChosenChannels(Model):
    out = 3

    def middle(self, x: Tensor) -> Tensor:
        return x.index_select(1, torch.tensor([0, 4, 7]))


class Cumulated(Model):
    def middle(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


class WidthAsANumber(Model):
    def middle(self, x: Tensor) -> Tensor:
        return x * x.shape[1]


class Sorted(Model):
    def middle(self, x: Tensor) -> Tensor:
        return torch.sort(x, dim=2)[0]


REFUSALS: list[tuple[Callable[[], Model], str, str]] = [
    (SoftmaxOverChannels, "softmax", "runs over the channels"),
    (RolledChannels, "roll", "runs over the channels"),
    (Cumulated, "cumsum", "runs over the channels"),
    (ChosenChannels, "index_select", "calls channels by their numbers"),
    (Sorted, "sort", "is not understood"),
]


@pytest.mark.parametrize(("make", "op", "reason"), REFUSALS)
@pytest.mark.parametrize("kind", ["fx", "export"])
def test_what_cannot_lose_channels_is_named(
    make: Callable[[], Model], op: str, reason: str, kind: Kind, tmp_path: Path
) -> None:
    model, x = build(make)
    native = traced(model, x, kind, tmp_path)
    with pytest.raises(InfeasiblePruneError, match=rf"stem: {op}\w* \({op}\) {reason}"):
        prune(frontend_for(native).read(native, (x,)).graph, ratio=0.4, round_to=1)


def test_width_that_is_read_as_a_number_is_pinned() -> None:
    model, x = build(WidthAsANumber)
    native = fx.symbolic_trace(model)
    with pytest.raises(InfeasiblePruneError, match=r"stem: mul.*is computed with the size of stem"):
        prune(frontend_for(native).read(native, (x,)).graph, ratio=0.4, round_to=1)


def test_scale_that_is_computed_from_a_width_pins_it_or_is_baked(tmp_path: Path) -> None:
    model, x = build(ScaledByItsWidth)
    native = fx.symbolic_trace(model)
    reasons = {f.name: f.pin.reason for f in channel_groups(frontend_for(native).read(native, (x,)).graph).families if f.pin}
    assert "is computed with the size of q" in reasons["q"]
    for kind in ("export", "onnx"):
        reading, result = pruned(traced(model, x, kind, tmp_path), x)
        assert (16, 10) in [(family.before, family.after) for family in result.plan.families]
        written = outputs(reading.write(result.graph), x)
        assert difference(reference(reading, result, x), written).relative <= FLOAT32


def test_resize_of_an_onnx_model_with_an_open_batch_keeps_it_open(tmp_path: Path) -> None:
    model, x = build(MODELS[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        native = exported(model, x, tmp_path, dynamo=False, dynamic=True)
    reading, result = pruned(native, x)
    written = reading.write(result.graph)
    wide = torch.cat([x, x, x])
    assert difference(reference(reading, result, wide), outputs(written, wide)).relative <= FLOAT32
    assert np.prod([d.dim_value for d in written.graph.output[0].type.tensor_type.shape.dim[1:]]) == 5
