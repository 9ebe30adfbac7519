"""What a person calls a target is read, and what is none is refused with what was found and what is allowed."""

import json
import re

import pytest
import torch

pytest.importorskip("tvm")

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.cpu.families import FAMILIES, GOLDEN_COVE, NEON, ZEN3, ZEN4
from reparam_compiler.lowering.cpu.machine import DOTS, VectorUnit, forgone_here, missing_here, vector_unit
from reparam_compiler.lowering.target import describe, resolve

pytestmark = pytest.mark.tvm
VNNI = DOTS["avx512vnni"]


def test_default_is_this_machine_with_its_cpu_and_cores() -> None:
    found = json.loads(describe(resolve(None)))
    assert found["kind"] == "llvm"
    assert found["mcpu"]
    assert found["num-cores"] >= 1
    assert describe(resolve("native")) == describe(resolve(None))


@pytest.mark.parametrize("spelling", ["llvm", {"kind": "llvm"}, "llvm -mcpu=native", '{"kind": "llvm", "mcpu": "native"}'])
def test_llvm_alone_is_this_machine(spelling: object) -> None:
    assert describe(resolve(spelling)) == describe(resolve(None))


def test_an_attribute_that_names_no_machine_leaves_it_this_one() -> None:
    found, here = (json.loads(describe(resolve(spelling))) for spelling in ("llvm -num-cores 7", None))
    assert found == {**here, "num-cores": 7}


@pytest.mark.parametrize("attribute", ["mcpu=x86-64", "mtriple=x86_64-linux-gnu", "mattr=+sse4.2"])
def test_an_attribute_that_names_a_machine_is_completed_by_nothing(attribute: str) -> None:
    found = json.loads(describe(resolve(f"llvm -{attribute}")))
    assert "num-cores" not in found
    assert found.get("mcpu", "") in ("", "x86-64")


@pytest.mark.parametrize(
    "spelling",
    [
        "llvm -mcpu=znver3 -num-cores 2",
        "llvm -mcpu znver3 --num-cores=2",
        '{"kind": "llvm", "mcpu": "znver3", "num-cores": 2}',
        {"kind": "llvm", "mcpu": "znver3", "num-cores": 2},
    ],
)
def test_old_strings_json_and_dicts_mean_the_same(spelling: object) -> None:
    found = json.loads(describe(resolve(spelling)))
    assert (found["mcpu"], found["num-cores"]) == ("znver3", 2)


def test_attributes_are_a_list() -> None:
    assert json.loads(describe(resolve("llvm -mattr=+avx2,+fma")))["mattr"] == ["+avx2", "+fma"]


def test_tag_has_the_attributes_of_its_chip() -> None:
    assert json.loads(describe(resolve("nvidia/nvidia-a100")))["arch"] == "sm_80"


