"""Least squares from moments: what a consumer should read now to give what it gave before.

With z what it reads now (`K` features), t what shall be predicted, and covariances S over all rows,

    fold        t = what it read before (`C` channels);  t ~ A z + c,   A = E + (S_tz - E S_zz) (S_zz + r I)^-1
                W' = W A,  b' = b + W c.    E picks each kept channel as it is
    refit       t = what it gave before (`O` outputs);   W' = W_z + (S_tz - W_z S_zz) (S_zz + r I)^-1
                                                            = (S_tz + r W_z) (S_zz + r I)^-1
                b' = mean t - W' mean z.    W_z are its old weights for what is left
    refit_each  the same for each channel by itself, as a depthwise conv must

The ridge r, relative to the mean of S_zz's diagonal, leads back to what no repair would do. Moments are sums, so the rows come
in any pieces and are never held. Products within a piece are of the rows' own precision, sums of pieces are float64: float32
rows make an error of some 1e-6 of the variances, and the ridge is 1e-2 of them.

Sources: He et al. 2017 ("Channel Pruning for Accelerating Very Deep Neural Networks"), Luo et al. 2017 (ThiNet).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

RIDGE = 1e-2
ROUNDS = 3
"""Of `refit_rectified`; later ones change little."""
HELD = 2**28
"""Bytes of rows that are held rather than made anew for each round."""


Rows = Iterable[tuple[Float[np.ndarray, "M T"], Float[np.ndarray, "M K"]]]
"""(targets, what is seen), in pieces."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Means and covariances of what is predicted (`T` targets) and of what it is predicted from (`K` features seen).

    variance: of each target.
    cross, own: covariances target x seen and seen x seen.
    """

    target_mean: Float64[np.ndarray, "T"]
    seen_mean: Float64[np.ndarray, "K"]
    variance: Float64[np.ndarray, "T"]
    cross: Float64[np.ndarray, "T K"]
    own: Float64[np.ndarray, "K K"]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Targets from what is seen: `matrix @ seen + constant`, and the share of their variance that this leaves."""

    matrix: Float64[np.ndarray, "*C T K"]
    constant: Float64[np.ndarray, "*C T"]
    unexplained: float


def moments(rows: Rows, known: Moments | None = None) -> Moments:
    """Moments of (target, seen) over all rows, a piece at a time; `known` are those of other targets and the same seen.

    Raises ValueError where there is no row.
    """
    found: _Sums | None = None
    for target, seen in rows:
        found = found or _Sums(target.mean(0), seen.mean(0) if known is None else known.seen_mean.astype(seen.dtype), known)
        found.add(target, seen)
    if found is None:
        raise ValueError("no rows: the moments of nothing are not defined")
    return found.moments()


def covariance(rows: Iterable[Float[np.ndarray, "M K"]]) -> Float64[np.ndarray, "K K"]:
    """The covariance of the features over all rows, a piece at a time; raises ValueError where there is no row."""
    return moments((piece[:, :0], piece) for piece in rows).own


class Spread:
    """Mean and variance of each channel over rows that come in pieces, taken about a point near the mean."""

    def __init__(self) -> None:
        self._about: Float64[np.ndarray, "C"] | None = None
        self._count, self._sum, self._square = 0, np.zeros(()), np.zeros(())

    def add(self, rows: Float[np.ndarray, "M C"]) -> None:
        """Takes rows in."""
        self._about = rows.mean(0, dtype=np.float64) if self._about is None else self._about
        rows = rows - self._about
        self._count += len(rows)
        self._sum = self._sum + rows.sum(0)
        self._square = self._square + (rows**2).sum(0)

    @property
    def mean(self) -> Float64[np.ndarray, "*C"]:
        """Of the rows so far; a single 0 before the first."""
        return np.asarray(self._sum / max(self._count, 1) + (0.0 if self._about is None else self._about))

    @property
    def variance(self) -> Float64[np.ndarray, "*C"]:
        """Likewise, divided by the number of rows."""
        mean = self._sum / max(self._count, 1)
        return np.asarray(np.maximum(self._square / max(self._count, 1) - mean**2, 0))


