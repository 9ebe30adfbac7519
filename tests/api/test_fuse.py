"""The public function: every kind of model and dtype, and what becomes of the caller's model."""

import copy
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

import reparam_compiler
from tests.support.branch_blocks import BLOCKS, block
from tests.support.onnx_models import exported
from tests.support.onnx_models import run as run_onnx
from tests.support.small_models import (
    EXACT,
    KINDS,
    Kind,
    Pieces,
    fuse_in_float64,
    normal,
    randomised,
    relative_error,
    run,
    same_state,
    state_of,
    traced_as,
)

FUSABLE = [name for name in BLOCKS if name not in ("padded_conv_after_conv",)]
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
"""ONNX Runtime's float32 before and after: another order of additions."""


# every block, every kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUSABLE)
def test_a_fused_block_gives_the_same_values(name: str, kind: Kind) -> None:
    model, x = block(name)
    fused = fuse_in_float64(model, x, kind=kind, shapes=kind == "module")
    assert fused.error < EXACT
    assert fused.report.fusions
    assert fused.report.max_error is not None
    assert fused.report.max_error.relative < EXACT
    if kind != "fx":
        assert fused.report.whole_model is not None
        assert fused.report.whole_model.difference.relative < 1e-6  # float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["repvgg", "grouped", "nested"])
def test_without_verify_the_values_are_the_same(name: str, kind: Kind) -> None:
    model, x = block(name)
    fused = fuse_in_float64(model, x, kind=kind, verify=False)
    assert fused.error < EXACT
    assert fused.report.max_error is None
    assert fused.report.whole_model is None
    assert "not proven (verify=False)" in fused.report.to_text()


@pytest.mark.parametrize("name", FUSABLE)
def test_the_callers_graph_module_is_as_it_was(name: str) -> None:
    model, x = block(name)
    given = traced_as("fx", model, (x,))
    code, state, nodes = given.code, state_of(given), [node.format_node() for node in given.graph.nodes]
    modules = [name for name, _ in given.named_modules()]
    reparam_compiler.fuse(given, (x,))
    assert given.code == code
    assert [node.format_node() for node in given.graph.nodes] == nodes
    assert [name for name, _ in given.named_modules()] == modules
    assert same_state(state, given.state_dict())


@pytest.mark.parametrize("name", FUSABLE)
def test_the_callers_program_is_as_it_was(name: str) -> None:
    model, x = block(name)
    given = traced_as("export", model, (x,))
    text, state = str(given), {key: value.clone() for key, value in given.state_dict.items()}
    reparam_compiler.fuse(given)
    assert str(given) == text
    assert same_state(state, given.state_dict)


@pytest.mark.parametrize("name", ["repvgg", "diracnet", "mobileone_depthwise"])
def test_the_callers_module_is_as_it_was(name: str) -> None:
    model, x = block(name)
    state, text = state_of(model), repr(model)
    fused = reparam_compiler.fuse(model, (x,))
    assert repr(model) == text
    assert same_state(state, model.state_dict())
    shared = {t.data_ptr() for t in fused.state_dict().values()} & {t.data_ptr() for t in model.state_dict().values()}
    assert not shared - {0}


@cache
def proto_bytes(name: str, dynamo: bool, dynamic: bool) -> bytes:
    model, x = block(name)
    with tempfile.TemporaryDirectory() as folder:
        proto = exported(model.float(), x.float(), Path(folder), dynamo=dynamo, dynamic=dynamic)
        return proto.SerializeToString()


@pytest.mark.parametrize("name", FUSABLE)
def test_a_fused_onnx_model_gives_the_same_values_and_leaves_the_caller_its_own(name: str) -> None:
    proto = onnx.load_from_string(proto_bytes(name, False, True))
    _, x = block(name)
    fused, report = reparam_compiler.fuse(proto, return_report=True)
    assert proto.SerializeToString() == onnx.load_from_string(proto_bytes(name, False, True)).SerializeToString()
    onnx.checker.check_model(fused, full_check=True)
    feeds = {"x": np.concatenate([x.float().numpy()] * 2)}  # another batch than that of the export
    for a, b in zip(run_onnx(proto, feeds), run_onnx(fused, feeds), strict=True):
        np.testing.assert_allclose(b, a, **FLOAT32)
    assert report.kind == "onnx"
    traced = reparam_compiler.inspect(fx.symbolic_trace(block(name)[0]))
    assert sum(node.op_type == "Conv" for node in fused.graph.node) == traced.after.convs


