"""Trains the filters of a cluster to be equal, so that one can stand for all.

For a cluster S of the filters of a family, with gradients g and weights w,

    g_j <- 1/|S| sum over k in S of g_k + strength (w_j - 1/|S| sum over k in S of w_k)

Under plain SGD, with or without momentum and weight decay, what sets the filters of a cluster apart shrinks in every step, by
1 - rate * (strength + decay) without momentum, and their mean moves as if they were one filter. Channels that are made alike of
the same input are equal, and whoever reads them may read one of them with the sum of their weights:

    W_first <- sum over j in S of W_j,    W_others <- 0

Source: Ding et al. 2019, "Centripetal SGD for Pruning Very Deep Convolutional Networks with Complicated Structure".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from reparam_compiler.errors import InfeasiblePruneError
from reparam_compiler.passes.pruning.allocation import nearest_widths
from reparam_compiler.passes.pruning.coupling.groups import Keep
from reparam_compiler.training.coupled import Coupled, CoupledFamily


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """What is left of clusters of equal channels: one of each.

    keep: for `slice_channels.sliced`.
    weights: new values of the tensors that read them, by name (`load_state_dict(…, strict=False)`): the slice of the channel
        that stays is the sum of those of its cluster, and the others are zero.
    """

    keep: Keep
    weights: Mapping[str, Tensor]


class CentripetalSGD:
    """Makes the filters of each cluster equal while the model trains, so that all but one can be cut without loss.

    Between `loss.backward()` and `optimizer.step()` call `replace_gradients()`. Biases and the scales and shifts of norms go
    with the filters; running statistics, which follow the data and no gradient, are averaged outright. The optimizer must be
    SGD: Adam scales each gradient by itself and sets the filters apart again.

    clusters: for each family, by name, the cluster of each of its groups.
    left_out: families that are not clustered, and why.
    """

    def __init__(
        self,
        coupled: Coupled,
        *,
        ratio: float,
        strength: float = 3e-3,
        by: Literal["kmeans", "even"] = "kmeans",
        round_to: int = 8,
        seed: int = 0,
    ) -> None:
        """Clusters the filters of each family.

        Args:
            coupled: the model.
            ratio: the share of channels that shall go, at least 0 and below 1.
            strength: of the pull to the middle.
            by: filters that are alike, or the same number in each cluster in the order that they stand in.
            round_to: widths after merging are multiples of it.
            seed: for k-means.

        Raises:
            InfeasiblePruneError: a ratio, strength or clustering that does not exist, or no family that can be merged.
        """
        if not 0 <= ratio < 1 or not strength > 0 or by not in ("kmeans", "even"):
            raise InfeasiblePruneError(
                f"ratio={ratio}, strength={strength}, by={by!r}: give a ratio of at least 0 and below 1, a strength above 0, "
                "and 'kmeans' or 'even'"
            )
        self.left_out = MappingProxyType({f.family.name: f.obstacle for f in coupled.families if f.obstacle})
        self._coupled = coupled
        self._strength = strength
        self._families = [family for family in coupled.families if not family.obstacle]
        if not self._families:
            raise InfeasiblePruneError(f"no family can be merged: {'; '.join(self.left_out.values()) or 'none can be cut'}")
        free = [family.family for family in self._families]
        widths = nearest_widths(free, {family.name: family.width * (1 - ratio) for family in free}, round_to)
        self.clusters: Mapping[str, Int64[np.ndarray, "F"]] = MappingProxyType(
            {f.family.name: _clustered(f, widths[f.family.name] // f.family.positions, by, seed) for f in self._families}
        )

    @torch.no_grad()
    def replace_gradients(self) -> None:
        """Averages gradients over each cluster, adds the pull, and averages running statistics."""
        for family in self._families:
            cluster = torch.from_numpy(self.clusters[family.family.name])
            for part in family.made:
                if part.tensor.grad is not None:
                    rows = part.rows()
                    pulled = _means(part.rows(part.tensor.grad), cluster) + self._strength * (rows - _means(rows, cluster))
                    part.put(pulled, part.tensor.grad)
            for part in family.statistics:
                part.put(_means(part.rows(), cluster), part.tensor)

    @torch.no_grad()
    def gap(self) -> float:
        """The largest absolute difference of a parameter from the mean of its cluster: what merging now would still change."""
        gaps = [0.0]
        for family in self._families:
            cluster = torch.from_numpy(self.clusters[family.family.name])
            for part in (*family.made, *family.statistics):
                rows = part.rows()
                gaps.append(float((rows - _means(rows, cluster)).abs().max()))
        return max(gaps)

    @torch.no_grad()
    def merge(self) -> Merged:
        """One channel of each cluster, the first, and the weights that read it in place of all; the module is not changed."""
        keep = np.ones(self._coupled.groups.count, np.bool_)
        weights: dict[str, Tensor] = {}
        for family in self._families:
            cluster = self.clusters[family.family.name]
            _, first, index = np.unique(cluster, return_index=True, return_inverse=True)
            stays = np.isin(np.arange(len(cluster)), first)
            keep[family.family.groups[~stays]] = False
            for part in family.read:
                new = weights.setdefault(part.name, part.tensor.detach().clone())
                rows = part.rows(new)
                sums = torch.zeros_like(rows[: len(first)]).index_add_(
                    0, torch.from_numpy(index.reshape(-1)).to(rows.device), rows
                )
                gone = torch.zeros_like(rows)
                gone[torch.from_numpy(first)] = sums
                part.put(gone, new)
        return Merged(keep, MappingProxyType(weights))


def _means(rows: Tensor, cluster: Tensor) -> Tensor:
    """Each row replaced by the mean of its cluster."""
    cluster = cluster.to(rows.device)
    count = int(cluster.max()) + 1
    sums = rows.new_zeros(count, rows.shape[1]).index_add_(0, cluster, rows)
    sizes = torch.bincount(cluster, minlength=count).clamp(min=1).to(rows.dtype)
    return (sums / sizes[:, None])[cluster]


def _clustered(family: CoupledFamily, count: int, by: str, seed: int) -> Int64[np.ndarray, "F"]:
    size = len(family.family.groups)
    if count >= size or by == "even" or not family.filters:
        return np.arange(size) * min(count, size) // size
    from sklearn.cluster import KMeans  # here: importing the library must not load it

    rows = torch.cat([part.rows().detach() for part in family.filters], 1).double().cpu().numpy()
    distinct = len(np.unique(rows, axis=0))
    clusters = KMeans(min(count, distinct), n_init=3, random_state=seed).fit_predict(rows)
    return np.asarray(clusters, np.int64)
