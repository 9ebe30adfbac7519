"""Every mode of padding has a word in torch and in ONNX, and is read back from it."""

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reparam_compiler.core.kernel import PaddingMode
from reparam_compiler.vocabulary.padding import FROM_ONNX_PAD, FROM_TORCH_PAD, ONNX_PAD, TORCH_PAD


@pytest.mark.parametrize("mode", get_args(PaddingMode))
def test_the_words_of_a_mode_mean_the_same_padding(mode: PaddingMode) -> None:
    """numpy's words are ONNX's."""
    x = torch.arange(6.0).reshape(1, 2, 3)
    expected = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (2, 1)), ONNX_PAD[mode]))
    torch.testing.assert_close(F.pad(x, (2, 1), TORCH_PAD[mode]), expected)
    assert FROM_TORCH_PAD[TORCH_PAD[mode]] == FROM_ONNX_PAD[ONNX_PAD[mode]] == mode


def test_every_mode_stands_in_each_table() -> None:
    assert (
        set(get_args(PaddingMode))
        == set(TORCH_PAD)
        == set(ONNX_PAD)
        == set(FROM_TORCH_PAD.values())
        == set(FROM_ONNX_PAD.values())
    )
