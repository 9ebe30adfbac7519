"""What TVM's importers raise, as one typed error that names the node at which they stopped."""

import contextlib
import gc
import io
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import tvm

from reparam_compiler.errors import LoweringError, class_and_line
from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr


@contextlib.contextmanager
def importing(kind: str) -> Iterator[None]:
    """Quiet the importers' warnings and prints; turn what they raise into one typed error that names the node."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), filter_stderr():
        warnings.simplefilter("ignore")
        try:
            yield
        except LoweringError:
            raise
        except Exception as refusal:  # the importers raise AssertionError, KeyError, ValueError, OpNotImplemented …
            nodes = _nodes_of(refusal)
            traceback.clear_frames(refusal.__traceback__)
            gc.collect()  # a half-built function complains on stderr when it is freed: here, where that is quiet
            named = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
            raise LoweringError(
                f"{named or 'main'}: the {kind} importer of TVM {tvm.__version__} refuses it: {class_and_line(refusal)}. "
                "Expected only ops that it imports; rewrite that op in the model, or cut the model before it"
            ) from refusal


def _nodes_of(refusal: BaseException) -> list[str]:
    """The nodes at which an importer stopped, as `name (op)`; none where it stopped elsewhere.

    TVM's messages name ops at best, so the nodes are read from the frames of the importer that raised.
    """
    found: list[str] = []
    for frame, _ in traceback.walk_tb(refusal.__traceback__):
        local = frame.f_locals
        if frame.f_code.co_name in {"_construct_nodes", "_convert_subgraph", "_translate_fx_graph"} and "node" in local:
            found = [named(local["node"])]
        elif frame.f_code.co_name == "_check_for_unsupported_ops" and "unsupported_ops" in local:
            found = [named(node) for node in local["graph"].node if node.op_type in local["unsupported_ops"]]
        elif frame.f_code.co_name == "_check_unsupported_func_type" and "missing_func_types" in local:
            called = (node for node in local["nodes"] if node.op == "call_function")
            found = [named(node) for node in called if node.target.__name__ in local["missing_func_types"]]
    return found


def named(node: Any) -> str:
    """`name (op)` of a NodeProto or an fx.Node, with the layer that the latter stands in."""
    if hasattr(node, "op_type"):
        domain = f"{node.domain}::" if node.domain else ""
        return f"{node.name or next(iter(node.output), '?')} ({domain}{node.op_type})"
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    layer = f", in {stack[-1][0]}" if stack and stack[-1][0] else ""
    return f"{node.name} ({node.target}{layer})"
