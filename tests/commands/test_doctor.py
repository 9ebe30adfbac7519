"""`reparam doctor`: what is missing or does not fit is named with what to type, and the exit code is that of whom it stops."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from reparam_compiler.commands import installation
from reparam_compiler.commands.installation import Check
from reparam_compiler.commands.reparam import app
from reparam_compiler.core.packages import EXTRAS, TESTED

HERE: dict[str, Any] = {
    "cpu": "znver3",
    "processor": "AMD EPYC",
    "vector_bytes": 32,
    "registers": 16,
    "cores": 2,
    "costs": "shipped",
    "family": "znver1-256",
    "records": 7,
    "compiler": "/usr/bin/g++",
    "nvcc": "",
    "cuda": "",
    "opencl": "",
    "why_no_opencl": "pyopencl cannot be imported; pip install 'reparam_compiler[opencl]'",
}


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation in which all is there and fits, whichever the tests run in."""
    versions = TESTED | {"torch": "2.13.0"}
    monkeypatch.setattr(installation, "installed_version", lambda name: versions.get(name, "1.0"))
    monkeypatch.setattr(installation, "_in_a_process", lambda code: ended(0, "" if "torchvision" in code else json.dumps(HERE)))
    monkeypatch.setattr(
        installation.importlib.util, "find_spec", lambda name: None if sys.modules.get(name, name) is None else name
    )


def ended(code: int, stdout: str = "", stderr: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.CompletedProcess([], code, stdout, stderr)


def doctor(*words: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *words])


def checks(found: Result) -> dict[str, dict[str, Any]]:
    return {check["subject"]: check for check in json.loads(found.stdout)["checks"]}


def test_an_import_that_takes_too_long_is_ended_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "SECONDS", 0.01)
    done = installation._in_a_process("import time; time.sleep(60)")
    assert (done.returncode, installation._last_line(done)) == (1, "it was not done after 0.01 s, and was ended")


@pytest.mark.usefixtures("whole")
def test_a_whole_installation_is_fine() -> None:
    found = doctor("--json", "-q")
    assert found.exit_code == 0
    record = json.loads(found.stdout)
    assert record["fine"]
    assert record["machine"] == HERE
    assert not [check for check in record["checks"] if check["state"] == "broken" or check["code"]]
    named = {name for modules in EXTRAS.values() for name in modules.values()}
    assert named <= checks(found).keys()


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(("extra", "code"), [("torch", 3), ("serve", 5), ("onnx", 0), ("rpc", 0), ("opencl", 0), ("images", 0)])
def test_an_extra_that_is_not_there_is_named_with_what_to_type(extra: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in EXTRAS[extra]:
        if module not in ("typer", "rich"):  # without which there is no command to ask
            monkeypatch.setitem(sys.modules, module, None)
    missing = [name for module, name in EXTRAS[extra].items() if module not in ("typer", "rich")]
    found = doctor("--json", "-q")
    assert found.exit_code == code
    assert json.loads(found.stdout)["fine"] == (code == 0)
    assert {checks(found)[name]["advice"] for name in missing} == {f"pip install 'reparam_compiler[{extra}]'"}
    assert (json.loads(found.stdout)["machine"] is None) == (extra == "serve")
    text = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"}).stdout
    assert f"pip install 'reparam_compiler[{extra}]'" in text


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(("module", "code"), [("networkx", 3), ("onnx_graphsurgeon", 3), ("tvm_ffi", 5), ("tornado", 4)])
def test_half_an_extra_is_a_defect(module: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found = doctor("--json", "-q")
    assert found.exit_code == code
    (broken,) = (check for check in checks(found).values() if check["state"] == "broken")
    assert broken["found"] == "missing, and others of its extra are there"


@pytest.mark.usefixtures("whole")
def test_a_tvm_ffi_that_was_not_tested_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        installation, "installed_version", lambda name: "0.1.15" if name == "apache-tvm-ffi" else TESTED.get(name)
    )
    found = doctor("--json", "-q")
    assert found.exit_code == 4
    assert checks(found)["apache-tvm-ffi"]["advice"] == f"pip install 'apache-tvm-ffi=={TESTED['apache-tvm-ffi']}'"
    assert checks(found)["apache-tvm"]["state"] == "fine"


def test_the_versions_that_others_do_not_replace_are_those_that_the_tests_run_with() -> None:
    root = Path(__file__).parents[2]
    lines = (root / "constraints.txt").read_text().splitlines()
    assert {f"{name}=={version}" for name, version in TESTED.items()} <= set(lines)
    assert all(f'"{name}=={version}"' in (root / "pyproject.toml").read_text() for name, version in TESTED.items())


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(
    ("code", "stderr", "said"),
    [
        (1, "Traceback\nRuntimeError: operator torchvision::nms does not exist\n", "operator torchvision::nms does not exist"),
        (-11, "", "it ended by signal 11"),
        (3, "", "it ended with 3"),
    ],
)
def test_a_torchvision_of_another_torch_is_found_in_a_process_of_its_own(
    code: int, stderr: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "_in_a_process", lambda _: ended(code, stderr=stderr))
    found = installation.torchvision()
    assert said in found.found
    assert (found.state, found.code) == ("broken", 3)
    assert "pip install --force-reinstall torch torchvision" in found.advice
    lines, machine = installation.machine()
    assert [line.code for line in lines] == [4]
    assert machine is None


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, Check("cpu", "znver3 (AMD EPYC), vectors of 32 bytes, 16 registers, cores for a run: 2")),
        ({}, Check("shipped records", "7 layers for znver1-256")),
        ({}, Check("OpenCL device", "none", "absent", HERE["why_no_opencl"])),
        ({"opencl": "PoCL"}, Check("OpenCL device", "PoCL")),
        ({"cuda": "H200"}, Check("CUDA device", "H200")),
        ({"nvcc": "/usr/bin/nvcc"}, Check("CUDA device", "none", "absent", "none that runs")),
        ({"costs": "measured"}, Check("kernels", "chosen by costs measured here")),
        ({"compiler": ""}, Check("C++ compiler", "none on PATH", "broken", "compile cannot save: install g++ or clang++", 4)),
    ],
)
def test_the_machine_is_told_line_by_line(changed: dict[str, Any], line: Check) -> None:
    assert line in [*installation.of_machine(HERE | changed)]


def test_borrowed_costs_are_named_with_the_command_that_measures() -> None:
    (kernels,) = (line for line in installation.of_machine(HERE | {"costs": "borrowed"}) if line.subject == "kernels")
    assert kernels.state == "absent"
    assert kernels.advice.endswith("tvmc measure")


@pytest.mark.tvm
def test_this_machine_is_what_the_kernels_are_compiled_for() -> None:
    pytest.importorskip("tvm")
    from reparam_compiler.lowering.cpu.machine import native, vector_unit
    from reparam_compiler.lowering.target import resolve

    lines, found = installation.machine()
    assert found is not None, lines
    unit = vector_unit(resolve(None))
    assert (found["cpu"], found["vector_bytes"], found["cores"]) == (native()["mcpu"], unit.bytes, unit.threads)
    assert found["family"].endswith(f"-{8 * unit.bytes}")
    assert bool(found["opencl"]) != bool(found["why_no_opencl"])
    assert [line.subject for line in lines][:3] == ["cpu", "kernels", "shipped records"]
