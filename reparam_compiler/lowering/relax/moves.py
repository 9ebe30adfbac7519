"""Transposes and reshapes that move nothing, or do together what one of them does; Relax in, Relax out.

permute(permute(x))                        one permute
permute, reshape, permute = a reshape      NHWC -> NCHW -> N C (H W) -> N (H W) C is a reshape of NHWC
"""

import math
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from reparam_compiler.lowering.relax.canonicalize import op_name
from reparam_compiler.lowering.relax.epilogues import sizes_of

PERMUTE, RESHAPE = "relax.permute_dims", "relax.reshape"
MOST = 1 << 22  # elements up to which moves are followed, by moving their positions


def without_idle_moves(module: Any) -> Any:
    """The module in which each of these moves is said in one op, or is left out."""
    module = module.clone()
    module["main"] = _Moves(module).visit_expr(module["main"])
    return module


@mutator
class _Moves(PyExprMutator):  # type: ignore[misc, unused-ignore]
    def visit_call_(self, call: Any) -> Any:
        call = self.visit_expr_post_order(call)
        if op_name(call) not in (PERMUTE, RESHAPE):
            return call
        chain = self._chain(call)
        sizes, source = sizes_of(call), sizes_of(chain[-1].args[0])
        if sizes is None or source is None or math.prod(sizes) > MOST or not any(op_name(each) == PERMUTE for each in chain):
            return call
        positions = np.arange(math.prod(source), dtype=np.int32).reshape(source)
        for each in reversed(chain):
            positions = _moved(positions, each)
        if (positions.reshape(-1) == np.arange(positions.size)).all():
            return chain[-1].args[0] if sizes == source else relax.op.reshape(chain[-1].args[0], sizes)
        if len(chain) > 1 and op_name(call) == op_name(chain[1]) == PERMUTE:
            return relax.op.permute_dims(chain[1].args[0], [_axes(chain[1])[axis] for axis in _axes(call)])
        return call

    def _chain(self, call: Any) -> list[Any]:
        """The call and the moves before it, the first one last."""
        chain = [call]
        while isinstance(chain[-1].args[0], relax.Var):
            before = self.builder_.lookup_binding(chain[-1].args[0])
            if op_name(before) not in (PERMUTE, RESHAPE) or sizes_of(before) is None:
                break
            chain.append(before)
        return chain


def _axes(call: Any) -> list[int]:
    rank = len(call.args[0].ty.shape.values)
    return [int(axis) % rank for axis in call.attrs.axes] if call.attrs.axes is not None else list(range(rank))[::-1]


def _moved(array: Any, call: Any) -> Any:
    return array.transpose(_axes(call)) if op_name(call) == PERMUTE else array.reshape(sizes_of(call))
