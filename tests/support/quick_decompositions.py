"""torch's decomposition of exported programs, without what it does anew each time: that is half of the time that it takes.

`ExportedProgram.run_decompositions` (which TVM's importer and the ONNX exporter call) gives each of 500 ops 22 kernels, which
it makes one by one, and takes them away again. Here those that are the same each time are made once.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch._export.utils
import torch.export.exported_program
from torch._C import DispatchKey

_exports: Any = torch.export.exported_program
_AUTOGRAD, _BACKENDS = _exports._AUTOGRAD_ALIAS_BACKEND_KEYS_TO_OVERRIDE, _exports._BACKEND_KEYS_TO_OVERRIDE
torchs_override = _exports._override_composite_implicit_decomp


def install() -> None:
    """Makes torch use what is here."""
    # it looks for ops that only C++ knows once for each of 28 namespaces, in every decomposition: once is enough
    torch._export.utils._materialize_cpp_cia_ops = functools.cache(torch._export.utils._materialize_cpp_cia_ops)
    _exports._override_composite_implicit_decomp = override


@functools.cache
def _kernels(op: Any) -> dict[DispatchKey, Callable[..., Any]]:
    """The kernels that an op gets where it has none, whatever it is decomposed to."""
    undecided, own = _exports.autograd_not_implemented(op, deferred_error=True), _exports._get_decomp_for_cia(op)
    return dict.fromkeys(_AUTOGRAD, undecided) | dict.fromkeys(_BACKENDS, own)


@functools.cache
def _fake_rule(op: Any) -> Callable[..., Any]:
    """An op on fake tensors: as torch decomposes it itself."""
    own = _exports._get_decomp_for_cia(op)

    def rule(mode: Any, op: Any, *args: Any, **kwargs: Any) -> Any:
        with mode:
            return own(*args, **kwargs)

    return rule


@contextmanager
def override(decompositions: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """As torch's own of this name: while it is open these ops are decomposed so."""
    saved = {op: op.py_kernels.copy() for op in decompositions}
    for op, decomposition in decompositions.items():
        kernels = _kernels(op) | op.py_kernels | {DispatchKey.CompositeImplicitAutograd: decomposition}
        op.py_kernels.update(kernels)
        op._dispatch_cache.clear()
        if not _exports._is_op_registered_to_fake_rule(op):
            _exports.register_op_impl(op)(_fake_rule(op))
    try:
        yield
    finally:
        for op, kernels in saved.items():
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()
            _exports._deregister_op_impl(op)