class _Sums:
    """Running sums, taken about a point near the mean, so that no digits are lost in the differences of squares."""

    def __init__(
        self,
        target: Float[np.ndarray, "T"],
        seen: Float[np.ndarray, "K"],
        known: Moments | None,
    ) -> None:
        self._about, self._known = (target, seen), known
        self._count = 0
        self._target, self._seen, self._square = np.zeros(len(target)), np.zeros(len(seen)), np.zeros(len(target))
        self._cross, self._own = np.zeros((len(target), len(seen))), np.zeros((len(seen), len(seen)))

    def add(self, target: Float[np.ndarray, "M T"], seen: Float[np.ndarray, "M K"]) -> None:
        target, seen = target - self._about[0], seen - self._about[1]
        self._count += len(target)
        self._target += target.sum(0, dtype=np.float64)
        self._square += np.square(target).sum(0, dtype=np.float64)
        self._cross += target.T @ seen
        if self._known is None:
            self._seen += np.ones(len(seen), seen.dtype) @ seen
            self._own += seen.T @ seen

    def moments(self) -> Moments:
        t, z = self._target / self._count, self._seen / self._count
        variance, cross = self._square / self._count, self._cross / self._count
        if self._known is not None:
            mean, own = self._known.seen_mean, self._known.own
            return Moments(t + self._about[0], mean, variance - t**2, cross - np.outer(t, mean - self._about[1]), own)
        own = self._own / self._count - np.outer(z, z)
        return Moments(t + self._about[0], z + self._about[1], variance - t**2, cross - np.outer(t, z), own)


def fold(observed: Moments, kept: Bool[np.ndarray, "C"], ridge: float = RIDGE) -> Prediction:
    """The best affine prediction of all channels from the kept ones; the targets are the channels."""
    return refit(observed, np.eye(len(kept))[:, kept], ridge)


def refit(
    observed: Moments,
    start: Float64[np.ndarray, "T K"],
    ridge: float = RIDGE,
    *,
    inverse: Float64[np.ndarray, "K K"] | None = None,
) -> Prediction:
    """The best affine prediction of the targets, led back by the ridge to the matrix `start`.

    inverse: (S_zz + r I)^-1, where it is known already.
    """
    damping, matrix = _damping(observed.own, ridge), start
    towards = observed.cross if damping is None else observed.cross + damping * start
    if damping is not None and inverse is not None:
        matrix = towards @ inverse
    elif damping is not None:
        matrix = np.linalg.solve(observed.own + damping * np.eye(len(observed.own)), towards.T).T
    explained = towards - (damping or 0.0) * matrix  # W' S_zz
    rest = observed.variance - 2 * (matrix * observed.cross).sum(1) + (matrix * explained).sum(1)
    total = float(observed.variance.sum())
    unexplained = min(max(float(rest.sum()) / total, 0.0), 1.0) if total > 0 else 0.0
    return Prediction(matrix, observed.target_mean - matrix @ observed.seen_mean, unexplained)


def _damping(own: Float64[np.ndarray, "K K"], ridge: float) -> float | None:
    """The r of S + r I; None where nothing varies."""
    scale = float(np.trace(own)) / len(own) if len(own) else 0.0
    return ridge * scale if scale > 0 else None


def inverse_of(definite: Float64[np.ndarray, "K K"]) -> Float64[np.ndarray, "K K"]:
    """The inverse of a symmetric matrix that is positive definite but for rounding; raises LinAlgError for a singular one.

    By Cholesky's factor it takes half of the time that LU takes.
    """
    try:
        factor = _inverse_of_lower(np.linalg.cholesky(definite))
    except np.linalg.LinAlgError:
        return np.linalg.inv(definite)
    product: Float64[np.ndarray, "K K"] = factor.T @ factor
    return product


def _inverse_of_lower(factor: Float64[np.ndarray, "K K"]) -> Float64[np.ndarray, "K K"]:
    """The inverse of a lower triangular matrix, by halves."""
    half = len(factor) // 2
    if half < 32:  # below, products are no faster than LU
        return np.linalg.inv(factor)
    first, last = _inverse_of_lower(factor[:half, :half]), _inverse_of_lower(factor[half:, half:])
    inverse = np.zeros_like(factor)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = last @ (factor[half:, :half] @ -first)
    return inverse


