"""A program as TVM's importer gets it: in ops that it, or a converter of ours, computes as torch does.

ExportedProgram --run_decompositions(table)--> core aten, and what we convert ourselves --converters--> Relax
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import get_decompositions
from torch.export import ExportedProgram

from reparam_compiler.lowering.importing.torch_ops import (  # each declares its converters
    arithmetic,
    chance,
    elementary,
    indexing,
    layers,
    made,
    orders,
    pooling,
    quantized,
    reductions,
    resampling,
    writing,
)
from reparam_compiler.lowering.importing.torch_ops.table import INSTEAD

FAMILIES = (arithmetic, chance, elementary, indexing, layers, made, orders, pooling, quantized, reductions, resampling, writing)
DECOMPOSED = ("grid_sampler_2d", "dist")
"""Packets of aten that are decomposed though core aten holds them: TVM misreads them, or does not know them."""


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program in core aten, but for what is converted here; the one that is given stays as it is.

    TVM's importer does the same where it is let, with core aten's table. Programs of sparse tensors cannot be decomposed.
    """
    tensors = [*program.state_dict.values(), *program.constants.values()]
    if any(isinstance(tensor, torch.Tensor) and tensor.layout is not torch.strided for tensor in tensors):
        return program
    found: ExportedProgram = program.run_decompositions(_table())
    return found


@functools.cache
def _table() -> dict[Any, Callable[..., Any]]:
    table = dict(torch.export.default_decompositions())
    table |= get_decompositions([getattr(torch.ops.aten, name) for name in DECOMPOSED])
    return {op: rule for op, rule in table.items() if getattr(op, "__name__", "") not in INSTEAD}


PREAMBLE = """# Ops of torch that are converted here

Written by `lowering/importing/torch_ops/program.py`; `UPDATE_GOLDENS=1 pytest tests/lowering/importing` writes it anew. What is
not listed is decomposed by torch into core aten, and TVM's to read; what TVM has no converter for is refused by the name of its
node.
"""


def page() -> str:
    """The table of converters as text: each family with what it does, each op with what TVM makes of it."""
    parts = [PREAMBLE]
    for family in FAMILIES:
        title, _, more = str(family.__doc__).strip().partition("\n")
        own = ((name, row.tvm) for name, row in INSTEAD.items() if row.convert.__module__ == family.__name__)
        rows = sorted({(name.partition(".")[0], tvm) for name, tvm in own})
        parts += [f"## {title}\n", *([f"{more.strip()}\n"] if more.strip() else [])]
        parts.append("\n".join(["| op | TVM 0.27 |", "|---|---|", *(f"| `{name}` | {tvm} |" for name, tvm in rows)]) + "\n")
    return "\n".join(parts)
