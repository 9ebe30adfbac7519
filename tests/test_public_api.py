"""The names that a user may build on, and how they are called."""

import functools
import inspect
import pickle
import subprocess
import sys
from typing import get_type_hints

import pytest
from torch import nn

import reparam_compiler
from reparam_compiler import errors
from reparam_compiler.api.options import FuseKeywords, FuseOptions, PruneKeywords, PruneOptions

PUBLIC = [
    "CompileOptions",
    "CostModel",
    "CouplingRule",
    "CpuFamily",
    "Criterion",
    "Equivalence",
    "Executable",
    "FuseReport",
    "HarmfulRepairWarning",
    "InfeasiblePruneError",
    "InvalidGraphError",
    "IterativePruner",
    "LinearRule",
    "Loss",
    "LoweringError",
    "Manifest",
    "PreprocessingWarning",
    "PruneReport",
    "ReparamError",
    "RewriteError",
    "Rpc",
    "Scores",
    "Scoring",
    "TrainingModeWarning",
    "TuneResult",
    "TvmMissingError",
    "UnrepairedPruneWarning",
    "UnsupportedModelError",
    "VerificationError",
    "apply_manifest",
    "compile",
    "equivalent",
    "fuse",
    "inspect",
    "load",
    "measure_costs",
    "measure_cpu",
    "prune",
    "register_coupling",
    "register_criterion",
    "register_linear",
    "tune",
]


NEED_TVM = {"CompileOptions", "CpuFamily", "Executable", "Rpc", "TuneResult", "compile", "load", "measure_cpu", "tune"}
TYPES = {"CouplingRule", "Criterion", "LinearRule", "Loss", "Scores"}
"""Aliases of types, which have no docstring of their own: their modules describe them."""


def test_these_names_are_public_and_no_others() -> None:
    assert reparam_compiler.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(reparam_compiler))


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in NEED_TVM])
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    named = getattr(reparam_compiler, name)
    assert name in TYPES or (named.__doc__ or "").strip()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'squeeze'"):
        reparam_compiler.squeeze  # noqa: B018


@pytest.mark.parametrize("name", ["fuse", "prune", "inspect"])
def test_what_follows_the_model_and_its_inputs_is_keyword_only(name: str) -> None:
    model, inputs, *others = inspect.signature(getattr(reparam_compiler, name)).parameters.values()
    assert (model.name, inputs.name) == ("model", "example_inputs")
    assert inputs.default is None
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in others)


def test_fuse_takes_these_options_with_these_defaults() -> None:
    parameters = list(inspect.signature(reparam_compiler.fuse).parameters.values())[2:]
    defaults = {parameter.name: parameter.default for parameter in parameters}
    assert defaults == {
        "policy": "cost",
        "cost_model": None,
        "keep_bn": False,
        "weights_are_constant": False,
        "verify": True,
        "inplace": False,
        "return_report": False,
    }


def test_prune_takes_these_options_with_these_defaults() -> None:
    parameters = list(inspect.signature(reparam_compiler.prune).parameters.values())[2:]
    assert {parameter.name: parameter.default for parameter in parameters} == {
        **dict.fromkeys(("ratio", "flops", "params", "latency", "importance", "calibration", "mean", "std", "loss", "measure")),
        "allocation": "uniform",
        "quality": "standard",
        "round_to": 8,
        "min_channels": 1,
        "max_ratio": 1.0,
        "ignore": (),
        "weights_are_constant": False,
        "verify": True,
        "inplace": False,
        "return_report": False,
    }


@pytest.mark.parametrize(("keywords", "kind"), [(FuseKeywords, FuseOptions), (PruneKeywords, PruneOptions)])
def test_keywords_and_the_options_that_they_make_are_the_same(keywords: type, kind: type) -> None:
    assert get_type_hints(keywords) == get_type_hints(kind)


@pytest.mark.parametrize("name", ["fuse", "prune", "inspect", "compile", "tune"])
def test_an_unknown_keyword_is_a_type_error(name: str) -> None:
    if name in NEED_TVM:
        pytest.importorskip("tvm")
    more = {"database": "records"} if name == "tune" else {}
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'sped'$"):
        getattr(reparam_compiler, name)(nn.ReLU().eval(), sped=1, **more)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fuse", {"verify", "inplace", "return_report"}),
        ("prune", {"verify", "inplace", "return_report"}),
        ("apply_manifest", {"verify", "inplace"}),
        ("compile", {"verify"}),
    ],
)
def test_what_means_the_same_everywhere_has_the_same_default(name: str, words: set[str]) -> None:
    parameters = inspect.signature(getattr(reparam_compiler, name)).parameters
    every = {"verify": True, "inplace": False, "return_report": False}
    assert {word: parameters[word].default for word in every if word in parameters} == {word: every[word] for word in words}


def test_equivalent_takes_two_models_and_what_both_are_called_with() -> None:
    parameters = list(inspect.signature(reparam_compiler.equivalent).parameters.values())
    assert [parameter.name for parameter in parameters] == ["a", "b", "example_inputs", "tolerance"]
    assert parameters[-1].kind is inspect.Parameter.KEYWORD_ONLY


def test_every_error_is_a_reparam_error() -> None:
    raised = [
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, Exception) and not issubclass(kind, Warning)
    ]
    assert len(raised) == 8
    assert all(issubclass(kind, errors.ReparamError) for kind in raised)
    for name, kind in vars(errors).items():
        if inspect.isclass(kind):
            assert name in errors.__doc__ or issubclass(kind, Warning), f"{name} is not drawn in the tree"


def test_a_verification_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(errors.VerificationError("add_3", 0.5, 1e-6)))
    assert (error.node, error.max_abs_err, error.tolerance) == ("add_3", 0.5, 1e-6)
    assert str(error).startswith("add_3: the rewritten model differs by 0.5; at most 1e-06 was expected")


@functools.cache
def commands_modules_imported() -> dict[str, list[str]]:
    """What a fresh process says of each module of a command, imported before anything else of the library."""
    code = """
import reparam_compiler
for module in ("fuse", "prune"):
    try:
        __import__(f"reparam_compiler.{module}")
    except ImportError as error:
        print(module, error)
for module in ("fuse", "prune"):
    print(module, callable(getattr(reparam_compiler, module)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    return {module: [line for name, line in lines if name == module] for module in ("fuse", "prune")}


@pytest.mark.parametrize("module", ["fuse", "prune"])
def test_the_commands_modules_do_not_shadow_the_functions(module: str) -> None:
    refusal, is_function = commands_modules_imported()[module]
    assert f"from reparam_compiler import {module}" in refusal
    assert is_function == "True"
