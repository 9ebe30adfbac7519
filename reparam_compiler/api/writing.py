"""A rewritten graph, written back and checked: the last step of `fuse`, `prune` and `apply_manifest`.

What is to be changed in place is checked on a copy before, so that an error leaves the caller's model as it was.
"""

from collections.abc import Callable
from typing import Any

from reparam_compiler.checking.written import Comparison, check_pruned, check_runs, compare_fused
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models.opening import Source


def write_fused(source: Source, after: Graph, *, inplace: bool, verify: bool) -> tuple[Any, Comparison | None]:
    """The torch model that computes a fused graph, and how the whole was compared.

    Raises:
        VerificationError: it is off by more than rounding.
        RewriteError: the program that was written does not run.
    """
    comparison = compare_fused(source.native, source.reading, after, source.run_inputs) if verify else None
    written = source.reading.write(after, inplace=inplace or source.is_own)
    if verify and source.kind == "torch.export" and not inplace:
        check_runs(written, source.run_inputs)
    return written, comparison


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
        lambda stored: compare_fused_onnx(source.model, stored, source.inputs) if changed() else None,
    )
    return _in_place(source, written) if inplace else written, comparison


def write_pruned(source: Source, after: Graph, *, inplace: bool, verify: bool) -> Any:
    """The model that computes a pruned graph, of the caller's kind.

    Raises:
        VerificationError: it computes something else.
        RewriteError: it does not run, or is not valid.
    """
    reading = source.reading
    if not verify:
        return reading.write(after, inplace=inplace or source.is_own)
    if source.kind == "onnx":
        from reparam_compiler.checking.onnx_written import checked_onnx, compare_pruned_onnx

        written, _ = checked_onnx(
            source.model,
            lambda: reading.write(after),
            lambda stored: compare_pruned_onnx(source.model, reading.graph, after, stored, source.inputs),
        )
        return _in_place(source, written) if inplace else written
    if inplace:
        check_pruned(reading.write(after), after, source.run_inputs)
    written = reading.write(after, inplace=inplace or source.is_own)
    if not inplace:
        check_pruned(written, after, source.run_inputs)
    return written


def _in_place(source: Source, written: Any) -> Any:
    source.model.CopyFrom(written)
    return source.model
