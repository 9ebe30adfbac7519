"""Where no output is a finite number equal outputs prove nothing, and a report does not say that they do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam_compiler
from reparam_compiler.errors import UnsupportedModelError
from tests.support.onnx_models import exported
from tests.support.small_models import normal

X = normal(1, 3, 5, 4).float()
SAID = "no output holds a finite number on the inputs, so that equal outputs prove nothing"


class Branches(nn.Module):
    """Two convs that become one, and a third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c((self.a(x) + self.b(x)).relu())


class Rooted(nn.Module):
    """Gives NaN, whatever its weights are; with `data` it decides by its input, which no tracer takes."""

    def __init__(self, *, data: bool = False) -> None:
        super().__init__()
        self.block, self.data = Branches(), data

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(-x if self.data and bool(x.sum() > 0) else x)
        return torch.sqrt(-1 - y * y)


def given(kind: str, folder: Any) -> Any:
    model = Rooted(data=kind == "in parts").eval()
    if kind == "export":
        return torch.export.export(model, (X,))
    return exported(model, X, folder, dynamo=False, dynamic=False) if kind == "onnx" else model


@pytest.mark.parametrize("kind", ["module", "in parts", "export", "onnx"])
def test_fuse_does_not_say_that_the_whole_was_compared(kind: str, tmp_path: Any) -> None:
    _, report = reparam_compiler.fuse(given(kind, tmp_path), (X,), return_report=True)
    assert report.fusions
    assert report.whole_model is None
    assert report.not_compared == SAID
    assert f"the whole model was not compared: {SAID}" in report.to_text()


def test_prune_names_the_output_that_is_nan_everywhere() -> None:
    with pytest.raises(UnsupportedModelError, match="sqrt: on random inputs it is NaN everywhere"):
        reparam_compiler.prune(Rooted().eval(), (X,), ratio=0.5)
