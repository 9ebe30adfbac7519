"""What a run gives as tensors, of any dtype, and that the checks see a difference in each."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reparam_compiler import equivalent
from reparam_compiler.checking.compiled import _mismatch
from reparam_compiler.checking.runners import OnnxRunner, leaves
from reparam_compiler.checking.written import largest_difference

X = (torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),)


class Gives(nn.Module):
    """Gives what a function makes of its input."""

    def __init__(self, made: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: Tensor) -> object:
        """`N 3` to anything."""
        return self.made(x)


@pytest.mark.parametrize(
    ("one", "other", "max_abs"),
    [
        (lambda x: torch.complex(x, x), lambda x: torch.complex(x, 5 * x), None),
        (lambda x: 2**60 + 1 + 0 * x.long(), lambda x: 2**60 + 0 * x.long(), 1.0),
        (lambda x: x.isfinite(), lambda x: x.isnan(), 1.0),
        (lambda x: (x, 1 + 1j), lambda x: (x, 1 + 2j), 1.0),
    ],
    ids=["complex", "large integers", "bool", "a complex number"],
)
def test_models_that_differ_in_what_is_no_real_number_are_not_equal(
    one: Callable[[Tensor], object], other: Callable[[Tensor], object], max_abs: float | None
) -> None:
    assert equivalent(Gives(one).eval(), Gives(one).eval(), X)
    found = equivalent(Gives(one).eval(), Gives(other).eval(), X)
    assert not found
    assert max_abs is None or found.max_abs == max_abs


def test_an_index_that_is_off_by_one_is_no_rounding_of_a_coarse_dtype() -> None:
    """bfloat16 forgives 8e-3 of the largest value, which is 8 of 1000 classes."""

    def index(offset: int) -> nn.Module:
        module = Gives(lambda x: 999 - offset + 0 * x.long())
        module.register_buffer("scale", torch.ones(2, dtype=torch.bfloat16))
        return module.eval()

    assert equivalent(index(0), index(0), X).dtype == "float64"
    assert not equivalent(index(0), index(1), X)


def test_random_complex_inputs_are_tried() -> None:
    x = torch.randn(2, 3, dtype=torch.complex64)
    found = equivalent(Gives(lambda x: x * 2).eval(), Gives(lambda x: x + x).eval(), (x,))
    assert found
    assert found.tried == ("example inputs 2x3", "random inputs 2x3", "random inputs 3x3")
    phase = Gives(lambda z: z * (z.imag != x.imag).logical_not())
    assert not equivalent(Gives(lambda z: z).eval(), phase.eval(), (x,))


def test_numbers_and_arrays_of_any_kind_are_outputs() -> None:
    spectrum = np.ones(2, np.complex64)
    found = leaves({"whole": 3, "real": np.float32(2), "truth": True, "complex": 1j, "spectrum": spectrum, "none": None})
    assert {place: value.dtype for place, value in found.items()} == {
        "['whole']": torch.int64,
        "['real']": torch.float32,
        "['truth']": torch.bool,
        "['complex']": torch.complex128,
        "['spectrum']": torch.complex64,
    }


def test_texts_that_onnx_runtime_gives_are_compared() -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import helper

    def classifier(*classes: str) -> OnnxRunner:
        nodes = [
            helper.make_node("Constant", [], ["names"], value_strings=list(classes)),
            helper.make_node("Gather", ["names", "x"], ["y"]),
        ]
        inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.INT64, ["n"])]
        outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.STRING, ["n"])]
        model = helper.make_model(
            helper.make_graph(nodes, "classes", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )
        return OnnxRunner(model)

    index = [np.array([0, 2, 0])]
    given = classifier("cat", "dog", "cow").run(index)
    (value,) = given.values()
    assert value[0] == value[2] != value[1]
    assert largest_difference(given, classifier("cat", "fox", "cow").run(index)).max_abs == 0
    assert largest_difference(given, classifier("cat", "dog", "cows").run(index)).relative > 1


def test_the_element_that_is_furthest_off_is_named_in_its_own_dtype() -> None:
    specs: Any = [SimpleNamespace(name="y")]
    wrong = _mismatch({"": torch.tensor([1, 2**60 + 1])}, {"": torch.tensor([1, 2**60])}, specs, [1e-3])
    assert wrong is not None
    assert f"At (1,) {2**60} was found, {2**60 + 1} expected" in str(wrong)
    spectrum = {"": torch.tensor([1j, 2j])}
    wrong = _mismatch(spectrum, {"": torch.tensor([1j, 2 + 2j])}, specs, [1e-3])
    assert wrong is not None
    assert "At (1,) 2+2j was found, 0+2j expected" in str(wrong)
