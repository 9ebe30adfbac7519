"""A compiled model as an OpenCL device runs it: kernels in OpenCL C, numbered buffers, launches in order.

    buffers    [inputs…, weights…, storages of the memory plan…, scratch of kernels…]
    run        write the inputs; launch, launch, …, in one queue; read the outputs

All sizes are known when a model is compiled, so nothing is decided when it runs: no virtual machine, no code of the host. It is
one JSON object in an artifact, and needs neither tvm nor the machine that made it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

EXTENSION = re.compile(r"#pragma OPENCL EXTENSION (cl_khr_\w+)\s*:\s*enable")
"""Beside these TVM names the ones that AMD had before, in another branch of the same condition."""
Size = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a function of the source: its buffers, by number, and its work-groups and their threads by axis."""

    function: str
    arguments: tuple[int, ...]
    groups: Size
    threads: Size

    @property
    def global_size(self) -> Size:
        """Threads in all, as OpenCL counts."""
        x, y, z = (groups * threads for groups, threads in zip(self.groups, self.threads, strict=True))
        return x, y, z


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a kernel: the launches that it takes. shape: of its output."""

    kernel: str
    shape: tuple[int, ...]
    launches: tuple[Launch, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What a run gives: the buffer that holds it, its shape, its dtype as numpy names it."""

    buffer: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Program:
    """A whole model, or one kernel.

    source: OpenCL C. sizes: the bytes of each buffer. parameters: how many of the first are inputs, and then weights.

    >>> call = Call("relu", (4,), (Launch("relu_kernel", (1, 0), (1, 1, 1), (4, 1, 1)),))
    >>> made = Program("…", (16, 16), 1, (call,), (Output(1, (4,), "float32"),))
    >>> Program.from_bytes(made.to_bytes()) == made
    True
    """

    source: str
    sizes: tuple[int, ...]
    parameters: int
    calls: tuple[Call, ...]
    outputs: tuple[Output, ...]

    @property
    def extensions(self) -> tuple[str, ...]:
        """Those of OpenCL that the source needs."""
        return tuple(dict.fromkeys(EXTENSION.findall(self.source)))

    @property
    def launches(self) -> tuple[Launch, ...]:
        """All, in order."""
        return tuple(launch for call in self.calls for launch in call.launches)

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Program":
        """What `to_bytes` wrote. Raises: ValueError where it is something else."""
        try:
            found = json.loads(content)
            return cls(
                source=found["source"],
                sizes=tuple(found["sizes"]),
                parameters=found["parameters"],
                calls=tuple(Call(each["kernel"], tuple(each["shape"]), _launches(each["launches"])) for each in found["calls"]),
                outputs=tuple(Output(each["buffer"], tuple(each["shape"]), each["dtype"]) for each in found["outputs"]),
            )
        except (KeyError, TypeError) as refusal:
            raise ValueError(f"the program in it is not whole ({refusal!r})") from refusal


def _launches(found: Sequence[dict[str, object]]) -> tuple[Launch, ...]:
    return tuple(
        Launch(str(each["function"]), *(tuple(each[name]) for name in ("arguments", "groups", "threads")))  # type: ignore[arg-type]
        for each in found
    )
