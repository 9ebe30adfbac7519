"""What an artifact says of itself: its inputs and outputs, its kernels, the memory of a run. No tvm is needed to read it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reparam_compiler.errors import LoweringError

if TYPE_CHECKING:  # a machine that only runs artifacts has tvm and numpy, no more
    from jaxtyping import Shaped

    Array = Shaped[np.ndarray, "..."]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its name in the model, its shape, its dtype as numpy names it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {self.shape}"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one run, warm: each of `seconds` is the mean of `number` runs in a row."""

    seconds: tuple[float, ...]
    number: int

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def mean(self) -> float:
        return float(np.mean(self.seconds))

    @property
    def std(self) -> float:
        return float(np.std(self.seconds))


@dataclass(frozen=True, slots=True)
class Kernel:
    """One function of the library, for reports.

    algorithm: what a recipe made it by ("direct", "winograd 4x4"), or "general": a rule for any op.
    flops: of one call, a multiply-add being two, in the direct form; 0 where no recipe counted them.
    error: the relative error of the algorithm, measured on the layer's own weights against float64.
    layer: the shape of the conv or dense layer that it computes a part of; "" for any other.
    """

    name: str
    algorithm: str
    flops: int = 0
    error: float | None = None
    layer: str = ""


@dataclass(frozen=True, slots=True)
class TimedCall:
    """One call of a kernel in one run: its name, the shape of its output, its seconds."""

    name: str
    shape: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that a run needs; how they are counted is said in `relax/memory_plan.py`.

    peak: of the activations that exist at once, at most. bound: of the largest input and output of a call: a plain net's need.
    planned: of the storages that are allocated for all activations. scratch: of the largest within a kernel.
    weights: of the constants.
    """

    peak: int
    bound: int
    planned: int
    scratch: int
    weights: int


def filled(spec: TensorSpec, mode: str, seed: int = 0) -> "Array":
    """An array for one input: `random` (normal, or small integers), `ones` or `zeros`.

    Raises LoweringError for another mode.
    """
    dtype = np.dtype(spec.dtype)
    if mode == "ones":
        return np.ones(spec.shape, dtype)
    if mode == "zeros":
        return np.zeros(spec.shape, dtype)
    if mode != "random":
        raise LoweringError(f"fill mode: found {mode!r}; expected random, ones or zeros")
    source = np.random.default_rng(seed)
    if dtype.kind == "f":
        return np.asarray(source.standard_normal(spec.shape)).astype(dtype)
    return np.asarray(source.integers(0, 2, spec.shape)).astype(dtype)
