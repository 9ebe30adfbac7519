"""The imports point one way, and the heavy ones are made by nobody who only imports the library."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "reparam_compiler"
ROOMS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "advice", "progress"}),
    frozenset({"core"}),
    frozenset({"ir"}),
    frozenset({"vocabulary"}),
    frozenset({"cost", "interpreter"}),
    frozenset({"passes"}),
    frozenset({"frontends", "lowering", "zoo"}),
    frozenset({"training", "integrations"}),
    frozenset({"checking"}),
    frozenset({"models"}),
    frozenset({"api"}),
    frozenset({"__init__"}),
    frozenset({"tvmc"}),
    frozenset({"commands"}),
    frozenset({"fuse", "prune", "__main__"}),
)
"""A module may import from its own room and from those above it (docs/architecture.md)."""
FLOOR = {name: floor for floor, room in enumerate(ROOMS) for name in room}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, in functions too, and whether only a type checker sees it."""
    tree = ast.parse(path.read_text())
    unseen = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in unseen) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "reparam_compiler":
                yield from ((f"reparam_compiler.{alias.name}", node in unseen) for alias in node.names)
            else:
                yield str(node.module), node in unseen


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"{room} has no place in the architecture: name one here and in docs/architecture.md"
    for module, _ in imported(path):
        if module.split(".")[0] != "reparam_compiler":
            continue
        other = (module.split(".")[1:] or ["__init__"])[0]
        other = other if other in FLOOR else "__init__"  # `from reparam_compiler import fuse`: a name, not a room
        assert other == room or FLOOR[other] < FLOOR[room], f"{room} must not import {module}"


LONGEST_FILE, LONGEST_FUNCTION = 450, 40
"""Lines; of a function its body without the docstring."""
REASON = "# long: "
"""What stands in the first line of a longer file, or in the `def` line of a longer function, with the reason."""


def lengths(path: Path) -> Iterator[tuple[str, int, str]]:
    """(name, lines of the body, the lines from `def` to the body) of each function of a file."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            if body:
                head = "\n".join(text.splitlines()[node.lineno - 1 : body[0].lineno - 1])
                yield node.name, int(body[-1].end_lineno or 0) - body[0].lineno + 1, head


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short_or_say_why_not(path: Path) -> None:
    first, *rest = path.read_text().splitlines() or [""]
    assert 1 + len(rest) <= LONGEST_FILE or REASON in first
    long = [name for name, lines, head in lengths(path) if lines > LONGEST_FUNCTION and REASON not in head]
    assert not long, f"more than {LONGEST_FUNCTION} lines, and no `{REASON}` with a reason beside the name: {long}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_tvm_is_imported_by_lowering_alone(path: Path) -> None:
    found = [module for module, _ in imported(path) if module.split(".")[0] in ("tvm", "tvm_ffi")]
    assert not found or room_of(path) == "lowering"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_core_ir_and_passes_know_no_framework_of_models(path: Path) -> None:
    frameworks = {"onnx", "onnx_ir", "onnx_graphsurgeon", "onnxruntime", "onnxscript"}
    allowed = {"frontends": frameworks, "lowering": {"onnx"}, "models": {"onnx"}, "checking": {"onnx", "onnxruntime"}}
    pure = {"core": {"torch", "networkx"}, "ir": {"torch"}}.get(room_of(path), set())
    for module, only_types in imported(path):
        package = module.split(".")[0]
        assert package not in frameworks or package in allowed.get(room_of(path), set()) or only_types, module
        assert package not in pure, module


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_library_loads_neither_onnx_nor_tvm() -> None:
    heavy = {"onnx", "onnx_ir", "onnx_graphsurgeon", "onnxruntime", "onnxscript", "tvm", "tvm_ffi", "sklearn", "rich", "typer"}
    assert not loaded_by("import reparam_compiler") & heavy


def test_fusing_a_torch_model_loads_neither_onnx_nor_tvm() -> None:
    statement = "import torch, reparam_compiler as r; r.fuse(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)).eval())"
    assert not loaded_by(statement) & {"onnx", "onnxruntime", "tvm"}


def test_no_module_is_longer_than_a_reader_bears() -> None:
    long = {str(path.relative_to(PACKAGE)): n for path in MODULES if (n := len(path.read_text().splitlines())) > 500}
    assert not long


def test_the_map_names_every_room() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    folders = {str(path.parent.relative_to(PACKAGE)) for path in MODULES} - {"."}
    files = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    parents = {"frontends", "passes"}  # their rooms are named one by one
    assert not [name for name in sorted(folders - parents) if f"`{name}/`" not in page]
    assert not [name for name in sorted(files) if f"`{name}`" not in page]
