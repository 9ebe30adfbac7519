"""A device that a tracker lent, and models that run on it as they would here.

    load(path, rpc) -> Executable of RemoteMachines --question--> a process of ours --TVM's RPC--> the server's `answering`

The process is there to be ended: a server that hangs answers nobody, and TVM's client would wait for it for ever. It ends with
the last model on its device, and then the tracker has the device again.
"""

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from reparam_compiler.core.files import scratch_folder
from reparam_compiler.errors import LoweringError, first_line
from reparam_compiler.lowering.rpc import wire
from reparam_compiler.lowering.rpc.address import Rpc
from reparam_compiler.lowering.rpc.messages import read, written
from reparam_compiler.lowering.rpc.tracker import Place, request
from reparam_compiler.lowering.runtime.archive import read as read_artifact
from reparam_compiler.lowering.runtime.description import TimedCall
from reparam_compiler.lowering.runtime.machines import Machines

if TYPE_CHECKING:
    from reparam_compiler.lowering.runtime.description import Array
    from reparam_compiler.lowering.runtime.executable import Executable

log = logging.getLogger(__name__)
STARTING, CONNECTING, PARTING = 300.0, 30.0, 10.0
"""Seconds that a process may take to import TVM on a busy machine, to connect, and to give a device back."""
TRIES = 5
"""Places that a tracker may give out one after the other where nobody answers: it does not know yet that a server is gone."""


class LostError(LoweringError):
    """A device does not answer any more: its server ended, the network did, or it takes too long. late: it was the last."""

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


class Line:
    """A process that talks to one server after the other. Not for several threads at once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._where = ""

    def started(self) -> "Line":
        """The same, once it can connect at once: a loan lapses after some seconds, and importing TVM takes as many.

        Raises: LostError where it does not come up.
        """
        if self._process is None:
            path = os.pathsep.join(filter(None, sys.path))
            program = [sys.executable, "-m", wire.__name__]
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
            small = {"TVM_USE_RUNTIME_LIB": "1"}  # imports half of it
            self._process = subprocess.Popen(program, env={**os.environ, **small, "PYTHONPATH": path}, **pipes)
            with self._losing("the process that talks to devices"):
                self._reply(STARTING)
        return self

    def connect(self, place: Place, seconds: float, session: float) -> None:
        """To a device that was lent. session: seconds after which its server ends the session, whatever it does; 0 is never.

        Raises: LostError where it does not answer.
        """
        self._where = f"{place.host}:{place.port}"
        self._call(wire.CONNECT, json.dumps({**asdict(place), "session": session}).encode(), seconds)

    def ask(self, about: dict[str, Any], arrays: "Sequence[Array]", seconds: float) -> "tuple[dict[str, Any], list[Array]]":
        """What the server answers to a question.

        Raises: LostError where it does not answer in time or at all, LoweringError where it refuses.
        """
        found, more = read(self._call(wire.ASK, written(about, arrays), seconds))
        if "refusal" in found:
            raise LoweringError(found["refusal"])
        return found, more

    def disconnect(self) -> None:
        """Gives the device back; a process that cannot is ended."""
        with contextlib.suppress(LostError):
            self._call(wire.DISCONNECT, b"", PARTING)

    def close(self) -> None:
        """Ends the process, and with it what it waits for."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _call(self, kind: bytes, content: bytes, seconds: float) -> bytes:
        with self._losing(f"the device at {self._where}"):
            if (process := self._process) is None or process.stdin is None:
                raise LostError("it was closed")
            process.stdin.write(wire.framed(kind, content))
            return self._reply(seconds)

    @contextlib.contextmanager
    def _losing(self, what: str) -> Iterator[None]:
        """Ends the process where it did not do what it should. Raises: LostError then."""
        try:
            yield
        except (LostError, OSError, ValueError) as lost:  # the last where another thread closed its pipes
            self.close()
            raise LostError(f"{what} was lost: {lost}", late=getattr(lost, "late", False)) from None

    def _reply(self, seconds: float) -> bytes:
        until = time.monotonic() + seconds
        length, kind = wire.HEAD.unpack(self._received(wire.HEAD.size, until, seconds))
        content = self._received(length, until, seconds)
        if kind == wire.FAILED:
            raise LostError(first_line(RuntimeError(content.decode())))
        return content

    def _received(self, size: int, until: float, seconds: float) -> bytes:
        """So many bytes of the process's. Raises: LostError where they do not come in time, or it ends."""
        process, found = self._process, bytearray()
        if process is None or process.stdout is None:
            raise LostError("it was closed")
        while len(found) < size:
            if not select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise LostError(f"it did not answer within {seconds:.3g} s", late=True)
            if not (more := process.stdout.read(size - len(found))):
                raise LostError("its connection was closed")
            found += more
        return bytes(found)


