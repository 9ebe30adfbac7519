"""A profile tells each kernel's time in the order of the run, and the peak that it is compared with is measured here."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm")

import tvm

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.cpu.peak import measure_peak
from reparam_compiler.lowering.runtime.profile import Layer, Profile, profile
from reparam_compiler.lowering.runtime.virtual_machines import VirtualMachines
from reparam_compiler.lowering.target import resolve
from reparam_compiler.tvmc.tables import profile_table

pytestmark = pytest.mark.tvm


@pytest.fixture(scope="module")
def compiled() -> lowering.Executable:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3)).eval()
    return lowering.compile(net, torch.zeros(1, 3, 34, 30))


def test_layers_come_in_the_order_of_the_run_with_their_times(compiled: lowering.Executable) -> None:
    found = profile(compiled, runs=5)
    convs = [layer for layer in found.layers if layer.kernel.startswith("conv_3x3")]
    assert [layer.kernel.split("_at_")[0] for layer in convs] == ["conv_3x3_3_16", "conv_3x3_16_32"]
    assert all(layer.seconds > 0 for layer in found.layers)
    assert sum(layer.share for layer in found.layers) == pytest.approx(1.0)
    assert found.kernel_seconds == pytest.approx(sum(layer.seconds for layer in found.layers))
    assert found.run_seconds > 0
    assert found.runs == 5
    known = {kernel.name: kernel for kernel in compiled.kernels}
    assert all(layer.algorithm == known[layer.kernel].algorithm for layer in found.layers)
    assert not any(layer.kernel.startswith("vm.builtin") for layer in found.layers)


def test_a_profiled_model_still_computes_the_same(compiled: lowering.Executable) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 34, 30)).astype("float32")
    before = compiled.run(x)[0]
    profile(compiled, [x], runs=1)
    np.testing.assert_array_equal(compiled.run(x)[0], before)


def test_peak_is_a_speed_that_cores_have() -> None:
    peak = measure_peak(resolve(None), 1)
    assert 1e9 < peak < 1e13


def test_wrong_arguments_are_refused(compiled: lowering.Executable) -> None:
    with pytest.raises(LoweringError, match="runs=0"):
        profile(compiled, runs=0)
    with pytest.raises(LoweringError, match="found shape"):
        profile(compiled, [np.zeros((1, 3, 8, 8), "float32")])


def test_a_cuda_graph_is_refused_with_the_setting_that_takes_it_apart(
    compiled: lowering.Executable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Machine:
        """Calls its instrument as the virtual machine does where Relax captured a graph."""

        def __init__(self) -> None:
            self.instrument = lambda *_: 0

        def set_instrument(self, instrument: Callable[..., int]) -> None:
            self.instrument = instrument

        def __getitem__(self, name: str) -> Callable[..., None]:
            return lambda *_: self.instrument(None, "vm.builtin.cuda_graph.run_or_capture", True, None)

    monkeypatch.setattr(VirtualMachines, "with_machine", lambda _self, work, _arrays: work(Machine(), [], tvm.cpu()))
    with pytest.raises(LoweringError, match=r"--pass-config relax\.backend\.use_cuda_graph=0"):
        profile(compiled)


def test_table_shows_speed_only_where_the_arithmetic_is_known() -> None:
    layers = (
        Layer("conv_3x3", "winograd 4x4", (1, 64), 0.001, 0.5, 50_000_000, 1e-6),
        Layer("pool", "general", (1, 64), 0.001, 0.5, 0, None),
    )
    table = profile_table(Profile(layers, 0.002, 0.0021, 11, 100e9, 2))
    assert table.splitlines()[1].split() == ["conv_3x3", "winograd", "4x4", "1.000", "50.0%", "50.0", "50%"]
    assert table.splitlines()[2].split() == ["pool", "general", "1.000", "50.0%"]
    assert "peak: 100 GFLOP/s in float32, measured here on 2 threads" in table
    assert "of peak" in profile_table(Profile(layers, 0.002, 0.0021, 11, None, 0))
