"""The table of what TVM misreads: by op, what TVM 0.27 does with it, and the rule that stands instead.

@instead_of("ReduceProd", tvm="has no kernel for prod")
def product(graph, node): ...
"""

from collections.abc import Callable
from dataclasses import dataclass

from reparam_compiler.lowering.importing.onnx_ops.graph import Rule

MICROSOFT = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Row:
    """tvm: what TVM's importer does with the op. rule: what stands instead; its docstring says it in words."""

    tvm: str
    rule: Rule


ROWS: dict[tuple[str, str], Row] = {}
"""By domain and op."""


def instead_of(*ops: str, tvm: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Registers a rule for these ops."""

    def register(rule: Rule) -> Rule:
        ROWS.update({(domain, op): Row(tvm, rule) for op in ops})
        return rule

    return register
