"""Samples with the classes that they are of, and the share that a model tells.

    accuracy = |{ n : argmax_c y_n[c] = label_n }| / N        y: the first output of the model, `N C`

The model is run as its graph is: in float32, by torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped

from reparam_compiler.core.files import UNREADABLE
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir import ops
from reparam_compiler.models.batch_size import fixed_batch
from reparam_compiler.models.calibration import batches
from reparam_compiler.models.opening import Source
from reparam_compiler.passes.pruning.criteria.running import Running
from reparam_compiler.passes.pruning.repair.activations import inputs_of

LABELS = "labels"
"""The array of a file that has the classes."""


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Samples of a file: the arrays for a model's inputs, by their names or in order, and the class of each sample."""

    path: Path
    arrays: Mapping[str, Shaped[np.ndarray, "N ..."]]
    labels: Int64[np.ndarray, "N"]

    @staticmethod
    def of(path: Path) -> "Labelled":
        """The samples of an .npz; raises UnsupportedModelError where it is none, or has no whole number for each sample."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
        except UNREADABLE as error:
            raise UnsupportedModelError(f"{path} cannot be read as an .npz of plain arrays: {error}") from error
        labels = arrays.pop(LABELS, None)
        if labels is None or not arrays:
            found = ", ".join([*arrays, *(() if labels is None else (LABELS,))]) or "nothing"
            raise UnsupportedModelError(f"{path}: found {found}; expected the samples, and an array {LABELS} of their classes")
        counts = {len(array) if array.ndim else 0 for array in arrays.values()}
        if labels.dtype.kind not in "iu" or labels.ndim != 1 or counts != {len(labels)} or not len(labels):
            raise UnsupportedModelError(
                f"{path}: found {LABELS} of shape {list(labels.shape)} and dtype {labels.dtype}, beside arrays of "
                f"{' and '.join(map(str, sorted(counts)))} samples; expected a whole number for each sample"
            )
        return Labelled(path, arrays, labels.astype(np.int64))

    def accuracy(self, source: Source) -> float:
        """The share of the samples whose class a model tells; what is left of a batch that the model fixes does not count.

        Raises UnsupportedModelError where the arrays do not fit its inputs, a node cannot be run outside it, or its first
        output has no number for each class of each sample.
        """
        nodes = [node for node in source.graph if isinstance(node.op, ops.Input)]
        data = batches(self.arrays, nodes, exact=fixed_batch(source.graph), names=source.input_names)
        running, told = Running(source.graph), list[Any]()
        for batch in inputs_of(source.graph, data):
            with torch.no_grad():
                scores = running.outputs(batch)[0]
            if scores.ndim != 2 or len(scores) != len(next(iter(batch.values()))):
                raise UnsupportedModelError(
                    f"{self.path}: found a first output of shape {list(scores.shape)}; expected a number for each class of "
                    "each sample. Score such a model by a function of your own: --evaluate package.module:function"
                )
            told.append(scores.argmax(1).numpy())
        classes = np.concatenate(told)
        return float((classes == self.labels[: len(classes)]).mean())
