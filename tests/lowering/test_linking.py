"""What a library cannot be linked by is said, with the compiler that can."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tvm")

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.runtime.linking import export_library
from reparam_compiler.lowering.target import describe, resolve

pytestmark = pytest.mark.tvm


class Library:
    """Fails as TVM does where the linker does."""

    def export_library(self, path: str, **_: Any) -> None:
        raise RuntimeError("ld: file in wrong format\nmore")


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        (None, r"A C\+\+ compiler \(g\+\+ or clang\+\+\) must be on PATH"),
        (
            "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76",
            r"name a compiler that links it: save\(compiler='aarch64-linux-gnu-g\+\+'\)",
        ),
    ],
)
def test_failure_names_the_compiler_that_is_needed(target: str | None, advice: str, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=f"linking the library failed: ld: file in wrong format. .*{advice}"):
        export_library(Library(), tmp_path / "model.so", target=describe(resolve(target)))


def test_the_linker_and_what_it_is_given_reach_tvm(tmp_path: Path) -> None:
    class Kept:
        def export_library(self, path: str, *, fcompile: Any, addons: list[str], options: list[str]) -> None:
            self.call = (path, addons, options)

    library = Kept()
    export_library(library, tmp_path / "m.so", sources=[tmp_path / "a.cc"], compiler="g++", options=["-Wl,-s"])
    assert library.call == (str(tmp_path / "m.so"), [str(tmp_path / "a.cc")], ["-Wl,-s"])
