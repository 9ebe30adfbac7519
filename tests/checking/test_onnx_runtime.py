"""ONNX Runtime as the checks ask it: what it loads, what it says against a model, and what inputs can be made up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from reparam_compiler import UnsupportedModelError
from reparam_compiler.checking import onnx_runtime
from reparam_compiler.checking.runners import OnnxRunner
from reparam_compiler.frontends.onnx import io as onnx_io


def doubling(*inputs: tuple[str, int, tuple[Any, ...] | None]) -> Any:
    """y = 2 x, with these inputs beside x."""
    values = [helper.make_tensor_value_info(*value) for value in (("x", TensorProto.FLOAT, (2, 3)), *inputs)]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    two = numpy_helper.from_array(np.float32(2), "two")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "two"], ["y"])], "doubling", values, [out], [two])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_model_runs_from_memory_and_from_a_file_and_where_it_is_too_large_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_io.save(doubling(), tmp_path / "m.onnx")
    for model in (doubling(), tmp_path / "m.onnx"):
        np.testing.assert_array_equal(onnx_runtime.run_model(model, {"x": X})[0], 2 * X)
    monkeypatch.setattr(onnx_io, "fits_in_memory", lambda model: False)
    np.testing.assert_array_equal(onnx_runtime.run_model(doubling(), {"x": X})[0], 2 * X)


def test_only_the_weights_of_a_large_model_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Options(onnx_runtime.onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, key: str, value: str) -> None:
            told.append(key)
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnx_runtime.onnxruntime, "SessionOptions", Options)
    for most, expected in ((2**26, []), (10, ["session.disable_prepacking"])):
        monkeypatch.setattr(onnx_runtime, "_PREPACKED", most)
        np.testing.assert_array_equal(onnx_runtime.run_model(doubling(), {"x": X})[0], 2 * X)
        assert told == expected


@pytest.mark.parametrize("feeds", [{}, {"x": X.astype(np.float64)}, {"x": X[:, :2]}, {"z": X}])
def test_inputs_that_do_not_fit_are_one_of_the_errors_that_callers_catch(feeds: dict[str, Any]) -> None:
    with pytest.raises(onnx_runtime.RUNTIME_ERRORS):
        onnx_runtime.run_model(doubling(), feeds)


def counting(turns: int) -> Any:
    """y = x + turns, one at a time."""
    named = [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("sum", TensorProto.FLOAT, [2, 3])]
    given = [helper.make_tensor_value_info(*value) for value in named]
    taken = [
        helper.make_tensor_value_info("same", TensorProto.BOOL, []),
        helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, 3]),
    ]
    one, number = numpy_helper.from_array(np.float32(1), "one"), numpy_helper.from_array(np.int64(turns), "turns")
    turn = [helper.make_node("Identity", ["go"], ["same"]), helper.make_node("Add", ["sum", "one"], ["next"])]
    body = helper.make_graph(turn, "turn", given, taken, [one])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body)], "counting", [x], [y], [number])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_run_without_an_end_is_stopped_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    np.testing.assert_array_equal(onnx_runtime.run_model(counting(3), {"x": X})[0], X + 3)
    monkeypatch.setattr(onnx_runtime, "LONGEST", 0.05)
    model = counting(1_000_000)  # which takes seconds
    with pytest.raises(onnx_runtime.RUNTIME_ERRORS, match=r"still running after 0\.05 s"):
        onnx_runtime.run_model(model, {"x": X})
    with pytest.raises(UnsupportedModelError, match=r"does not run the model on shapes \[\(2, 3\)\]: it was still running"):
        OnnxRunner(model).run((torch.from_numpy(X),))


def test_a_refusal_is_one_line_and_none_where_there_is_none(tmp_path: Path) -> None:
    assert onnx_runtime.refusal_of(doubling()) is None
    wrong = doubling()
    wrong.graph.node[0].op_type = "NoSuchOp"
    onnx_io.save(wrong, tmp_path / "m.onnx")
    for model in (wrong, tmp_path / "m.onnx"):
        said = onnx_runtime.refusal_of(model)
        assert "NoSuchOp" in said
        assert "\n" not in said


def test_random_inputs_have_the_shapes_and_dtypes_of_the_file() -> None:
    model = doubling(
        ("index", TensorProto.INT64, ("batch", 40)), ("mask", TensorProto.BOOL, ()), ("two", TensorProto.FLOAT, ())
    )
    x, index, mask = onnx_runtime.random_inputs(model)  # `two` has a value in the model
    assert [(a.shape, a.dtype) for a in (x, index, mask)] == [((2, 3), np.float32), ((2, 40), np.int64), ((), np.bool_)]
    assert set(index.ravel().tolist()) == {0, 1}
    np.testing.assert_array_equal(x, onnx_runtime.random_inputs(model)[0])


@pytest.mark.parametrize(
    "value",
    [
        ("z", TensorProto.FLOAT, (1, "width")),
        ("z", TensorProto.FLOAT, None),
        ("z", TensorProto.BFLOAT16, (1,)),
        ("z", TensorProto.STRING, (1,)),
    ],
)
def test_inputs_of_open_sizes_or_other_dtypes_are_not_made_up(value: Any) -> None:
    assert onnx_runtime.random_inputs(doubling(value)) is None
