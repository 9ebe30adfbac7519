"""`reparam_compiler.tvmc` is the Python module that tvmc was: load, tune, compile, run."""

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from reparam_compiler import tvmc
from reparam_compiler.errors import ReparamError
from reparam_compiler.lowering import CompileOptions
from tests.support.tvmc_runs import WEIGHT, write_onnx

pytestmark = pytest.mark.tvm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tvmc.TVMCModel:
    return tvmc.load(str(write_onnx(tmp_path_factory.mktemp("model") / "m.onnx", "N")), shape_dict={"x": (2, 3, 8, 7)})


@pytest.fixture(scope="module")
def package(model: tvmc.TVMCModel) -> tvmc.TVMCPackage:
    return tvmc.compile(model, target="llvm")


@pytest.mark.usefixtures("one_process")
def test_the_example_of_the_old_module_runs(model: tvmc.TVMCModel, tmp_path: Path) -> None:
    records = tvmc.tune(model, target="llvm", trials=1, tuning_records=str(tmp_path / "records"))
    package = tvmc.compile(model, target="llvm", tuning_records=records, package_path=str(tmp_path / "m.tar"))
    result = tvmc.run(package, device="cpu", benchmark=True, repeat=3, number=2)
    assert result.get_output("output_0").shape == (2, 8, 6, 5)
    assert len(result.times) == 3
    assert "Execution time summary" in str(result)
    assert "'y'" in str(result)


def test_inputs_are_taken_by_name_and_outputs_known_by_both_names(package: tvmc.TVMCPackage, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 7)).astype("float32")
    result = tvmc.run(package, inputs={"x": x})
    patch = np.einsum("nchw,ochw->no", x[:, :, :3, :3], WEIGHT)
    np.testing.assert_allclose(result.outputs["y"][:, :, 0, 0], patch, rtol=1e-4, atol=1e-5)
    result.save(str(tmp_path / "out.npz"))
    with np.load(tmp_path / "out.npz") as saved:
        np.testing.assert_array_equal(saved["y"], saved["output_0"])
    assert result.times == []


def test_a_package_without_a_path_lives_as_long_as_it_is_held(package: tvmc.TVMCPackage) -> None:
    assert Path(package.package_path).is_file()
    np.testing.assert_array_equal(
        tvmc.run(package.package_path, fill_mode="ones").outputs["y"], tvmc.run(package, fill_mode="ones").outputs["y"]
    )


def test_the_summary_is_the_imported_module(model: tvmc.TVMCModel) -> None:
    text = io.StringIO()
    model.summary(text)
    assert "R.nn.conv2d" in text.getvalue()


def test_profile_is_given_with_the_result(package: tvmc.TVMCPackage) -> None:
    profile = tvmc.run(package, profile=True).profile
    assert profile is not None
    assert profile.kernel_seconds > 0


@pytest.mark.parametrize(
    ("named", "opt_level", "sources"),
    [
        ({}, 1, ("relax",)),
        ({"opt_level": 2}, 2, ("relax",)),
        ({"dump_code": "tir"}, 1, ("relax", "tir")),
        ({"options": None}, 3, ()),
    ],
)
def test_options_hold_where_no_argument_of_the_old_module_says_otherwise(
    named: dict[str, Any], opt_level: int, sources: tuple[str, ...], model: tvmc.TVMCModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[CompileOptions] = []

    class Made:
        listings: ClassVar = {"relax": "r", "tir": "t"}

        def save(self, path: Path, **_: Any) -> None:
            path.touch()

    def compile_reported(*_: Any, options: CompileOptions, **__: Any) -> tuple[Made, None]:
        told.append(options)
        return Made(), None

    monkeypatch.setattr("reparam_compiler.api.compiling.compile_reported", compile_reported)
    package = tvmc.compile(model, **{"options": CompileOptions(opt_level=1, sources=("relax",)), **named})
    assert (told[0].opt_level, told[0].sources) == (opt_level, sources)
    written = {path.name for path in Path(package.package_path).parent.iterdir()}
    assert written == {"module.tar"} | ({"module.tar.tir"} if "dump_code" in named else set())


def test_errors_are_caught_as_they_were(tmp_path: Path, package: tvmc.TVMCPackage) -> None:
    assert tvmc.TVMCException is ReparamError
    with pytest.raises(tvmc.TVMCException, match="no such file"):
        tvmc.load(str(tmp_path / "absent.onnx"))
    with pytest.raises(tvmc.TVMCException, match="found the model format 'coreml'"):
        tvmc.load("m.mlmodel", model_format="coreml")
    with pytest.raises(tvmc.TVMCException, match="compiled for 'cpu'"):
        tvmc.run(package, device="cuda")
    with pytest.raises(tvmc.TVMCException, match="found inputs z"):
        tvmc.run(package, inputs={"z": np.zeros(1)})
    with pytest.raises(AttributeError, match="micro"):
        tvmc.micro  # noqa: B018