def refit_rectified(
    rows: Callable[[], Rows], start: Float64[np.ndarray, "T K"], ridge: float = RIDGE, *, rounds: int = ROUNDS
) -> Prediction:
    """`refit` where only relu(target) is read: for a target below zero any number below zero will do.

    Brings down   sum over t > 0 of (t - p)^2  +  sum over t <= 0 of max(p, 0)^2   for predictions p, by turns: the target is t
    where that is above zero, elsewhere min(p, 0); then p is solved for anew. But for the ridge no turn makes the sum larger.

    Args:
        rows: gives them anew each time.
        start, ridge: as for `refit`.
        rounds: how often.
    """
    rows = _held(rows)
    observed = moments(rows())
    damping = _damping(observed.own, ridge)
    inverse = None if damping is None else inverse_of(observed.own + damping * np.eye(len(observed.own)))
    found = refit(observed, start, ridge, inverse=inverse)
    for _ in range(rounds if inverse is not None else 0):
        turned = ((np.where(t > 0, t, np.minimum(_predicted(found, z), 0)), z) for t, z in rows())
        found = refit(moments(turned, observed), start, ridge, inverse=inverse)
    return found


def _held(rows: Callable[[], Rows]) -> Callable[[], Rows]:
    """The same rows, held where they are few enough."""
    held, room = list[tuple[np.ndarray, np.ndarray]](), HELD
    for piece in rows():
        room -= sum(side.nbytes for side in piece)
        if room < 0:
            return rows
        held.append(piece)
    return lambda: iter(held)


def _predicted(found: Prediction, seen: Float[np.ndarray, "M K"]) -> Float[np.ndarray, "M T"]:
    """The targets, in the precision of what is seen."""
    predicted: np.ndarray = seen @ found.matrix.T.astype(seen.dtype) + found.constant.astype(seen.dtype)
    return predicted


def refit_each(
    rows: Iterable[tuple[Float[np.ndarray, "M C T"], Float[np.ndarray, "M C K"]]],
    start: Float64[np.ndarray, "C T K"],
    ridge: float = RIDGE,
) -> Prediction:
    """The best affine prediction of each channel's targets from its own features, led back to `start`.

    Returns:
        A matrix `C T K` and a constant `C T`; the unexplained share is that of all channels together.
    """
    channels, targets, features = start.shape
    about: tuple[np.ndarray, np.ndarray] | None = None
    count = 0
    width = targets + features
    sums = np.zeros((channels, width)), np.zeros((channels, width, features)), np.zeros((channels, targets))
    for piece in rows:
        target, seen = (side.astype(np.float64) for side in piece)
        about = about or (target.mean(0), seen.mean(0))
        t, z = (np.moveaxis(side - point, 0, 1) for side, point in zip((target, seen), about, strict=True))  # C M …
        both = np.concatenate([t, z], 2)
        count += len(target)
        for running, piece in zip(sums, (both.sum(1), both.transpose(0, 2, 1) @ z, (t**2).sum(1)), strict=True):
            running += piece
    if about is None:
        raise ValueError("no rows: the moments of nothing are not defined")
    mean, products, square = (running / count for running in sums)
    t, z = mean[:, :targets], mean[:, targets:]
    products = products - mean[:, :, None] * z[:, None]
    variance, cross, own = square - t**2, products[:, :targets], products[:, targets:]
    scale = np.trace(own, axis1=1, axis2=2)[:, None, None] / features
    alive = scale[:, 0, 0] > 0
    matrix = start.copy()
    damped = own[alive] + ridge * scale[alive] * np.eye(features)
    matrix[alive] += np.linalg.solve(damped, (cross - start @ own)[alive].transpose(0, 2, 1)).transpose(0, 2, 1)
    rest = variance - 2 * (matrix * cross).sum(2) + ((matrix @ own) * matrix).sum(2)
    total = float(variance.sum())
    unexplained = min(max(float(rest.sum()) / total, 0.0), 1.0) if total > 0 else 0.0
    constant = t + about[0] - (matrix @ (z + about[1])[:, :, None])[:, :, 0]
    return Prediction(matrix, constant, unexplained)
