"""What replaces bindings of a Relax function by something else, each with those whose values it takes in."""

from collections.abc import Collection, Mapping
from typing import Any

from tvm import relax
from tvm.relax.expr_functor import PyExprMutator


class SiteReplacer(PyExprMutator):  # type: ignore[misc, unused-ignore]
    """Puts what `value` gives for a site in place of the variable of its result, and drops the bindings that it absorbed.

    by_result: the sites, each by that variable. absorbed: the variables that disappear.
    """

    def __init__(self, module: Any, by_result: Mapping[Any, Any], absorbed: Collection[Any]) -> None:
        super().__init__(module)
        self.by_result = by_result
        self.absorbed = absorbed

    def value(self, site: Any) -> Any:
        """The expression that stands for a site's result."""
        raise NotImplementedError

    def visit_var_binding_(self, binding: Any) -> None:
        if binding.var in self.absorbed:
            return
        site = self.by_result.get(binding.var)
        if site is None:
            super().visit_var_binding_(binding)
            return
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(self.value(site)))
