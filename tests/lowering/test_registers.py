"""The sums of a tile are held in registers: no call between the arithmetic of two tiles."""

import pytest

pytest.importorskip("tvm")

import tvm

from reparam_compiler.lowering.conv.algorithms import ConvShape, Direct, Tile
from reparam_compiler.lowering.cpu.machine import vector_unit
from reparam_compiler.lowering.cpu.registers import TIR_PIPELINE
from reparam_compiler.lowering.cpu.schedules import direct_conv
from reparam_compiler.lowering.target import resolve

pytestmark = pytest.mark.tvm


@pytest.mark.parametrize(("pipeline", "calls"), [("default", True), (TIR_PIPELINE, False)])
def test_a_tile_takes_no_memory_from_the_heap(pipeline: str, calls: bool) -> None:
    target = resolve("llvm -mcpu=x86-64-v3 -num-cores 2")
    kernel = direct_conv(ConvShape(1, 8, 8, 16, 48, (1, 1)), Direct(Tile(4, 24)), (), vector_unit(target))
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    code = tvm.compile(module, target=target, tir_pipeline=pipeline).mod.inspect_source("ll")
    assert ("call" in code and "AllocWorkspace" in code) == calls
