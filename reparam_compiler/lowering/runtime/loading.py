"""An artifact to an Executable. The file is read and checked first: where it is missing or damaged, tvm is not waited for."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from reparam_compiler.lowering.runtime.archive import read

if TYPE_CHECKING:
    from reparam_compiler.lowering.rpc.address import Rpc
    from reparam_compiler.lowering.runtime.executable import Executable


def load(path: str | os.PathLike[str], *, rpc: "Rpc | None" = None) -> "Executable":
    """The Executable that `save` wrote to `path`; needs tvm and numpy only.

    >>> import tempfile, torch, reparam_compiler
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     reparam_compiler.compile(torch.nn.ReLU().eval(), torch.zeros(2, 3)).save(f"{folder}/relu.tar")
    ...     load(f"{folder}/relu.tar").run(torch.tensor([[-1.0, 0.0, 1.0], [2.0, -2.0, 3.0]]))[0]
    array([[0., 0., 1.],
           [2., 0., 3.]], dtype=float32)

    Args:
        path: an archive or a shared library, of either suffix.
        rpc: devices far away, of which one is held as long as the Executable is there: the file is sent to it, and `run`,
            `time` and `profile` happen there, by its clock.

    Returns: an Executable; `runs_here` says whether this machine, or that device, can run it.
    Raises: LoweringError where the file is missing, truncated, foreign, or written in a newer format; or no device is free in
    time, or it is lost.
    """
    path = Path(path)
    artifact = read(path)
    if rpc is not None:
        from reparam_compiler.lowering.rpc.device import held_device

        return held_device(rpc).loaded(path)
    from reparam_compiler.lowering.runtime.executable import from_artifact

    return from_artifact(artifact, path)
