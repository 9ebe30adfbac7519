"""A rewritten graph, written back and checked: the last step of `fuse`, `prune` and `apply_manifest`.

What is to be changed in place is written into a copy first, which is checked, so that an error leaves the caller's model as it
was; the model itself must then give what the copy gave.
"""

from collections.abc import Callable
from typing import Any

from reparam_compiler.checking.runners import Outputs
from reparam_compiler.checking.written import (
    Comparison,
    Inputs,
    Reference,
    check_same,
    check_stored,
    compare_fused,
    run_written,
)
from reparam_compiler.frontends.base import Reading
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models.opening import Source


def write_fused(
    source: Source, reading: Reading[Any], after: Graph, *, inplace: bool, verify: bool
) -> tuple[Any, Comparison | None]:
    """The torch model that computes a fused graph, and how the whole was compared.

    reading: of the source, which writes the graphs that its calls run as well.

    Raises:
        VerificationError: it is off by more than rounding.
        RewriteError: what was written does not run.
    """
    inputs = source.run_inputs
    if not verify or inputs is None:
        return reading.write(after, inplace=inplace or source.is_own), None
    comparison, compared = compare_fused(source.native, reading, after, inputs)
    reference = Reference.of_model(source.model, inputs, compared)
    return _written(source, reading, after, inputs, lambda written: check_stored(written, reference), inplace), comparison


def write_fused_onnx(
    source: Source, write: Callable[[bool], Any], changed: Callable[[], bool], *, inplace: bool, verify: bool
) -> tuple[Any, Comparison | None]:
    """What `write` makes of an ONNX model, in place where it is told so, and how the whole was compared, if it `changed`.

    Raises:
        RewriteError, VerificationError, UnsupportedModelError: see `checking/onnx_written.py`.
    """
    if not verify:
        return write(inplace), None
    from reparam_compiler.checking.onnx_written import checked_onnx, compare_fused_onnx

    written, comparison = checked_onnx(
        source.model,
        lambda: write(False),
        lambda stored: compare_fused_onnx(source.model, stored, source.inputs, lambda: source.graph) if changed() else None,
    )
    return _in_place(source, written) if inplace else written, comparison


def write_pruned(source: Source, after: Graph, *, inplace: bool, verify: bool) -> Any:
    """The model that computes a pruned graph, of the caller's kind.

    Raises:
        VerificationError: it computes something else.
        RewriteError: it does not run, or is not valid.
    """
    reading, inputs = source.reading, source.run_inputs
    if verify and source.kind == "onnx":
        from reparam_compiler.checking.onnx_written import checked_onnx, compare_pruned_onnx

        written, _ = checked_onnx(
            source.model,
            lambda: reading.write(after),
            lambda stored: compare_pruned_onnx(source.model, reading.graph, after, stored, source.inputs),
        )
        return _in_place(source, written) if inplace else written
    if not verify or inputs is None:
        return reading.write(after, inplace=inplace or source.is_own)
    reference = Reference.of_graph(source.model, source.native, reading.graph, after, inputs)

    def check(written: Any) -> Outputs | None:
        if reference is not None:
            return check_stored(written, reference)
        run = run_written(written, source.model, inputs)
        return None if run is None else run.outputs

    return _written(source, reading, after, inputs, check, inplace)


def _written(
    source: Source,
    reading: Reading[Any],
    after: Graph,
    inputs: Inputs,
    check: Callable[[Any], Outputs | None],
    inplace: bool,
) -> Any:
    """A torch model, written and checked; `check` gives what it computes."""
    write = reading.write
    if not inplace:
        written = write(after, inplace=source.is_own)
        check(written)
        return written
    expected = check(write(after))
    written = write(after, inplace=True)
    if expected is not None:
        check_same(written, expected, inputs)
    return written


def _in_place(source: Source, written: Any) -> Any:
    source.model.CopyFrom(written)
    return source.model
