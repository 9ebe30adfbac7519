"""`compile` runs what it made beside the model that it was given, and raises where they differ."""

import logging
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("tvm")

import reparam_compiler
from reparam_compiler import lowering
from reparam_compiler.checking.compiled import verify_compiled
from reparam_compiler.errors import VerificationError
from reparam_compiler.lowering import Executable
from tests.support.called import Called
from tests.support.tvmc_runs import tvmc

pytestmark = pytest.mark.tvm
X = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))


def called(function: Callable[..., Any]) -> nn.Module:
    return Called(function).eval()


def exported(model: nn.Module, x: Tensor = X) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        return torch.export.export(model, (x,))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1)).eval()


def other(executable: Executable, change: Callable[[np.ndarray], Any]) -> Any:
    """An Executable that gives something else."""

    class Changed:
        inputs, outputs, kernels, runs_here = executable.inputs, executable.outputs, executable.kernels, True

        def run(self, *arrays: Any) -> Any:
            return change(executable.run(*arrays)[0])

    return Changed()


Function = Callable[[Tensor], Tensor]
MISREAD: dict[str, tuple[Function, Function]] = {
    "selu": (lambda x: F.selu(x * 3), lambda x: F.elu(x * 3)),
    "interpolate": (lambda x: F.interpolate(x, size=(13, 10)), lambda x: F.interpolate(x, size=(13, 10), mode="bilinear")),
    "divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), lambda x: F.avg_pool2d(x, 2)),
}
"""What a model computes, and what an importer takes it for."""


