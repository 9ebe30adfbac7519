"""Inputs as `--input-shapes` states them: drawn, and tried on the model before any work; what does not fit says what does."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from reparam_compiler.checking.runners import TorchRunner
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir.graph import TensorType
from reparam_compiler.models.shapes import Shape, parse_shapes, shown
from reparam_compiler.models.stated import declared, in_order, inputs_of_shapes, taken_for

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stated:
    """Random inputs of the stated shapes, None where none are stated; and for each the axes of open sizes, with their names."""

    inputs: tuple[Any, ...] | None = None
    open_sizes: tuple[Mapping[int, str], ...] = ()


def stated_inputs(model: Any, text: str | None) -> Stated:
    """What a text states for a model, which runs on it.

    Raises:
        UnsupportedModelError: the model has other inputs, or does not run on these; the message has a text that fits, where one
            is known.
    """
    if not text or not text.strip():
        return Stated()
    shapes = parse_shapes(text)
    ordered = in_order(model, shapes)
    _check_declared(model, ordered, unnamed="" in shapes)
    inputs = inputs_of_shapes(model, ordered)
    if numbers := taken_for(ordered.values()):
        taken = ", ".join(f"{name}={number}" for name, number in numbers.items())
        log.warning("the open sizes are %s where the model is run", taken)
    if isinstance(model, nn.Module | ExportedProgram):
        _check_runs(model, ordered, inputs, unnamed="" in shapes)
    sizes = ({axis: size for axis, size in enumerate(shape) if isinstance(size, str)} for shape in ordered.values())
    return Stated(inputs, tuple(sizes))


def inputs_of_either(one: Any, other: Any, text: str) -> tuple[Any, ...]:
    """Random inputs of these shapes, which go by the names of the first model's inputs or else of the second's."""
    named = one
    try:
        in_order(one, parse_shapes(text))
    except UnsupportedModelError:
        with contextlib.suppress(UnsupportedModelError):
            in_order(other, parse_shapes(text))
            named = other
    return stated_inputs(named, text).inputs or ()


def _check_declared(model: Any, shapes: Mapping[str, Shape], *, unnamed: bool) -> None:
    """Raises UnsupportedModelError where a model that states its inputs has others."""
    known = {name: _lettered(type) for name, (_, type) in (declared(model) or {}).items() if type is not None}
    fitting = {name: _fitted(shape, known.get(name, shape)) for name, shape in shapes.items()}
    if fitting != shapes:
        has, wanted = ({name: of.get(name, shape) for name, shape in shapes.items()} for of in (known, fitting))
        raise UnsupportedModelError(f"the model takes {_shown(has, unnamed)}; give --input-shapes '{_shown(wanted, unnamed)}'")


def _lettered(type: TensorType) -> Shape:
    """A shape that a model states, with letters for its open sizes."""
    letters = iter("NHWDEFG")
    return tuple(size if isinstance(size, int) else next(letters, "S") for size in type.shape)


def _fitted(shape: Shape, known: Shape) -> Shape:
    """A stated shape with the sizes that a model fixes; the model's own where its rank is another."""
    if len(shape) != len(known):
        return known
    return tuple(fixed if isinstance(fixed, int) else size for size, fixed in zip(shape, known, strict=True))


def _shown(shapes: Mapping[str, Shape], unnamed: bool) -> str:
    return shown({"" if unnamed else name: shape for name, shape in shapes.items()})


def _check_runs(model: Any, shapes: Mapping[str, Shape], inputs: tuple[Any, ...], *, unnamed: bool) -> None:
    """Raises UnsupportedModelError where a torch model does not run on these inputs; what only reads it would not notice."""
    runner = TorchRunner(model, copy="weights shared")
    try:
        runner.run(inputs)
    except UnsupportedModelError as error:
        fitting = next((other for other in _others(model, shapes) if _runs(runner, inputs_of_shapes(model, other))), None)
        advice = "give other sizes" if fitting is None else f"it runs on --input-shapes '{_shown(fitting, unnamed)}'"
        raise UnsupportedModelError(f"--input-shapes '{_shown(shapes, unnamed)}': {error}; {advice}") from error


def _runs(runner: TorchRunner, inputs: tuple[Any, ...]) -> bool:
    with contextlib.suppress(UnsupportedModelError):
        runner.run(inputs)
        return True
    return False


def _others(model: Any, shapes: Mapping[str, Shape]) -> Iterator[dict[str, Shape]]:
    """Shapes of the rank and with the channels that the first conv of a module has, and otherwise like that which is stated."""
    parts = model.modules() if isinstance(model, nn.Module) else ()
    conv = next((part for part in parts if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    if conv is None or len(shapes) != 1:
        return
    ((name, shape),), channels, axes = shapes.items(), conv.in_channels, conv.weight.ndim - 2
    if len(shape) == axes + 2:
        yield {name: (shape[0], channels, *shape[2:])}
        yield {name: (shape[0], channels, *shape[1:-1])}  # channels last
    if len(shape) == axes + 1 and shape[0] == channels:
        yield {name: (1, *shape)}
    if len(shape) == axes + 1 and shape[-1] == channels:
        yield {name: (1, channels, *shape[:-1])}
    yield {name: (1, channels, *(shape[-1:] or (224,)) * axes)}
