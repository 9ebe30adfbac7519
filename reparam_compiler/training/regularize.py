"""A term for the loss that empties whole channel groups while a model trains.

    sum over groups of sqrt(size) |filters|_2

Unlike weight decay its gradient does not fade as a group shrinks, so that groups end near zero rather than small all together.
"""

import torch
from torch import Tensor

from reparam_compiler.training.coupled import Coupled


def group_lasso(coupled: Coupled) -> Tensor:
    """A term for the loss that drives whole groups of filters to zero, to be weighted by the caller.

    Returns:
        The sum over all groups of sqrt(size) times the Euclidean norm of all its filters; a differentiable scalar, with
        gradient 0 at a group that is zero.

    Source: Wen et al. 2016, "Learning Structured Sparsity in Deep Neural Networks", with the size factor of the group lasso
    (Yuan and Lin 2006).
    """
    terms = []
    for family in coupled.families:
        if family.filters:
            rows = torch.cat([part.rows() for part in family.filters], 1)
            terms.append(rows.shape[1] ** 0.5 * torch.linalg.vector_norm(rows, dim=1).sum())
    return torch.stack(terms).sum() if terms else torch.zeros(())
