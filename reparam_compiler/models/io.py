"""Models by name: what a command line calls MODEL becomes a native model, and a native model becomes a file.

    model.onnx                onnx.ModelProto
    model.pt2                 torch.export.ExportedProgram; looked through first (`pt2_archive`)
    package.module:factory    what the factory returns: an nn.Module, or any of the other kinds
    model.pt, .pth, .ckpt     a pickle, which can run any code: only with unsafe=True

Files are written whole or not at all.
"""

import contextlib
import importlib
import importlib.util
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from reparam_compiler.advice import in_words_of
from reparam_compiler.core.files import written_whole
from reparam_compiler.core.packages import install_line
from reparam_compiler.errors import ReparamError, UnsupportedModelError, class_and_line, first_line
from reparam_compiler.frontends.base import kind_of
from reparam_compiler.frontends.torch.module_state import in_training_mode
from reparam_compiler.frontends.torch.tracing.exporting import by_argument
from reparam_compiler.frontends.torch.tracing.quiet import quiet_export
from reparam_compiler.models import pt2_archive

PICKLES = frozenset({".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"})
WRITTEN = (".onnx", ".pt2")
"""The suffixes that `save_model` writes."""
OpenSizes = Sequence[Mapping[int, str]]
"""The axes whose size is open, and its name, of each input."""
_FIXED = re.compile(r"static shape of (?P<size>\d+) for dimension inputs\['(?P<input>\w+)'\]\S*\.shape\[(?P<axis>\d+)\]")
FACTORY = re.compile(r"(?P<module>[A-Za-z_]\w*(\.\w+)*):(?P<factory>[A-Za-z_]\w*(\.\w+)*)")


def load_model(spec: str | os.PathLike[str], *, unsafe: bool = False, is_onnx: bool = False) -> Any:
    """The model that a spec names.

    Args:
        spec: the path of an .onnx or .pt2 file, or `package.module:factory`; the working folder is importable.
        unsafe: open pickles too, .pt files and those inside a .pt2. They can run any code.
        is_onnx: a file is an ONNX file whatever its suffix.

    Returns:
        An `onnx.ModelProto`, an `ExportedProgram` or an `nn.Module`, in the mode that it was made in.

    Raises:
        UnsupportedModelError: there is no such model, it cannot be read, or it would need `unsafe`.
    """
    text = os.fspath(spec)
    path = Path(text)
    if is_onnx and path.is_file():
        return _onnx(path)
    if path.suffix.lower() in PICKLES or path.suffix.lower() in WRITTEN:
        if not path.is_file():
            raise UnsupportedModelError(f"{text}: no such file")
        if path.suffix.lower() in PICKLES:
            return _unpickled(path, unsafe)
        return _exported(path, unsafe) if path.suffix.lower() == ".pt2" else _onnx(path)
    match = FACTORY.fullmatch(text)
    if match is None:
        raise UnsupportedModelError(f"found the model {text!r}; expected a path that ends in .onnx or .pt2, or module:factory")
    return _made(text, match["module"], match["factory"])


def into_evaluation_mode(model: Any) -> bool:
    """Puts a module, as factories give it, into evaluation mode; whether it or a part of it was in training mode."""
    if not isinstance(model, torch.nn.Module) or not in_training_mode(model):
        return False
    with contextlib.suppress(NotImplementedError):  # the module of a program, whose mode is that of its export
        model.eval()
        return True
    return False


def save_model(
    model: Any,
    path: str | os.PathLike[str],
    *,
    example_inputs: Sequence[Any] | None = None,
    open_sizes: OpenSizes = (),
) -> tuple[Path, ...]:
    """Writes a model, whole or not at all; the suffix picks the format. Gives the files that it is in, `path` first.

    Args:
        model: an `onnx.ModelProto` (.onnx), an `ExportedProgram` (.pt2, .onnx) or an `nn.Module` (the same, with inputs).
        path: where to; an older file is replaced in one step.
        example_inputs: what an `nn.Module` is exported with; the file takes inputs of these shapes.
        open_sizes: for each of them, the axes whose size the file leaves open, with its name there.

    Raises:
        UnsupportedModelError: the suffix is another, the model cannot become that format, example inputs are missing, or the
            model fixes a size that was to be open.
        OSError: the file cannot be written.
    """
    target = Path(path)
    check_output(model, target, example_inputs=example_inputs)
    is_onnx = kind_of(model) == "onnx"
    if is_onnx or target.suffix.lower() == ".onnx":
        from reparam_compiler.frontends.onnx import io as onnx_io

        proto = model if is_onnx else _to_onnx(_program(model, target, example_inputs, open_sizes), target, open_sizes)
        return onnx_io.save(proto, target)
    program = _program(model, target, example_inputs, open_sizes)
    with written_whole(target) as part, _Sink(part, "wb") as sink, quiet_export():
        torch.export.save(program, sink)
        sink.check()
    return (target,)


