"""TVM 0.27's torch importer asks every conv and product for a float32 result, whatever goes in.

    conv2d(float16, float16, out_dtype="float32") + float16 bias        refused by Relax

`own_dtypes` leaves that argument out, so that a layer's result has the dtype of what goes in, as torch's has.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tvm import relax

from reparam_compiler.core.locks import ProcessLock

CONVS = ("conv1d", "conv2d", "conv3d", "conv1d_transpose", "conv2d_transpose", "conv3d_transpose")
_exchanging = ProcessLock()
"""Held while TVM's own functions are exchanged: two threads at once would give each other's back."""


@contextlib.contextmanager
def own_dtypes() -> Iterator[None]:
    """Convs and matrix products emitted in this block keep the dtype of their operands; one thread is in it at a time."""
    places = [(relax.op.nn, name) for name in CONVS if hasattr(relax.op.nn, name)]
    places.append((relax.op.linear_algebra, "matmul"))
    with _exchanging.held():
        before = [(module, name, getattr(module, name)) for module, name in places]
        for module, name, op in before:
            setattr(module, name, _without_out_dtype(op))
        try:
            yield
        finally:
            for module, name, op in before:
                setattr(module, name, op)


def _without_out_dtype(op: Callable[..., Any]) -> Callable[..., Any]:
    def emit(*args: Any, **attrs: Any) -> Any:
        attrs.pop("out_dtype", None)
        return op(*args, **attrs)

    return emit
