"""A module that no tracer takes, as torch.export has it: for inputs of other sizes as well where the model allows it.

The batch is open (`Dim.AUTO`), and so are spatial sizes where few tensors are reshaped: each reshape by open sizes is some
algebra for sympy, and a small net that attends in windows takes 40 s where it takes 6 with its batch open alone. torch.export
fixes the sizes that the model's code decides by. It also fixes every size of 1, so a batch of one is exported as one of two.
Guards that are left are of the model's own making: a width that must be even, because the code has a branch for odd ones.
Where the batch is fixed, as by `len(x)`, of which Python makes a number, dynamo goes through the code instead (`strict`).

torch writes which sizes are open onto the tensors that it is given, and where it fails leaves that there: each try has its own.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree

from reparam_compiler.errors import ReparamError, class_and_line
from reparam_compiler.frontends.torch.module_state import buffers_kept, without_compiled
from reparam_compiler.frontends.torch.tensors import deep_copy, type_of
from reparam_compiler.frontends.torch.tracing.quiet import quiet_export
from reparam_compiler.frontends.torch.transforms import check_transforms

logger = logging.getLogger(__name__)

RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten"})
FEW = 8
"""Of these ops a program may have so many for its spatial sizes to be opened."""


class NotExportedError(ReparamError):
    """Why torch.export does not take a model."""


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """A module that was exported.

    graph_module: its program as a module, which shares its tensors; `meta["remarks"]` says for which sizes.
    module: what was exported. inputs, shapes: with which inputs, and which of their sizes were open; None for none.
    strict: whether dynamo went through its code.
    """

    graph_module: fx.GraphModule
    module: nn.Module
    inputs: tuple[Any, ...]
    shapes: Any
    strict: bool

    def again(self, module: nn.Module) -> fx.GraphModule:
        """Another module, exported in the same way; raises NotExportedError."""
        try:
            return _program(module, self.inputs, self.shapes, strict=self.strict)[1]
        except Exception as error:  # the model's own code runs
            raise NotExportedError(class_and_line(error)) from error


def exported(model: nn.Module, example_inputs: Sequence[Any], *, copy: bool) -> Exported:
    """The whole model as torch.export has it.

    Its form takes keywords as the model does, and arguments beyond the example inputs that have their defaults.

    copy: share no tensor with the model.

    Raises NotExportedError where torch.export does not take it.
    """
    subject, examples, why = without_compiled(deep_copy(model) if copy else model), tuple(example_inputs), ""
    for inputs, narrow, wide in _tries(examples):
        found = _attempt(subject, inputs, narrow, examples)
        if isinstance(found, str):
            why = found
            continue
        if wide != narrow and _reshapes(found.graph_module) <= FEW:
            wider = _attempt(subject, inputs, wide, examples)
            return found if isinstance(wider, str) else wider
        return found
    raise NotExportedError(why)


def _attempt(model: nn.Module, inputs: tuple[Any, ...], shapes: Any, examples: tuple[Any, ...]) -> Exported | str:
    """The model exported with inputs of which some sizes are open, if the program takes the examples; else why not."""
    try:
        (program, module), strict = _program(model, inputs, shapes), False
        if shapes is not None and _fixes_batch(program):
            program, module, strict = _by_dynamo(model, inputs, shapes) or (program, module, False)
        vars(module)["validate_inputs"] = False  # torch's own check takes no keywords
        module.register_forward_pre_hook(_Declared.of(model, len(examples)), with_kwargs=True)
        if shapes is not None:  # what a batch of two fixed may refuse one of one
            with quiet_export(), buffers_kept(module), torch.no_grad():
                module(*deep_copy(examples))
    except Exception as error:  # noqa: BLE001 - torch.export runs the model's own code, which raises what it likes
        logger.info("torch.export of %s failed: %s", type(model).__name__, error)
        return class_and_line(error)
    as_is = f"no trace will do for {type(model).__name__}, so it was exported, and train() and eval() change nothing in it"
    module.meta["remarks"] = (f"{as_is}: {_sizes(program)}",)
    return Exported(module, model, inputs, shapes, strict)


def _reshapes(module: fx.GraphModule) -> int:
    targets = (node.target for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload))
    return sum(target.overloadpacket.__name__ in RESHAPES for target in targets)


def _program(
    model: nn.Module, inputs: tuple[Any, ...], shapes: Any, *, strict: bool = False
) -> tuple[ExportedProgram, fx.GraphModule]:
    """torch.export's program, made with inputs that nothing was written onto, and it as a module in the model's mode."""
    unmarked = _pytree.tree_map_only(Tensor, Tensor.detach, inputs)
    with quiet_export():
        program = torch.export.export(model, unmarked, dynamic_shapes=by_argument(model, shapes), strict=strict)
        module: fx.GraphModule = program.module()
    check_transforms(program.graph)
    for name in ("train", "eval"):  # torch forbids both by attributes of the module, as neither changes what it computes
        vars(module).pop(name, None)
    for part in module.modules():  # born in training mode
        part.training = model.training
    return program, module


def _by_dynamo(model: nn.Module, inputs: tuple[Any, ...], shapes: Any) -> tuple[ExportedProgram, fx.GraphModule, bool] | None:
    """What `_program` gives where dynamo goes through the code, and True; None where that leaves the batch fixed as well."""
    try:
        program, module = _program(model, inputs, shapes, strict=True)
    except Exception as error:  # noqa: BLE001 - as above
        logger.info("strict torch.export of %s failed: %s", type(model).__name__, error)
        return None
    return None if _fixes_batch(program) else (program, module, True)


def by_argument(model: nn.Module, shapes: Sequence[Any] | None) -> dict[str, Any] | None:
    """Open sizes of inputs as torch.export takes them, by the names of the arguments; those of `*args` are one."""
    return None if shapes is None else inspect.signature(model.forward).bind(*shapes).arguments


def _tries(inputs: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Inputs to export with, which sizes are open, and which where little is reshaped: for any batch, then for this."""

    def opened(axes: Callable[[int], bool]) -> Any:
        def of(value: Any) -> Any:
            is_open = isinstance(value, Tensor) and value.ndim
            return {axis: Dim.AUTO for axis in range(value.ndim) if axes(axis)} if is_open else None

        return _pytree.tree_map(of, inputs)

    def doubled(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim and len(value) == 1 else value

    if any(isinstance(value, Tensor) and value.ndim for value in _pytree.tree_leaves(inputs)):
        yield _pytree.tree_map(doubled, inputs), opened(lambda axis: axis == 0), opened(lambda axis: axis != 1)
        yield inputs, None, opened(lambda axis: axis > 1)
    else:
        yield inputs, None, None


def _fixes_batch(program: ExportedProgram) -> bool:
    """Whether the program fixes the first size of an input; torch fixes all that are 1 anyhow."""
    return any(isinstance(shape[0], int) and shape[0] > 1 for shape in _shapes(program) if shape)


@dataclass(frozen=True, slots=True)
class _Declared:
    """What is done before a call of an exported module: its arguments go to the places that the model's forward() declares.

    signature: that of the model's forward(). given: how many of its arguments the example inputs were.
    """

    signature: inspect.Signature
    given: int

    @classmethod
    def of(cls, model: nn.Module, given: int) -> "_Declared":
        signature = inspect.signature(model.forward)
        plain = [argument.replace(annotation=inspect.Parameter.empty) for argument in signature.parameters.values()]
        return cls(inspect.Signature(plain), given)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        beyond = dict(zip([*self.signature.parameters][self.given :], bound.args[self.given :], strict=False))
        for name, value in (beyond | bound.kwargs).items():
            default = self.signature.parameters[name].default if name in self.signature.parameters else inspect.Parameter.empty
            if value is not default and (isinstance(value, Tensor) or value != default):
                raise TypeError(f"{name}={value!r}: it was exported without, for {name}={default!r}")
        return bound.args[: self.given], {}


def _sizes(program: ExportedProgram) -> str:
    """Which inputs the program takes, in words."""
    shapes = [[str(size) if isinstance(size, int) else "N" for size in shape] for shape in _shapes(program)]
    words = ", ".join(map("x".join, shapes))
    return (
        f"the result takes inputs of {words}"
        if "N" in words
        else f"the result takes inputs of the example's shapes only ({words})"
    )


def _shapes(program: ExportedProgram) -> list[tuple[Any, ...]]:
    """The shapes of the tensors that a program takes, in order."""
    named = set(program.graph_signature.user_inputs)
    types = (type_of(node.meta.get("val")) for node in program.graph.find_nodes(op="placeholder") if node.name in named)
    return [known.shape for known in types if known is not None]
