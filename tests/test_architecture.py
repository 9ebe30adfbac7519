"""Imports point one way, as docs/architecture.md draws them, and heavy packages stay where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "reparam_compiler"
LEVELS = {  # a room may import from rooms of a lower level, and from itself
    "errors": 0,
    "core": 1,
    "ir": 2,
    "cost": 3,
    "equivalence": 3,
    "passes": 4,
    "report": 5,
    "calibration": 5,
    "frontends": 6,
    "lowering": 6,
    "zoo": 6,
    "pt2_archive": 6,
    "_api": 7,
    "model_io": 7,
    "demo": 8,
    "tvmc": 8,
    "cli": 9,
    "fuse": 10,
    "prune": 10,
    "__main__": 10,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever it does, less what is only for the type checker."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "reparam_compiler":
                yield from (f"reparam_compiler.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return  # the public names: they come from everywhere
    assert own in LEVELS, f"{own} is a new room: give it a line in docs/architecture.md and a level here"
    for module in imported(path):
        parts = module.split(".")
        if parts[0] == "reparam_compiler" and len(parts) > 1 and parts[1] != own:
            assert LEVELS[parts[1]] < LEVELS[own], f"{own} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_tvm_and_onnx_stay_in_their_rooms(path: Path) -> None:
    roots = {module.split(".")[0] for module in imported(path)}
    if room(path) != "lowering":
        assert not roots & {"tvm", "tvm_ffi"}
    if room(path) not in ("frontends", "lowering", "model_io"):
        assert not roots & {"onnx", "onnx_graphsurgeon", "onnxruntime"}


@pytest.mark.parametrize("path", [p for p in FILES if room(p) == "core"], ids=lambda path: path.name)
def test_core_is_arithmetic_only(path: Path) -> None:
    roots = {module.split(".")[0] for module in imported(path)}
    assert not roots & {"torch", "onnx", "networkx", "logging", "os", "pathlib", "rich", "typer"}


def test_importing_the_package_and_fusing_loads_neither_onnx_nor_tvm() -> None:
    code = """
import sys, torch, reparam_compiler
reparam_compiler.fuse(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval())
print(sorted({"onnx", "tvm", "onnxruntime", "sklearn"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_top_level_link_shows_the_passes() -> None:
    link = PACKAGE.parent / "passes"
    assert link.is_symlink()
    assert link.resolve() == (PACKAGE / "passes").resolve()
