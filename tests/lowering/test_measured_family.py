"""A CPU that none are shipped for is measured once, and kept; a known one never."""

import functools
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("tvm")

from tvm.target import Target

from reparam_compiler import lowering
from reparam_compiler.core.files import cache_folder
from reparam_compiler.lowering.backends import backend_for
from reparam_compiler.lowering.conv.choice import candidates, cycles
from reparam_compiler.lowering.cpu import families, measured_family
from reparam_compiler.lowering.cpu.families import FAMILIES, GOLDEN_COVE, KIB, ZEN3, ZEN4, Costs, CpuFamily, usable
from reparam_compiler.lowering.cpu.fitting import fitted
from reparam_compiler.lowering.cpu.machine import VectorUnit, native
from reparam_compiler.lowering.cpu.measured_family import LAYERS, family_for, kernels, measure_now
from reparam_compiler.lowering.cpu.timing import Kernel, Seconds, least_seconds
from reparam_compiler.lowering.target import resolve
from tests.support.tvmc_runs import tvmc

pytestmark = pytest.mark.tvm
HERTZ = 3e9
UNIT = VectorUnit(64, 32, 1, l2_bytes=1024 * KIB, costs=ZEN4)
FOUND = CpuFamily(("found",), 1024 * KIB, GOLDEN_COVE, origin="measured")


def as_if(costs: Costs, asked: Sequence[Kernel], unit: VectorUnit = UNIT) -> Seconds:
    """What kernels take on a machine that does what the model says."""
    return {kernel: cycles(*kernel, replace(unit, costs=costs)) / HERTZ for kernel in asked}


@settings(max_examples=6)  # each is three fits, of a tenth of a second
@given(factors=st.tuples(*[st.floats(0.5, 2.0)] * 6), base=st.sampled_from([ZEN3, GOLDEN_COVE]))
def test_costs_are_recovered_from_the_times_that_they_make(factors: tuple[float, ...], base: Costs) -> None:
    true = Costs(*np.multiply(factors, astuple(base)).tolist())
    times = as_if(true, kernels(UNIT))
    found = fitted(times, UNIT, HERTZ, [ZEN4, ZEN3, GOLDEN_COVE])
    # a constant that takes a small part of the time is not told from the others: the times are, of 122 drawn all to 6.2 %
    assert as_if(found, kernels(UNIT)) == pytest.approx(times, rel=0.08)
    assert found.cold_bytes == pytest.approx(true.cold_bytes, rel=0.1)
    assert found.spill == pytest.approx(true.spill, rel=0.35)
    machine, fit = replace(UNIT, costs=true), replace(UNIT, costs=found)
    taken = [cycles(shape, candidates(shape, fit)[0], machine) for shape in LAYERS]
    best = [cycles(shape, candidates(shape, machine)[0], machine) for shape in LAYERS]
    assert sum(taken) <= 1.05 * sum(best)  # of the same 122 all to 3.5 %


def test_a_constant_that_nothing_depends_on_stays_where_it_began() -> None:
    pointwise = [kernel for kernel in kernels(UNIT) if kernel[0].pointwise]
    found = fitted(as_if(GOLDEN_COVE, pointwise), UNIT, HERTZ, [ZEN4])
    assert found.transform == pytest.approx(ZEN4.transform)
    assert found.load > 1.2 * ZEN4.load


def test_few_kernels_cover_what_the_constants_are_about() -> None:
    asked = kernels(UNIT)
    assert len(asked) == len(set(asked)) <= 35
    assert {str(form) for _, form in asked} == {"direct", "winograd 2x2", "winograd 4x4"}
    spilling = [form for shape, form in asked if not form.block and replace(form, block=8) != form and shape.kernel == (3, 3)]
    assert len(spilling) > 5
    assert any(form.block for _, form in asked)