def test_description_is_read_back() -> None:
    for target in (None, "llvm -mcpu=znver3", "cuda -arch=sm_90"):
        assert describe(resolve(describe(resolve(target)))) == describe(resolve(target))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lvm", "neither a kind .* Did you mean 'llvm'"),
        ("vulkan", "neither a kind"),
        ("", "found ''"),
        (7, "found 7"),
        ("llvm -mcpu=znver33", "mcpu 'znver33' is unknown .* znver3"),
        ("llvm -no-such-thing=1", "no-such-thing"),
        ("llvm mcpu=znver3", "'mcpu=znver3' .* is no option"),
        ("cuda, llvm", "composite"),
        ("cuda -arch=80", "-arch=80"),
        ("{not json", "no JSON object"),
        ({"kind": "vulkan"}, "kind 'vulkan'"),
        ({"kind": "nonsense"}, "nonsense"),
        ('llvm -mcpu="x', "cannot be split"),
    ],
)
def test_bad_target_is_refused_with_what_was_found(target: object, message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        resolve(target)


@pytest.mark.parametrize(
    ("target", "unit"),
    [
        ("llvm -mcpu=znver3 -num-cores 2", VectorUnit(32, 16, 2, costs=ZEN3)),
        ("llvm -mcpu=skylake-avx512 -num-cores 2", VectorUnit(64, 32, 2, costs=GOLDEN_COVE)),
        ("llvm -mcpu=emeraldrapids -num-cores 2", VectorUnit(64, 32, 2, l2_bytes=1024 * 1024, costs=GOLDEN_COVE, dots=VNNI)),
        ("llvm -mcpu=znver4 -num-cores 2", VectorUnit(64, 32, 2, fmas=1, costs=ZEN4, dots=VNNI)),
        ("llvm -mcpu=tigerlake -num-cores 2", VectorUnit(64, 32, 2, 1, 640 * 1024, GOLDEN_COVE, VNNI)),
        ("llvm -mcpu=tigerlake -mattr=-avx512f -num-cores 2", VectorUnit(32, 16, 2, l2_bytes=640 * 1024, costs=GOLDEN_COVE)),
        ("llvm -mcpu=x86-64-v4 -num-cores 2", VectorUnit(64, 32, 2, costs=GOLDEN_COVE)),
        ("llvm -mtriple=x86_64-linux-gnu -num-cores 2", VectorUnit(16, 16, 2, costs=ZEN3)),
        (
            "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76 -num-cores 2",
            VectorUnit(16, 32, 2, costs=NEON, dots=DOTS["dotprod"]),
        ),
    ],
)
def test_vector_unit_follows_the_target(target: str, unit: VectorUnit) -> None:
    assert vector_unit(resolve(target)) == unit


def test_no_cpu_is_of_two_families_and_llvm_knows_each() -> None:
    cpus = [cpu for family in FAMILIES for cpu in family.cpus]
    assert len(cpus) == len(set(cpus))
    for cpu in cpus:
        resolve(f"llvm -mtriple=x86_64-linux-gnu -mcpu={cpu}")


def test_this_machine_runs_its_own_code() -> None:
    assert missing_here(resolve(None)) == ""
    assert forgone_here(resolve(None)) == ""


def test_code_for_every_machine_says_what_it_leaves_unused_here(caplog: pytest.LogCaptureFixture) -> None:
    target = "llvm -mcpu=x86-64"
    forgone = forgone_here(resolve(target))
    lowering.compile(torch.nn.ReLU().eval(), torch.zeros(2, 3), target=target)
    if vector_unit(resolve(None)).bytes == vector_unit(resolve(target)).bytes:
        assert not caplog.messages
        return
    assert re.fullmatch(
        "it uses vectors of 16 bytes without fused .*, and this machine has vectors of .* bytes with .*", forgone
    )
    assert [message for message in caplog.messages if '"x86-64"' in message and message.endswith(f"would be: {forgone}")]


def test_code_for_another_architecture_leaves_nothing_unused_here() -> None:
    assert forgone_here(resolve("llvm -mtriple=riscv64-linux-gnu -mcpu=sifive-u74")) == ""


def test_code_of_another_architecture_is_compiled_but_not_run() -> None:
    target = "llvm -mtriple=riscv64-linux-gnu -mcpu=sifive-u74"
    compiled = lowering.compile(torch.nn.ReLU().eval(), torch.zeros(2, 3), target=target)
    with pytest.raises(LoweringError, match="it is riscv64, and this machine is"):
        compiled.run(torch.zeros(2, 3))


@pytest.mark.parametrize("cpu", ["sapphirerapids", "x86-64-v3"])
def test_code_for_absent_vector_instructions_is_not_run(cpu: str) -> None:
    target = f"llvm -mtriple=x86_64-linux-gnu -mcpu={cpu} -num-cores 2"
    net, x = torch.nn.Conv2d(3, 40, 3).eval(), torch.randn(1, 3, 9, 8)
    compiled = lowering.compile(net, x, target=target)
    if reason := missing_here(resolve(target)):
        with pytest.raises(LoweringError, match=reason):
            compiled.run(x)
    else:
        torch.testing.assert_close(torch.from_numpy(compiled.run(x)[0]), net(x), rtol=1e-4, atol=1e-5)  # float32


@pytest.mark.parametrize("target", ["\ud800", "llvm -mcpu=\ud800", {"kind": "llvm", "mcpu": "\ud800"}])
def test_half_a_character_is_no_target(target: str | dict[str, str]) -> None:
    with pytest.raises(LoweringError, match=r"^target: .*\\ud800"):
        resolve(target)
