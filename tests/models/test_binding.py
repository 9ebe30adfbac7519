"""Sizes that a model does not have come from the first sample of its calibration data."""

from typing import Any

import numpy as np
import pytest
import torch
from onnx import parser
from torch import Tensor, fx, nn

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.models.binding import bound
from reparam_compiler.models.opening import open

DATA = torch.randn(5, 3, 6, 4, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Takes two tensors, and what it need not be given."""

    def forward(self, image: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        return image * mask * scale


def test_a_module_gets_the_first_sample_of_each_argument_that_it_needs() -> None:
    mask = torch.ones(5, 1, 6, 4)
    for data in ((DATA, mask), [(DATA, mask, torch.arange(5))], {"mask": mask, "image": DATA}):
        inputs = bound(open(Two()), data).inputs
        assert inputs is not None
        torch.testing.assert_close(list(inputs), [DATA[:1], mask[:1]])


def test_floats_get_the_dtype_of_the_weights() -> None:
    (x,) = bound(open(nn.Conv2d(3, 4, 1).half()), DATA).inputs or ()
    assert x.dtype == torch.float16
    (ids,) = bound(open(nn.Embedding(9, 4).half()), torch.arange(5)[:, None]).inputs or ()
    assert ids.dtype == torch.int64


def test_arrays_of_unequal_lengths_are_taken_whole() -> None:
    inputs = bound(open(Two()), [(DATA, torch.ones(6, 4))]).inputs or ()
    assert [tuple(x.shape) for x in inputs] == [(5, 3, 6, 4), (6, 4)]


def test_open_sizes_of_an_onnx_file_are_bound() -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[n,3,h,w] x) => (float[n,3,h,w] y) { y = Relu(x) }'
    source = bound(open(parser.parse_model(text)), DATA.numpy())
    assert source.graph["x"].type is not None
    assert source.graph["x"].type.shape == ("n", 3, 6, 4)


@pytest.mark.parametrize("model", [fx.symbolic_trace(nn.ReLU()), nn.ReLU()])
def test_given_inputs_stay(model: Any) -> None:
    given = (torch.ones(2, 2),)
    source = open(model, given)
    assert bound(source, DATA) is source


def test_known_sizes_need_none() -> None:
    source = open(torch.export.export(nn.ReLU(), (DATA,)))
    assert bound(source, DATA) is source


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_a_traced_module_of_torchscript_says_nothing_of_its_arguments() -> None:
    source = open(torch.jit.trace(nn.ReLU(), (DATA,)))
    assert bound(source, DATA) is source


def test_data_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="holds 1 arrays; the model has the inputs image, mask"):
        bound(open(Two()), np.zeros((4, 3)))
