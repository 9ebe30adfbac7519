"""Whether what a folder holds still is faster: its winners against the rule's kernels, layer by layer in the running net.

verified(model, …, database=folder) -> of each layer that the folder decides its time by the rule's, now; of the net too
                            keep=True  the measurements join the folder, and what lost decides no longer
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reparam_compiler.advice import in_words_of
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.backend import Tuning
from reparam_compiler.lowering.build import COMPILING
from reparam_compiler.lowering.conv.accuracy import MAX_ERROR
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.importing.shapes import Imported
from reparam_compiler.lowering.runtime.description import filled
from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr
from reparam_compiler.lowering.search.asked import Search, SearchOptions, check_search
from reparam_compiler.lowering.search.in_net import Timed, net_of, run_by_turns, whole_runs
from reparam_compiler.lowering.search.layers import Layer, layers_of
from reparam_compiler.lowering.search.measuring import cores_of, without_intrinsics
from reparam_compiler.lowering.search.records import ConvRecord, append_conv, check_readable
from reparam_compiler.lowering.search.rest import Function, functions_of
from reparam_compiler.lowering.search.winners import Measured, measured_in
from reparam_compiler.lowering.target import TargetLike, describe


@dataclass(frozen=True, slots=True)
class VerifiedLayer:
    """One layer that records decide. point: what they say. ratio: its least time by that of the rule's, now."""

    layer: str
    point: str
    ratio: float

    @property
    def wins(self) -> bool:
        """Whether it is faster than the rule's."""
        return self.ratio < 1


@dataclass(frozen=True, slots=True)
class Verification:
    """What a run of a net said of records; true where every layer and the whole net are faster.

    rule_seconds, net_seconds: of a run by rule, and by the records, run by turns.
    """

    layers: tuple[VerifiedLayer, ...]
    rule_seconds: float
    net_seconds: float

    def __bool__(self) -> bool:
        return self.net_seconds < self.rule_seconds and all(layer.wins for layer in self.layers)


def verified(
    model: Any,
    example_inputs: Any = None,
    *,
    target: TargetLike = None,
    database: str | os.PathLike[str],
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep: bool = False,
) -> Verification:
    """Measure what a folder decides for a model on this machine again.

    Args: as for `tune`.
        keep: append what was measured of convs, so that what lost decides no longer: nothing does where the net is slower.
            Without, the folder stays as it is.

    Raises: LoweringError as `tune`, and where the folder decides nothing for the model.
    """
    folder = check_readable(Path(database))
    search = check_search(target, folder, SearchOptions())
    with COMPILING.held(), without_intrinsics(), search.backend.target, filter_stderr():
        imported = to_relax(model, example_inputs, input_shapes=input_shapes)
        measured = measured_in(folder, describe(search.backend.target), search.tuning.rule) or Measured()
        layers, functions = _decided(search.tuning, imported.module, measured)
        if not layers and not functions:
            raise LoweringError(
                f"{folder}: its records decide nothing for this model on {describe(search.backend.target)}; expected winners "
                "of a search for it (`reparam records list`), on this machine or the target that is named"
            )
        return _run(search, imported, layers, functions, keep=keep)


def _decided(tuning: Tuning[Any], module: Any, measured: Measured) -> tuple[dict[Layer, Any], list[Function]]:
    """The layers with the points that they get, and the functions that take MetaSchedule's record."""
    module = tuning.prepared(module)
    points = {layer: _first(layer, measured) for layer in layers_of(tuning.sites(module))}
    rest = functions_of(tuning.rest(module)) if measured.functions else []
    functions = [each for each in rest if each.code in measured.functions]
    return {layer: point for layer, point in points.items() if point is not None}, functions


def _first(layer: Layer, measured: Measured) -> Any:
    """The first point that is exact enough on the layer's weights."""
    return next((point for point in measured.convs.get(layer.shape, ()) if layer.bears(point, MAX_ERROR)), None)


def _run(
    search: Search, imported: Imported, layers: Mapping[Layer, Any], functions: Sequence[Function], *, keep: bool
) -> Verification:
    points = {layer.shape: point for layer, point in layers.items()}
    codes, arrays = frozenset(each.code for each in functions), [filled(spec, "random") for spec in imported.inputs]
    nets = [net_of(search, imported, {}), net_of(search, imported, points, codes)]
    threads = cores_of(search.backend.target)
    rule, ours = (Timed(net.clone(threads=threads), {}) for net in nets)
    run_by_turns([rule, ours], arrays)
    marks = [(str(layer), str(point), layer.shape.mark) for layer, point in layers.items()]
    marks += [(each.name, "MetaSchedule's", str(each.code)) for each in functions if rule.seconds[str(each.code)]]
    ratios = [min(ours.seconds[mark]) / min(rule.seconds[mark]) for _, _, mark in marks]
    found = (VerifiedLayer(name, point, ratio) for (name, point, _), ratio in zip(marks, ratios, strict=True))
    again = Verification(tuple(found), *whole_runs([rule.executable, ours.executable], arrays))
    for record in _records(search, layers, rule, ours) if keep else ():
        append_conv(search.folder, record if again.net_seconds < again.rule_seconds else _undone(record))
    return again


def _records(search: Search, layers: Mapping[Layer, Any], rule: Timed, ours: Timed) -> Iterator[ConvRecord]:
    """What each layer took by its record and by the rule, a call."""
    for layer, point in layers.items():
        against = next((each for each in search.tuning.rule(layer.shape) if layer.bears(each, MAX_ERROR)), None)
        if against is None:
            raise LoweringError(
                f"{layer}: no algorithm of the rule is within {MAX_ERROR:g} on its weights; expected one that its record was "
                f"compared with. {in_words_of(python='keep=False', command='Leaving out --keep')} measures without it"
            )
        seconds, beside = (tuple(each / layer.count for each in net.seconds[layer.shape.mark]) for net in (ours, rule))
        target = describe(search.backend.target)
        yield ConvRecord(layer.shape, layer.site.epilogue, point, target, seconds, against, beside, where="net")


def _undone(record: ConvRecord) -> ConvRecord:
    return replace(record, seconds=(), beside=(), failure="the net with the records of its layers was slower than by rule")
