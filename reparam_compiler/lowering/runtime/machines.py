"""What runs a library: machines, as many as run at once, over one copy of its weights.

    Variant.run -> Machines.run: inputs -> a machine that nobody else has -> outputs

TVM's virtual machines (`virtual_machines`) run what TVM compiles whole; a kind of target whose code TVM does not run has
machines of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from reparam_compiler.lowering.runtime.description import TimedCall

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.description import Array


class Machines(ABC):
    """Gives each run a machine.

    threads: how many cores one run takes. here: whether it runs on this machine.
    """

    threads: int
    here: ClassVar[bool] = True

    @abstractmethod
    def run(self, arrays: "Sequence[Array]") -> "list[Array]":
        """The outputs for inputs of the model's own shapes and dtypes. Any number of threads may call it at once."""

    @abstractmethod
    def measured(
        self, arrays: "Sequence[Array]", repeat: int, number: int, *, least_ms: int = 0, cold: bool = False
    ) -> tuple[float, ...]:
        """`repeat` measurements: the mean seconds of `number` runs in a row each, after one run that is not counted.

        Args:
            least_ms: milliseconds that the runs in a row take at least: there are more of them then.
            cold: empty the caches of all weights before each measurement, where a CPU runs them.
        """

    @abstractmethod
    def profiled(self, arrays: "Sequence[Array]", runs: int) -> list[list[TimedCall]]:
        """The kernels' calls of each of so many runs, in order, after one run that is not counted."""

    @abstractmethod
    def clone(self, threads: int) -> "Machines":
        """Machines of their own, over the same library and weights."""
