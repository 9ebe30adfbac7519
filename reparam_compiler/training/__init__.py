"""For those who can retrain: what makes channels dispensable while a model trains, so that cutting them costs little.

    group_lasso           loss + lambda sum over groups of sqrt(size) |filters|_2                            (Wen et al. 2016)
    CentripetalSGD        the filters of a cluster get the same gradient, and are drawn together             (Ding et al. 2019)
    ApproximatedOracle    masks are tried in training; what they do to the next layers scores the filters    (Ding et al. 2019)

All work on an ordinary module in training and on the channel groups of its graph: `Coupled.of(module, graph, groups)` finds the
module's own tensors by the names that the parameters of the graph have. The training loop stays the caller's.
"""

from reparam_compiler.training.centripetal import CentripetalSGD, Merged
from reparam_compiler.training.coupled import Coupled, CoupledFamily, Part
from reparam_compiler.training.oracle import ApproximatedOracle
from reparam_compiler.training.regularize import group_lasso

__all__ = ["ApproximatedOracle", "CentripetalSGD", "Coupled", "CoupledFamily", "Merged", "Part", "group_lasso"]
