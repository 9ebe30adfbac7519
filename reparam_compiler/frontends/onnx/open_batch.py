"""An ONNX model that was exported for so many samples, taken for any number of them.

What the file says of sizes is left out but for the inputs: whoever reads the model follows them anew. A constant that states
the batch (Reshape to [1, -1]) stays, and mixes samples of another one up or fails: that is to be found by running it.
"""

from onnx import ModelProto

from reparam_compiler.frontends.onnx.frontend import unset_inputs
from reparam_compiler.frontends.onnx.io import copy_without

BATCH = "batch"


def with_open_batch(model: ModelProto) -> ModelProto:
    """A copy whose inputs have an open first size, where they have axes."""
    copy = copy_without(model, ())
    del copy.graph.value_info[:]
    for value in (*unset_inputs(copy), *copy.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    return copy
