"""What TVM compiled, run once beside the caller's own model: an importer that misreads an op says nothing.

    compiled library --------TVM--------> found
    the caller's model --torch or ONNX Runtime--> expected        max |found - expected| <= tolerance max |expected|

The model is run in its own dtype by its own runtime, not as `fuse` left it. It is not changed, nor are its weights copied
before a difference is found.

A saturated output is compared by what it says. Where its elements are all within the tolerance of each other (sigmoids near 1),
the tolerance is of how far they are apart. Where rounding alone moves it by more than the tolerance (a sigmoid near 0 of logits
of hundreds), that is measured: the model is run with its weights and inputs moved by their rounding, and may differ by

    8 |moved - expected|, or else 8 e / eps |moved - expected|         e: the largest error measured of a layer's algorithm

A wrong import moves such an output by far more, for it moves the logits by more than rounding does. Where that bound is a tenth
of the output, nothing can be told, and it is said so.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree

from reparam_compiler.advice import option
from reparam_compiler.checking.bounds import bound_of, kind_of_numbers, largest_of, nudged
from reparam_compiler.checking.runners import OnnxRunner, Outputs, TorchRunner, coarsest, leaves
from reparam_compiler.checking.tolerances import BY_DTYPE, EPS, LAYERS, MARGIN, NUDGES
from reparam_compiler.checking.written import NOTHING_FINITE
from reparam_compiler.errors import LoweringError, ReparamError, UnsupportedModelError, VerificationError, class_and_line
from reparam_compiler.frontends.torch.tensors import dtype_word
from reparam_compiler.interpreter.difference import difference, distances, tells

if TYPE_CHECKING:
    from reparam_compiler.lowering import Executable, TensorSpec

log = logging.getLogger(__name__)
NOTHING_TOLD = 0.1
"""A bound, of the largest element of an output, that tells no wrong import from rounding."""
ONE_NUMBER = "; each of its outputs is of one number there, which tells little"


@dataclass(frozen=True, slots=True)
class _Reference:
    """The caller's model and what it is called with. arrays: an input for each of the compiled model's, in its order."""

    runner: TorchRunner | OnnxRunner
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    arrays: Sequence[Any]

    def run(self, *, seed: int) -> Outputs:
        return self.runner.run(self.args, self.kwargs, seed=seed)

    def responses(self, expected: Outputs, eps: float) -> list[float]:
        """By how much each output moves where the weights and inputs are moved by their rounding; 0 where that is not known."""
        found = [0.0] * len(expected)
        for seed in range(NUDGES):
            args, kwargs = _pytree.tree_map(lambda value, seed=seed: nudged(value, seed, eps), (self.args, self.kwargs))
            try:
                moved = self.runner.nudged(seed).run(args, kwargs)
            except ReparamError as refusal:
                log.info("the model with moved weights was not run: %s", refusal)
                break
            if len(moved) == len(expected):
                apart = [difference(a, b).max_abs for a, b in zip(expected.values(), moved.values(), strict=True)]
                found = [max(most, x) if x < math.inf else most for most, x in zip(found, apart, strict=True)]
        return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a compiled model was compared with the model, and how or why not. (One that differs is an error.)"""

    compared: bool
    words: str


def verify_compiled(
    executable: "Executable",
    model: Any,
    example_inputs: Sequence[Any] | None,
    *,
    name: str = "",
    max_error: float = 0.0,
    samples: int | None = None,
) -> Verdict:
    """Compare one run of a compiled model with one of the model; a log line says where they could not be compared.

    Args:
        model: what the caller gave: an nn.Module in evaluation mode, an ExportedProgram or a ModelProto.
        example_inputs: what both run on; random inputs stand for missing ones, for those of another shape or dtype, and for
            floating ones that are of one number everywhere, on which most functions are the same.
        name: what log lines call the model; its class where that is empty.
        max_error: the relative error that a layer's algorithm may have.
        samples: how many a run is of, where the compiled model takes any number of them; None is its smallest batch.

    Raises:
        VerificationError: an output is another, in number, shape, dtype, or by more than rounding.
        LoweringError: the compiled model does not run.
    """
    from reparam_compiler.lowering.runtime.batches import of_samples

    name = name or type(model).__name__
    if not executable.runs_here:
        return _not_compared(name, "it is compiled for another machine or device", logging.INFO)
    try:
        specs = executable.inputs if samples is None else of_samples(executable.inputs, samples)
        reference, expected = _first_run(model, specs, example_inputs)
    except ImportError as missing:
        return _not_compared(name, str(missing), logging.INFO)
    except UnsupportedModelError as refusal:
        return _not_compared(name, f"it does not run here: {refusal}")
    try:
        arrays = executable.run(*reference.arrays)
    except RuntimeError as failure:
        raise LoweringError(
            f"main: the compiled model does not run: {failure}. Please report the model; {option('verify', False)} compiles it "
            "all the same"
        ) from failure
    return _compared(name, reference, executable, expected, leaves(dict(enumerate(arrays))), max_error)


