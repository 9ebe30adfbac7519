"""What is installed, what is missing, what does not fit, and what to type: the checks of `reparam doctor`.

packages    find_spec, and the versions that pip noted     nothing is imported
pairs       imported in a process of its own               what does not fit may end a process, not only raise
machine     what TVM's kernels meet here                   likewise
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from reparam_compiler.core.packages import EXTRAS, TESTED, install_line, installed_version
from reparam_compiler.errors import LoweringError, TvmMissingError, UnsupportedModelError
from reparam_compiler.tvmc.failing import exit_code_of

SECONDS = 300
"""That an import in a process of its own may take, on a machine that does other things too."""
UNREADABLE, UNLOWERED, NO_TVM = map(exit_code_of, (UnsupportedModelError, LoweringError, TvmMissingError))
WITHOUT = {"torch": UNREADABLE, "serve": NO_TVM}
"""The exit code where an extra is not installed at all; of the others it is a matter of taste."""
HALF = {"onnx": UNREADABLE, "rpc": UNLOWERED}
"""The exit code where a part of it is."""
MACHINE = """
import json, sys
from dataclasses import asdict
sys.modules["torch"] = None  # tvm imports it where it can, which takes seconds
from reparam_compiler.lowering.here import machine
print(json.dumps(asdict(machine())))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table.

    subject: what was looked for. found: what was found, in words.
    state: "absent" is what not everybody needs, and this machine does not have. advice: what to do about it, or to type.
    code: the exit code of a command that needs it; 0 where it is fine, or a matter of taste.
    """

    subject: str
    found: str
    state: Literal["fine", "absent", "broken"] = "fine"
    advice: str = ""
    code: int = 0


@dataclass(frozen=True, slots=True)
class Installation:
    """What `reparam doctor` found: the checks in their order, and the machine as `lowering.here.Machine` has it."""

    checks: list[Check]
    machine: dict[str, Any] | None

    @classmethod
    def looked_at(cls) -> "Installation":
        """The one this runs in."""
        of_machine, found = machine()
        return cls([*packages(), torchvision(), *of_machine], found)

    @property
    def code(self) -> int:
        """The exit code of a command that meets the first defect; 0 where torch and tvm are there and all fits."""
        return next((check.code for check in self.checks if check.code), 0)

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"fine": not self.code, "checks": list(map(asdict, self.checks)), "machine": self.machine}

    def lines(self) -> Iterator[str]:
        """A line for each check, for where what draws a table is missing."""
        for check in self.checks:
            yield f"{check.subject}: {check.found}" + (f" ({check.state}): {check.advice}" if check.advice else "")


def packages() -> Iterator[Check]:
    """Each package that the library imports, by extra."""
    yield Check("python", ".".join(map(str, sys.version_info[:3])))
    yield Check("reparam_compiler", installed_version("reparam_compiler") or "run from its folder")
    for extra, modules in EXTRAS.items():
        there = [module for module in modules if importlib.util.find_spec(module) is not None]
        for module, name in modules.items():
            if module in there:
                yield _present(name)
            elif there:
                code = WITHOUT.get(extra) or HALF.get(extra, 0)
                yield Check(name, "missing, and others of its extra are there", "broken", install_line(extra), code)
            else:
                yield Check(name, "not installed", "absent", install_line(extra), WITHOUT.get(extra, 0))


def _present(name: str) -> Check:
    found, tested = installed_version(name) or "installed, of no known version", TESTED.get(name)
    if tested is None or found == tested:
        return Check(name, found)
    return Check(name, f"{found}, which was not tested", "broken", f"pip install '{name}=={tested}'", UNLOWERED)


def torchvision() -> Check:
    """Whether torchvision, where it is installed, is built for the torch beside it."""
    subject = "torchvision beside torch"
    if importlib.util.find_spec("torchvision") is None or importlib.util.find_spec("torch") is None:
        return Check(subject, "not installed", "absent", "only models that import it need it")
    done = _in_a_process("import torchvision")
    if done.returncode == 0:
        return Check(subject, f"{installed_version('torchvision')} loads its ops")
    advice = "take both from one index: pip install --force-reinstall torch torchvision"
    return Check(subject, _last_line(done), "broken", advice, UNREADABLE)


def machine() -> tuple[list[Check], dict[str, Any] | None]:
    """What compiled models meet here, also as `lowering.here.Machine` has it; nothing where tvm is missing."""
    if any(importlib.util.find_spec(module) is None for module in EXTRAS["serve"]):
        return [], None
    done = _in_a_process(MACHINE)
    if done.returncode:
        advice = f"where `import tvm` fails too: pip install --force-reinstall {_pinned()}"
        return [Check("tvm on this machine", _last_line(done), "broken", advice, UNLOWERED)], None
    found = json.loads(done.stdout.splitlines()[-1])
    return list(of_machine(found)), found


def of_machine(found: dict[str, Any]) -> Iterator[Check]:
    """The lines of a `lowering.here.Machine`."""
    yield Check(
        "cpu",
        f"{found['cpu']} ({found['processor']}), vectors of {found['vector_bytes']} bytes, {found['registers']} registers, "
        f"cores for a run: {found['cores']}",
    )
    if found["costs"] == "borrowed":
        yield Check("kernels", "chosen by the costs of another cpu", "absent", "`compile` measures this one; now: tvmc measure")
    else:
        yield Check("kernels", f"chosen by costs {'measured here' if found['costs'] == 'measured' else 'shipped for it'}")
    yield Check("shipped records", f"{found['records']} layers for {found['family'] or 'no family'}")
    if found["compiler"]:
        yield Check("C++ compiler", found["compiler"])
    else:
        yield Check("C++ compiler", "none on PATH", "broken", "compile cannot save: install g++ or clang++", UNLOWERED)
    yield _device("OpenCL device", found["opencl"], found["why_no_opencl"])
    toolkit = "" if found["nvcc"] else ", and no nvcc, without which code for it stays source"
    yield _device("CUDA device", found["cuda"], f"none that runs{toolkit}")


def _device(subject: str, name: str, why_none: str) -> Check:
    return Check(subject, name) if name else Check(subject, "none", "absent", why_none)


def _pinned() -> str:
    return " ".join(f"'{name}=={version}'" for name, version in TESTED.items())


def _in_a_process(code: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"it was not done after {SECONDS} s, and was ended")


def _last_line(done: "subprocess.CompletedProcess[str]") -> str:
    """What ended a process: the signal, else the last that it said, else its exit code."""
    if done.returncode < 0:
        return f"it ended by signal {-done.returncode}"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"it ended with {done.returncode}"
