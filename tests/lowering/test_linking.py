"""What a library cannot be linked by is said, with the compiler that can."""

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm")

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.runtime.linking import check_linker, compiler_line, export_library
from reparam_compiler.lowering.target import describe, resolve

pytestmark = pytest.mark.tvm


class Library:
    """Fails as TVM does where a compiler that it calls does."""

    def __init__(self, text: str) -> None:
        self.text = text

    def export_library(self, path: str, **_: Any) -> None:
        raise RuntimeError(self.text)


LINKER = "/usr/bin/ld: cannot find -lnosuchlib: No such file or directory"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"Compilation error:\n{LINKER}\ncollect2: error: ld returned 1 exit status\n\nCommand line: g++ -shared", LINKER),
        ("Compilation error:\ng++: error: unrecognized option '--no'\n", "g++: error: unrecognized option '--no'"),
        ("Compilation error:\nin function main:\nundefined reference to f\n", "undefined reference to f"),
        ("ld: file in wrong format\nmore", "ld: file in wrong format"),
    ],
)
def test_a_failure_quotes_the_linker_s_own_line(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=rf"linking the library failed: {re.escape(line)}\. It was linked by .* -Wl,-s$"):
        export_library(Library(text), tmp_path / "model.so", options=["-Wl,-s"])


def test_what_nvcc_says_stands_behind_the_code_that_it_was_given() -> None:
    text = "#ifdef __CUDACC_RTC__\nint error;\n\nCompilation error:\nnvcc fatal   : Unsupported gpu architecture 'compute_12'\n"
    assert compiler_line(RuntimeError(text)) == "nvcc fatal   : Unsupported gpu architecture 'compute_12'"
    assert compiler_line(RuntimeError("Check failed: (x) is false")) == ""


AARCH64 = "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76"


@pytest.mark.parametrize(
    ("target", "compiler", "advice"),
    [
        (None, "no-such-compiler", r"found the compiler 'no-such-compiler', which is not on PATH; install it"),
        (AARCH64, "no-such-compiler", r"found the compiler 'no-such-compiler', which is not on PATH"),
        (AARCH64, None, r"links no code for aarch64-linux-gnu; name one that does: save\(compiler='aarch64-linux-gnu-g\+\+'\)"),
    ],
)
def test_a_missing_compiler_is_named_before_it_is_needed(target: str | None, compiler: str | None, advice: str) -> None:
    with pytest.raises(LoweringError, match=advice):
        check_linker(compiler, describe(resolve(target)))


def test_no_compiler_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LoweringError, match=r"none is on PATH; install g\+\+ or clang\+\+"):
        check_linker(None, None)


def test_the_linker_and_what_it_is_given_reach_tvm(tmp_path: Path) -> None:
    class Kept:
        def export_library(self, path: str, *, fcompile: Any, addons: list[str], options: list[str]) -> None:
            self.call = (path, addons, options)

    library = Kept()
    export_library(library, tmp_path / "m.so", sources=[tmp_path / "a.cc"], compiler="g++", options=["-Wl,-s"])
    assert library.call == (str(tmp_path / "m.so"), [str(tmp_path / "a.cc")], ["-Wl,-s"])
