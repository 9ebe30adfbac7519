"""The virtual machines of one library: as many as run at once, over one copy of its weights.

    call(work) -> a launcher (`launchers`) -> work(a machine that nobody else has)

TVM's virtual machine holds the state of a run, and two threads that share one end in a segmentation fault. Another one costs a
tenth of a millisecond and the activations of a run: weights are arguments of `main`, and constants are the library's.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tvm
from tvm.runtime.vm import VirtualMachine

from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr
from reparam_compiler.lowering.runtime.launchers import on_launcher

ResultT = TypeVar("ResultT")


class Machines:
    """Gives calls a virtual machine each.

    device: what the machines run on. threads: how many cores one call takes. weights: what `main` takes after its inputs.
    """

    def __init__(self, library: Any, device: Any, threads: int, weights: Sequence[Any] = ()) -> None:
        with filter_stderr():
            self._library = library.jit() if isinstance(library, tvm.runtime.Executable) else library
        self.device = device
        self.threads = threads
        self.weights = weights
        self._free = [VirtualMachine(self._library, device)]

    def call(self, work: Callable[[Any], ResultT]) -> ResultT:
        """What `work` gives for a machine; one that it fails on is not used again."""

        def called() -> ResultT:
            try:
                machine = self._free.pop()
            except IndexError:
                machine = VirtualMachine(self._library, self.device)
            result = work(machine)
            self._free.append(machine)
            return result

        return on_launcher(self.threads, called)

    def call_once(self, work: Callable[[Any], ResultT]) -> ResultT:
        """The same, for a machine that `work` leaves unfit for others, as an instrument does."""
        return on_launcher(self.threads, lambda: work(VirtualMachine(self._library, self.device)))

    def clone(self, threads: int) -> "Machines":
        """Machines of their own, over the same library and weights."""
        return Machines(self._library, self.device, threads, self.weights)
