"""The page on nets of other people: what is compared, what is left out, and the goals."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("tvm")

from benchmarks import lower_zoo
from benchmarks.lower_engines import BY_RULE, ONNX_RUNTIME, OURS
from benchmarks.lower_report import Row
from benchmarks.lower_zoo import FAMILY, FILES, SIXTEEN, Built, Results, UNet, nets, text

pytestmark = pytest.mark.tvm


def test_there_are_sixteen_nets_a_family_and_four_files(tmp_path: Path) -> None:
    assert len(SIXTEEN) == 16
    assert [net.name for net in nets(tmp_path)] == [*SIXTEEN, *FAMILY, *FILES]


def test_the_page_has_ratios_reasons_and_the_goals_of_the_sixteen() -> None:
    rows = [
        (1, Row("a", ONNX_RUNTIME, 1, 20.0, (19, 21), 0.0, 9)),
        (1, Row("a", OURS, 1, 10.0, (9, 11), 1e-6, 9)),
        (1, Row("b", ONNX_RUNTIME, 1, 5.0, (4, 6), 0.0, 9)),
        (1, Row("b", OURS, 1, reason="no file")),
        (1, Row("file", ONNX_RUNTIME, 1, 1.0, (1, 1), 0.0, 9)),
        (1, Row("file", OURS, 1, 10.0, (9, 11), 1e-6, 9)),
    ]
    built: dict[str, Built | str] = {"a": Built(3.0, 120, 100), "b": "LoweringError: no", "file": Built(1.0, 110, 100)}
    page = text(Results(rows, built, {"a": [("gemm", 0.6)]}), ["a", "b"])
    assert "| a | 20.00 | 10.00 | 2.00 | 1.0e-06 |" in page
    assert "| b | 5.00 | no file | none | |" in page
    assert "Of the 1 of 2 that ran: geometric mean 2.00 (wanted on one thread 1.3), slowest 2.00 (a; wanted 1.0)" in page
    assert "| a | 3.0 | 1.20x | gemm 60% |" in page
    assert "| b | none: LoweringError: no | | |" in page


def test_beside_the_rule_the_page_says_what_the_records_gain() -> None:
    rows = [
        (1, Row(name, engine, 1, taken, (taken, taken), 1e-6, 9))
        for name, ours in (("a", 10.0), ("b", 4.0))
        for engine, taken in ((ONNX_RUNTIME, 20.0), (OURS, ours), (BY_RULE, 5.0))
    ]
    page = text(Results(rows, {}, {}), ["a", "b"])
    assert "| net | ONNX Runtime, ms | ours, ms | times as fast | error | by rule, ms | times as fast |" in page
    assert "| a | 20.00 | 10.00 | 2.00 | 1.0e-06 | 5.00 | 0.50 |" in page
    assert "by the records that ship: geometric mean 0.79 (wanted 1.1), least 0.50 (a; wanted 1.0)" in page


def test_kernels_are_told_by_algorithm_or_name() -> None:
    kernels = [
        {"kernel": "conv_1", "algorithm": "direct", "seconds": 2.0},
        {"kernel": "softmax2", "algorithm": "general", "seconds": 1.0},
        {"kernel": "softmax", "algorithm": "general", "seconds": 2.0},
        {"kernel": "conv_2", "algorithm": "direct", "seconds": 3.0},
    ]
    assert lower_zoo.most_of_the_time(kernels) == [("direct", 0.625), ("softmax", 0.375)]


def test_a_u_net_keeps_the_size_of_its_image() -> None:
    with torch.no_grad():
        assert UNet(width=4, levels=3).eval()(torch.zeros(1, 3, 16, 24)).shape == (1, 2, 16, 24)
