"""The examples in the docstrings of what is public, run; and every public function has one."""

import doctest
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

import reparam_compiler
from reparam_compiler.passes.fusion import registry
from reparam_compiler.passes.pruning.coupling import registry as coupling
from reparam_compiler.passes.pruning.criteria import base

MODULES = [
    "api.options",
    "checking.runners",
    "checking.tolerances",
    "core.affine",
    "core.packages",
    "core.slicing",
    "cost.model",
    "frontends.base",
    "frontends.coupling",
    "frontends.torch.hooks",
    "interpreter.difference",
    "interpreter.evaluate",
    "models.opening",
    "models.shapes",
    "reporting.layout",
    "reporting.views",
    "reporting.words",
]
"""Modules that nobody but the house itself imports, whose docstrings have examples too."""
NEED_TVM = {"CompileOptions", "CpuFamily", "Executable", "TuneResult", "compile", "load", "measure_cpu", "tune"}
PUBLIC = [name for name in reparam_compiler.__all__ if name not in NEED_TVM]


def outcome(found: list[doctest.DocTest]) -> tuple[int, str]:
    """How many examples ran, and what was wrong with them."""
    runner, said = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS), list[str]()
    for test in found:
        runner.run(test, out=said.append)
    return runner.tries, "".join(said)


def examples_of(name: str) -> list[doctest.DocTest]:
    named: Any = getattr(reparam_compiler, name)
    module = inspect.getmodule(named)
    assert module is not None
    names = {**vars(module), **vars(reparam_compiler)}
    return doctest.DocTestFinder().find(named, name, module=module, globs=names)


def needs_example(name: str) -> bool:
    """Of functions and of what a caller makes; errors, types of functions and what only a function gives need none."""
    named = getattr(reparam_compiler, name)
    return inspect.isfunction(named) or name in ("CostModel", "Manifest")


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an example registers is forgotten after it."""
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    monkeypatch.setattr(base, "CRITERIA", dict(base.CRITERIA))
    monkeypatch.setattr(coupling, "COUPLING_RULES", dict(coupling.COUPLING_RULES))


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_of_public_names_hold(name: str) -> None:
    tries, wrong = outcome(examples_of(name))
    assert not wrong, wrong
    assert tries or not needs_example(name), f"{name} has no example"


@pytest.mark.parametrize("name", sorted(NEED_TVM))
@pytest.mark.tvm
def test_examples_of_what_needs_tvm_hold(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    from reparam_compiler.lowering.cpu import machine, measured_family
    from tests.support import instant_trials

    instant_trials.install(monkeypatch)  # no process that measures
    monkeypatch.setattr(measured_family, "measured", lambda *_: machine.native_family())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tries, wrong = outcome(examples_of(name))
    assert not wrong, wrong
    assert tries, f"{name} has no example"


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_modules_hold(name: str) -> None:
    module = importlib.import_module(f"reparam_compiler.{name}")
    tries, wrong = outcome(doctest.DocTestFinder().find(module))
    assert not wrong, wrong
    assert tries
