"""How a program is written: placeholders, signature, outputs and metadata stay those of a program."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

import reparam_compiler
from tests.support import quick_decompositions
from tests.support.branch_blocks import block
from tests.support.small_models import EXACT, Pieces, normal, relative_error, run, traced_as

X = normal(2, 4, 6, 5)


def fuse_program(wiring: Callable[[Pieces, Tensor], Any]) -> tuple[ExportedProgram, Any]:
    model = Pieces(wiring).double()
    fused, report = reparam_compiler.fuse(traced_as("export", model, (X,)), return_report=True)
    assert relative_error(run(model, X), run(fused, X)) < EXACT
    return fused, report


def test_new_parameters_are_placeholders_with_their_own_names() -> None:
    fused, _ = fuse_program(lambda m, x: torch.relu(m.wide(x) + m.point(x) + m.norm(x)))
    specs = [(spec.kind, spec.target, spec.arg.name) for spec in fused.graph_signature.input_specs]
    assert sorted(specs, key=str) == sorted(
        [
            (InputKind.PARAMETER, "fused.weight", "p_fused_weight"),
            (InputKind.PARAMETER, "fused.bias", "p_fused_bias"),
            (InputKind.USER_INPUT, None, "x"),
        ],
        key=str,
    )
    assert set(fused.state_dict) == {"fused.weight", "fused.bias"}
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in fused.state_dict.values())


def test_a_norms_counter_goes_with_it_and_other_unread_tensors_stay() -> None:
    fused, _ = fuse_program(lambda m, x: torch.relu(m.norm(m.wide(x))))
    assert set(fused.state_dict) == {"fused.weight", "fused.bias", "point.weight", "point.bias"}


@pytest.mark.parametrize(
    "wiring",
    [
        lambda m, x: m.wide(x) + m.point(x),
        lambda m, x: (m.norm(m.wide(x)), m.point(x) * 2, x),
        lambda m, x: {"a": m.norm(x), "b": [m.wide(x) + x, m.wide(x) + x]},
        lambda m, x: m.wide(x).add_(m.norm(x)),
        lambda m, x: (m.wide(x), torch.relu_(m.point(x) + m.norm(x))),
    ],
)
def test_outputs_that_were_fused_keep_their_places_in_the_signature(wiring: Callable[[Pieces, Tensor], Any]) -> None:
    fused, report = fuse_program(wiring)
    assert report.fusions
    (returned,) = fused.graph.output_node().args
    assert [spec.arg.name for spec in fused.graph_signature.output_specs] == [node.name for node in returned]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_uneven_padding_is_a_pad_call() -> None:
    model = Pieces(lambda m, x: torch.relu(m.norm(m.wide(x)))).double()
    for mode in ("zeros", "reflect"):
        model.wide = nn.Conv2d(4, 4, (2, 4), padding="same", padding_mode=mode).double()
        fused = reparam_compiler.fuse(traced_as("export", model, (X,)))
        assert relative_error(run(model, X), run(fused, X)) < EXACT
        assert len(fused.state_dict) == 4


def test_a_crop_is_a_negative_pad_call() -> None:
    _, report = fuse_program(lambda m, x: F.pad(m.norm(m.wide(x)), (-1, 0, 0, -2)))
    assert report.fusions[0].op == "conv pad=1:-1,0:1"


def test_shared_placeholders_stay_for_those_who_still_read_them() -> None:
    fused, report = fuse_program(lambda m, x: torch.relu(m.norm(m.wide(x))) + m.norm(torch.relu(m.wide(torch.cos(x)))))
    assert len(report.fusions) == 1
    assert {"wide.weight", "norm.running_mean", "fused.weight"} <= set(fused.state_dict)


def test_a_buffer_that_is_not_saved_is_a_constant_that_is_read() -> None:
    class Masked(Pieces):
        def __init__(self) -> None:
            super().__init__(lambda m, x: x)
            self.register_buffer("mask", torch.rand(4, 4, 3, 3), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(F.conv2d(x, self.wide.weight * self.mask, padding=1) + self.norm(x))

    model = Masked().double()
    fused, report = reparam_compiler.fuse(traced_as("export", model, (X,)), return_report=True)
    assert len(report.fusions) == 1
    assert relative_error(run(model, X), run(fused, X)) < EXACT


def test_in_place_keeps_the_object_and_gives_it_the_new_program() -> None:
    model, x = block("repvgg")
    program = traced_as("export", model, (x,))
    tensors = {id(tensor) for tensor in program.state_dict.values()}
    assert reparam_compiler.fuse(program, inplace=True) is program
    assert not {id(tensor) for tensor in program.state_dict.values()} & tensors
    assert relative_error(run(model, x), run(program, x)) < EXACT


def test_a_copy_shares_no_tensor_with_the_caller() -> None:
    model = Pieces(lambda m, x: torch.relu(m.norm(m.wide(x))) + torch.relu(m.point(x))).double()
    program = traced_as("export", model, (X,))
    fused = reparam_compiler.fuse(program)
    pointers = [{t.data_ptr() for t in p.state_dict.values()} for p in (program, fused)]
    assert not pointers[0] & pointers[1]


def test_a_program_with_nothing_to_fuse_is_an_equal_program() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU()).double()
    program = traced_as("export", model, (X,))
    fused, report = reparam_compiler.fuse(program, return_report=True)
    assert not report.fusions
    assert fused is not program
    assert str(fused.graph) == str(program.graph)
    assert torch.equal(run(fused, X), run(program, X))


def test_the_fake_value_of_a_new_call_has_the_shape_of_the_old() -> None:
    fused, _ = fuse_program(lambda m, x: m.norm(m.wide(x)))
    (returned,) = fused.graph.output_node().args
    assert tuple(returned[0].meta["val"].shape) == (2, 4, 6, 5)


def test_constraints_and_example_inputs_are_kept() -> None:
    model, x = block("repvgg")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    fused = reparam_compiler.fuse(program)
    assert fused.range_constraints == program.range_constraints
    assert torch.equal(fused.example_inputs[0][0], x)
    with pytest.raises((RuntimeError, AssertionError)):
        fused.module()(normal(65, 8, 9, 7))


def test_the_programs_own_example_inputs_are_what_the_whole_is_compared_on() -> None:
    model, x = block("repvgg")
    _, report = reparam_compiler.fuse(traced_as("export", model, (x,)), return_report=True)
    assert report.whole_model is not None
    assert report.whole_model.how == "torch, float64, the program's own example inputs"
    program = copy.copy(traced_as("export", model, (x,)))
    program._example_inputs = None
    _, report = reparam_compiler.fuse(program, return_report=True)
    assert report.whole_model is None


def test_the_tests_quick_way_of_decomposing_is_torchs_own() -> None:
    """The same kernels for every op while it is open, and none of them afterwards."""
    given, _ = torch.export.exported_program._split_decomp_table_to_cia_and_python_decomp({})

    def kernels() -> dict[Any, set[Any]]:
        return {op: {(key, getattr(kernel, "__qualname__", "")) for key, kernel in op.py_kernels.items()} for op in given}

    before, held = kernels(), {op: dict(op.py_kernels) for op in given}
    with quick_decompositions.torchs_override(given):
        expected = kernels()
    with quick_decompositions.override(given):
        found = kernels()
    assert len(given) > 400
    assert found == expected != before
    assert {op: dict(op.py_kernels) for op in given} == held
