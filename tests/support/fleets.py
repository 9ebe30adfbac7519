"""Trackers and servers on the loopback, each a process group of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

KEY = "loopback"
PATIENCE = 300.0
"""Seconds that anything may take on a machine that others use."""
SLEEPY = """
import time
from reparam_compiler.lowering.runtime.virtual_machines import VirtualMachines

def measured(self, arrays, repeat, number, **how):
    time.sleep(number / 1000)
    return (number / 1000,) * repeat

VirtualMachines.measured = measured
"""
"""To start a server with, whose device takes a millisecond for each of the runs in a row that it is asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A `tvmc tracker` or `tvmc server` that listens. address: "HOST:PORT"."""

    process: subprocess.Popen[str]
    address: str

    def signalled(self, number: signal.Signals) -> None:
        """Sends a signal to it and to its sessions."""
        os.killpg(self.process.pid, number)

    def ended(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Its exit code, after a signal to it and to its sessions."""
        with contextlib.suppress(ProcessLookupError):
            self.signalled(number)
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def program(*words: str, start: str = "", **environment: str) -> Iterator[Program]:
    """One of them for as long as the block runs. start: Python that is run in it first."""
    code = f"import sys\nsys.modules['torch'] = None\n{start}\n"
    code += "from reparam_compiler.tvmc.commands import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words, "--json"]
    env: Mapping[str, str] = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=env)
    assert process.stdout is not None
    made = Program(process, "")
    try:
        found = json.loads(process.stdout.readline())
        yield Program(process, found.get("server", found["tracker"]))
    finally:
        with contextlib.suppress(ProcessLookupError):
            made.signalled(signal.SIGCONT)
        made.ended()
        process.stdout.close()


def tracker(port: int = 0) -> contextlib.AbstractContextManager[Program]:
    """A tracker."""
    return program("tracker", "--port", str(port))


def server(of: Program, key: str = KEY, start: str = "") -> contextlib.AbstractContextManager[Program]:
    """A server of one thread for a tracker."""
    return program("server", "--tracker", of.address, "--key", key, "--port", "0", start=start, TVM_NUM_THREADS="1")