class _Sink(io.FileIO):
    """A file that remembers what a write raised, and takes the rest: torch ends the process where a write fails."""

    _failed: OSError | None = None

    def write(self, content: Any, /) -> int:
        """As many bytes as there are, written or not."""
        try:
            left = memoryview(content).cast("B")
            while left and self._failed is None:
                left = left[super().write(left) :]
        except OSError as error:
            self._failed = error
        return memoryview(content).nbytes

    def check(self) -> None:
        """Raises OSError where a write failed."""
        if self._failed is not None:
            raise self._failed


def check_output(model: Any, path: str | os.PathLike[str], *, example_inputs: Sequence[Any] | None = None) -> None:
    """Raises UnsupportedModelError where `save_model` cannot write such a model to such a path: to be asked before work."""
    target, kind = Path(path), kind_of(model)
    if target.suffix.lower() not in WRITTEN:
        raise UnsupportedModelError(f"{target}: found the suffix {target.suffix!r}; expected .onnx or .pt2")
    if kind == "onnx" and target.suffix.lower() == ".pt2":
        raise UnsupportedModelError(f"{target}: an ONNX model cannot become a .pt2; give a path that ends in .onnx")
    if kind in ("torch.nn", "torch.fx") and example_inputs is None:
        raise UnsupportedModelError(
            f"{target}: writing a torch module means exporting it, and that needs its input shapes: "
            + in_words_of(python="save_model(..., example_inputs=...)", command="--input-shapes 'x:[1,3,224,224]'")
        )
    if target.suffix.lower() == ".onnx" and kind != "onnx":
        check_installed(f"{target}: writing a torch model as ONNX", "onnx", "onnxscript")
    if kind is None:
        raise UnsupportedModelError(f"{target}: a {type(model).__module__}.{type(model).__qualname__} cannot be written")