def _compared(
    name: str, reference: _Reference, executable: "Executable", expected: Outputs, found: Outputs, max_error: float
) -> Verdict:
    """What outputs beside the expected ones say. Raises: VerificationError where they differ by more than rounding."""
    words = [reference.runner.stored, *(dtype_word(x.dtype) for x in (*expected.values(), *found.values()))]
    tolerance, eps = max(BY_DTYPE[coarsest(words)].compiled, LAYERS * max_error), EPS[coarsest(words)]
    bounds = [bound_of(value, tolerance, eps) for value in expected.values()]
    how = f"one run gives what the model gives in {reference.runner.runtime}"
    wrong = _mismatch(expected, found, executable.outputs, bounds)
    if wrong is None:
        if not tells(expected.values()):
            return _not_compared(name, NOTHING_FINITE)
        return Verdict(True, f"{how}, to {tolerance:.0e} (relative){ONE_NUMBER * _is_constant(expected)}")
    if _mismatch(expected, reference.run(seed=1), executable.outputs, bounds) is not None:
        return _not_compared(name, "two runs of it differ")
    if wrong.max_abs_err == math.inf:
        raise wrong
    layer = max((kernel.error or 0.0 for kernel in executable.kernels), default=0.0)
    responses = reference.responses(expected, eps)
    for scale in (1.0, max(1.0, layer / eps)):
        allowed = [max(bound, MARGIN * scale * moved) for bound, moved in zip(bounds, responses, strict=True)]
        if (wrong := _mismatch(expected, found, executable.outputs, allowed)) is None:
            return _told(name, how, expected, allowed)
    raise wrong


def _told(name: str, how: str, expected: Outputs, bounds: Sequence[float]) -> Verdict:
    """What is told by outputs that differ by no more than rounding moves them."""
    largest = map(largest_of, expected.values())
    told = max((bound / size for bound, size in zip(bounds, largest, strict=True) if size), default=0.0)
    if told > NOTHING_TOLD:
        return _not_compared(name, f"rounding moves its outputs by as much as they differ, {told:.0e} (relative)")
    return Verdict(True, f"{how}, to {told:.0e} (relative), by as much as rounding may move it")


def _not_compared(name: str, why: str, level: int = logging.WARNING) -> Verdict:
    log.log(level, "%s is compiled, and was not compared with the model: %s", name, why)
    return Verdict(False, why)


def _first_run(model: Any, specs: "Sequence[TensorSpec]", inputs: Sequence[Any] | None) -> tuple[_Reference, Outputs]:
    """The model, ready to run, and what it gives.

    Raises: UnsupportedModelError where it does not run; ImportError where its runtime is not installed.
    """
    try:
        is_torch = isinstance(model, nn.Module | ExportedProgram)
        reference = _torch_reference(model, specs, inputs) if is_torch else _onnx_reference(model, specs, inputs)
        return reference, reference.run(seed=0)
    except ImportError:
        raise
    except Exception as refusal:  # whatever the caller's code raises on these inputs
        raise UnsupportedModelError(class_and_line(refusal.__cause__ or refusal)) from refusal


def _is_constant(outputs: Outputs) -> bool:
    return all(value.numel() > 1 and bool((value == value.flatten()[0]).all()) for value in outputs.values())


def _mismatch(
    expected: Outputs, found: Outputs, specs: "Sequence[TensorSpec]", bounds: Sequence[float]
) -> VerificationError | None:
    """What is wrong with the first output that differs by more than its bound."""
    if len(expected) != len(found):
        counts = f"{len(found)} outputs were found, {len(expected)} expected"
        return _error("outputs", math.inf, 0.0, counts)
    for spec, (place, wanted), other, bound in zip(specs, expected.items(), found.values(), bounds, strict=True):
        name = f"{spec.name} {place}".strip()
        for what, a, b in (
            ("shape", tuple(wanted.shape), tuple(other.shape)),
            ("dtype", _dtype(wanted), _dtype(other)),
        ):
            if a != b:
                return _error(name, math.inf, 0.0, f"the {what} {b} was found, {a} expected")
        apart = difference(wanted, other)
        if not apart.max_abs <= bound:
            return _error(name, apart.max_abs, bound, _worst(wanted, other))
    return None