class Device:
    """A device that is held until `close`."""

    def __init__(self, line: Line, seconds: float) -> None:
        """line: connected. seconds: that an answer may take."""
        self._line, self.seconds = line, seconds
        self._asking = threading.Lock()

    def ask(self, do: str, arrays: "Sequence[Array]" = (), **about: Any) -> "tuple[dict[str, Any], list[Array]]":
        """What it answers to a question; one at a time. Raises: LoweringError where it refuses or is lost."""
        with self._asking:
            return self._line.ask({"do": do, **about}, arrays, self.seconds)

    def loaded(self, path: Path) -> "Executable":
        """The model of an artifact, loaded there. Raises: LoweringError as `load`, there or here."""
        from reparam_compiler.lowering.runtime.executable import described

        artifact = np.frombuffer(path.read_bytes(), np.uint8)
        held = described(read_artifact(path), path)
        found, _ = self.ask("load", [artifact])
        taken = held.taking(found["target"])
        machines = RemoteMachines(self, int(found["model"]), int(found["threads"]))
        return replace(taken, variants=tuple(replace(variant, machines=machines) for variant in taken.variants))

    def close(self) -> None:
        """Gives it back."""
        self._line.close()


class RemoteMachines(Machines):
    """What runs one model of a device, whichever of its variants the inputs fit."""

    here: ClassVar = False

    def __init__(self, device: Device, model: int, threads: int) -> None:
        self._device, self._model, self.threads = device, model, threads

    def run(self, arrays: "Sequence[Array]") -> "list[Array]":
        """The outputs, computed there."""
        return self._asked("run", arrays)[1]

    def measured(
        self, arrays: "Sequence[Array]", repeat: int, number: int, *, least_ms: int = 0, cold: bool = False
    ) -> tuple[float, ...]:
        """By the device's clock: the way there counts in none."""
        how = {"repeat": repeat, "number": number, "least_ms": least_ms, "cold": cold}
        return tuple(map(float, self._asked("measure", arrays, **how)[0]["seconds"]))

    def profiled(self, arrays: "Sequence[Array]", runs: int) -> list[list[TimedCall]]:
        """By the device's clock."""
        found = self._asked("profile", arrays, runs=runs)[0]["runs"]
        return [[TimedCall(call["name"], tuple(call["shape"]), float(call["seconds"])) for call in run] for run in found]

    def clone(self, threads: int) -> Machines:
        """The same model, whose runs take so many cores of the device's machine."""
        return RemoteMachines(self._device, self._model, threads)

    def _asked(self, do: str, arrays: "Sequence[Array]", **how: Any) -> "tuple[dict[str, Any], list[Array]]":
        return self._device.ask(do, arrays, model=self._model, threads=self.threads, **how)


def sent(executable: "Executable", device: Device, compiler: str | None = None) -> "Executable":
    """A model that was compiled here, on a device; compiler: links it. Raises: LoweringError as `save` and `Device.loaded`."""
    with scratch_folder() as folder:
        path = folder / "model.tar"
        executable.save(path, compiler=compiler)
        return device.loaded(path)


def held_device(rpc: Rpc) -> Device:
    """A device of these, held until it is closed or nobody refers to it.

    Raises: LoweringError where none is free in time, or those that are do not answer.
    """
    rpc.check()
    line = Line()
    try:
        connect(line, rpc)
    except BaseException:
        line.close()
        raise
    device = Device(line, rpc.timeout)
    weakref.finalize(device, line.close)
    return device


def connect(line: Line, rpc: Rpc, session: float = 0.0, given_up: threading.Event | None = None) -> None:
    """Connect a line to a device that is free. session: as for `Line.connect`.

    Raises: LoweringError as `request`, and where several that the tracker gave did not answer.
    """
    line.started()
    for left in reversed(range(TRIES)):
        place = request(rpc, given_up)
        try:
            return line.connect(place, CONNECTING, session)
        except LostError as lost:
            if not left:
                raise LoweringError(f"rpc: of key {rpc.key!r} no device answers that the tracker {rpc.tracker} lends") from lost
            log.warning("%s; another one is asked for", lost)
            line.started()
