"""The public functions do under inference mode and autocast what they do outside them, and leave the caller in them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import reparam_compiler
from reparam_compiler.errors import UnsupportedModelError
from tests.support.every_kind import DATA, KINDS, X, net

PRUNED: dict[str, Any] = {"ratio": 0.5, "calibration": DATA}
CALLS: dict[str, Callable[[Any], Any]] = {
    "fuse": lambda model: reparam_compiler.fuse(model, (X,)),
    "fuse in place": lambda model: reparam_compiler.fuse(model, (X,), inplace=True),
    "inspect": lambda model: reparam_compiler.inspect(model, (X,)).fusions[0],
    "prune": lambda model: reparam_compiler.prune(model, (X,), **PRUNED),
    "prune by gradient": lambda model: reparam_compiler.prune(model, (X,), importance="taylor", **PRUNED),
    "equivalent": lambda model: reparam_compiler.equivalent(model, model, (X,)).tried[0],
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("weights", ["ordinary", "made in it"])
def test_inference_mode_makes_no_difference(call: str, weights: str) -> None:
    with torch.inference_mode(weights == "made in it"):
        model = net()
    with torch.inference_mode():
        found = CALLS[call](model)
        assert torch.is_inference_mode_enabled()
    if isinstance(found, torch.nn.Module):
        assert not any(parameter.is_inference() for parameter in found.parameters()) or "place" in call
        assert {name: tuple(p.shape) for name, p in found.named_parameters()} == shapes(CALLS[call](net()))


@pytest.mark.parametrize("call", CALLS)
def test_autocast_makes_no_difference(call: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = CALLS[call](net())
        assert torch.is_autocast_enabled("cpu")
    outside = CALLS[call](net())
    if isinstance(found, torch.nn.Module):
        found, outside = (str({name: t.tolist() for name, t in m.state_dict().items()}) for m in (found, outside))
    assert found == outside


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.tvm
@pytest.mark.parametrize("mode", [torch.inference_mode, partial(torch.autocast, "cpu")])
def test_compile_fuses_whichever_mode_the_caller_is_in(
    mode: Callable[[], AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from reparam_compiler.api import compiling

    fused: list[int] = []
    modes: list[bool] = []
    fuse_source = compiling.fuse_source

    def counted(*given: Any, **named: Any) -> Any:
        result = fuse_source(*given, **named)
        fused.append(len(result[1].fusions))
        return result

    monkeypatch.setattr(compiling, "fuse_source", counted)
    monkeypatch.setattr(
        "reparam_compiler.lowering.compile", lambda *given, **named: modes.append(torch.is_autocast_enabled("cpu"))
    )
    with mode():
        reparam_compiler.compile(net(), (X,), verify=False)
    assert (fused, modes) == ([1], [False])


@pytest.mark.parametrize("kind", KINDS)
def test_one_tensor_is_one_input(kind: str) -> None:
    model = KINDS[kind](net())
    for alone in (X, X.numpy()):
        assert "example inputs 2x3x9x7" in reparam_compiler.equivalent(model, model, alone).tried


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_inputs_as_tensors_are(kind: str) -> None:
    model = KINDS[kind](net())
    for inputs in (X.numpy(), (X.numpy().astype(">f4"),)):
        fused, report = reparam_compiler.fuse(model, inputs, return_report=True)
        assert report.whole_model is not None
        assert reparam_compiler.equivalent(model, fused, inputs)
    assert reparam_compiler.inspect(model, (X.numpy(),)).fusions
    _, pruning = reparam_compiler.prune(model, X.numpy(), return_report=True, **PRUNED)
    assert pruning.before.params > pruning.after.params


def test_an_array_that_torch_has_no_dtype_for_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="does not run on inputs"):
        reparam_compiler.fuse(net(), (np.array(["text"]),))