def check_installed(subject: str, *modules: str) -> None:
    """Raises UnsupportedModelError where a module is missing that ONNX files need: to be asked before work.

    subject: what needs them.
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise UnsupportedModelError(f"{subject} needs {' and '.join(missing)}, not installed here: {install_line('onnx')}")


def _onnx(path: Path) -> Any:
    check_installed(f"{path}: reading ONNX", "onnx", "onnx_graphsurgeon")
    from reparam_compiler.frontends.onnx import io as onnx_io

    return onnx_io.load(path)


def _exported(path: Path, unsafe: bool) -> ExportedProgram:
    data = path.read_bytes()  # once: what is checked is what is loaded
    if not unsafe:
        pt2_archive.check(data, str(path))
    try:
        with quiet_export():
            program = torch.export.load(io.BytesIO(data))
    except Exception as error:
        raise UnsupportedModelError(f"{path}: torch.export cannot load it: {first_line(error)}") from error
    if not program.module_call_graph or program.module_call_graph[0].signature is None:
        raise UnsupportedModelError(
            f"{path}: the program does not say how it is called; expected a signature of the whole model, first in its "
            "module_call_graph. Export the model again"
        )
    return program


def _unpickled(path: Path, unsafe: bool) -> Any:
    if not unsafe:
        raise UnsupportedModelError(
            f"{path}: a {path.suffix} file is a pickle and can run any code. Where you trust whoever made it, load it with "
            f"{in_words_of(python='load_model(..., unsafe=True)', command='--unsafe-load')}; "
            "better, export the model to .pt2 or .onnx"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise UnsupportedModelError(f"{path}: torch cannot load it: {first_line(error)}") from error
    return _checked(found, str(path))


def load_function(spec: str) -> Callable[[Any], Any]:
    """The function of one argument that `package.module:function` names; what it raises comes out as UnsupportedModelError.

    Raises UnsupportedModelError where there is none.
    """
    if (match := FACTORY.fullmatch(spec)) is None:
        raise UnsupportedModelError(f"found the function {spec!r}; expected package.module:function")
    with _working_folder_importable():
        function = _named(spec, match["module"], match["factory"])
    if not callable(function):
        raise UnsupportedModelError(f"{spec}: found a {type(function).__qualname__}; expected a function that takes a model")

    def called(argument: Any) -> Any:
        try:
            with _working_folder_importable():
                return function(argument)
        except Exception as error:
            advice = "mend it, or name a function that takes the model alone"
            raise _of_the_caller(spec, f"calling {match['factory']}(model)", error, advice) from error

    return called


def _made(spec: str, module_name: str, factory_name: str) -> Any:
    with _working_folder_importable():
        found = _named(spec, module_name, factory_name)
        if kind_of(found) or not callable(found):
            return _checked(found, spec)
        try:
            made = found()
        except Exception as error:
            raise _of_the_caller(spec, f"calling {factory_name}()", error) from error
        return _checked(made, spec)


def _named(spec: str, module_name: str, path: str) -> Any:
    """What stands at a dotted path in a module."""
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        raise UnsupportedModelError(
            f"{spec}: there is no module {missing.name}; install it, or run where it can be imported from"
        ) from missing
    except Exception as error:
        raise _of_the_caller(spec, f"importing {module_name}", error) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise UnsupportedModelError(f"{spec}: {module_name} has no {path}")
        found = getattr(found, name)
    return found


_A_FACTORY = "mend it, or name a factory that takes no arguments and returns a model"


def _of_the_caller(spec: str, doing: str, error: Exception, advice: str = _A_FACTORY) -> UnsupportedModelError:
    """What the code that a spec names raised, and in which line."""
    if isinstance(error, ReparamError):
        return UnsupportedModelError(f"{spec}: {doing} failed: {error}")
    if "operator torchvision::" in str(error):
        return UnsupportedModelError(
            f"{spec}: {doing} failed: torchvision's compiled ops do not load beside torch {torch.__version__}, for which it "
            f"was not built ({first_line(error)}); take both from one index: pip install --force-reinstall torch torchvision"
        )
    last = traceback.extract_tb(error.__traceback__)[-1]
    return UnsupportedModelError(f"{spec}: {doing} raised {class_and_line(error)} ({last.filename}:{last.lineno}); {advice}")


def _checked(found: Any, spec: str) -> Any:
    if kind_of(found) is not None:
        return found
    raise UnsupportedModelError(
        f"{spec}: found a {type(found).__module__}.{type(found).__qualname__}; expected an nn.Module, an ExportedProgram or an "
        "onnx.ModelProto. Weights alone are no model: name a factory that builds it and loads them"
    )


def _program(model: Any, target: Path, example_inputs: Sequence[Any] | None, open_sizes: OpenSizes) -> ExportedProgram:
    if isinstance(model, ExportedProgram):
        return model
    inputs = tuple(value if isinstance(value, Tensor) else torch.as_tensor(value) for value in example_inputs or ())
    opened = tuple(dict.fromkeys(axes, Dim.DYNAMIC) or None for axes in open_sizes)
    try:
        with quiet_export():
            return torch.export.export(model, inputs, dynamic_shapes=by_argument(model, opened) if any(opened) else None)
    except Exception as error:
        if fixed := [f"size {m['axis']} of {m['input']} at {m['size']}" for m in _FIXED.finditer(str(error))]:
            letters = ", ".join(sorted({letter for axes in open_sizes for letter in axes.values()}))
            raise UnsupportedModelError(
                f"{target}: the model fixes {', '.join(fixed)}, counted from 0; give numbers there in place of {letters}"
            ) from error
        raise UnsupportedModelError(f"{target}: torch.export cannot take the model: {first_line(error)}") from error


def _to_onnx(program: ExportedProgram, target: Path, open_sizes: OpenSizes) -> Any:
    try:
        with quiet_export():
            written = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        raise UnsupportedModelError(f"{target}: torch.onnx cannot export the model: {first_line(error)}") from error
    if written is None:
        raise UnsupportedModelError(f"{target}: torch.onnx gave no model")
    proto: Any = written.model_proto
    _name_sizes(proto.graph, open_sizes)
    return proto


def _name_sizes(graph: Any, open_sizes: OpenSizes) -> None:
    """Gives the open sizes of an ONNX graph their names, in place of those that torch made up."""
    names: dict[str, str] = {}
    for value, axes in zip(graph.input, open_sizes, strict=False):
        sizes = value.type.tensor_type.shape.dim
        names |= {sizes[axis].dim_param: name for axis, name in axes.items() if axis < len(sizes) and sizes[axis].dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size.dim_param)


@contextlib.contextmanager
def _working_folder_importable() -> Iterator[None]:
    """Console scripts, other than `python -m`, do not look where they are run."""
    folder = os.getcwd()
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)
