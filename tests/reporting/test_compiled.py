"""Where the time of a compiled model goes, on a page."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from reparam_compiler import compile
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.runtime import profile
from reparam_compiler.lowering.runtime.profile import Layer, Profile
from reparam_compiler.reporting.compiled import page_of_compiling, with_profile
from reparam_compiler.reporting.gather import UNKNOWN
from tests.support.pages import fused_page
from tests.support.reparam_runs import SHAPE, net
from tests.support.tvmc_runs import tvmc, write_onnx

pytestmark = pytest.mark.tvm


def test_a_call_has_the_bytes_of_the_layer_that_it_computes() -> None:
    page = fused_page()
    convs = [layer for layer in page.layers if layer.multiply_adds]
    calls = [Layer(f"k{place}", "direct", (1,), 1e-3, 0.4, 2 * conv.multiply_adds, None) for place, conv in enumerate(convs)]
    other = Layer("relu", "general", (1,), 1e-3, 0.2, 0, None)
    table = with_profile(page, Profile((calls[0], other, *calls[1:]), 3e-3, 3e-3, 11, 1e11, 1), 2e10).kernels
    assert table is not None
    assert [call.bytes for call in table.calls] == [convs[0].bytes, 0, *(conv.bytes for conv in convs[1:])]
    assert (table.peak_flops, table.bandwidth) == (1e11, 2e10)


def test_two_calls_of_equal_arithmetic_are_two_layers() -> None:
    page = fused_page()
    conv = next(layer for layer in page.layers if layer.multiply_adds)
    call = Layer("k", "direct", (1,), 1e-3, 0.5, 2 * conv.multiply_adds, None)
    table = with_profile(page, Profile((call, call), 2e-3, 2e-3, 11, None, 1), None).kernels
    assert table is not None
    assert [bool(call.bytes) for call in table.calls] == [True, False]


def test_compile_writes_a_report_with_the_time_of_each_call(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "m.onnx", 1)
    done = tvmc("compile", model, "-o", tmp_path / "m.tar", "--report", tmp_path / "m.json")
    assert done.exit_code == 0, done.output
    page = json.loads((tmp_path / "m.json").read_text())
    assert page["accuracy"][0].startswith("the whole model")
    convs = [call for call in page["kernels"]["calls"] if call["flops"]]
    assert [call["flops"] for call in convs] == [2 * 8 * 3 * 9 * 6 * 5]
    assert all(call["seconds"] > 0 and call["bytes"] > 0 for call in convs)
    assert page["kernels"]["bandwidth"] > 0


def test_what_does_not_run_here_is_not_profiled_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> Profile:
        raise LoweringError("it was compiled for another machine")

    monkeypatch.setattr(profile, "profile", refused)
    x = torch.randn(SHAPE)
    page = page_of_compiling("net", net(), (x,), compile(net(), (x,)), UNKNOWN, fused=None)
    assert page.kernels is None
    assert page.remarks[-1] == "not profiled: it was compiled for another machine"


def test_a_report_that_cannot_be_written_is_refused_before_compiling(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "m.onnx", 1)
    done = tvmc("compile", model, "-o", tmp_path / "m.tar", "--report", tmp_path / "m.pdf")
    assert done.exit_code == 3
    assert "expected .html, .json, .txt" in done.stderr
    assert not (tmp_path / "m.tar").exists()
