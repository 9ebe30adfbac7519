"""The public functions do under inference mode what they do outside it, and leave the caller in it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import reparam_compiler
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


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.tvm
def test_compile_fuses_under_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    from reparam_compiler.api import compiling

    fused: list[int] = []
    fuse_source = compiling.fuse_source

    def counted(*given: Any, **named: Any) -> Any:
        result = fuse_source(*given, **named)
        fused.append(len(result[1].fusions))
        return result

    monkeypatch.setattr(compiling, "fuse_source", counted)
    monkeypatch.setattr("reparam_compiler.lowering.compile", lambda *given, **named: None)
    with torch.inference_mode():
        reparam_compiler.compile(net(), (X,), verify=False)
    assert fused == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_one_tensor_is_one_input(kind: str) -> None:
    model = KINDS[kind](net())
    for alone in (X, X.numpy()):
        assert "example inputs 2x3x9x7" in reparam_compiler.equivalent(model, model, alone).tried
