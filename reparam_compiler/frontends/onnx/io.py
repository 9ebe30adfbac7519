"""ONNX files: read whole or with their weights left where they are, written whole or not at all.

A model of more than `IN_MEMORY` bytes keeps its weights in the file beside it; each of their tensors notes the folder
(`basepath`, a key that ONNX has for this), so that they are read when they are asked for.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, external_data_helper, numpy_helper

from reparam_compiler.core.files import abandoned_parts, held, written_whole
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.tensors import byte_count, check_tensor, inline
from reparam_compiler.vocabulary.bodies import bodies_of

IN_MEMORY = 2**28
"""Bytes of external data that `load` reads at once."""
LARGEST_MESSAGE = 2**31 - 2**20
"""What one protobuf file can hold, with room for the nodes."""
ONE_FILE = 2**28
"""Bytes of weights that `save` writes into one file: that takes as much memory again, a second file does not."""
_ALIGNMENT = 4096
_SMALL = 1024


def load(path: str | os.PathLike[str]) -> ModelProto:
    """The model in a file.

    Args:
        path: an ONNX file; its external data are found beside it.

    Raises:
        UnsupportedModelError: the file is no ONNX model, or its external data cannot be read.
        OSError: the file cannot be read.
    """
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
    except DecodeError as error:
        raise _not_onnx(path) from error
    if not model.opset_import or not model.HasField("graph"):
        raise _not_onnx(path)
    folder = str(Path(path).resolve().parent)
    external = [tensor for tensor in tensors_of(model) if external_data_helper.uses_external_data(tensor)]
    for tensor in external:
        check_tensor(tensor)
    if sum(map(byte_count, external)) > IN_MEMORY:
        for tensor in external:
            entries = [entry for entry in tensor.external_data if entry.key == "basepath"]
            (entries[0] if entries else tensor.external_data.add(key="basepath")).value = folder
        return model
    try:
        external_data_helper.load_external_data_for_model(model, folder)
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise UnsupportedModelError(f"{path}: its external data cannot be read: {error}; put them beside the model") from error
    return model


def _not_onnx(path: str | os.PathLike[str]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{path}: found no ONNX model; a protobuf with a graph and an opset was expected, as onnx.save writes it"
    )


def save(model: ModelProto, path: str | os.PathLike[str], *, largest: int | None = None) -> tuple[Path, ...]:
    """Writes a model, whole or not at all; gives the files that it is in, its own first.

    Args:
        model: what to write; it is not changed. Weights that it has in a file are read from there.
        path: where to; an older file is replaced in one step.
        largest: a model of more bytes than this (`ONE_FILE` where it is None) has its weights in a second file, `path` +
            ".data". Where there is such a file already, which an older model may need, the new one has a number in its name.

    Raises:
        OSError: the file cannot be written.
        UnsupportedModelError: external data cannot be read.
    """
    target = Path(path)
    _remove_data_of_killed(target)
    tensors = list(tensors_of(model))
    is_small = sum(map(byte_count, tensors)) <= (ONE_FILE if largest is None else largest)
    if is_small and not any(external_data_helper.uses_external_data(tensor) for tensor in tensors):
        with written_whole(target) as part:
            part.write_bytes(model.SerializeToString())
        return (target,)
    weights = model.graph.initializer
    light = copy_without(model, [tensor.name for tensor in weights])
    for tensor in tensors_of(light):  # those in attributes and bodies
        if external_data_helper.uses_external_data(tensor):
            tensor.CopyFrom(inline(tensor))
    if is_small:
        light.graph.initializer.extend(map(inline, weights))
        with written_whole(target) as part:
            part.write_bytes(light.SerializeToString())
        return (target,)
    with held(target.parent, wait=True):  # or another process might take the same name for other weights
        numbered = (target.with_name(f"{target.name}{f'.{i}' if i else ''}.data") for i in range(2**20))
        data = next(candidate for candidate in numbered if not candidate.exists())
        try:
            with written_whole(target) as part, written_whole(data) as data_part:
                with data_part.open("wb") as file:
                    light.graph.initializer.extend(_placed(tensor, file, data.name) for tensor in weights)
                part.write_bytes(light.SerializeToString())
        except BaseException:
            if data.name not in _needed(target):  # an interrupt may come when the model is in place
                data.unlink(missing_ok=True)
            raise
    return target, data


def unread_weights(path: Path) -> list[Path]:
    """Weights beside a model, under the names that `save` gives, that it does not read: of one that it replaced, perhaps."""
    beside = sorted(other for other in path.parent.iterdir() if _is_data_of(path, other.name))
    read = _needed(path) if beside else set()
    return [other for other in beside if other.name not in read]


def _is_data_of(target: Path, name: str) -> bool:
    return re.fullmatch(rf"{re.escape(target.name)}(\.\d+)?\.data", name) is not None


def _remove_data_of_killed(target: Path) -> None:
    """Removes weights that a killed process put in place, if it could not put the model there that it left beside them."""
    for part in abandoned_parts(target):
        for name in locations(part) - _needed(target):
            if _is_data_of(target, name):
                target.with_name(name).unlink(missing_ok=True)
        part.unlink(missing_ok=True)


def _needed(target: Path) -> set[str]:
    """The files that the model in place reads; none where there is no model yet."""
    return locations(target) if target.is_file() else set()


def locations(path: Path) -> set[str]:
    """The files that hold weights of the model in a file; none where it is no model, or was cut off."""
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return set()
    return {entry.value for tensor in tensors_of(model) for entry in tensor.external_data if entry.key == "location"}


def _placed(tensor: TensorProto, file: BinaryIO, location: str) -> TensorProto:
    """Writes the elements of a tensor that is not small; gives the tensor that points to them."""
    whole = inline(tensor)
    if tensor.data_type == TensorProto.STRING or byte_count(tensor) < _SMALL:
        return whole
    elements = whole.raw_data or numpy_helper.from_array(numpy_helper.to_array(whole)).raw_data
    file.write(bytes(-file.tell() % _ALIGNMENT))
    pointer = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, doc_string=tensor.doc_string)
    pointer.metadata_props.extend(tensor.metadata_props)
    pointer.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", file.tell()), ("length", len(elements))):
        pointer.external_data.add(key=key, value=str(value))
    file.write(elements)
    return pointer


def fits_in_memory(model: ModelProto) -> bool:
    """True where all weights are in the model, and are not so many that it should not be held twice."""
    tensors = list(tensors_of(model))
    if any(external_data_helper.uses_external_data(tensor) for tensor in tensors):
        return False
    return sum(map(byte_count, tensors)) <= min(ONE_FILE, LARGEST_MESSAGE)


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initializers, and those in attributes, bodies and functions."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for body in bodies_of(node):
            yield from _tensors_of_graph(body)


def copy_without(model: ModelProto, dropped: Iterable[str]) -> ModelProto:
    """A copy of a model without some initializers, which are never copied."""
    copied, gone = ModelProto(), set(dropped)
    if len(UnknownFieldSet(model)) or len(UnknownFieldSet(model.graph)):
        copied.CopyFrom(model)  # fields of a later ONNX: only a whole copy keeps them
        for index in reversed(range(len(copied.graph.initializer))):
            if copied.graph.initializer[index].name in gone:
                del copied.graph.initializer[index]
        return copied
    _copy_fields(model, copied, ("graph",))
    copied.graph.SetInParent()
    _copy_fields(model.graph, copied.graph, ("initializer",))
    copied.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in gone)
    return copied


def _copy_fields(source: ModelProto | GraphProto, target: ModelProto | GraphProto, without: Sequence[str]) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name in without:
            continue
        if isinstance(value, Message):
            getattr(target, descriptor.name).CopyFrom(value)
        elif isinstance(value, str | bytes | int | float):
            setattr(target, descriptor.name, value)
        else:  # a list
            getattr(target, descriptor.name).extend(value)