def test_kernels_are_timed_here() -> None:
    target = resolve(None)
    unit = replace(backend_for(target).tuning().unit, threads=1)  # type: ignore[union-attr]
    few = [kernel for kernel in kernels(unit) if kernel[0].pointwise][:2]
    found = least_seconds(few, target, unit, rounds=1, arena=2_000_000)
    assert list(found) == few
    assert all(1e-6 < seconds < 1 for seconds in found.values())


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Target:
    """This machine, of which nothing is known, with an empty cache and a clock of `HERTZ`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(families, "FAMILIES", tuple(f for f in FAMILIES if native()["mcpu"] not in f.cpus))
    monkeypatch.setattr(measured_family, "measure_clock", lambda target: HERTZ)
    lanes = backend_for(resolve(None)).tuning().unit.lanes("float32")  # type: ignore[union-attr]
    monkeypatch.setattr(measured_family, "measure_peak", lambda target, threads: 2 * 2 * lanes * HERTZ)
    monkeypatch.setattr(measured_family, "_KNOWN", {})
    monkeypatch.setattr(measured_family, "fitted", fitted_once)
    return resolve(None)


def fitted_once(seconds: Seconds, unit: VectorUnit, hertz: float, starts: Sequence[Costs]) -> Costs:
    """What `fitted` gives; the same times are fitted once for all tests."""
    return _fitted(tuple(seconds.items()), unit, hertz, tuple(starts))


@functools.cache
def _fitted(seconds: tuple[tuple[Kernel, float], ...], unit: VectorUnit, hertz: float, starts: tuple[Costs, ...]) -> Costs:
    return fitted(dict(seconds), unit, hertz, starts)


class Timer:
    """Times that `costs` make, and how often they were asked for."""

    def __init__(self, costs: Costs = GOLDEN_COVE) -> None:
        self.costs, self.asked = costs, 0

    def __call__(self, asked: Sequence[Kernel], target: Target, unit: VectorUnit) -> Seconds:
        self.asked += 1
        return as_if(self.costs, asked, unit)


def file() -> Path:
    (found,) = cache_folder().glob("*.json")
    return found


def forget() -> None:
    """As a new process begins."""
    measured_family._KNOWN.clear()


def test_an_unknown_cpu_is_measured_once_and_kept(target: Target, caplog: pytest.LogCaptureFixture) -> None:
    timer = Timer()
    first = family_for(target, measure=True, timer=timer)
    assert (first.origin, first.fmas, first.cpus) == ("measured", 2, (native()["mcpu"],))
    assert first.costs.cold_bytes == pytest.approx(GOLDEN_COVE.cold_bytes, rel=0.15)
    assert "is measured once" in caplog.text
    forget()
    assert family_for(target, measure=True, timer=timer) == first
    assert timer.asked == 1
    assert sorted(path.suffix for path in cache_folder().iterdir()) == [".json", ".lock"]


def test_a_fast_core_is_told_from_a_slow_one(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_family, "measure_clock", lambda target: 2 * HERTZ)
    assert measure_now(target, Timer()).fmas == 1


def test_what_is_asked_for_is_measured_anew_and_replaces_what_was_kept(target: Target) -> None:
    family_for(target, measure=True, timer=Timer(GOLDEN_COVE))
    anew = measure_now(target, Timer(ZEN3))
    assert anew.costs.spill > 0.5
    assert family_for(target, measure=True, timer=Timer(GOLDEN_COVE)) == anew
    forget()
    assert family_for(target, measure=True, timer=Timer(GOLDEN_COVE)) == anew


DAMAGE = {
    "torn": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "no text": lambda text: "\x80\x00",
    "a list": lambda text: "[]",
    "foreign": lambda text: json.dumps({"cpu": "znver3", "load": 1}),
    "another program": lambda text: _changed(text, magic="something else"),
    "another version": lambda text: _changed(text, model=0),
    "another cpu": lambda text: _changed(text, processor="another"),
    "other vectors": lambda text: _changed(text, vector_bytes=128),
    "a cost of 0": lambda text: _changed(text, costs={**json.loads(text)["costs"], "spill": 0}),
    "no number": lambda text: _changed(text, costs={**json.loads(text)["costs"], "load": float("nan")}),
    "a word": lambda text: _changed(text, costs={**json.loads(text)["costs"], "load": "much"}),
    "a cost less": lambda text: _changed(text, costs={"load": 1.0}),
    "half a unit": lambda text: _changed(text, fmas=0.5),
}


def _changed(text: str, **changes: Any) -> str:
    return json.dumps(json.loads(text) | changes)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_no_measurement_of_this_machine_is_ignored_in_a_line(
    damage: str, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    timer = Timer()
    first = family_for(target, measure=True, timer=timer)
    whole = file().read_text()
    file().write_text(DAMAGE[damage](whole), encoding="latin-1")
    forget()
    caplog.clear()
    assert family_for(target, measure=True, timer=timer) == first
    assert timer.asked == 2
    assert len([record for record in caplog.records if "is ignored" in record.message]) == 2  # before and after waiting
    assert file().read_text() == whole


def test_a_folder_that_cannot_be_written_costs_a_line_and_nothing_else(
    target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    timer = Timer()
    assert family_for(target, measure=True, timer=timer) == family_for(target, measure=True, timer=timer)
    assert timer.asked == 1
    assert len([record for record in caplog.records if "not kept" in record.message]) == 1


def test_threads_wait_for_the_one_that_measures(target: Target) -> None:
    timer, found = Timer(), list[CpuFamily]()
    threads = [threading.Thread(target=lambda: found.append(family_for(target, measure=True, timer=timer))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert timer.asked == 1
    assert len(set(found)) == 1


PROCESS = """
import sys, time
from pathlib import Path
from reparam_compiler.lowering.cpu import families, measured_family
from reparam_compiler.lowering.cpu.families import GOLDEN_COVE, CpuFamily
from reparam_compiler.lowering.target import resolve

