"""What a caller may set of TVM's passes is checked before anything is compiled."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

import tvm
from tvm.ir.transform import module_pass

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.cpu.backend import CpuBackend
from reparam_compiler.lowering.options import CompileOptions, Watch, all_sources

pytestmark = pytest.mark.tvm
GRAPHS = "relax.backend.use_cuda_graph"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CompileOptions(opt_level=4), "opt_level: found 4; expected 0 to 3"),
        (CompileOptions(max_error=-1.0), "max_error: found -1.0"),
        (CompileOptions(sources=("relax", "wasm")), "sources: found wasm; expected some of relax, tir, ll, asm, cu"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: CompileOptions, message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        options.check()


def test_a_text_is_one_name_and_not_its_letters() -> None:
    options = CompileOptions(disabled_passes="FoldConstant", sources="tir", before="FuseOps", after=["One", "Two"])
    assert (options.disabled_passes, options.sources, options.before) == (("FoldConstant",), ("tir",), ("FuseOps",))
    assert options.after == ("One", "Two")
    watch = Watch(options)
    watch.started("Fuse", tvm.IRModule({}))  # a part of the text
    assert not watch.listings
    for names in (3, (3,), None):
        with pytest.raises(LoweringError, match=r"disabled_passes: found .*; expected names of passes or listings"):
            CompileOptions(disabled_passes=names)  # type: ignore[arg-type]


CHANGES_CODE = "tirx.CommonSubexprElim"
"""Among the idle passes the one whose work LLVM does in another order."""


def test_idle_passes_are_passes_of_tvm_and_but_for_one_the_machine_code_is_the_same_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle = CpuBackend.idle_passes
    net = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1), nn.Hardswish(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(784, 3)
    ).eval()
    options, listings = CompileOptions(sources="asm", pass_times=True), []
    for left_out in ((), [name for name in idle if name != CHANGES_CODE]):
        monkeypatch.setattr(CpuBackend, "idle_passes", left_out)
        listings.append(lowering.compile(net, torch.zeros(1, 16, 14, 14), options=options).listings)
    every, fewer = listings
    assert [name for name in idle if name not in every["pass times"]] == []
    assert "tirx.RemoveNoOp" not in fewer["pass times"]
    assert every["asm"] == fewer["asm"]


def test_disabled_passes_are_left_out_and_those_that_never_came_are_named(caplog: pytest.LogCaptureFixture) -> None:
    options = CompileOptions(disabled_passes=("One", "NoSuchPass", "Tw"))
    ran: list[str] = []
    watch = Watch(options)
    with options.context(watch):
        for name in ("One", "Two"):
            module_pass(lambda module, _, name=name: (ran.append(name), module)[1], opt_level=0, name=name)(tvm.IRModule({}))
    with caplog.at_level(logging.WARNING, "reparam_compiler"):
        watch.finished()
    assert ran == ["Two"]
    assert caplog.messages == ["pass NoSuchPass did not run", "pass Tw did not run; near it are Two"]


@pytest.mark.parametrize(("text", "value"), [("1", True), ("false", False), (True, True), ("0", False)])
def test_a_pass_setting_is_read_as_tvm_wants_it(text: object, value: bool) -> None:
    options = CompileOptions(pass_config={GRAPHS: text})
    assert bool(options.context(Watch(options)).config[GRAPHS]) == value


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"relax.backend.use_cuda_grap": "1"}, "does not know 'relax.backend.use_cuda_grap'; near it are .*use_cuda_graph"),
        ({GRAPHS: "yes"}, "found relax.backend.use_cuda_graph='yes'; TVM expects a value of type"),
    ],
)
def test_a_pass_setting_that_tvm_does_not_have_is_refused(config: dict[str, str], message: str) -> None:
    options = CompileOptions(pass_config=config)
    with pytest.raises(LoweringError, match=message):
        options.check()


def test_a_watch_keeps_the_texts_and_times_that_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    options = CompileOptions(before=("One", "Tw"), after=("One",), pass_times=True)
    watch, module = Watch(options), tvm.IRModule({})
    for name in ("One", "Two", "One"):
        watch.started(name, module)
        watch.ended(name, module)
    with caplog.at_level(logging.WARNING, "reparam_compiler"):
        listings = watch.finished()
    assert set(listings) == {"before One", "after One", "pass times"}
    assert listings["before One"].count(module.script()) == 2
    assert [line.split()[-1] for line in listings["pass times"].splitlines()] == ["One", "Two", "One"]
    assert "pass Tw did not run; near it are" in caplog.text


def test_the_advice_blames_no_one_wrongly() -> None:
    assert "limit of TVM or a defect of this package" in CompileOptions().advice
    assert "should compile" not in CompileOptions().advice
    assert "without disabled passes" in CompileOptions(disabled_passes=("FuseOps",)).advice


def test_code_is_listed_for_every_kind_of_target() -> None:
    assert {"relax", "tir", "asm", "cu"} <= set(all_sources())


@pytest.mark.parametrize("checked", [False, True])
def test_kernels_check_nothing_unless_that_is_asked_for_and_the_model_what_it_is_given(checked: bool) -> None:
    options = CompileOptions(sources="ll", pass_config={"tirx.disable_assert": False} if checked else {})
    compiled = lowering.compile(nn.ReLU().eval(), torch.zeros(2, 3), options=options)
    assert ("Mismatched" in compiled.listings["ll"]) == checked
    for wrong in (np.zeros((2, 4), "float32"), np.zeros((2, 3), "float64"), np.zeros((2, 3, 1), "float32")):
        with pytest.raises((RuntimeError, ValueError), match="fn=main"):
            compiled.with_machine(lambda machine, *_, wrong=wrong: machine["main"](tvm.runtime.tensor(wrong)))