@pytest.mark.parametrize("name", ["repvgg", "grouped"])
def test_a_fused_dynamo_onnx_model_gives_the_same_values(name: str) -> None:
    proto = onnx.load_from_string(proto_bytes(name, True, False))
    _, x = block(name)
    fused = reparam_compiler.fuse(proto)
    feeds = {proto.graph.input[0].name: x.float().numpy()}
    np.testing.assert_allclose(run_onnx(fused, feeds)[0], run_onnx(proto, feeds)[0], **FLOAT32)
    assert sum(node.op_type == "Conv" for node in fused.graph.node) == 1


def test_the_path_of_an_onnx_file_gives_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(proto_bytes("repvgg", False, True))
    before = path.read_bytes()
    for given in (path, str(path)):
        assert isinstance(reparam_compiler.fuse(given), onnx.ModelProto)
    assert path.read_bytes() == before


# in place


def test_in_place_changes_the_callers_graph_module() -> None:
    model, x = block("repvgg")
    given = traced_as("fx", model, (x,))
    assert reparam_compiler.fuse(given, inplace=True) is given
    assert relative_error(run(model, x), run(given, x)) < EXACT
    assert len([m for m in given.modules() if isinstance(m, nn.Conv2d)]) == 1


def test_in_place_changes_the_callers_program() -> None:
    model, x = block("repvgg")
    given = traced_as("export", model, (x,))
    assert reparam_compiler.fuse(given, inplace=True) is given
    assert relative_error(run(model, x), run(given, x)) < EXACT
    assert len(given.state_dict) == 2


# dtypes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "units"), [(torch.float16, 2), (torch.bfloat16, 2), (torch.float32, 2), (torch.float64, 2)])
def test_folded_weights_are_rounded_once(dtype: torch.dtype, units: int, kind: Kind) -> None:
    model, x = block("repvgg")
    model = model.to(dtype)
    exact = reparam_compiler.fuse(copy.deepcopy(model).double(), verify=False)
    fused = reparam_compiler.fuse(traced_as(kind, model, (x.to(dtype),)), verify=False)
    state = fused.state_dict if kind == "export" else fused.state_dict()
    for found, expected in zip(sorted(state), sorted(exact.state_dict()), strict=True):
        assert state[found].dtype == dtype
        rounded = exact.state_dict()[expected].to(dtype)
        unit = torch.finfo(dtype).eps * rounded.abs().double()
        assert ((state[found].double() - rounded.double()).abs() <= units * unit).all()  # units in the last place


def test_a_half_precision_model_is_compared_in_float64() -> None:
    model, x = block("repvgg")
    model, x = model.half(), x.half()
    _, report = reparam_compiler.fuse(traced_as("fx", model, (x,)), (x,), return_report=True)
    assert report.whole_model is not None
    assert report.whole_model.how == "torch, float64, example inputs"
    assert report.whole_model.difference.relative < 1e-9


# sharing


class Shared(nn.Module):
    """One conv and one norm, each used in a place where they fuse and in another where they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        fused = torch.relu(self.norm(self.conv(x)))
        return fused + self.norm(torch.sigmoid(x)) * torch.tanh(self.conv(torch.cos(x)))


class Tied(nn.Module):
    """A weight that a conv of its own, an op of no known kind and the graph itself read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.transposed = nn.ConvTranspose2d(4, 4, 1, bias=False)
        self.transposed.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x))) + self.transposed(x) * torch.cos(x * self.conv.weight.mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [Shared, Tied])
def test_a_shared_parameter_is_copied_on_write(make: type[nn.Module], kind: Kind) -> None:
    fused = fuse_in_float64(randomised(make()), normal(2, 4, 6, 5), kind=kind)
    assert fused.error < EXACT
    assert len(fused.report.fusions) == 1


def test_a_conv_used_twice_with_the_same_norm_is_two_convs_with_equal_weights() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(self.conv(torch.relu(self.norm(self.conv(x))))))

    fused = fuse_in_float64(randomised(Twice()), normal(2, 4, 6, 5))
    assert fused.error < EXACT
    assert [f.nodes for f in fused.report.fusions] == [("conv", "norm"), ("conv_1", "norm_1")]
    assert set(fused.model.state_dict()) == {"fused.weight", "fused.bias", "fused_1.weight", "fused_1.bias"}