def measured(target, timer):
    with Path(sys.argv[1]).open("a") as file:
        file.write("measured\\n")
    time.sleep(float(sys.argv[2]))
    return CpuFamily((str(target.attrs["mcpu"]),), 1 << 20, GOLDEN_COVE, 2, "measured")

families.FAMILIES = ()
measured_family.measured = measured
print(measured_family.family_for(resolve(None), measure=True))
"""


def test_of_two_processes_one_measures_and_the_other_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = [sys.executable, "-c", PROCESS, str(tmp_path / "log"), "3"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert said[0] == said[1] != ""
    assert (tmp_path / "log").read_text() == "measured\n"


def test_a_known_family_is_never_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any) -> Seconds:
        raise AssertionError("measured")

    for cpu, costs in (("znver3", ZEN3), ("znver4", ZEN4), ("emeraldrapids", GOLDEN_COVE)):
        target = resolve(f"llvm -mtriple=x86_64-linux-gnu -mcpu={cpu}")
        monkeypatch.setattr(measured_family, "is_native", lambda target: True)
        found = family_for(target, measure=True, timer=refused)
        assert (found.origin, found.costs) == ("shipped", costs)


@pytest.mark.parametrize(
    ("text", "costs"),
    [
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76", families.NEON),
        ("llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64-v4", GOLDEN_COVE),
        ("llvm -mtriple=x86_64-linux-gnu -mcpu=haswell", ZEN3),
    ],
)
def test_a_cpu_elsewhere_borrows_and_says_so(text: str, costs: Costs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    backend = backend_for(resolve(text)).settled(measure=True)
    assert backend.chosen_by.startswith(f"costs borrowed for {backend.target.attrs['mcpu']}: load={costs.load:.3g}, ")
    assert f"no costs of the cpu {backend.target.attrs['mcpu']} are known" in caplog.text


def test_half_rate_units_are_those_of_the_widest_vectors() -> None:
    assert [families.family_of("znver4", width, arm=False).fmas for width in (64, 32)] == [1, 2]


@pytest.mark.parametrize(("size", "used"), [(256, 256), (512, 512), (768, 512), (1024, 512), (1280, 640), (2048, 1024)])
def test_of_a_cache_half_is_used_or_512_kib(size: int, used: int) -> None:
    assert usable(size * KIB) == used * KIB


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x))


def test_an_artifact_says_what_its_kernels_were_chosen_by(
    target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measured_family, "measured", lambda target, timer: FOUND)
    made = lowering.compile(Net().eval(), torch.zeros(1, 8, 12, 12))
    assert made.variants[0].chosen_by == f"costs {FOUND}"
    for name in ("m.tar", "m.so"):
        made.save(tmp_path / name)
        assert lowering.load(tmp_path / name).variants[0].chosen_by == f"costs {FOUND}"


def test_a_compilation_that_shall_not_measure_borrows_though_a_measurement_is_kept(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured_family, "measured", lambda target, timer: FOUND)
    lowering.measure_cpu()
    options = lowering.CompileOptions(measure=False)
    made = lowering.compile(Net().eval(), torch.zeros(1, 8, 12, 12), options=options)
    assert made.variants[0].chosen_by.startswith("costs borrowed for ")


def test_the_command_prints_what_it_measured_beside_what_is_known(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_family, "measured", lambda target, timer: FOUND)
    done = tvmc("measure")
    assert done.exit_code == 0, done.stderr
    head, first, *_, last = done.stdout.splitlines()[1:]
    assert head.split() == ["cost", "measured", "borrowed"]
    assert first.split()[:2] == ["load", "0.25"]
    assert last == "`compile` takes those measured here, which are kept"
    assert json.loads(tvmc("measure", "--json").stdout)["measured"]["costs"]["cold_bytes"] == GOLDEN_COVE.cold_bytes
    assert file().is_file()


def test_whoever_counts_otherwise_raises_the_version_of_the_model() -> None:
    """Kept measurements are fitted to these estimates: where one moves, raise `families.MODEL`, then write it here."""
    counted = [round(cycles(shape, form, replace(UNIT, costs=GOLDEN_COVE))) for shape, form in kernels(UNIT)[::6]]
    assert (families.MODEL, counted) == (1, [6489476, 1838704, 2683576, 970464, 2771935])
