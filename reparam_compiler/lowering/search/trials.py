"""Points of a layer -> their seconds: lowered here, built and measured in other processes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from reparam_compiler.errors import class_and_line
from reparam_compiler.lowering.backend import Backend, Tuning
from reparam_compiler.lowering.conv.algorithms import Algorithm
from reparam_compiler.lowering.relax.packed import lifted, noted
from reparam_compiler.lowering.runtime.description import TensorSpec
from reparam_compiler.lowering.runtime.weights import Store, Weight
from reparam_compiler.lowering.search.layers import Layer, module_of
from reparam_compiler.lowering.search.measuring import Builders, Job, Kernels, Meter, Outcome
from reparam_compiler.lowering.search.winners import Measured
from reparam_compiler.lowering.target import describe


@dataclass(slots=True, eq=False)
class Trials:
    """Measures points of the layers of one net.

    main: of the net, as `Tuning.prepared` gave it. folder: for libraries, weights and outputs.
    """

    backend: Backend
    tuning: Tuning
    main: Any
    builders: Builders
    meter: Meter
    folder: Path

    def measure(self, layer: Layer, points: Sequence[Algorithm], rule: Algorithm) -> list[Outcome]:
        """What each point takes. Its output must be that of the rule's point, which is run first where it was not yet."""
        expected = self.folder / f"{_digest(layer.site.weight)}-{abs(hash(layer.shape))}.npy"
        if not expected.is_file() and list(points) != [rule]:
            (first,) = self._outcomes(layer, [rule], expected)
            if first.failure:
                return [Outcome(failure=f"there is nothing to compare it with: of the rule's kernel, {first.failure}")] * len(
                    points
                )
        return self._outcomes(layer, points, expected)

    def _outcomes(self, layer: Layer, points: Sequence[Algorithm], expected: Path) -> list[Outcome]:
        lowered = [self._lowered(layer, point, expected) for point in points]
        made = [each for each in lowered if not isinstance(each, Outcome)]
        built = iter(self.builders.build([kernels for kernels, _ in made], self.folder))
        found: list[Outcome] = []
        for each in lowered:
            if isinstance(each, Outcome):
                found.append(each)
                continue
            library = next(built)
            job = each[1]
            found += [library] if isinstance(library, Outcome) else self.meter.measure([replace(job, library=library)])
        return found

    def _lowered(self, layer: Layer, point: Algorithm, expected: Path) -> tuple[Kernels, Job] | Outcome:
        target = describe(self.backend.target)
        store = Store()
        try:
            with noted(store) as packed:
                module = self.tuning.lowered(module_of(layer, self.main), Measured({layer.shape: (point,)}))
                module, weights = lifted(module, packed, store, self.backend.weights_from)
        except Exception as refusal:  # noqa: BLE001 - whatever a schedule raises costs this point alone
            return Outcome(failure=f"scheduling it failed: {class_and_line(refusal)}")
        parameters = module["main"].params
        inputs = tuple(map(_spec, parameters[: len(parameters) - len(weights)]))
        kept = tuple((str(self._kept(weight)), weight.packing) for weight in weights)
        return Kernels(module, target), Job("", target, inputs, kept, str(expected), self.meter.repeats)

    def _kept(self, weight: Weight) -> Path:
        """The file of an array, written once."""
        path = self.folder / f"{_digest(weight.stored)}.npy"
        if not path.is_file():
            np.save(path, weight.stored)
        return path


def _digest(array: Shaped[np.ndarray, "..."]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).view(np.uint8).data, digest_size=12).hexdigest()


def _spec(parameter: Any) -> TensorSpec:
    return TensorSpec(str(parameter.name), tuple(map(int, parameter.ty.shape.values)), str(parameter.ty.dtype))
