"""Attention and its kin of com.microsoft, as optimizers of ONNX Runtime write them."""

import math

import numpy as np
from onnx import TensorProto

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Node
from reparam_compiler.lowering.importing.onnx_ops.table import MICROSOFT, instead_of

MASKED = -10000.0
"""What is added to the score of a position that is masked out."""


@instead_of("Attention", domain=MICROSOFT, tvm="goes by the name alone, and refuses scale, unidirectional and most masks")
def fused_attention(graph: Graph, node: Node) -> str:
    """One product for queries, keys and values, and their attention."""
    _refuse(node, {4: "past", 6: "past_sequence_length"}, ("do_rotary", "past_present_share_buffer"))
    sums = graph.emit("MatMul", node.inputs[0], node.inputs[1])
    sums = graph.emit("Add", sums, node.inputs[2]) if node.input(2) else sums
    width = graph.shape(sums)[2]
    sizes = node.attrs.get("qkv_hidden_sizes") or [width // 3] * 3
    parts = graph.emit_all(3, "Split", sums, graph.ints(*sizes), axis=2)
    return _attended(graph, node, parts, node.input(3), node.input(5))


@instead_of("MultiHeadAttention", domain=MICROSOFT, tvm="does not know it")
def attention_of_heads(graph: Graph, node: Node) -> str:
    """Queries, keys and values, each with its part of the bias, and their attention."""
    _refuse(node, {6: "past_key", 7: "past_value", 8: "past_sequence_length", 9: "cache_indirection"}, ())
    parts = [name for name in node.inputs[:3] if name]
    if len(parts) < 3 or any(graph.rank(name) != 3 for name in parts):
        raise node.refusal("queries, keys and values packed into one tensor", "expected three tensors of three axes")
    if node.input(3):
        biases = graph.emit_all(3, "Split", node.inputs[3], graph.ints(*(graph.shape(name)[2] for name in parts)), axis=0)
        parts = [graph.emit("Add", part, bias) for part, bias in zip(parts, biases, strict=True)]
    return _attended(graph, node, parts, node.input(4), node.input(5))


def _refuse(node: Node, inputs: dict[int, str], attrs: tuple[str, ...]) -> None:
    """Raises LoweringError for what keeps state from one call to the next."""
    found = [name for index, name in inputs.items() if node.input(index)] + [name for name in attrs if node.attrs.get(name, 0)]
    if found or node.outputs > 1:
        raise node.refusal(f"{', '.join(found) or 'present states'}: a cache of keys and values has no rule")


def _attended(graph: Graph, node: Node, parts: list[str], mask: str, bias: str) -> str:
    """`batch sequence width` of queries, keys and values -> the same of the weighted values."""
    heads = node.attrs["num_heads"]
    queries, keys, values = (_by_head(graph, part, heads) for part in parts)
    batch, _, length, each = graph.shape(queries)
    total = graph.shape(keys)[2]
    scale = node.attrs.get("scale", 0.0) or 1 / math.sqrt(each)
    scores = graph.emit("MatMul", queries, graph.emit("Transpose", keys, perm=[0, 1, 3, 2]))
    scores = graph.emit("Mul", scores, graph.like(scale, scores))
    if mask:
        scores = graph.emit("Add", scores, _from_mask(graph, node, mask, scores))
    if bias:
        scores = graph.emit("Add", scores, bias)
    if node.attrs.get("unidirectional", 0):
        later = np.triu(np.full((length, total), MASKED), total - length + 1)
        scores = graph.emit("Add", scores, graph.constant(later, graph.dtype(scores)))
    made = graph.emit("MatMul", graph.emit("Softmax", scores, axis=-1), values)
    return graph.emit("Reshape", graph.emit("Transpose", made, perm=[0, 2, 1, 3]), graph.ints(batch, length, -1))


def _by_head(graph: Graph, x: str, heads: int) -> str:
    batch, length, width = graph.shape(x)
    return graph.emit(
        "Transpose", graph.emit("Reshape", x, graph.ints(batch, length, heads, width // heads)), perm=[0, 2, 1, 3]
    )


def _from_mask(graph: Graph, node: Node, mask: str, scores: str) -> str:
    """What a mask of ones and zeros adds to the scores."""
    shape, (batch, _, length, total) = graph.shape(mask), graph.shape(scores)
    if shape not in ((batch, total), (batch, length, total)):
        raise node.refusal(
            f"a mask of the shape {shape}", f"expected {(batch, total)} or {(batch, length, total)}, of ones and zeros"
        )
    wide = graph.emit(
        "Reshape", graph.emit("Cast", mask, to=graph.types[scores].tensor_type.elem_type), graph.ints(batch, 1, -1, total)
    )
    out = graph.emit("Sub", graph.like(1, scores), wide)
    return graph.emit("Mul", out, graph.like(node.attrs.get("mask_filter_value", MASKED), scores))


@instead_of("EmbedLayerNormalization", domain=MICROSOFT, tvm="gives numbers of its own for all but the result")
def embeddings(graph: Graph, node: Node) -> list[str]:
    """The sum of the embeddings of words, positions and segments, normalized; the lengths that a mask has."""
    ids, segments, words, places, kinds, scale, bias = (node.input(index) for index in range(7))
    if node.input(8):
        total = graph.emit("Gather", places, node.inputs[8], axis=0)
    else:
        total = graph.emit("Gather", places, graph.constant(np.arange(graph.shape(ids)[1])), axis=0)
    total = graph.emit("Add", graph.emit("Gather", words, ids, axis=0), total)
    if segments:
        total = graph.emit("Add", total, graph.emit("Gather", kinds, segments, axis=0))
    made = graph.emit("LayerNormalization", total, scale, bias, epsilon=node.attrs.get("epsilon", 1e-12))
    if node.input(7):
        count = graph.emit("ReduceSum", graph.emit("Cast", node.inputs[7], to=TensorProto.INT32), graph.ints(1), keepdims=0)
    else:
        count = graph.constant(np.zeros(graph.shape(ids)[0]), np.int32)
    return [made, count, total][: node.outputs]
