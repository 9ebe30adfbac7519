"""Convs and dense layers of bytes by dot product instructions, beside the same sums of integers in numpy."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

import tvm
from tvm.target import Target

from reparam_compiler.lowering.conv.algorithms import ConvShape, Direct, Step
from reparam_compiler.lowering.cpu.dots import dots_conv, dots_form, has_dots, offset_of, totals_of
from reparam_compiler.lowering.cpu.kernels import output_size
from reparam_compiler.lowering.cpu.machine import VectorUnit, missing_here, vector_unit
from reparam_compiler.lowering.cpu.packing import pack_words
from reparam_compiler.lowering.cpu.registers import TIR_PIPELINE
from reparam_compiler.lowering.target import resolve
from tests.support.exact_convs import exact_conv

pytestmark = pytest.mark.tvm
X86 = {"avx512vnni": "cascadelake", "avxvnni": "alderlake"}
"""CPUs whose instructions another may have too, by the feature that makes them dot products of bytes."""
ARM = Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"})


def targets() -> dict[str, Target]:
    """Those that this machine runs."""
    known = {feature: Target({"kind": "llvm", "mcpu": cpu}) for feature, cpu in X86.items()}
    return {"this machine": resolve(None)} | {name: each for name, each in known.items() if not missing_here(each)}


def unit_of(target: Target) -> VectorUnit:
    unit = replace(vector_unit(target), threads=1)
    if unit.dots is None:
        pytest.skip("this machine has no dot products of bytes")
    return unit


def built(shape: ConvShape, data: str, form: Direct, epilogue: Sequence[Step], target: Target) -> Any:
    func = dots_conv(shape, data, form, epilogue, unit_of(target)).with_attr("global_symbol", "main")
    return tvm.compile(tvm.IRModule({"main": func}), target=target, tir_pipeline=TIR_PIPELINE)


def start_of(x: np.ndarray, weight: np.ndarray, zero: int, shape: ConvShape, form: Direct) -> np.ndarray:
    """What the sums start from."""
    start: np.ndarray = -(zero + offset_of(str(x.dtype), unit_of(resolve(None)))) * totals_of(weight, shape, form.tile)
    return start


def computed(
    x: np.ndarray, weight: np.ndarray, zero: int, shape: ConvShape, target: Target, form: Direct | None = None
) -> np.ndarray:
    """The sums of the kernel, `N H W O`."""
    form = form or dots_form(shape, unit_of(target))
    packed = pack_words(weight, groups=shape.groups, columns=form.tile.columns)
    start = start_of(x, weight, zero, shape, form)
    out = tvm.runtime.tensor(np.zeros(output_size(shape, form), np.int32))
    arguments = [tvm.runtime.tensor(array) for array in (x, packed, np.array([zero], np.int32), start)]
    built(shape, str(x.dtype), form, (), target)["main"](*arguments, out)
    return out.numpy().reshape(shape.batch, shape.out_height, shape.out_width, shape.channels_out)


def expected(x: np.ndarray, weight: np.ndarray, zero: int, shape: ConvShape) -> np.ndarray:
    return exact_conv(x.astype(np.int64) - zero, weight, shape).astype(np.int64)


def of_integers(*sizes: Any, **options: Any) -> ConvShape:
    return ConvShape(*sizes, **options, dtype="int32")


@st.composite
def shapes(draw: st.DrawFn) -> ConvShape:
    """Convs over a few pixels, of any channels, or of groups of whole words."""
    small, pair = st.integers(1, 3), st.tuples(st.integers(1, 2), st.integers(1, 2))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs = draw(st.integers(1, 70)) if groups == 1 else 4 * draw(st.integers(1, 3)) * groups
    kernel = draw(st.tuples(small, small))
    return of_integers(
        *(draw(st.integers(1, 2)), draw(st.integers(5, 9)), draw(st.integers(5, 9)), inputs, groups * draw(st.integers(1, 40))),
        kernel=kernel,
        stride=draw(pair),
        dilation=draw(pair),
        padding=draw(st.tuples(*[st.integers(0, 2)] * 4)),
        groups=groups,
    )


@settings(max_examples=12)  # each is compiled
@given(shape=shapes(), data=st.sampled_from(["uint8", "int8"]), draw=st.data())
def test_sums_are_those_of_the_integers(shape: ConvShape, data: str, draw: st.DataObject) -> None:
    target = targets()[draw.draw(st.sampled_from(sorted(targets())))]
    limits, source = np.iinfo(data), np.random.default_rng(0)
    zero = draw.draw(st.sampled_from([limits.min, limits.max, limits.min + 128, limits.min + 77]))
    x = source.integers(limits.min, limits.max + 1, (shape.batch, shape.height, shape.width, shape.channels_in)).astype(data)
    weight = source.integers(-128, 128, (shape.channels_out, *shape.kernel, shape.group_in)).astype(np.int8)
    np.testing.assert_array_equal(computed(x, weight, zero, shape, target), expected(x, weight, zero, shape))


@pytest.mark.parametrize(("byte", "zero"), [(255, 0), (0, 255), (-128, 127), (127, -128)])
@pytest.mark.parametrize("weight", [-128, 127])
def test_the_largest_sums_of_32_bits_are_exact(byte: int, zero: int, weight: int) -> None:
    """65,792 products of 255 and -128 are 196,608 above the least integer; an instruction that saturates would stop before."""
    depth = 65_792
    shape = of_integers(3, 1, 1, depth, 5, kernel=(1, 1))
    x = np.full((3, 1, 1, depth), byte, np.int8 if min(byte, zero) < 0 else np.uint8)
    weights = np.full((5, 1, 1, depth), weight, np.int8)
    found = computed(x, weights, zero, shape, resolve(None))
    assert (found == (byte - zero) * weight * depth).all()


def test_blocks_of_rows_have_the_zero_point_round_them() -> None:
    shape, target = of_integers(1, 12, 10, 8, 24, kernel=(3, 3), padding=(1, 1, 1, 1)), resolve(None)
    form = replace(dots_form(shape, unit_of(target)), block=20)
    source = np.random.default_rng(1)
    x, weight = (
        source.integers(0, 256, (1, 12, 10, 8)).astype(np.uint8),
        source.integers(-128, 128, (24, 3, 3, 8)).astype(np.int8),
    )
    np.testing.assert_array_equal(computed(x, weight, 131, shape, target, form), expected(x, weight, 131, shape))


def test_an_epilogue_quantizes() -> None:
    shape, target = of_integers(1, 5, 4, 16, 6, kernel=(1, 1)), resolve(None)
    steps = (
        Step("to", dtype="float32"),
        Step("mul", "channels", dtype="float32"),
        Step("round", dtype="float32"),
        Step("maximum", "scalar", value=0.0, dtype="float32"),
        Step("minimum", "scalar", value=255.0, dtype="float32"),
        Step("to", dtype="uint8"),
    )
    form, source = dots_form(shape, unit_of(target)), np.random.default_rng(2)
    x, weight = (
        source.integers(-128, 128, (1, 5, 4, 16)).astype(np.int8),
        source.integers(-128, 128, (6, 1, 1, 16)).astype(np.int8),
    )
    scale = np.exp2(-np.arange(5, 11)).astype(np.float32)  # powers of two: halves are ties
    out = tvm.runtime.tensor(np.zeros(output_size(shape, form), np.uint8))
    packed = pack_words(weight, groups=1, columns=form.tile.columns)
    arguments = (x, packed, np.array([3], np.int32), start_of(x, weight, 3, shape, form), scale)
    built(shape, "int8", form, steps, target)["main"](*map(tvm.runtime.tensor, arguments), out)
    wanted = np.clip(np.round(expected(x, weight, 3, shape) * scale), 0, 255)
    np.testing.assert_array_equal(out.numpy().reshape(wanted.shape), wanted)


def test_words_hold_four_inputs_of_each_output() -> None:
    weight = np.arange(2 * 3 * 5, dtype=np.int8).reshape(2, 1, 3, 5)
    packed = pack_words(weight, groups=1, columns=4)
    assert packed.shape == (1, 1, 3, 2, 4, 4)
    np.testing.assert_array_equal(packed[0, 0, 2, 0, 1], weight[1, 0, 2, :4])
    np.testing.assert_array_equal(packed[0, 0, 2, 1, 1], [weight[1, 0, 2, 4], 0, 0, 0])
    assert not packed[..., 2:, :].any()


@pytest.mark.parametrize(("groups", "inputs", "takes"), [(1, 3, True), (2, 8, True), (2, 6, False), (6, 6, False)])
def test_groups_that_fill_no_words_have_no_kernel(groups: int, inputs: int, takes: bool) -> None:
    shape = of_integers(1, 5, 5, inputs, 12, kernel=(3, 3), groups=groups)
    assert has_dots(shape, vector_unit(ARM)) == takes
    assert not has_dots(shape, VectorUnit(32, 16, 2))


INSTRUCTIONS = {
    "cascadelake": (Target({"kind": "llvm", "mcpu": "cascadelake"}), "vpdpbusd", "zmm"),
    "alderlake": (Target({"kind": "llvm", "mcpu": "alderlake"}), "vpdpbusd", "ymm"),
    "cortex-a76": (ARM, "sdot", "4s"),
}


@pytest.mark.parametrize("cpu", INSTRUCTIONS)
@pytest.mark.parametrize("data", ["uint8", "int8"])
def test_a_cpu_s_own_instruction_multiplies(cpu: str, data: str) -> None:
    target, instruction, register = INSTRUCTIONS[cpu]
    shape = of_integers(1, 8, 8, 32, 64, kernel=(3, 3), padding=(1, 1, 1, 1))
    listing = built(shape, data, dots_form(shape, unit_of(target)), (), target).mod.inspect_source("asm")
    lines = [line for line in listing.splitlines() if instruction in line.split("#")[0]]
    assert len(lines) > 8
    assert all(register in line for line in lines)


@pytest.mark.parametrize("cpu", ["x86-64-v3", "skylake-avx512", "znver3"])
def test_cpus_without_the_instruction_have_none(cpu: str) -> None:
    assert vector_unit(Target({"kind": "llvm", "mcpu": cpu})).dots is None
