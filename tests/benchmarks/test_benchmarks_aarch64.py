"""The page of aarch64 counts what came of candidates; what a machine lacks for an emulated board is said first."""

import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnxruntime")

from benchmarks import aarch64, aarch64_board

WRONG = "running it failed: its output differs from the rule's by 1; expected at most 0.1"


def test_the_page_tells_right_candidates_from_others_and_says_why() -> None:
    found = aarch64.Found("a net", kernels=3, candidates=7, failures={WRONG: 2}, error=3e-7)
    page = aarch64.written([found], (16, 0.9375, 0.9375))
    assert "| a net | 3 | 7 | 5 | 2 | 3.0e-07 |" in page
    assert f"- 2 x {WRONG}" in page
    assert "Of 16 held-out digits the tuned net reads 93.8% right there, torch the training form 93.8%." in page
    assert found.right
    assert not aarch64.Found("a net", 3, 7, {}, error=1e-3).right


def test_what_is_missing_is_named_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aarch64_board.shutil, "which", lambda program: None if "qemu" in program else program)
    assert aarch64_board.missing() == "qemu-user-static"
    with pytest.raises(SystemExit, match="this machine lacks qemu-user-static; expected Debian's packages"):
        aarch64.main(["--trials", "1"])
