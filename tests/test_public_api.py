"""The exported names, and nothing besides."""

import inspect

import pytest

import reparam_compiler

NAMES = {
    *("FuseReport", "PruneReport"),
    *("InfeasiblePruneError", "InvalidGraphError", "LoweringError", "ReparamError", "RewriteError", "TvmMissingError"),
    *("UnsupportedModelError", "VerificationError", "UnrepairedPruneWarning"),
    *("compile", "fuse", "inspect", "load", "prune", "register_linear", "tune"),
}


def test_exported_names() -> None:
    assert set(reparam_compiler.__all__) == NAMES
    assert set(dir(reparam_compiler)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES - {"load", "compile", "tune"}))
def test_every_name_can_be_had_and_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(reparam_compiler, name))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'deploy'"):
        _ = reparam_compiler.deploy


def test_options_are_keyword_only_after_the_model_and_its_inputs() -> None:
    for function in (reparam_compiler.fuse, reparam_compiler.prune, reparam_compiler.compile, reparam_compiler.tune):
        parameters = list(inspect.signature(function).parameters.values())
        assert [p.name for p in parameters[:2]] == ["model", "example_inputs"]
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])


def test_every_error_is_a_reparam_error() -> None:
    for name in NAMES:
        if name.endswith("Error"):
            assert issubclass(getattr(reparam_compiler, name), reparam_compiler.ReparamError)
