"""CUDA graphs: what Relax can capture of a model's kernels is launched as one graph from the second run on.

At batch 1 a kernel takes microseconds, as its launch does; at a large batch launches hide behind the work, and a captured
graph would only hold on to its memory. So models of batch 1 get graphs. Relax captures the calls between tensors that it
planned the memory of: the first kernel, which reads the caller's input, and the last, which makes the output, stay outside.
"""

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.ir.transform import PassContext, Sequential, module_pass

SETTING = "relax.backend.use_cuda_graph"


def with_cuda_graphs(passes: Sequence[Any]) -> Any:
    """One pass that runs `passes`, capturing graphs where the model has batch 1; the caller's own setting comes first."""

    def run(module: Any, context: Any) -> Any:
        config = dict(context.config)
        config.setdefault(SETTING, has_batch_one(module))
        with PassContext(
            opt_level=context.opt_level,
            required_pass=list(context.required_pass),
            disabled_pass=list(context.disabled_pass),
            instruments=list(context.instruments),
            config=config,
        ):
            return Sequential(list(passes))(module)

    return module_pass(run, opt_level=0, name="with_cuda_graphs")


def has_batch_one(module: Any) -> bool:
    """Whether every tensor that `main` takes has a first dimension of 1."""
    shapes = [parameter.ty.shape for parameter in module["main"].params]
    firsts = [shape.values[0] if shape is not None and len(shape.values) else None for shape in shapes]
    return all(isinstance(first, tirx.IntImm) and int(first) == 1 for first in firsts)