# inputs and outputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "wiring",
    [
        lambda m, x: (m.wide(x) + m.point(x), m.norm(x)),
        lambda m, x: {"sum": m.norm(m.wide(x)), "rest": [x * 2, (m.point(x), m.point(x))]},
        lambda m, x: [m.wide(x) + m.norm(x)],
        lambda m, x: m.norm(m.wide(x)),
    ],
    ids=["tuple", "dict", "list", "tensor"],
)
def test_outputs_keep_their_structure(wiring: Callable[[Pieces, Tensor], Any], kind: Kind) -> None:
    fused = fuse_in_float64(Pieces(wiring), normal(2, 4, 6, 5), kind=kind, shapes=True)
    assert fused.error < EXACT
    assert fused.report.fusions


@pytest.mark.parametrize("kind", KINDS)
def test_what_nothing_reads_does_no_harm(kind: Kind) -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        unused = m.wide(x) + m.norm(x)  # noqa: F841
        return torch.relu(m.wide(x) + m.point(x))

    assert fuse_in_float64(Pieces(forward), normal(2, 4, 6, 5), kind=kind).error < EXACT


def test_keyword_and_default_arguments_keep_their_names() -> None:
    class Scaled(Pieces):
        def forward(self, x: Tensor, *, scale: float = 2.0, shift: float = 0.0) -> Tensor:
            return torch.relu(self.wide(x) + self.norm(x)) * scale + shift

    model = randomised(Scaled(lambda m, x: x)).double()
    fused, report = reparam_compiler.fuse(model, return_report=True)
    x = normal(2, 4, 6, 5)
    assert len(report.fusions) == 1
    with torch.no_grad():
        assert relative_error(model(x), fused(x)) < EXACT
        assert relative_error(model(x, scale=3.0, shift=1.0), fused(x, scale=3.0, shift=1.0)) < EXACT


def test_two_inputs_are_each_a_source() -> None:
    class Two(Pieces):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.relu(self.wide(x) + self.point(x)) * torch.relu(self.norm(y) + self.wide(y)) + x - y

    x, y = normal(2, 4, 6, 5), normal(2, 4, 6, 5, seed=1)
    for kind in KINDS:
        fused = fuse_in_float64(Two(lambda m, x: x), x, y, kind=kind, shapes=True)
        assert fused.error < EXACT
        assert len(fused.report.fusions) == 2


def test_a_model_that_writes_to_its_input_does_not_write_to_the_example_inputs() -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        x.mul_(2)
        return torch.relu(m.norm(m.wide(x)))

    x = normal(1, 4, 6, 5)
    kept = x.clone()
    fused = fuse_in_float64(Pieces(forward), x, shapes=True)
    assert fused.error < EXACT
    assert torch.equal(x, kept)


# weights that the graph computes


@pytest.mark.parametrize("kind", KINDS)
def test_weight_standardisation_is_folded(kind: Kind) -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        w = m.wide.weight
        w = (w - w.mean(dim=(1, 2, 3), keepdim=True)) / (w.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return torch.relu(
            m.norm(nn.functional.conv2d(x, w, m.wide.bias, padding=1)) + m.point(x) * torch.sigmoid(m.norm.bias[0])
        )

    fused = fuse_in_float64(Pieces(forward), normal(2, 4, 6, 5), kind=kind)
    assert fused.error < EXACT
    assert len(fused.report.fusions) == 1


@pytest.mark.parametrize("kind", ["fx", "export"])
def test_random_numbers_are_never_folded(kind: Kind) -> None:
    def forward(m: Pieces, x: Tensor) -> Tensor:
        dropped = nn.functional.dropout(m.wide.weight, 0.5, training=True)
        return torch.relu(m.norm(nn.functional.conv2d(x, dropped + torch.randn_like(dropped), None, padding=1)))

    model = Pieces(forward).double()
    x = normal(2, 4, 6, 5)
    fused, report = reparam_compiler.fuse(traced_as(kind, model, (x,)), verify=False, return_report=True)
    assert not report.fusions
    torch.manual_seed(1)
    first = run(fused, x)
    torch.manual_seed(2)
    assert not torch.equal(first, run(fused, x))


def test_a_model_that_converts_dtypes_is_compared_in_its_own() -> None:
    model = Pieces(lambda m, x: m.point(torch.relu(m.norm(m.wide(x))).double().float())).float()
    x = normal(1, 4, 6, 5).float()
    for kind in ("fx", "export"):
        _, report = reparam_compiler.fuse(traced_as(kind, model, (x,)), (x,), return_report=True)  # type: ignore[arg-type]
        assert report.whole_model is not None
        assert report.whole_model.how.startswith("torch, the model's own dtype")
        assert report.whole_model.difference.relative < 1e-5  # float32
