"""Search for a target: the points of convs that the backend names, MetaSchedule for what has no recipe.

    conv:    points of the layers where the net's time is (`planner`), each built and measured in other processes (`trials`)
    rest:    MetaSchedule, evolutionary, in `Tuning.space`, with its share of the trials
    last:    what is best alone against the rule's in the running net (`in_net`)

Every kernel is measured with cold caches: in a net every layer's weights come from memory, and a hot loop hides it. Each
measurement is kept when it is made, so that a search that is ended goes on where it was: what the folder holds is not measured
again, and counts towards `trials`.
"""

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from reparam_compiler.core.files import remove_abandoned
from reparam_compiler.lowering.build import COMPILING
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.rpc.address import Rpc
from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr
from reparam_compiler.lowering.search.asked import SearchOptions, TuneResult, check_search
from reparam_compiler.lowering.search.measuring import without_intrinsics
from reparam_compiler.lowering.search.net_search import NetSearch
from reparam_compiler.lowering.search.progress import Clock, Listener, shown
from reparam_compiler.lowering.target import TargetLike

log = logging.getLogger(__name__)


def tune(
    model: Any,
    example_inputs: Any = None,
    *,
    target: TargetLike = None,
    database: str | os.PathLike[str],
    options: SearchOptions | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    rpc: Rpc | None = None,
    progress: bool = True,
    listener: Listener | None = None,
) -> TuneResult:
    """Measure candidates for every kernel of a model on this machine and keep them in `database`.

    What is taken of them has beaten the rule in the running net, so that no net becomes slower. Ctrl-C ends the search with
    what is known by then.

    Args:
        model, example_inputs, target, input_shapes: as for `compile`; the target must be one that this machine runs.
        database: the folder of the records; `compile(database=…)` reads it.
        options: how long it goes on, and how it measures.
        rpc: devices far away that measure instead, as many candidates at once as there are; `target` must be theirs then.
        progress: draw on a terminal, or say in the log, how far it is. listener: is told of every measurement.

    Raises: LoweringError as `check_search`, or what `compile` raises.
    """
    search = check_search(target, database, options or SearchOptions(), rpc)
    if abandoned := remove_abandoned():
        log.warning("temporary folders of processes that were killed: %d removed", abandoned)
    with (
        COMPILING.held(),
        shown(progress) as drawn,
        without_intrinsics(),
        search.backend.target,
        filter_stderr(),
        contextlib.ExitStack() as open_,
    ):
        clock = Clock(search.options.trials, search.options.max_seconds, (drawn, *(() if listener is None else (listener,))))
        imported = to_relax(model, example_inputs, input_shapes=input_shapes)
        return NetSearch(search, imported, clock, open_).tuned()
