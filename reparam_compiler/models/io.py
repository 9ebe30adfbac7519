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
import inspect
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from reparam_compiler.advice import in_words_of
from reparam_compiler.core.calls import by_position
from reparam_compiler.core.files import written_whole
from reparam_compiler.errors import ReparamError, UnsupportedModelError, class_and_line, first_line
from reparam_compiler.frontends.base import kind_of
from reparam_compiler.frontends.torch.hooks import signature_of
from reparam_compiler.frontends.torch.module_state import in_training_mode
from reparam_compiler.frontends.torch.tensors import dtype_word
from reparam_compiler.frontends.torch.tracing.quiet import quiet_export
from reparam_compiler.models import pt2_archive
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING

PICKLES = frozenset({".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"})
WRITTEN = (".onnx", ".pt2")
"""The suffixes that `save_model` writes."""
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


def save_model(model: Any, path: str | os.PathLike[str], *, example_inputs: Sequence[Any] | None = None) -> None:
    """Writes a model, whole or not at all; the suffix picks the format.

    Args:
        model: an `onnx.ModelProto` (.onnx), an `ExportedProgram` (.pt2, .onnx) or an `nn.Module` (the same, with inputs).
        path: where to; an older file is replaced in one step.
        example_inputs: what an `nn.Module` is exported with; the file takes inputs of these shapes.

    Raises:
        UnsupportedModelError: the suffix is another, the model cannot become that format, or example inputs are missing.
        OSError: the file cannot be written.
    """
    target = Path(path)
    check_output(model, target, example_inputs=example_inputs)
    is_onnx = kind_of(model) == "onnx"
    if is_onnx or target.suffix.lower() == ".onnx":
        from reparam_compiler.frontends.onnx import io as onnx_io

        onnx_io.save(model if is_onnx else _to_onnx(_program(model, target, example_inputs), target), target)
        return
    program = _program(model, target, example_inputs)
    with written_whole(target) as part, quiet_export():
        torch.export.save(program, part)


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
        raise UnsupportedModelError(
            f"{subject} needs {' and '.join(missing)}, not installed here: pip install 'reparam_compiler[onnx]'"
        )


