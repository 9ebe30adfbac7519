"""What a cubin needs is found or said, and the environment is given back."""

import logging
import os

import pytest

pytest.importorskip("tvm")

from reparam_compiler.lowering.gpu.cuda import cubin
from reparam_compiler.lowering.gpu.cuda.cubin import SETTINGS, cuda_toolchain

pytestmark = pytest.mark.tvm


def test_without_nvcc_the_library_holds_source_and_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cubin.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING, "reparam_compiler"), cuda_toolchain() as whole:
        assert not whole
    assert "CUDA source and no cubin: nvcc is not on PATH" in caplog.text


@pytest.mark.parametrize("before", [None, "nvrtc"])
def test_settings_of_the_process_are_given_back(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.setattr(cubin, "_missing", lambda: "")
    name = next(iter(SETTINGS))
    if before is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, before)
    with cuda_toolchain():
        assert os.environ[name] == SETTINGS[name]
    assert os.environ.get(name) == before
