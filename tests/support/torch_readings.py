"""A torch module read by each of torch's two frontends, and what its graph computes."""

from torch import Tensor, nn

from reparam_compiler.frontends.base import Reading
from reparam_compiler.frontends.torch.export import ExportFrontend
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from tests.support.small_models import Kind, traced_as

TORCH_KINDS: tuple[Kind, ...] = ("fx", "export")


def read(kind: Kind, model: nn.Module, x: Tensor) -> Reading:
    """A model read; it stands in another one, since a tracer enters the one that it is given."""
    native = traced_as(kind, nn.Sequential(model).double().eval(), (x,))
    return FxFrontend().read(native) if kind == "fx" else ExportFrontend().read(native)  # type: ignore[return-value]


def value(graph: Graph, x: Tensor) -> Tensor:
    (source,) = [node.id for node in graph if isinstance(node.op, ops.Input)]
    found: Tensor = evaluate(graph, {source: x})[graph.outputs[0]]
    return found