# whether it is fused first has nothing to do with what is misread: one of them says so for all
@pytest.mark.parametrize(("fuse", "name"), [*((False, name) for name in MISREAD), (True, "selu")])
def test_what_is_misread_is_an_error_and_compiles_without_verify(
    name: str, fuse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reparam_compiler.lowering import build

    computed, taken = MISREAD[name]
    model, import_as_it_is = called(computed), build.to_relax
    monkeypatch.setattr(build, "to_relax", lambda _, *given, **named: import_as_it_is(called(taken), *given, **named))
    with pytest.raises(VerificationError, match=r"At \(.*\) .* was found, .* expected\. .*verify=False"):
        reparam_compiler.compile(model, X, fuse=fuse)
    found = reparam_compiler.compile(model, X, fuse=fuse, verify=False).run(X)[0]
    assert np.abs(found - model(X).numpy()).max() > 0.1


@pytest.fixture
def misread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The importer takes every model for one with a hundredth more in each conv's bias."""
    from reparam_compiler.lowering import build

    def to_relax(model: Any, *arguments: Any, **named: Any) -> Any:
        changed = net()
        changed[3].bias.data += 0.01
        return build_to_relax(exported(changed) if not isinstance(model, nn.Module) else changed, *arguments, **named)

    build_to_relax = build.to_relax
    monkeypatch.setattr(build, "to_relax", to_relax)


@pytest.fixture(scope="module")
def right() -> Executable:
    """`net`, compiled."""
    return lowering.compile(net(), X)


@pytest.fixture(scope="module")
def wrong() -> Executable:
    """`net` with a hundredth more in a bias, compiled."""
    changed = net()
    changed[3].bias.data += 0.01
    return lowering.compile(changed, X)


@pytest.fixture
def miscompiled(monkeypatch: pytest.MonkeyPatch, wrong: Executable) -> None:
    """The code of every model is that of another."""
    monkeypatch.setattr("reparam_compiler.lowering.build.compile", lambda *_, **__: wrong)


def as_onnx(model: nn.Module, path: Path) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of the older exporter
        torch.onnx.export(model, (X,), path, dynamo=False, input_names=["input"], training=torch.onnx.TrainingMode.PRESERVE)
    return path


def of_kind(kind: str, folder: Path) -> Any:
    if kind == "module":
        return net()
    if kind == "graph module":
        return torch.fx.symbolic_trace(net())
    if kind == "program":
        return exported(net())
    path = as_onnx(net(), folder / "m.onnx")
    if kind == "path":
        return path
    import onnx

    return onnx.load(path)


@pytest.mark.parametrize("kind", ["module", "graph module", "program", "path", "proto"])
def test_every_kind_is_compared_with_its_own_runtime(
    kind: str, tmp_path: Path, right: Executable, wrong: Executable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, zeros = of_kind(kind, tmp_path), (torch.zeros_like(X),)
    loaded = of_kind("proto", tmp_path) if kind == "path" else model
    code = {"made": wrong}
    monkeypatch.setattr("reparam_compiler.lowering.build.compile", lambda *_, **__: code["made"])
    with pytest.raises(VerificationError, match=r"the compiled model differs by 0\.01"):
        reparam_compiler.compile(model, (X,))
    with pytest.raises(VerificationError, match=r"the compiled model differs by 0\.01"):
        verify_compiled(wrong, loaded, zeros)
    code["made"] = right
    made = reparam_compiler.compile(model, (X,))
    assert (made.verified, right.verified) == (True, False)
    assert made.verification.startswith("one run gives what the model gives in ")
    assert verify_compiled(right, loaded, zeros).compared


def test_program_and_proto_are_compared_without_inputs(tmp_path: Path, misread: None) -> None:
    for kind in ("program", "path"):
        with pytest.raises(VerificationError):
            reparam_compiler.compile(of_kind(kind, tmp_path))


def test_program_of_keyword_inputs_is_called_by_them() -> None:
    class Keywords(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
            return x.relu() * scale

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        program = torch.export.export(Keywords().eval(), (X,), {"scale": torch.full((6,), 3.0)})
    compiled = reparam_compiler.compile(program)
    with pytest.raises(VerificationError):
        verify_compiled(other(compiled, lambda array: [array + 1]), program, None)
    verify_compiled(compiled, program, None)


@pytest.fixture(scope="module")
def compiled() -> Executable:
    return reparam_compiler.compile(called(lambda x: torch.log(x)), X)  # NaN where x < 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: [array, array], "outputs: .* 2 outputs were found, 1 expected"),
        (lambda array: [array[:1]], r"the shape \(1, 3, 8, 6\) was found, \(2, 3, 8, 6\) expected"),
        (lambda array: [array.astype("int64")], "the dtype int64 was found, float32 expected"),
        (lambda array: [array.astype("float64")], "the dtype float64 was found, float32 expected"),
        (lambda array: [np.nan_to_num(array)], "differs by inf.* 0 was found, nan expected"),
        (lambda array: [np.where(np.isnan(array), np.inf, array)], "differs by inf.* inf was found, nan expected"),
        (lambda array: [array * 1.002], "the compiled model differs by"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_what_is_wrong_is_named(compiled: Executable, change: Any, message: str) -> None:
    model = called(torch.log)
    with pytest.raises(VerificationError, match=message):
        verify_compiled(other(compiled, change), model, (X,))
    verify_compiled(other(compiled, lambda array: [array * 1.0005]), model, (X,))


def test_integers_and_bools_must_be_equal() -> None:
    for function in (lambda x: x.argmax(1), lambda x: x > 0):
        made, model = reparam_compiler.compile(called(function), X), called(function)
        with pytest.raises(VerificationError, match="at most 0 was expected"):
            verify_compiled(
                other(made, lambda array: [np.where(np.arange(6) == 2, 1 - array, array).astype(array.dtype)]), model, (X,)
            )


def test_error_that_a_layer_may_have_widens_the_tolerance(compiled: Executable) -> None:
    changed, model = other(compiled, lambda array: [array * 1.005]), called(torch.log)
    verify_compiled(changed, model, (X,), max_error=1e-3)
    with pytest.raises(VerificationError):
        verify_compiled(changed, model, (X,), max_error=1e-4)


def test_half_precision_has_its_own_tolerance() -> None:
    x, model = X.half(), called(lambda x: x * 3).half()
    compiled = reparam_compiler.compile(model, x)
    verify_compiled(other(compiled, lambda array: [array * np.float16(1.01)]), model, (x,))
    with pytest.raises(VerificationError):
        verify_compiled(other(compiled, lambda array: [array * np.float16(1.05)]), model, (x,))


def test_random_model_is_not_compared_and_that_is_said(compiled: Executable, caplog: pytest.LogCaptureFixture) -> None:
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, "reparam_compiler"):
        verify_compiled(compiled, called(lambda x: x + torch.rand_like(x)), (X,))
    assert "with the model: two runs of it differ" in caplog.text
    assert torch.equal(torch.get_rng_state(), state)


def test_model_that_does_not_run_is_not_compared_and_that_is_said(
    compiled: Executable, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(x: Tensor) -> Tensor:
        raise KeyError("no such thing")

    with caplog.at_level(logging.WARNING, "reparam_compiler"):
        verdict = verify_compiled(compiled, called(refuse), (X,))
    assert (verdict.compared, verdict.words) == (False, "it does not run here: KeyError: 'no such thing'")
    assert "Called is compiled, and was not compared with the model: it does not run here: KeyError" in caplog.text


def test_without_onnx_runtime_it_is_compiled_and_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, miscompiled: None
) -> None:
    path = as_onnx(net(), tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "reparam_compiler.frontends.onnx.frontend", None)
    with caplog.at_level(logging.INFO, "reparam_compiler"):
        reparam_compiler.compile(path, fuse=False)
    assert "m.onnx is compiled, and was not compared with the model: import of" in caplog.text


FOREIGN = ["llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76", "llvm -mtriple=riscv64-linux-gnu"]


@pytest.mark.parametrize("target", FOREIGN)
def test_what_was_imported_for_another_machine_is_compared_here(target: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "reparam_compiler"):
        made = reparam_compiler.compile(net(), X, target=target)
    here = "its code does not run here; the same import, compiled for this machine, was compared: one run gives what"
    assert (made.verified, made.runs_here, made.verification.startswith(here)) == (False, False, True)
    assert here in caplog.text


def test_what_is_misread_for_another_machine_is_an_error(misread: None) -> None:
    with pytest.raises(VerificationError, match="the same import, compiled for this machine, differs by"):
        reparam_compiler.compile(net(), X, target=FOREIGN[0])
    assert reparam_compiler.compile(net(), X, target=FOREIGN[0], verify=False).verification == "it was not asked for"


def test_code_that_does_not_run_here_is_not_compared_by_itself() -> None:
    verdict = verify_compiled(lowering.compile(net(), X, target=FOREIGN[0]), net(), (X,))
    assert (verdict.compared, verdict.words) == (False, "it is compiled for another machine or device")


class Counting(nn.Module):
    """A forward that changes the model and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 4, 1), 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        return self.conv(x.mul_(2))


def test_caller_s_model_and_inputs_are_left_alone_and_weights_are_shared() -> None:
    compiled, model, x = reparam_compiler.compile(nn.Conv2d(3, 4, 1).eval(), X, verify=False), Counting().eval(), X.clone()
    held: list[bool] = []
    model.conv.register_forward_hook(lambda module, *_: held.append(module.weight is model.conv.weight))
    with pytest.raises(VerificationError):
        verify_compiled(compiled, model, (x,))
    assert torch.equal(x, X)
    assert (model.calls, float(model.seen)) == (0, 0.0)
    assert held[:2] == [True, True]  # the copies that rounding is measured with have weights of their own


def test_error_survives_a_pickle() -> None:
    error = VerificationError("scores", 1.0, 0.5, "something", "the compiled model")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.node, again.max_abs_err) == (str(error), "scores", 1.0)


def test_command_verifies_unless_it_is_told_not_to(tmp_path: Path, miscompiled: None) -> None:
    path = as_onnx(net(), tmp_path / "m.onnx")
    words = ("compile", path, "-o", tmp_path / "m.tar")
    done = tvmc(*words)
    assert (done.exit_code, (tmp_path / "m.tar").exists()) == (7, False)
    assert "--no-verify" in done.stderr
    assert tvmc(*words, "--no-verify").exit_code == 0


@pytest.fixture(scope="module")
def normed() -> tuple[Executable, nn.Module]:
    """A net that ends in a norm, and its code."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8)).eval()
    return lowering.compile(model, X), model


@pytest.fixture(scope="module")
def misdivided() -> tuple[Executable, nn.Module]:
    """What is misread, and its code."""
    computed, taken = MISREAD["divisor"]
    return lowering.compile(called(taken), X), called(computed)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_inputs_of_one_number_vary(
    value: float, normed: tuple[Executable, nn.Module], misdivided: tuple[Executable, nn.Module]
) -> None:
    """A norm makes rounding of them, which no two runtimes share; and zeros hide what an op does."""
    x = torch.full_like(X, value)
    verify_compiled(*normed, (x,))
    with pytest.raises(VerificationError):
        verify_compiled(*misdivided, (x,))
    assert torch.equal(x, torch.full_like(X, value))


def test_bfloat16_is_not_compared_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "reparam_compiler"):
        reparam_compiler.compile(nn.Conv2d(3, 4, 1).eval().bfloat16(), torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16))
    assert "input is of bfloat16, which numpy does not have" in caplog.text


class Logits(nn.Module):
    """A sigmoid of a convolution, its logits moved to where it is saturated: below 0 or above it by this much and more."""

    def __init__(self, gain: float, at: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.conv.weight.data *= gain
        logits = self.conv(X).detach()
        self.shift = float(at - (logits.max() if at < 0 else logits.min()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(x) + self.shift)


@pytest.mark.parametrize(("gain", "at", "wrong"), [(3000.0, -9.0, 1e-3), (0.5, 9.0, 0.1)])
def test_saturated_output_is_compared_by_what_rounding_moves_it(gain: float, at: float, wrong: float) -> None:
    """Near 0 rounding of the logits is more than a thousandth of the output; near 1 nearly everything is less."""
    model = Logits(gain, at).eval()
    compiled = reparam_compiler.compile(model, X)
    assert compiled.verified
    with torch.no_grad():
        logits = model.conv(X).double()

    def moved(by: float) -> Executable:
        """Its code, with logits that are off by this much of themselves."""
        return other(compiled, lambda _: [torch.sigmoid(logits * (1 + by) + model.shift).float().numpy()])

    assert verify_compiled(moved(5e-7), model, (X,)).compared
    with pytest.raises(VerificationError):
        verify_compiled(moved(wrong), model, (X,))


def test_outputs_that_tell_nothing_are_named() -> None:
    compiled, model = reparam_compiler.compile(called(lambda x: torch.sigmoid(x + 100)), X), called(torch.ones_like)
    assert compiled.verification.endswith("each of its outputs is of one number there, which tells little")
    chaotic = called(lambda x: torch.sin(x * 1e8))
    verdict = verify_compiled(other(compiled, lambda array: [np.sin(array * 0 + 0.3)]), chaotic, (X,))
    assert not verdict.compared
    assert verdict.words.startswith("rounding moves its outputs by as much as they differ")
    assert verify_compiled(compiled, model, (X,)).compared
