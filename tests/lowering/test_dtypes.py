"""TVM's torch importer gives convs and products float32 results; ours have the dtype of what goes in."""

import threading

import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

from tvm import relax

from reparam_compiler.lowering.importing.dtypes import own_dtypes
from reparam_compiler.lowering.importing.importer import to_relax

pytestmark = pytest.mark.tvm


def test_every_value_of_a_half_precision_model_is_half() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).half().eval()
    main = to_relax(model, torch.zeros(1, 3, 4, 4, dtype=torch.float16)).module["main"]
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    assert {str(b.var.ty.dtype) for b in bindings if isinstance(b.var.ty, relax.TensorType)} == {"float16"}


def test_the_importer_s_functions_are_given_back_where_two_threads_take_them() -> None:
    before, entered, left = relax.op.nn.conv2d, threading.Event(), threading.Event()

    def other() -> None:
        entered.set()
        with own_dtypes():
            left.wait(10)

    thread = threading.Thread(target=other)
    with own_dtypes():
        thread.start()
        entered.wait(10)
        thread.join(0.05)  # time for it to get in beside, were that possible
    left.set()
    thread.join(10)
    assert relax.op.nn.conv2d is before


def test_the_importer_s_functions_are_given_back() -> None:
    before = (relax.op.nn.conv2d, relax.op.linear_algebra.matmul)
    with pytest.raises(RuntimeError, match="inside"), own_dtypes():
        raise RuntimeError("inside")
    assert (relax.op.nn.conv2d, relax.op.linear_algebra.matmul) == before
