"""A board that is none: aarch64 Linux, with Python and TVM, in a folder, run by qemu's user mode.

    Debian's packages for arm64 --apt, with a state of its own--> root        wheels for aarch64 --pip--> root/site
    root/usr/bin/board-python   starts the root's Python under qemu, which finds it as its own program: so do its children

Nothing is installed into this machine, and it needs neither a chroot nor a handler of foreign programs (binfmt).
"""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PYTHON = "3.11"
SYSTEM = (f"python{PYTHON}", "libstdc++6", "libgomp1")
WHEELS = ("apache-tvm", "apache-tvm-ffi", "numpy", "ml_dtypes", "typing_extensions", "psutil", "cloudpickle", "tornado")
"""What `reparam_compiler[rpc]` needs, in the versions that are installed here."""
GLIBC = ("2_28", "2_27", "2_24", "2_17")
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
COMPILER = "aarch64-linux-gnu-g++"
KEY = "emulated"


def missing() -> str:
    """What this machine lacks for such a board; nothing where it has all."""
    needed = {
        "qemu-user-static": any(map(shutil.which, EMULATORS)),
        "g++-aarch64-linux-gnu": shutil.which(COMPILER),
        "apt": shutil.which("apt-get"),
        "dpkg": shutil.which("dpkg-deb"),
    }
    return ", ".join(name for name, there in needed.items() if not there)


def emulator() -> str:
    """The program that runs aarch64's."""
    return next(filter(None, map(shutil.which, EMULATORS)))


def emulator_version() -> str:
    """As it says itself."""
    return subprocess.run([emulator(), "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def made(root: Path) -> Path:
    """The Python of the board in a folder, which is filled where it is empty: a hundred megabytes from the registries."""
    python = root / "usr" / "bin" / "board-python"
    if not python.exists():
        root.mkdir(parents=True, exist_ok=True)
        _unpack_system(root)
        _unpack_wheels(root)
        program = f'exec {emulator()} -L {root} -0 "$0" {root}/usr/bin/python{PYTHON} "$@"'
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return python


def _unpack_system(root: Path) -> None:
    """Debian's packages, with all that they depend on."""
    state = root / "apt"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
    }
    apt = ["apt-get", "-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "install", "--yes", "--download-only", *SYSTEM], check=True)
    for package in sorted((state / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    shutil.rmtree(state)


def _unpack_wheels(root: Path) -> None:
    platforms = [f"--platform=manylinux_{each}_aarch64" for each in GLIBC] + ["--platform=manylinux2014_aarch64"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={PYTHON}"]
    wanted = [f"{package}=={version(package)}" for package in WHEELS]
    subprocess.run([*pip, *platforms, f"--target={root / 'site'}", *wanted], check=True)


@contextlib.contextmanager
def offered(root: Path) -> Iterator[str]:
    """The address of a tracker that a server under qemu offers itself to, under `KEY`; both end with the block."""
    python = made(root)
    with _program([sys.executable], str(REPOSITORY), "tracker", "--port", "0") as tracker:
        path = os.pathsep.join(map(str, (root / "site", REPOSITORY)))
        with _program([str(python)], path, "server", "--tracker", tracker, "--key", KEY, "--port", "0"):
            yield tracker


def machine(root: Path) -> str:
    """What the board takes itself for."""
    asked = "import platform; print(platform.machine(), platform.python_version())"
    return subprocess.run([made(root), "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def _program(python: list[str], path: str, *words: str) -> Iterator[str]:
    """`tvmc` with these words; the address of its tracker, once it listens."""
    environment = {**os.environ, "PYTHONPATH": path, "TVM_NUM_THREADS": "1"}
    command = [*python, "-m", "reparam_compiler.tvmc", *words, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            if not (said := process.stdout.readline()):
                raise SystemExit(f"tvmc {words[0]} ended before it listened")
            yield str(json.loads(said)["tracker"])
        finally:
            process.terminate()
