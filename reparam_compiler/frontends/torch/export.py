"""torch.export.ExportedProgram in, ExportedProgram out.

Parameters of a program are lifted: they are placeholders, named by the signature, with their values in the state dict. So a
new conv is an aten call with two new placeholders, and what it replaces takes its own placeholders away with it. The result
saves, loads, runs and exports again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from reparam_compiler.frontends.torch.native import InPlace
from reparam_compiler.frontends.torch.program_writer import ProgramWriter
from reparam_compiler.frontends.torch.reader import TorchReader
from reparam_compiler.frontends.torch.spellings import ComputedSizes
from reparam_compiler.frontends.torch.transforms import check_transforms
from reparam_compiler.frontends.torch.wide import in_float64
from reparam_compiler.ir.graph import Graph, diff
from reparam_compiler.ir.windows import ConvPadding


class ExportFrontend:
    """Reads and writes `torch.export.ExportedProgram`."""

    name = "torch.export"

    def read(self, model: ExportedProgram, example_inputs: Sequence[Any] | None = None) -> "ExportReading":
        """The graph; shapes come from the program itself. Raises UnsupportedModelError for a program with vmap or jvp in it."""
        check_transforms(model.graph_module.graph)
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
        read = replace(reader.read(), conv_padding=ConvPadding(("zeros",), uneven=False))
        return ExportReading(model, read, InPlace.of(reader.writes, reader.written_into))


@dataclass(frozen=True, slots=True)
class ExportReading:
    """A program that has been read."""

    model: ExportedProgram
    graph: Graph
    in_place: InPlace

    def write(self, after: Graph, *, inplace: bool = False, exact: bool = False) -> Any:
        """The program that computes `after`; with `exact` its module in float64, the new weights not rounded.

        A program states the dtype of every value: it is a module that can be of another dtype.
        """
        if exact:
            return in_float64(self._write(after, exact=True, share=True).module())
        written = self._write(after, exact=False, share=inplace)
        if not inplace:
            return written
        self.model.__dict__.update(written.__dict__)
        return self.model

    def _write(self, after: Graph, *, exact: bool, share: bool) -> ExportedProgram:
        changes = diff(self.graph, after)
        writer = ProgramWriter(self.model, self.graph, self.in_place, exact, ComputedSizes.after_cut(self.graph, after))
        for node in changes.changed:
            writer.replace(node) if node.replaces else writer.update(node)
        return writer.program(changes, share=share)
