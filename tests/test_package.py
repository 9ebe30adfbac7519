"""What is installed by whom: extras bring what they name, archives hold what they need and nothing of a machine."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import reparam_compiler
from reparam_compiler.core.packages import EXTRAS, missing_package

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = re.compile(r"reparam_compiler\[(?P<extras>[\w,]+)\]")
NAME = re.compile(r"[\w-]+")
RECORDS = "reparam_compiler/lowering/search/shipped/planted-512.jsonl.gz"
SHELL = ("*.egg-info", "__pycache__", ".*_cache", ".venv", ".git", ".hypothesis", ".benchmarks", "build", "dist", "passes")
"""What a folder of work has beside the sources; `passes` is the link at its root."""


def brought(extra: str) -> set[str]:
    """The distributions that an extra names, itself or by another extra."""
    found: set[str] = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        if ours := OURS.fullmatch(requirement):
            found |= {name for other in ours["extras"].split(",") for name in brought(other)}
        else:
            found.add(NAME.match(requirement)[0])  # type: ignore[index]
    return found


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_module_is_in_the_extra_that_a_refusal_names(extra: str) -> None:
    assert set(EXTRAS[extra].values()) <= brought(extra)


def test_what_runs_artifacts_brings_tvm_and_numpy_alone() -> None:
    assert [NAME.match(requirement)[0] for requirement in PROJECT["dependencies"]] == ["numpy"]  # type: ignore[index]
    assert brought("serve") == {"apache-tvm", "apache-tvm-ffi"}
    assert brought("rpc") == brought("serve") | set(EXTRAS["rpc"].values())


@pytest.mark.parametrize("extra", ["onnx", "tvm", "test"])
def test_what_works_on_models_brings_torch(extra: str) -> None:
    assert brought(extra) >= set(EXTRAS["torch"].values())


def test_the_version_is_the_same_wherever_it_stands() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited
    assert PROJECT["version"] == reparam_compiler.__version__ == cited[1]


def test_a_change_is_a_file_that_the_changelog_takes() -> None:
    """By `[tool.towncrier]`, which silently leaves out what has another name."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    folder = ROOT / settings["directory"]
    changes = [path for path in folder.iterdir() if path.name not in settings["ignore"]]
    assert (ROOT / settings["template"]).is_file()
    assert settings["start_string"] in (ROOT / settings["filename"]).read_text()
    assert not [path.name for path in changes if not path.name.endswith(".change.md") or not path.read_text().strip()]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[set[str], set[str]]]:
    """The names of what a wheel and a source archive hold, built from a copy of the sources with shared records in it."""
    pytest.importorskip("setuptools")
    copy = tmp_path_factory.mktemp("sources") / "reparam_compiler"
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: shutil.ignore_patterns(*_beside(folder))(folder, names))
    (copy / RECORDS).parent.mkdir(exist_ok=True)
    (copy / RECORDS).write_bytes(b"")
    out = copy.parent / "out"
    for kind in ("wheel", "sdist"):
        build = f"import setuptools.build_meta as backend; backend.build_{kind}({str(out)!r})"
        subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, check=True)
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as inside, tarfile.open(source) as tar:
        sources = {name.partition("/")[2] for name in tar.getnames()}
        yield set(inside.namelist()), sources
    shutil.rmtree(copy)


def _beside(folder: str) -> tuple[str, ...]:
    return SHELL if Path(folder) == ROOT else ("__pycache__",)


def test_the_wheel_holds_the_package_and_its_data(archives: tuple[set[str], set[str]]) -> None:
    wheel, _ = archives
    data = {"reparam_compiler/py.typed", "reparam_compiler/zoo/digits_repvgg.safetensors", RECORDS}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "reparam_compiler").rglob("*.py")}
    assert data | modules <= wheel
    assert {name.split("/")[0] for name in wheel} == {"reparam_compiler", f"reparam_compiler-{PROJECT['version']}.dist-info"}


def test_the_source_archive_holds_what_tests_and_documents_it(archives: tuple[set[str], set[str]]) -> None:
    _, sources = archives
    wanted = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "constraints.txt", RECORDS)
    folders = ("benchmarks", "changes", "docs", "examples", "findings", "tests")
    kept = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert {*wanted, *(name for name in kept if "__pycache__" not in name)} <= sources
    assert not [name for name in sources if "cache" in name.lower().split("/")[-1] or name.endswith(".pyc")]


RUN = "import runpy; runpy.run_module('reparam_compiler', run_name='__main__')"


def without(module: str, code: str) -> "subprocess.CompletedProcess[str]":
    """A process of its own in which a module is not installed."""
    code = f"import sys; sys.modules[{module!r}] = None; {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def test_without_torch_the_functions_say_what_to_type() -> None:
    found = without("torch", "import reparam_compiler; reparam_compiler.fuse")
    last = found.stderr.splitlines()[-1]
    assert last.startswith("reparam_compiler.errors.UnsupportedModelError: torch is not installed")
    assert last.endswith("pip install 'reparam_compiler[torch]'")


def test_without_typer_the_command_names_the_one_that_runs_artifacts() -> None:
    found = without("typer", RUN)
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith("reparam: typer is not installed")
    assert line.endswith("pip install 'reparam_compiler[torch]'; to run artifacts: tvmc run")


@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--json"]], ids=" ".join)
def test_without_typer_the_doctor_looks_all_the_same(words: list[str]) -> None:
    too_small = "sys.modules |= dict.fromkeys(('torch', 'tvm')); "
    found = without("typer", f"{too_small}sys.argv[1:] = {words}; {RUN}")
    assert found.returncode == 3
    advice = "pip install 'reparam_compiler[torch]'"
    if "--json" in words:
        checks = {check["subject"]: check for check in json.loads(found.stdout)["checks"]}
        assert (checks["typer"]["state"], checks["typer"]["advice"]) == ("broken", advice)
    else:
        assert f"typer: missing, and others of its extra are there (broken): {advice}" in found.stdout.splitlines()


def test_a_module_of_nobodys_extra_is_no_refusal() -> None:
    assert missing_package(ModuleNotFoundError(name="a_module_of_the_caller")) is None


@pytest.mark.tvm
def test_without_torch_compiling_is_refused_in_one_line() -> None:
    pytest.importorskip("tvm")
    words = ["compile", "net.onnx", "-o", "net.tar", "--json"]
    found = without("torch", f"from reparam_compiler.tvmc.commands import main; sys.exit(main({words}))")
    assert found.returncode == 3
    assert json.loads(found.stdout)["message"].endswith("pip install 'reparam_compiler[torch]'")