def named_shapes(model: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Shapes by the names of inputs: one under "" is that of the only input, or the only one that must be given.

    >>> named_shapes(torch.nn.ReLU(), {"": (1, 3)})
    {'input': (1, 3)}

    Raises UnsupportedModelError where there are several, or none.
    """
    if "" not in shapes:
        return dict(shapes)
    dtypes = _input_dtypes(model)
    if dtypes is not None:
        names = list(dtypes)
    else:
        taken = [p for p in signature_of(model).parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = [p.name for p in taken if p.default is p.empty and p.kind is not p.KEYWORD_ONLY] or [p.name for p in taken]
    if len(names) != 1:
        wanted = " ".join(f"{name}:[…]" for name in names)
        raise UnsupportedModelError(f"found one shape without a name; the model has {len(names)} inputs: {wanted or 'none'}")
    return {names[0]: shapes[""]}


def inputs_of_shapes(model: Any, shapes: Mapping[str, Sequence[int]]) -> tuple[Any, ...]:
    """Random inputs (normal, seed 0; 0 or 1 for whole numbers) of these shapes, in the order in which the model takes them.

    Args:
        model: any native model.
        shapes: sizes by the names of the inputs; as for `named_shapes`.

    Returns:
        Arrays for an `onnx.ModelProto`, tensors for every other; of the dtypes that it states, else float32.

    Raises:
        UnsupportedModelError: a name is no input of the model, or one that it takes by keyword only; or an input is left out
            that must be given, or that stands before another.
    """
    dtypes, shapes = _input_dtypes(model), named_shapes(model, shapes)
    if dtypes is None:
        parameters: Mapping[str, inspect.Parameter] = signature_of(model).parameters
    else:
        by_keyword = set(model.call_spec.in_spec.child(1).context) if isinstance(model, ExportedProgram) else set()
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        # all are called "x" here: ONNX has names that Python would not take
        parameters = {name: inspect.Parameter("x", kinds[name in by_keyword]) for name in dtypes}
    source = torch.Generator().manual_seed(0)
    tensors = []
    for name in by_position(parameters, list(shapes)):
        row = DTYPES[(dtypes or {}).get(name) or "f32"]
        size = tuple(shapes[name])
        is_floating = row.word in FLOATING
        drawn = torch.randn(size, generator=source) if is_floating else torch.randint(0, 2, size, generator=source)
        tensors.append(drawn.to(getattr(torch, row.name)))
    return tuple(tensor.numpy() for tensor in tensors) if kind_of(model) == "onnx" else tuple(tensors)


def _input_dtypes(model: Any) -> dict[str, str | None] | None:
    """The inputs of a model that states them, with the dtypes that are known; None for a module, which states none."""
    if kind_of(model) == "onnx":
        from reparam_compiler.frontends.onnx.frontend import unset_inputs
        from reparam_compiler.frontends.onnx.tensors import type_of

        return {value.name: type_of(value.type)[0] for value in unset_inputs(model)}
    if isinstance(model, ExportedProgram):
        values = {node.name: node.meta.get("val") for node in model.graph.nodes}
        names = [str(name) for name in model.graph_signature.user_inputs]
        return {name: dtype_word(value.dtype) if isinstance(value := values.get(name), Tensor) else None for name in names}
    return None


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
            return torch.export.load(io.BytesIO(data))
    except Exception as error:
        raise UnsupportedModelError(f"{path}: torch.export cannot load it: {first_line(error)}") from error


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


def _made(spec: str, module_name: str, factory_name: str) -> Any:
    with _working_folder_importable():
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as missing:
            raise UnsupportedModelError(
                f"{spec}: there is no module {missing.name}; install it, or run where it can be imported from"
            ) from missing
        except Exception as error:
            raise _of_the_caller(spec, f"importing {module_name}", error) from error
        for name in factory_name.split("."):
            if not hasattr(found, name):
                raise UnsupportedModelError(f"{spec}: {module_name} has no {factory_name}")
            found = getattr(found, name)
        if kind_of(found) or not callable(found):
            return _checked(found, spec)
        try:
            made = found()
        except Exception as error:
            raise _of_the_caller(spec, f"calling {factory_name}()", error) from error
        return _checked(made, spec)


def _of_the_caller(spec: str, doing: str, error: Exception) -> UnsupportedModelError:
    """What the code that a spec names raised, and in which line."""
    if isinstance(error, ReparamError):
        return UnsupportedModelError(f"{spec}: {doing} failed: {error}")
    last = traceback.extract_tb(error.__traceback__)[-1]
    return UnsupportedModelError(
        f"{spec}: {doing} raised {class_and_line(error)} ({last.filename}:{last.lineno}); mend it, or name a factory that "
        "takes no arguments and returns a model"
    )


def _checked(found: Any, spec: str) -> Any:
    if kind_of(found) is not None:
        return found
    raise UnsupportedModelError(
        f"{spec}: found a {type(found).__module__}.{type(found).__qualname__}; expected an nn.Module, an ExportedProgram or an "
        "onnx.ModelProto. Weights alone are no model: name a factory that builds it and loads them"
    )


def _program(model: Any, target: Path, example_inputs: Sequence[Any] | None) -> ExportedProgram:
    if isinstance(model, ExportedProgram):
        return model
    inputs = tuple(value if isinstance(value, Tensor) else torch.as_tensor(value) for value in example_inputs or ())
    try:
        with quiet_export():
            return torch.export.export(model, inputs)
    except Exception as error:
        raise UnsupportedModelError(f"{target}: torch.export cannot take the model: {first_line(error)}") from error


def _to_onnx(program: ExportedProgram, target: Path) -> Any:
    try:
        with quiet_export():
            written = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        raise UnsupportedModelError(f"{target}: torch.onnx cannot export the model: {first_line(error)}") from error
    if written is None:
        raise UnsupportedModelError(f"{target}: torch.onnx gave no model")
    return written.model_proto


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
