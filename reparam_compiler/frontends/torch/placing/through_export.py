"""A plain module that was exported: read through its program, and written as a module of its own class where that can be.

The program names parameters by their paths in the module. So what was cut is put there, the layers are told their new widths,
and the module is exported anew: that must be the program that was cut. Else the program is what is written.

An export shows what the code does for the example inputs. Layers that it does not show may read what was cut, for inputs that
lead elsewhere: then the module stays as it was, and the program, which refuses such inputs, is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reparam_compiler.errors import RewriteError, first_line
from reparam_compiler.frontends.torch.fx import FxFrontend, FxReading, WrittenTrace
from reparam_compiler.frontends.torch.graph_module_writer import attribute
from reparam_compiler.frontends.torch.module_state import Exchanged, exchange
from reparam_compiler.frontends.torch.module_widths import MODULE_WRITERS, tensor_name, update_module
from reparam_compiler.frontends.torch.placing.carving import NotPlacedError, in_its_stead
from reparam_compiler.frontends.torch.placing.same_trace import apart
from reparam_compiler.frontends.torch.tensors import deep_copy, tensor_from
from reparam_compiler.frontends.torch.tracing.exporting import Exported, NotExportedError
from reparam_compiler.ir.graph import Graph, Node, Param
from reparam_compiler.vocabulary.resolve import resolve_module


class ExportedModuleFrontend:
    """Reads and writes a module that was exported."""

    name = "nn.Module, exported"

    def read(self, exported: Exported, example_inputs: Sequence[Any] | None = None) -> "ExportedModuleReading":
        """The graph of the program; raises UnsupportedModelError as `FxFrontend` does."""
        return ExportedModuleReading(exported, FxFrontend().read(exported.graph_module, example_inputs))


@dataclass(frozen=True, slots=True)
class ExportedModuleReading:
    """An exported module that has been read."""

    exported: Exported
    through: FxReading

    @property
    def graph(self) -> Graph:
        """The graph of the program."""
        return self.through.graph

    def write(self, after: Graph, *, inplace: bool = False, exact: bool = False) -> nn.Module:
        """The module that computes `after`; with `exact` its program in float64, the new weights not rounded."""
        if exact:
            return self.through.write(after, exact=True)
        program = self.exported.graph_module if inplace else self.through.copied(after, {})
        module = self.exported.module if inplace else deep_copy(self.exported.module)
        hidden, kind = self._hidden(), type(module).__name__
        written = self.through.written(after, program)
        if any(node.replaces for node in written.changes.changed):
            return written.model
        try:
            if hidden:
                raise NotPlacedError(f"{hidden[0]} is not read for inputs like the example's, and may be for others")
            self._place(module, written)
        except NotPlacedError as refusal:
            return in_its_stead(module, written.model, refusal)
        written.model.meta["remarks"] = (
            f"no trace will do for {kind}, so it was exported, cut, and exported anew: what it does in evaluation, for inputs "
            "like the example's, is proven",
        )
        return module

    def _place(self, module: nn.Module, written: WrittenTrace) -> None:
        """Cuts the module as its program was; raises NotPlacedError, with the module as it was, where that cannot be had."""
        done = _Widths(exchange(module, _exchanged(module, written)))
        try:
            for node in written.changes.changed:
                done.follow(module, node)
            other = apart(written, self.exported.again(module))
            if other is not None:
                raise NotPlacedError(f"its code would compute {other}")
        except (NotExportedError, RewriteError) as error:
            done.tensors.undo()
            raise NotPlacedError(f"cut, it cannot be exported anew ({first_line(error)})") from error
        except BaseException:
            done.tensors.undo()
            raise

    def _hidden(self) -> list[str]:
        """The parameters of the module that its program does not read.

        By identity: a program names a parameter that several layers share by one of its paths, whichever of them reads it.
        (A trace names the layers that it calls, and `other_calls.parameters_without` goes by these.)
        """
        program = self.exported.graph_module
        read = {id(attribute(program, str(node.target))) for node in program.graph.find_nodes(op="get_attr") if node.users}
        return [name for name, parameter in self.exported.module.named_parameters() if id(parameter) not in read]


@dataclass(frozen=True, slots=True)
class _Widths:
    """What was put into a module. tensors: all of it, so that it can be taken out again."""

    tensors: Exchanged

    def follow(self, module: nn.Module, node: Node) -> None:
        """Makes the layers whose tensor a node reads what the node is: their widths, and a bias that was added."""
        own = next((attribute(module, param.origin) for param in node.params if param.origin), None)
        layers = [part for part in module.modules() if any(held is own for held in part._parameters.values())]
        added = [(index, param) for index, param in enumerate(node.inputs) if isinstance(param, Param) and param.origin is None]
        if added and len(layers) != 1:
            raise NotPlacedError(f"a tensor was added to {node.id}, which is no layer of its own")
        for layer in layers:
            for index, param in added:
                self._add(layer, tensor_name(node, index), tensor_from(param))
            if resolve_module(type(layer)).row in MODULE_WRITERS:
                kept = dict(vars(layer))
                update_module(layer, node)
                changed = {name: value for name, value in kept.items() if vars(layer)[name] is not value}
                self.tensors.before.extend((vars(layer), name, value) for name, value in changed.items())

    def _add(self, layer: nn.Module, name: str, tensor: Tensor) -> None:
        weight = layer._parameters.get("weight")
        if weight is None or layer._parameters.get(name, tensor) is not None:
            raise NotPlacedError(f"a tensor was added that {type(layer).__name__} has no place for")
        self.tensors.before.append((layer._parameters, name, None))
        layer._parameters[name] = nn.Parameter(tensor.to(weight.device), requires_grad=weight.requires_grad)


def _exchanged(module: nn.Module, written: WrittenTrace) -> dict[Tensor, Tensor]:
    """For each tensor of the module that was cut or refitted what stands there in the program."""
    paths = {str(node.target) for node in written.model.graph.find_nodes(op="get_attr")}
    pairs = [(attribute(module, path), attribute(written.model, path)) for path in sorted(paths)]
    return {
        old: new
        for old, new in pairs
        if isinstance(old, Tensor)
        and isinstance(new, Tensor)
        and old is not new
        and (old.shape != new.shape or not torch.equal(old, new))
    }
