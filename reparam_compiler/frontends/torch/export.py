"""torch.export.ExportedProgram in, ExportedProgram out.

Parameters of a program are lifted: they are placeholders, named by the signature, with their values in the state dict. So a
new conv is an aten call with two new placeholders, and what it replaces takes its own placeholders away with it. The result
saves, loads, runs and exports again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from reparam_compiler.frontends.base import Comparison
from reparam_compiler.frontends.torch.fx import compare_copies
from reparam_compiler.frontends.torch.native import InPlace
from reparam_compiler.frontends.torch.program_writer import ProgramWriter
from reparam_compiler.frontends.torch.reader import TorchReader
from reparam_compiler.frontends.torch.spellings import ComputedSizes
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.ir.graph import Graph, diff


class ExportFrontend:
    """Reads and writes `torch.export.ExportedProgram`."""

    name = "torch.export"

    def matches(self, model: object) -> bool:
        """True for an ExportedProgram."""
        return isinstance(model, ExportedProgram)

    def read(self, model: ExportedProgram, example_inputs: Sequence[Any] | None = None) -> "ExportReading":
        """The graph; shapes come from the program itself."""
        graph, tensors = model.graph_module.graph, {}
        for spec in model.graph_signature.input_specs:
            value = model.state_dict.get(spec.target) if spec.target else None
            value = model.constants.get(spec.target) if value is None and spec.target else value
            if isinstance(value, Tensor):
                tensors[spec.arg.name] = (str(spec.target), value)
        values = {node.name: node.meta["val"] for node in graph.nodes if "val" in node.meta}
        mutated = set(model.graph_signature.buffers_to_mutate.values())
        mutable = frozenset(name for name, (target, _) in tensors.items() if target in mutated)
        reader = TorchReader(graph, model.graph_module, tensors, values, mutable)
        read = reader.read()
        return ExportReading(model, read, InPlace.of(reader.writes, reader.written_into))


@dataclass(frozen=True, slots=True)
class ExportReading:
    """A program that has been read."""

    model: ExportedProgram
    graph: Graph
    in_place: InPlace

    def write(self, after: Graph, *, inplace: bool = False) -> ExportedProgram:
        """The program that computes `after`."""
        written = self._write(after, exact=False, share=inplace)
        if not inplace:
            return written
        self.model.__dict__.update(written.__dict__)
        return self.model

    def compare(self, after: Graph, example_inputs: Sequence[Any] | None) -> Comparison | None:
        """Both programs as modules, as `FxReading.compare` does it, on the example inputs or the program's own."""
        inputs, kind = example_inputs, "example inputs"
        if inputs is None and self.model.example_inputs is not None:
            inputs, kind = self.model.example_inputs[0], "the program's own example inputs"
        if inputs is None:
            return None

        def copies(exact: bool) -> tuple[nn.Module, nn.Module]:
            models = (self.model.module(), self._write(after, exact=exact, share=True).module())
            before_model, after_model = (deep_copy(model).double() if exact else deep_copy(model) for model in models)
            return before_model, after_model

        worst, dtype = compare_copies(copies, inputs)
        return Comparison(worst, dtype, "torch", kind)

    def _write(self, after: Graph, *, exact: bool, share: bool) -> ExportedProgram:
        changes = diff(self.graph, after)
        writer = ProgramWriter(self.model, self.graph, self.in_place, exact, ComputedSizes.after_cut(self.graph, after))
        for node in changes.changed:
            writer.replace(node) if node.replaces else writer.update(node)
        return writer.program(changes, share=share)
