"""How much memory a compiled model's activations take, beside what a plain net needs (the paper's Fig. 3).

    live(i) = bytes of the tensors that exist while call i runs        bound = max_i largest input(i) + output(i)
    peak    = max_i live(i)                                            a plain net: peak = bound

A plain net holds one input and one output at a time; a branch that waits for an addition is held beside them. The model's
own input and outputs count, each while it is needed; a reshape is another view of the same bytes. `planned` is what TVM's
static plan makes of it: storages that are shared by tensors whose lives do not overlap; `scratch` is what a kernel allocates
within itself, of which there is one at a time.

Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, section 3.1 and Fig. 3.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.ir import GenericConst
from tvm.ir.transform import Sequential

from reparam_compiler.lowering.relax.canonicalize import op_name
from reparam_compiler.lowering.runtime.description import MemoryPlan

VIEWS = frozenset({"relax.reshape", "relax.memory.view", "relax.memory.ensure_zero_offset"})
REGISTERS = "local"
COMPACTED = Sequential(
    [
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
    ]
)
"""What TVM does to the scratch of a kernel: allocated where it is used, as large as one turn of the loop needs it."""


@dataclass(frozen=True, slots=True)
class Life:
    """A tensor of `main`: its bytes, and the first and the last call during which it exists."""

    bytes: int
    first: int
    last: int


def memory_plan(module: Any) -> MemoryPlan | None:
    """The plan of a lowered module, whose `main` calls kernels only; nothing where a size is symbolic."""
    main = module["main"]
    kernels = [func for _, func in module.functions_items() if isinstance(func, tirx.PrimFunc)]
    try:
        lives, calls = _lives(main)
        alive = [sum(life.bytes for life in lives if life.first <= index <= life.last) for index in range(len(calls))]
        return MemoryPlan(
            peak=max(alive, default=0),
            bound=max(calls, default=0),
            planned=_planned(module),
            scratch=max(map(_scratch, kernels), default=0),
            weights=_weights(main),
        )
    except _SymbolicSize:
        return None


class _SymbolicSize(Exception):
    """A tensor whose bytes are not known before the model runs."""


def _lives(main: Any) -> tuple[list[Life], list[int]]:
    """The life of each tensor, and for each call the bytes of its largest input and of what it writes."""
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    owners: dict[Any, tuple[Any, ...]] = {param: (param,) for param in main.params}  # whose bytes a variable stands for
    first, last = dict.fromkeys(main.params, 0), dict.fromkeys(main.params, 0)
    calls: list[int] = []
    for binding in bindings:
        read = tuple(dict.fromkeys(owner for variable in _variables(binding.value, owners) for owner in owners[variable]))
        if not _is_call(binding.value):
            owners[binding.var] = _element(binding.value, owners) or read
            continue
        index = len(calls)
        owners[binding.var] = (binding.var,)
        first[binding.var] = last[binding.var] = index
        for owner in read:
            last[owner] = index
        calls.append(max((_bytes(owner.ty) for owner in read), default=0) + _bytes(binding.var.ty))
    for variable in _variables(main.body.body, owners):
        for owner in owners[variable]:
            last[owner] = max(len(calls) - 1, 0)
    return [Life(_bytes(variable.ty), first[variable], last[variable]) for variable in first], calls


def _is_call(value: Any) -> bool:
    """Whether a binding computes something, and is not a tuple, an element of one, or a view."""
    return isinstance(value, relax.Call) and op_name(value) not in VIEWS


def _element(value: Any, owners: dict[Any, tuple[Any, ...]]) -> tuple[Any, ...]:
    """The owner of one element of a tuple that was made of variables; nothing for any other value."""
    if not isinstance(value, relax.TupleGetItem):
        return ()
    held = owners[value.tuple_value]
    return (held[value.index],) if len(held) > 1 else held


def _variables(value: Any, known: Collection[Any]) -> list[Any]:
    """The tensors and tuples that a value reads; not the symbolic sizes, which are variables too."""
    found: list[Any] = []
    relax.analysis.post_order_visit(value, lambda part: found.append(part) if isinstance(part, relax.Var) else None)
    return [variable for variable in found if variable in known]


def _bytes(ty: Any) -> int:
    if isinstance(ty, relax.TupleType):
        return sum(map(_bytes, ty.fields))
    if not isinstance(ty, relax.TensorType):
        return 0
    if not hasattr(ty.shape, "values"):
        raise _SymbolicSize
    return _product(ty.shape.values) * _item(str(ty.dtype))


def _product(sizes: Sequence[Any]) -> int:
    if not all(isinstance(size, int | tirx.IntImm) for size in sizes):
        raise _SymbolicSize
    return math.prod(int(size) for size in sizes)


def _item(dtype: str) -> int:
    """Bytes of an element."""
    return (int(tvm.DataType(dtype).bits) + 7) // 8


def _weights(main: Any) -> int:
    """Bytes of the constants, each counted once."""
    found: dict[Any, int] = {}

    def visit(part: Any) -> None:
        if isinstance(part, GenericConst):
            found[part.value] = _product(part.value.shape) * _item(str(part.value.dtype))

    relax.analysis.post_order_visit(main, visit)
    return sum(found.values())


def _planned(module: Any) -> int:
    """Bytes of the storages of TVM's plan, and of the outputs, which are allocated anew for each run."""
    passes = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
    ]
    return sum(_allocations(Sequential(passes)(module)["main"]))


def _allocations(main: Any) -> Iterator[int]:
    found: list[Any] = []
    relax.analysis.post_order_visit(main, lambda part: found.append(part) if isinstance(part, relax.Call) else None)
    for call in found:
        if op_name(call) == "relax.memory.alloc_storage":
            yield int(call.args[0].values[0])
        elif op_name(call) == "relax.builtin.alloc_tensor":
            yield _product(call.args[0].values) * _item(str(call.args[1].value))


def _scratch(func: Any) -> int:
    """Bytes that a kernel allocates, but for registers: on each thread, where it allocates within a parallel loop."""
    if not _allocated(func):  # as most; the passes take a second for all kernels of a net
        return 0
    buffers = _allocated(COMPACTED(tvm.IRModule({"main": func}))["main"])
    return sum(_product(buffer.shape) * _item(str(buffer.dtype)) for buffer in buffers)


def _allocated(func: Any) -> list[Any]:
    """The buffers that a kernel allocates, but for registers."""
    found: list[Any] = []
    tvm_ffi.structural_walk(func.body, (s_tir.SBlock, lambda block: found.extend(block.alloc_buffers)))
    return [buffer for buffer in found if buffer.scope() != REGISTERS]