def _error(name: str, max_abs: float, tolerance: float, found: str) -> VerificationError:
    advice = (
        f"{found}. TVM's importer or a kernel computes something else than the model; please report it. Where the model "
        f"is chaotic in its own dtype, {option('verify', False)} compiles it all the same"
    )
    return VerificationError(name, max_abs, tolerance, advice, "the compiled model")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _worst(expected: Tensor, found: Tensor) -> str:
    """The element that is furthest off: " at (0, 3) 2.5 was found, 0 expected"."""
    apart = distances(expected, found)
    index = tuple(int(i) for i in np.unravel_index(int(apart.argmax()), apart.shape))
    form = "" if kind_of_numbers(expected) in ("integer", "bool") else ".6g"
    return f"At {index} {found[index].item():{form}} was found, {expected[index].item():{form}} expected"


def _torch_reference(
    model: nn.Module | ExportedProgram, specs: "Sequence[TensorSpec]", example_inputs: Sequence[Any] | None
) -> _Reference:
    given: Any = None if example_inputs is None else (tuple(example_inputs), {})
    layout = None
    if isinstance(model, ExportedProgram):
        layout = model.call_spec.in_spec
        if given is None or not _fit(given, specs):
            given = model.example_inputs
    if given is not None and _fit(given, specs):
        values, layout = _pytree.tree_flatten(given)
    else:
        values = [torch.empty(0) for _ in specs]
    if layout is None or layout.num_leaves != len(values):
        raise UnsupportedModelError(f"there are no inputs for {', '.join(map(str, specs))}")
    places = [index for index, value in enumerate(values) if isinstance(value, Tensor)]
    for seed, (index, spec) in enumerate(zip(places, specs, strict=True)):
        values[index] = _informative(values[index].detach().cpu(), spec, seed)
    args, kwargs = _pytree.tree_unflatten(values, layout)
    return _Reference(TorchRunner(model, copy="weights shared"), args, kwargs, [values[index] for index in places])


def _onnx_reference(model: Any, specs: "Sequence[TensorSpec]", example_inputs: Sequence[Any] | None) -> _Reference:
    from reparam_compiler.frontends.onnx.frontend import named_inputs

    try:
        given = {} if example_inputs is None else named_inputs(model, example_inputs)
    except UnsupportedModelError:  # another number of them: the compiled model does not depend on them
        given = {}
    arrays = []
    for seed, spec in enumerate(specs):
        array = torch.from_numpy(np.array(given.get(spec.name, np.empty(0))))
        arrays.append(_informative(array, spec, seed).numpy())
    return _Reference(OnnxRunner(model), arrays, {}, arrays)


def _fit(given: Any, specs: "Sequence[TensorSpec]") -> bool:
    tensors = [value for value in _pytree.tree_leaves(given) if isinstance(value, Tensor)]
    return len(tensors) == len(specs) and all(_is_like(value, spec) for value, spec in zip(tensors, specs, strict=True))


def _is_like(tensor: Tensor, spec: "TensorSpec") -> bool:
    return tuple(tensor.shape) == spec.shape and _dtype(tensor) == spec.dtype


def _informative(tensor: Tensor, spec: "TensorSpec", seed: int) -> Tensor:
    """The tensor; a random one where it does not fit or is of floating zeros, and one that varies where it is of one number.

    On zeros most functions are the same, and what norms make of one number is rounding.
    """
    from reparam_compiler.lowering.runtime.description import filled

    if spec.dtype == "bfloat16":
        raise UnsupportedModelError(f"{spec.name} is of bfloat16, which numpy does not have")
    if not _is_like(tensor, spec):
        return torch.from_numpy(np.array(filled(spec, "random", seed)))
    constant = tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
    if not constant or not tensor.isfinite().all():
        return tensor
    if not tensor.any():
        return torch.from_numpy(np.array(filled(spec, "random", seed)))
    factors = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (tensor.double() * (0.5 + factors)).to(tensor.dtype)
