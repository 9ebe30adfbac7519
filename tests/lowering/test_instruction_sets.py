"""Code for several instruction sets is one artifact, of which a machine takes what it runs best."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

import reparam_compiler
from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError, VerificationError
from reparam_compiler.lowering import build
from reparam_compiler.lowering.cpu.machine import missing_here, strength
from reparam_compiler.lowering.runtime.archive import read
from reparam_compiler.lowering.runtime.instruction_sets import best_here
from reparam_compiler.lowering.target import describe, resolve, resolve_all
from tests.support.tvmc_runs import tvmc, write_onnx

pytestmark = pytest.mark.tvm
NOT_YET = "diamondrapids"
"""A processor that is newer than the machines at hand."""
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 42, 5)).eval()


def image(samples: int = 1) -> torch.Tensor:
    return torch.randn(samples, 3, 7, 6, generator=torch.Generator().manual_seed(samples))


def cpus(target: Any) -> list[str]:
    return [str(one.attrs["mcpu"]) for one in resolve_all(target)]


LEVELS = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]


@pytest.mark.parametrize(
    "target",
    [
        "llvm -mcpu=x86-64-v2,x86-64-v3,x86-64-v4",
        "llvm -mcpu=x86-64-v2,v3,v4",
        "llvm -mcpu x86-64-v2,v3,v4,x86-64-v2 -num-cores 2",
        {"kind": "llvm", "mcpu": "x86-64-v2,v3,v4"},
        '{"kind": "llvm", "mcpu": "x86-64-v2,v3,v4"}',
        [f"llvm -mcpu={level}" for level in LEVELS],
        ("llvm -mcpu=x86-64-v2", resolve("llvm -mcpu=x86-64-v3"), {"kind": "llvm", "mcpu": "x86-64-v4"}),
    ],
)
def test_several_cpus_are_several_targets_each_once(target: Any) -> None:
    assert cpus(target) == LEVELS


def test_other_attributes_are_those_of_each() -> None:
    found = resolve_all("llvm -mcpu=x86-64-v2,znver3 -num-cores 2")
    assert [(str(one.attrs["mcpu"]), int(one.attrs["num-cores"])) for one in found] == [("x86-64-v2", 2), ("znver3", 2)]
    assert len(resolve_all("llvm -mcpu=native,x86-64-v2")) == 2


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("llvm -mcpu=x86-64-v2,x86-64-v33", "mcpu 'x86-64-v33' is unknown"),
        ("llvm -mcpu=znver3,v3", "mcpu 'v3' is unknown"),
        (["llvm", "cuda -arch=sm_80"], "found targets of the kinds cuda, llvm; an artifact is for one of them"),
        ([], r"target: found \[\]; expected"),
    ],
)
def test_what_is_no_list_of_targets_is_refused(target: Any, message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        resolve_all(target)


def test_a_search_is_for_one_target(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"found 2 targets \(x86-64-v2, x86-64-v3\); expected one here"):
        reparam_compiler.tune(net(), image(), target="llvm -mcpu=x86-64-v2,v3", database=tmp_path)


def test_levels_are_stronger_one_after_the_other_and_the_best_that_runs_is_taken() -> None:
    targets = resolve_all("llvm -mcpu=x86-64-v3,v4,v2")
    assert strength(targets[2]) < strength(targets[0]) < strength(targets[1])
    runnable = [place for place, target in enumerate(targets) if not missing_here(target)]
    assert best_here(targets) == max(runnable, key=[1, 2, 0].__getitem__)
    assert best_here([resolve(f"llvm -mcpu={NOT_YET}"), targets[2]]) == 1
    assert best_here([resolve(f"llvm -mcpu={NOT_YET}")]) == 0


@pytest.fixture(scope="module")
def compiled() -> lowering.Executable:
    return reparam_compiler.compile(net(), image(), target=f"llvm -mcpu={NOT_YET},x86-64,x86-64-v2", batches=(1, 2))


def test_every_variant_that_runs_here_is_verified(compiled: lowering.Executable) -> None:
    assert compiled.verified
    assert compiled.verification.endswith("; so it is for 2 of 3 targets, which run here")
    runnable = [one for one in map(compiled.taking, compiled.targets) if one.runs_here]
    assert [one.target for one in runnable] == [describe(resolve(f"llvm -mcpu={cpu}")) for cpu in ("x86-64-v2", "x86-64")]
    for one in runnable:
        np.testing.assert_allclose(one.run(image(3))[0], net()(image(3)).detach().numpy(), **FLOAT32)


def test_an_archive_holds_all_and_packs_the_weights_of_one(
    compiled: lowering.Executable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiled.save(tmp_path / "m.tar")
    with caplog.at_level(logging.INFO, "reparam_compiler"):
        loaded = lowering.load(tmp_path / "m.tar")
    assert "of the code for 3 targets that for" in caplog.text
    assert loaded.target == describe(resolve("llvm -mcpu=x86-64-v2"))
    assert set(loaded.targets) == set(compiled.targets)
    assert all(weight.value is not None for variant in loaded.variants for weight in variant.weights)
    assert all(weight.value is None for variant in loaded.others for weight in variant.weights)
    loaded.save(tmp_path / "again.tar")
    for name in ("m.tar", "again.tar"):
        assert len(read(tmp_path / name).libraries) == 6
        np.testing.assert_array_equal(lowering.load(tmp_path / name).run(image(3))[0], compiled.run(image(3))[0])
    assert loaded.clone(threads=1).targets == loaded.targets
    assert loaded.at(2).targets == (loaded.target,)


def test_code_that_was_not_loaded_and_targets_that_are_none_are_said(compiled: lowering.Executable, tmp_path: Path) -> None:
    compiled.save(tmp_path / "m.tar")
    loaded = lowering.load(tmp_path / "m.tar")
    with pytest.raises(LoweringError, match=r'the code for .*"x86-64"\} was not loaded, as the file has better'):
        loaded.taking(describe(resolve("llvm -mcpu=x86-64"))).run(image(1))
    with pytest.raises(LoweringError, match=r"target: found 'x86-64'; it was compiled for .*x86-64-v2"):
        loaded.taking("x86-64")


def test_further_instruction_sets_cost_an_archive_their_code_alone(tmp_path: Path) -> None:
    wide = nn.Linear(700, 700).eval()
    lowering.compile(wide, torch.zeros(1, 700), target="llvm -mcpu=x86-64-v2,v3,v4").save(tmp_path / "m.tar")
    assert (tmp_path / "m.tar").stat().st_size < 1.15 * sum(parameter.nbytes for parameter in wide.parameters())


def test_a_machine_that_runs_none_says_what_it_lacks_for_each(tmp_path: Path) -> None:
    compiled = lowering.compile(net(), image(), target=f"llvm -mcpu={NOT_YET},novalake")
    assert not compiled.runs_here
    compiled.save(tmp_path / "m.tar")
    with pytest.raises(LoweringError, match=r"m\.tar: the library in it cannot run here: this machine lacks .*avx10"):
        lowering.load(tmp_path / "m.tar")


def test_one_library_is_for_one_target(compiled: lowering.Executable, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"m\.so: found code for 3 targets; .*Write an archive, \.tar"):
        compiled.save(tmp_path / "m.so")
    compiled.taking(compiled.target).at(1).save(tmp_path / "m.so")
    assert lowering.load(tmp_path / "m.so").targets == (compiled.target,)


def test_a_wrong_kernel_of_a_weaker_set_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    other = net()
    with torch.no_grad():
        other[3].bias += 1
    wrong, build_as_ever = build.to_relax(other, image()), build.build

    def misbuilt(imported: Any, target: Any, *others: Any) -> Any:
        return build_as_ever(wrong if target.attrs["mcpu"] == "x86-64" else imported, target, *others)

    monkeypatch.setattr(build, "build", misbuilt)
    assert reparam_compiler.compile(net(), image(), target="llvm -mcpu=x86-64-v2").verified
    with pytest.raises(VerificationError):
        reparam_compiler.compile(net(), image(), target="llvm -mcpu=x86-64-v2,x86-64")


def test_the_command_line_says_which_was_taken(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", 1)
    done = tvmc("compile", path, "--target", "llvm -mcpu=x86-64,x86-64-v2", "-o", tmp_path / "m.tar")
    assert done.exit_code == 0, done.output
    assert done.stdout.count('"mcpu": "x86-64') == 2
    ran = tvmc("run", tmp_path / "m.tar")
    assert 'of code for 2 targets that for {"kind": "llvm", "mcpu": "x86-64-v2"}' in ran.stdout
    named = tvmc("compile", path, "--target-llvm-mcpu", "x86-64-v2,v3", "-o", tmp_path / "m.so")
    assert named.exit_code == 4
    assert "found code for 2 targets" in named.stderr
