"""Relax passes that bring a model into the layout of the kernels: Relax in, Relax out.

    simplify         batch norms and constants folded, what inference does not need decomposed
    channels_last    NCHW model -> NHWC inside, transposes only at the borders

TVM's ConvertLayout does it, for what `canonicalize.py` says in ops that it knows.
"""

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax
from tvm.ir.transform import Sequential

from reparam_compiler.errors import first_line
from reparam_compiler.lowering.relax.canonicalize import canonicalized, op_name
from reparam_compiler.lowering.relax.folding import folded, shared
from reparam_compiler.lowering.relax.moves import without_idle_moves
from reparam_compiler.lowering.relax.norms import with_scales, without_missing_kernels
from reparam_compiler.lowering.relax.transposed_convs import with_plain_convs

log = logging.getLogger(__name__)


def simplify(module: Any) -> Any:
    """Decompose what inference does not need, fold batch norms into convs and constants into constants."""
    folding = [relax.transform.FoldBatchnormToConv2D()] if _is_single(module) else []
    foldable = folded(without_missing_kernels(module))  # which writes a kernel of everything
    without_norms = Sequential([relax.transform.CanonicalizeBindings(), *folding])(foldable)
    return folded(relax.transform.DecomposeOpsForInference()(with_scales(without_norms)))


def _is_single(module: Any) -> bool:
    """Whether every input is float32: TVM's folding adds a float32 epsilon to the variance, and fails on another dtype."""
    return all(str(parameter.ty.dtype) == "float32" for parameter in module["main"].params)


def channels_last(module: Any) -> Any:
    """NHWC inside: every conv2d reads and writes NHWC, its weight is `O kh kw Ig`, and what lies between follows."""
    converted = folded(_converted(relax.transform.CanonicalizeBindings()(canonicalized(module))))
    return shared(folded(without_idle_moves(with_plain_convs(converted))))


def _converted(module: Any) -> Any:
    """The module as ConvertLayout makes it. An op at which it fails keeps its layout, as a kernel, and a log line names it."""
    convert = relax.transform.ConvertLayout(
        {"relax.nn.conv2d": ["NHWC", "OHWI"], "relax.nn.conv2d_transpose": ["NHWC", "OHWI"]}
    )
    try:
        return convert(module)
    except Exception as refusal:  # InternalError, IndexError …
        between = sorted(_op_names(module["main"]) - {"relax.nn.conv2d"})
        for left_out in ([name] for name in between), [between]:
            for names in left_out:
                with contextlib.suppress(Exception):  # it fails at another
                    converted = convert(_as_kernels(module, names))
                    words = ", ".join(name.removeprefix("relax.") for name in names)
                    log.warning("TVM's ConvertLayout fails at %s, which stays NCHW: %s", words, first_line(refusal))
                    return converted
        raise


def _op_names(function: Any) -> set[str]:
    found: set[str] = set()
    relax.analysis.post_order_visit(function, lambda part: found.add(op_name(part)))
    return found - {""}


def _as_kernels(module: Any, names: Sequence[str]) -> Any:
    """The module with these ops as loops, which say nothing of a layout."""
    others = [name for name in tvm.ir.Op.list_op_names() if name not in names]
    return relax.transform.LegalizeOps(skip_ops=others)(module)
