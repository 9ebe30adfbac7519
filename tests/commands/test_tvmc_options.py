"""Every option of TVM 0.19's tvmc is kept, explained or refused with a reason; none is unknown, none is silently dropped."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.target import resolve, typed
from reparam_compiler.tvmc.old_options import OF_COMPILE, OF_RUN, OF_TUNE, Refused, Without
from reparam_compiler.tvmc.options import KINDS, TARGET_OPTIONS, parse, target_of
from tests.support.tvmc_runs import tvmc, write_onnx

pytestmark = pytest.mark.tvm
NEEDED = {"compile": ["m.onnx"], "run": ["m.tar"], "tune": ["m.onnx", "--output", "records"]}
OLD = {"compile": OF_COMPILE, "run": OF_RUN, "tune": OF_TUNE}

# `tvmc COMMAND --help` of TVM 0.19, without the options of targets, whose kinds are those of the build.
FLAGS = {
    "compile": """--cross-compiler --cross-compiler-options --desired-layout --desired-layout-ops --mixed-precision
        --mixed-precision-ops --mixed-precision-calculation-type --mixed-precision-acc-type --dump-code --dump-offloads
        --model-format -o --output -f --output-format --pass-config --target --tuning-records --executor
        --executor-graph-link-params --executor-aot-link-params --executor-aot-unpacked-api --executor-aot-interface-api
        --executor-aot-workspace-byte-alignment --executor-aot-constant-byte-alignment --runtime --runtime-cpp-system-lib
        --runtime-crt-system-lib -v --verbose -O --opt-level --input-shapes --disabled-pass --module-name --print-pass-times
        --print-ir-before --print-ir-after --workspace-pools --workspace-pools-size-hint-bytes --workspace-pools-target-access
        --workspace-pools-clock-frequency-hz --workspace-pools-read-bandwidth-bytes-per-cycle
        --workspace-pools-write-bandwidth-bytes-per-cycle --workspace-pools-read-latency-cycles
        --workspace-pools-write-latency-cycles --workspace-pools-target-burst-bytes""",
    "run": """--device --fill-mode -i --inputs -o --outputs --print-time --print-top --profile --end-to-end --repeat --number
        --rpc-key --rpc-tracker --list-options --project-option""",
    "tune": """--early-stopping --min-repeat-ms --model-format --number -o --output -v --verbose --parallel --repeat --rpc-key
        --rpc-tracker --target --target-host --timeout --trials --tuning-records --desired-layout --desired-layout-ops
        --mixed-precision --mixed-precision-ops --mixed-precision-calculation-type --mixed-precision-acc-type
        --enable-autoscheduler --tasks --cache-line-bytes --num-cores --vector-unit-bytes --max-shared-memory-per-block
        --max-local-memory-per-block --max-threads-per-block --max-vthread-extent --warp-size --include-simple-tasks
        --log-estimated-latency --tuner --input-shapes""",
}
WITHOUT = [
    (command, flag, o) for command, options in OLD.items() for o in options if isinstance(o, Without) for flag in o.flags
]
REFUSED = [
    (command, flag, o) for command, options in OLD.items() for o in options if isinstance(o, Refused) for flag in o.flags
]


@pytest.mark.parametrize("command", FLAGS)
def test_every_flag_of_the_old_tvmc_is_known(command: str) -> None:
    words = tvmc(command, "--help").stdout.replace(",", " ").split()
    assert not [flag for flag in FLAGS[command].split() if flag not in words]


def test_the_page_of_docs_names_every_flag() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tvmc.md").read_text()
    named = [word.split()[0] for word in re.findall(r"`(-[^`]+)`", page)]
    flags = {flag for line in FLAGS.values() for flag in line.split() if flag not in ("-f", "-o", "-i", "-O", "--verbose")}
    short = {"--output": "-o", "--outputs": "-o", "--inputs": "-i", "--output-format": "-f", "--opt-level": "-O"}
    assert not [flag for flag in flags if not any(fnmatch(short.get(flag, flag), pattern) for pattern in named)]


@pytest.mark.parametrize(("command", "flag", "option"), WITHOUT)
def test_a_flag_without_effect_is_accepted_and_explained(command: str, flag: str, option: Without) -> None:
    found = parse([command, *NEEDED[command], flag, *(["7"] if option.words else [])])
    assert found.notes == [f"{flag} has no effect: {option.why}"]


@pytest.mark.parametrize(("command", "flag", "option"), REFUSED)
def test_a_flag_that_would_change_the_result_is_refused(command: str, flag: str, option: Refused) -> None:
    done = tvmc(command, *NEEDED[command], flag, *(["7"] if option.words else []))
    assert done.exit_code == 2
    assert f"{flag} is not accepted: {option.why}" in " ".join(done.stderr.split())


def test_an_explanation_is_one_line_on_stderr_and_the_work_is_done(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "m.onnx", 1)
    done = tvmc("compile", "--executor", "aot", "--runtime", "cpp", model, "-o", tmp_path / "m.tar")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == [
        "tvmc: --executor has no effect: there is one executor now, the Relax virtual machine; parameters are linked into the "
        "library"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compile", "m.onnx", "-f", "mlf"], "microTVM left TVM in 0.20"),
        (["compile", "m.onnx", "-f", "zip"], "expected tar or so"),
        (["compile", "m.onnx", "--runtime", "crt"], "microTVM left TVM in 0.20"),
        (["compile", "m.onnx", "--opt-level", "4"], "invalid choice"),
        (["compile", "m.onnx", "--input-shapes", "x=1,3"], "cannot read the input shapes 'x=1,3'"),
        (["compile", "m.onnx", "--target-vulkan-device", "mali"], "targets are of the kinds llvm, cuda, opencl"),
        (["compile", "m.onnx", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["compile"], "required: MODEL"),
        (["run", "m.tar", "--fill-mode", "sevens"], "invalid choice"),
        (["run", "m.tar", "--device", "tpu"], "invalid choice"),
        (["run", "m.tar", "--repeat", "0"], "expected a whole number from 1"),
        (["tune", "m.onnx"], "required: -o/--output"),
        (["--config", "x.json", "run", "m.tar"], "--config is not accepted"),
        (["micro", "create"], "invalid choice"),
    ],
)
def test_wrong_options_exit_with_two(words: list[str], message: str) -> None:
    done = tvmc(*words)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize("kind", ["keras", "pb", "tflite", "paddle", "relay"])
def test_formats_that_tvm_no_longer_imports_are_refused_with_the_converter(kind: str, tmp_path: Path) -> None:
    done = tvmc("compile", write_onnx(tmp_path / "m.onnx", 1), "--model-format", kind)
    assert done.exit_code == 3
    assert "convert it to ONNX with" in done.stderr


def test_model_format_names_a_file_without_a_suffix(tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", 1).rename(tmp_path / "model")
    assert tvmc("compile", tmp_path / "model", "-o", tmp_path / "m.tar").exit_code == 3
    assert tvmc("compile", tmp_path / "model", "--model-format", "onnx", "-o", tmp_path / "m.tar").exit_code == 0


def test_defaults_are_those_of_the_old_tvmc_where_they_mean_the_same() -> None:
    compiled = parse(["compile", "m.onnx"])
    assert (compiled.output, compiled.opt_level, compiled.runtime, compiled.input_shapes) == ("module.tar", 3, "cpp", None)
    run = parse(["run", "m.tar"])
    assert (run.fill_mode, run.repeat, run.number, run.print_top) == ("random", 1, 1, None)
    tuned = parse(["tune", "m.onnx", "-o", "records"])
    assert (tuned.trials, tuned.tasks) == (1000, ("all",))


def test_lists_of_layouts_leave_the_model(tmp_path: Path) -> None:
    words = ["compile", "--desired-layout-ops", "nn.conv2d", "nn.avg_pool2d", "--desired-layout", "NCHW", "NHWC:HWIO", "m.onnx"]
    found = parse(words)
    assert found.MODEL == "m.onnx"
    assert len(found.notes) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_of_a_target_is_taken(kind: str) -> None:
    for name in TARGET_OPTIONS[kind]:
        found = parse(["compile", "m.onnx", "--target", kind, f"--target-{kind}-{name}=7"])
        assert target_of(found) == f"{kind} -{name}=7"


def target(*words: str) -> object:
    made = json.loads(str(resolve(target_of(parse(["compile", "m.onnx", *words])))))
    return {key: made[key] for key in ("kind", "mcpu", "mattr", "mtriple", "num-cores", "arch") if key in made}


def test_target_options_join_the_target() -> None:
    arm = ["--target-llvm-mtriple=aarch64-linux-gnu", "--target-llvm-mcpu", "cortex-a76", "--target-llvm-mattr=+neon,+fullfp16"]
    expected = {"kind": "llvm", "mcpu": "cortex-a76", "mattr": ["+neon", "+fullfp16"], "mtriple": "aarch64-linux-gnu"}
    assert target("--target", "llvm", *arm) == expected
    assert target("--target", '{"kind": "llvm"}', *arm) == expected
    assert target(*arm) == expected
    for here in ((), ("--target", "llvm")):
        native = target(*here, "--target-llvm-num-cores", "7")
        assert native["num-cores"] == 7
        assert native["mcpu"]
    assert target("--target", "cuda", "--target-cuda-arch", "sm_90")["arch"] == "sm_90"


@pytest.mark.parametrize(
    ("option", "value"),
    [("cl-opt=-x=1,-y", ["-x=1", "-y"]), ("mcpu=7", "7"), ("num-cores=7", 7), ("fast-math=true", True), ("mattr=+a", ["+a"])],
)
def test_an_option_of_a_target_means_the_same_however_the_target_is_written(option: str, value: object) -> None:
    name = option.partition("=")[0]
    found = target_of(parse(["compile", "m.onnx", "--target", '{"kind": "llvm"}', f"--target-llvm-{option}"]))
    assert found == {"kind": "llvm", name: value}
    assert typed(*option.split("=", 1)) == value


def test_a_target_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"kind": "llvm", "mcpu": "x86-64-v3"}')
    assert target("--target", str(tmp_path / "t.json"))["mcpu"] == "x86-64-v3"
    (tmp_path / "m.onnx").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(LoweringError, match=r"m\.onnx is no text"):
        target("--target", str(tmp_path / "m.onnx"))


@pytest.mark.parametrize("text", ['{"kind": "llvm", "mattr": [%s]}', "llvm -mattr=%s", ' {"kind": "llvm", "mattr": [%s]}'])
def test_a_target_may_be_longer_than_the_name_of_a_file(text: str) -> None:
    features = [f"+feature{number}" for number in range(200)]
    written = ", ".join(f'"{name}"' for name in features) if "{" in text else ",".join(features)
    assert target_of(parse(["compile", "m.onnx", "--target", text % written])) == (text % written).strip()


def test_a_target_of_nothing_is_refused() -> None:
    with pytest.raises(LoweringError, match="target: found"):
        target("--target", "")
    with pytest.raises(LoweringError, match="is neither a kind"):
        target("--target", "", "--target-llvm-num-cores", "7")


def test_options_of_another_kind_are_refused() -> None:
    with pytest.raises(LoweringError, match="--target-cuda-arch: found for a target of kind llvm"):
        target("--target", "llvm", "--target-cuda-arch", "sm_90")


@pytest.mark.parametrize("text", ["cmsis-nn, llvm", "cuda, llvm", "llvm -device=arm_cpu, cuda", "compute-library, llvm"])
def test_composite_targets_are_refused_with_the_reason(text: str, tmp_path: Path) -> None:
    done = tvmc("compile", write_onnx(tmp_path / "m.onnx", 1), "--target", text)
    assert done.exit_code == 4
    assert "composite target; one target compiles the whole model" in done.stderr
