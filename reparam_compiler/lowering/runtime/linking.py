"""Compiled code -> a shared object, by a C++ compiler of this machine or one that crosses to another.

tvm.compile --> object code + sources (the manifest) --g++ or aarch64-linux-gnu-g++--> model.so
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm.support import cc

from reparam_compiler.advice import in_words_of
from reparam_compiler.errors import LoweringError, first_line
from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr

SAID = "Compilation error:"
"""What TVM puts before the words of a compiler that failed: the linker's, nvcc's."""


def export_library(
    library: Any,
    path: Path,
    *,
    sources: Sequence[Path] = (),
    compiler: str | None = None,
    options: Sequence[str] = (),
    target: str | None = None,
) -> None:
    """Link `library` into a shared object.

    Args:
        sources: C++ files to compile into it.
        compiler: another than this machine's C++ compiler, with `options`.
        target: what the library was compiled for, as JSON, so that a failure can say what is needed.

    Raises: LoweringError as `check_linker`, and where linking fails, with the linker's own line.
    """
    check_linker(compiler, target)
    linker = cc.cross_compiler(compiler) if compiler else None
    more = {"options": list(options)} if options else {}
    try:
        with filter_stderr():
            library.export_library(str(path), fcompile=linker, addons=[str(source) for source in sources], **more)
    except (RuntimeError, OSError, ValueError) as refusal:
        raise LoweringError(
            f"save: linking the library failed: {compiler_line(refusal) or first_line(refusal)}. It was linked by "
            f"{compiler or cc.get_cc()}{''.join(f' {option}' for option in options)}"
        ) from refusal


def check_linker(compiler: str | None, target: str | None) -> None:
    """Raises LoweringError where nothing here links code for a target: asked before a model is compiled, which takes longer.

    compiler: the one that is named; None is this machine's. target: as JSON; None is this machine.
    """
    triple = "" if target is None else str(json.loads(target).get("mtriple", ""))
    here = str(tvm.target.Target.from_device("cpu").attrs.get("mtriple", ""))
    if compiler is not None:
        if shutil.which(compiler) is None:
            raise LoweringError(f"save: found the compiler {compiler!r}, which is not on PATH; install it, or name another")
    elif triple and triple.partition("-")[0] != here.partition("-")[0]:
        named = in_words_of(python=f"save(compiler='{triple}-g++')", command=f"--cross-compiler {triple}-g++")
        raise LoweringError(f"save: this machine's compiler links no code for {triple}; name one that does: {named}")
    elif cc.get_cc() is None or shutil.which(cc.get_cc()) is None:
        raise LoweringError("save: a C++ compiler links the library, and none is on PATH; install g++ or clang++")


def compiler_line(refusal: BaseException) -> str:
    """What a compiler that TVM called said itself: its first line about an error; nothing where TVM failed by itself."""
    _, said, text = str(refusal).rpartition(SAID)
    lines = [line.strip() for line in text.splitlines() if said and line.strip()]
    telling = (line for line in lines if any(word in line.lower() for word in ("error", "fatal", "cannot", "undefined")))
    return next(telling, lines[0] if lines else "").rstrip(".: ")
