"""Compiled code -> a shared object, by a C++ compiler of this machine or one that crosses to another.

tvm.compile --> object code + sources (the manifest) --g++ or aarch64-linux-gnu-g++--> model.so
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm.support import cc

from reparam_compiler.advice import in_words_of
from reparam_compiler.errors import LoweringError, first_line
from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr


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

    Raises: LoweringError where no C++ compiler is found or linking fails.
    """
    linker = cc.cross_compiler(compiler) if compiler else None
    more = {"options": list(options)} if options else {}
    try:
        with filter_stderr():
            library.export_library(str(path), fcompile=linker, addons=[str(source) for source in sources], **more)
    except (RuntimeError, OSError, ValueError) as refusal:
        triple = "" if target is None else str(json.loads(target).get("mtriple", ""))
        here = str(tvm.target.Target.from_device("cpu").attrs.get("mtriple", ""))
        advice = "A C++ compiler (g++ or clang++) must be on PATH"
        if triple and triple.partition("-")[0] != here.partition("-")[0]:
            compiler = in_words_of(python=f"save(compiler='{triple}-g++')", command=f"--cross-compiler {triple}-g++")
            advice = f"For {triple} name a compiler that links it: {compiler}"
        raise LoweringError(f"save: linking the library failed: {first_line(refusal)}. {advice}") from refusal
