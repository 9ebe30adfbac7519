"""The imports point one way, and the heavy ones are made by nobody who only imports the library."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from tests.support.loaded_packages import loaded

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
    frozenset({"reporting"}),
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


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Every node of the syntax tree of a file."""
    return tuple(ast.walk(ast.parse(path.read_text())))


@functools.cache
def imported(path: Path) -> tuple[tuple[str, bool], ...]:
    """Every module that a file imports, in functions too, and whether only a type checker sees it."""
    unseen = {
        inner
        for node in nodes_of(path)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: list[tuple[str, bool]] = []
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found += ((alias.name, node in unseen) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "reparam_compiler":
                found += ((f"reparam_compiler.{alias.name}", node in unseen) for alias in node.names)
            else:
                found.append((str(node.module), node in unseen))
    return tuple(found)


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def upwards(path: Path) -> Iterator[str]:
    """The modules that a file imports from its own floor or from one above it, which are not of its room."""
    room = room_of(path)
    for module, _ in imported(path):
        if module.split(".")[0] != "reparam_compiler":
            continue
        other = (module.split(".")[1:] or ["__init__"])[0]
        other = other if other in FLOOR else "__init__"  # `from reparam_compiler import fuse`: a name, not a room
        if other != room and FLOOR[other] >= FLOOR[room]:
            yield module


def test_every_room_has_a_place() -> None:
    """Where one has none: name it above and in docs/architecture.md."""
    assert {room_of(path) for path in MODULES} == FLOOR.keys()


def test_imports_point_one_way() -> None:
    assert not [(name_of(path), module) for path in MODULES for module in upwards(path)]


LONGEST_FILE, LONGEST_FUNCTION = 450, 40
"""Lines; of a function its body without the docstring."""
REASON = "# long: "
"""What stands in the first line of a longer file, or in the `def` line of a longer function, with the reason."""


def lengths(path: Path) -> Iterator[tuple[str, int, str]]:
    """(name, lines of the body, the lines from `def` to the body) of each function of a file."""
    lines = path.read_text().splitlines()
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            if body:
                head = "\n".join(lines[node.lineno - 1 : body[0].lineno - 1])
                yield node.name, int(body[-1].end_lineno or 0) - body[0].lineno + 1, head


def test_files_and_functions_are_short_or_say_why_not() -> None:
    """By `REASON` in the first line of a file, or beside the name of a function."""
    texts = {path: path.read_text().splitlines() or [""] for path in MODULES}
    assert not [name_of(path) for path, text in texts.items() if len(text) > LONGEST_FILE and REASON not in text[0]]
    long = [(path, *found) for path in MODULES for found in lengths(path) if found[1] > LONGEST_FUNCTION]
    assert not [(name_of(path), name, lines) for path, name, lines, head in long if REASON not in head]


def test_tvm_is_imported_by_lowering_alone() -> None:
    tvm = {(name_of(path), module) for path in MODULES for module, _ in imported(path) if package(module) in ("tvm", "tvm_ffi")}
    assert tvm
    assert not [(name, module) for name, module in tvm if not name.startswith("lowering/")]


FRAMEWORKS = {"onnx", "onnx_ir", "onnx_graphsurgeon", "onnxruntime", "onnxscript"}
ALLOWED = {"frontends": FRAMEWORKS, "lowering": {"onnx"}, "models": {"onnx"}, "checking": {"onnx", "onnxruntime"}}
"""The frameworks of models that a room may import; all may where only a type checker sees it."""
PURE = {"core": {"torch", "networkx"}, "ir": {"torch"}}
"""What a room may not import even so."""


def package(module: str) -> str:
    return module.split(".")[0]


def test_core_ir_and_passes_know_no_framework_of_models() -> None:
    every = [(room_of(path), name_of(path), *found) for path in MODULES for found in imported(path)]
    known = [(name, module) for room, name, module, only_types in every if package(module) in FRAMEWORKS and not only_types]
    assert known
    assert not [(name, module) for name, module in known if package(module) not in ALLOWED.get(name.split("/")[0], set())]
    assert not [(name, module) for room, name, module, _ in every if package(module) in PURE.get(room, set())]


def test_importing_the_library_loads_neither_onnx_nor_tvm() -> None:
    heavy = {"onnx", "onnx_ir", "onnx_graphsurgeon", "onnxruntime", "onnxscript", "tvm", "tvm_ffi", "sklearn", "rich", "typer"}
    assert not loaded("the library") & heavy


def test_fusing_a_torch_model_loads_neither_onnx_nor_tvm() -> None:
    assert not loaded("fusing a torch model") & {"onnx", "onnxruntime", "tvm"}


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
