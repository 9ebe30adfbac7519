"""Torch tensors as the graph's parameters and types, and back: the one place where a fold is rounded for torch."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.utils import _pytree

from reparam_compiler.advice import in_words_of
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir.graph import Dim, Param, TensorType
from reparam_compiler.vocabulary.dtypes import DTYPES

_TORCH: dict[str, torch.dtype] = {word: getattr(torch, row.name) for word, row in DTYPES.items()}
_WORDS = {dtype: word for word, dtype in _TORCH.items()}
Copied = TypeVar("Copied")


def dtype_word(dtype: torch.dtype) -> str:
    """The graph's word for a dtype; torch's own for one that the graph has no word for."""
    return _WORDS.get(dtype, str(dtype).removeprefix("torch."))


def arrays_as_tensors(inputs: Any) -> Any:
    """Inputs of a model of torch, whose arrays are made tensors; those of a dtype that torch has not (texts) stay as they are.

    >>> arrays_as_tensors((np.zeros(2, np.float32), [1]))
    (tensor([0., 0.]), [1])
    """
    return _pytree.tree_map_only(np.ndarray, _tensor_of, inputs)


def check_count(name: str, example_inputs: Sequence[Any], takes: int) -> None:
    """Raises UnsupportedModelError for more inputs than a graph takes, which fx's interpreter runs on the first ones, unasked.

    The leaves of trees are counted. name: the model's, for the message.
    """
    if (found := len(_pytree.tree_leaves(tuple(example_inputs)))) > takes:
        raise UnsupportedModelError(
            f"{name}: expected at most {takes} example inputs; found {found}. "
            + in_words_of(python="Pass what its forward() takes", command="Give --input-shapes as its forward() takes them")
        )


def _tensor_of(array: np.ndarray) -> Any:
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except TypeError:
        return array


def type_of(value: object) -> TensorType | None:
    """The type of a (fake) tensor; symbolic sizes become their names."""
    if not isinstance(value, Tensor):
        return None
    return TensorType(dtype_word(value.dtype), tuple(_dim(size) for size in value.shape))


def _dim(size: int | torch.SymInt) -> Dim:
    if isinstance(size, int):
        return size
    fixed = size.node.maybe_as_int()
    return fixed if fixed is not None else str(size)


def array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The elements of a tensor in its own dtype; bfloat16 through ml_dtypes.

    Raises UnsupportedModelError for a tensor of a class of its own (one that is quantized or lies on several machines).
    """
    try:
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"the elements of a weight of {type(tensor).__module__}.{type(tensor).__qualname__} cannot be read: {error}; "
            "give the model with plain tensors"
        ) from error


def check_values(model: nn.Module | ExportedProgram) -> None:
    """Raises UnsupportedModelError for a model with a tensor that holds no values: a fake one, or one of the device meta."""
    for name, tensor in _held(model):
        if is_lazy(tensor):
            raise UnsupportedModelError(
                f"{name} is made when its layer is first called; call the model once on example inputs before"
            )
        is_fake = isinstance(tensor, FakeTensor)
        if is_fake or tensor.is_meta:
            found = "a fake tensor" if is_fake else "on the device meta"
            raise UnsupportedModelError(
                f"{name} is {found}: it has a shape and no values; load the weights first (model.to_empty(device='cpu'), then "
                "load_state_dict, or make the model outside FakeTensorMode and torch.device('meta'))"
            )


def _held(model: nn.Module | ExportedProgram) -> Iterator[tuple[str, Tensor]]:
    if isinstance(model, nn.Module):
        yield from model.named_parameters()
        yield from model.named_buffers()
    else:
        yield from model.state_dict.items()


def param_of(tensor: Tensor, *, role: str, origin: str | None) -> Param:
    """A parameter that reads a tensor when it is asked to."""
    return Param(role, dtype_word(tensor.dtype), tuple(tensor.shape), lambda: array_of(tensor), origin)


def lazy_param(load: Callable[[], Tensor], like: Tensor, *, role: str) -> Param:
    """A parameter that is computed when it is asked for; `like` has its dtype and shape."""
    return Param(role, dtype_word(like.dtype), tuple(like.shape), lambda: array_of(load()))


def tensor_from(param: Param, *, device: torch.device | str = "cpu", exact: bool = False) -> Tensor:
    """A new tensor of the parameter's elements, rounded once to its dtype, or in float64 where `exact`."""
    array = np.asarray(param.load())
    dtype = _TORCH[param.dtype]
    if not dtype.is_floating_point:
        return torch.from_numpy(np.ascontiguousarray(array)).to(dtype).to(device, copy=True)
    if array.dtype == ml_dtypes.bfloat16:
        array = array.astype(np.float32)
    return torch.from_numpy(np.require(array, requirements=("C", "W"))).to(device, torch.float64 if exact else dtype, copy=True)


def deep_copy(value: Copied, memo: dict[int, Any] | None = None) -> Copied:
    """`copy.deepcopy`, of tensors that were computed too, less torch's warning to itself about tree specs.

    Raises UnsupportedModelError for a model that holds what cannot be copied (a lock, a generator).
    """
    memo = {} if memo is None else memo
    for module in value.modules() if isinstance(value, nn.Module) else ():
        for held in vars(module).values():  # what the old weight_norm keeps, or a cache
            if isinstance(held, Tensor) and not held.is_leaf:
                memo.setdefault(id(held), held.detach().clone())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
            return copy.deepcopy(value, memo)
    except (TypeError, RuntimeError, ValueError, copy.Error) as error:
        raise UnsupportedModelError(
            f"a copy of {type(value).__name__} cannot be made: {error}; take out of the model what it fails on, "
            "or export the model and pass the program"
        ) from error
