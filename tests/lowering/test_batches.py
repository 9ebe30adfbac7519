"""Any number of samples is run in pieces of the batches that a model was compiled for, over one copy of its weights."""

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("tvm")

from reparam_compiler import lowering
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.build import Form, compile_forms
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape, Direct
from reparam_compiler.lowering.conv.choice import candidates, cycles, with_packing
from reparam_compiler.lowering.cpu.kernels import packing_of
from reparam_compiler.lowering.cpu.machine import VectorUnit
from reparam_compiler.lowering.cpu.packing import PACKINGS
from reparam_compiler.lowering.runtime.batches import (
    NOISE,
    checked_batches,
    joined,
    of_samples,
    pieces,
    samples_in,
    split,
    worth_their_size,
)
from reparam_compiler.lowering.runtime.description import TensorSpec
from reparam_compiler.lowering.runtime.profile import profile
from reparam_compiler.lowering.runtime.variant import Variant
from reparam_compiler.tvmc.tables import batch_line
from tests.support.called import Called

pytestmark = pytest.mark.tvm
AVX2 = VectorUnit(32, 16, 2)
BATCHES = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(checked_batches)
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}


class Scaled(nn.Module):
    """Two outputs of an image and of a number that all samples share; the second has two rows a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x).relu()
        return self.dense(y.mean((2, 3))) * scale, y.amax((2, 3)).reshape(-1, 8)


def forms(model: nn.Module, batches: tuple[int, ...]) -> list[Form]:
    return [Form(model, (torch.zeros(batch, 3, 6, 5), torch.tensor(2.0))) for batch in batches]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Scaled().eval()


@pytest.fixture(scope="module")
def compiled(model: nn.Module) -> lowering.Executable:
    return compile_forms(forms(model, (2, 5)), any_batch=True)


def images(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).standard_normal((samples, 3, 6, 5)).astype("float32")


@given(st.integers(0, 40), BATCHES)
def test_pieces_hold_every_sample_and_waste_less_than_the_smallest_batch(samples: int, batches: tuple[int, ...]) -> None:
    found = pieces(samples, batches)
    assert set(found) <= set(batches)
    assert found == sorted(found, reverse=True)
    assert samples <= sum(found) < samples + batches[0]
    assert sum(found[:-1]) <= samples


@given(st.integers(0, 40), BATCHES, st.integers(1, 3))
def test_what_is_split_and_joined_is_what_it_was(samples: int, batches: tuple[int, ...], rows: int) -> None:
    array, number = np.random.default_rng(0).standard_normal((samples, 3)).astype("float32"), np.float32(7.0)
    parts = list(split([array, np.asarray(number)], samples, batches))
    assert all(piece[0].shape == (size, 3) and piece[1] == number for size, piece in parts)
    found = joined(
        [[np.repeat(piece[0], rows, 0)] for _, piece in parts],
        samples,
        [TensorSpec("y", (rows * batches[0], 3), "float32")],
        batches[0],
    )
    np.testing.assert_array_equal(found[0], np.repeat(array, rows, 0))


@given(samples=st.integers(0, 12))
def test_any_number_of_samples_comes_out_in_order(samples: int, compiled: lowering.Executable, model: nn.Module) -> None:
    x, scale = images(samples), np.float32(3.0)
    found = compiled.run(x, scale)
    assert [array.shape for array in found] == [(samples, 4), (2 * samples, 8)]
    if samples:
        expected = model(torch.from_numpy(x), torch.tensor(scale))
        for array, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(array, wanted.detach().numpy(), **FLOAT32)


@given(st.dictionaries(st.integers(1, 64), st.one_of(st.none(), st.floats(1e-3, 1.0)), min_size=1))
def test_no_batch_is_used_that_is_slower_a_sample_than_a_smaller_one(seconds: dict[int, float | None]) -> None:
    used = worth_their_size(seconds)
    assert used[0] == min(seconds)
    each = {batch: taken / batch for batch, taken in seconds.items() if taken is not None}
    for batch in seconds:
        fastest = min((each[other] for other in each if other < batch), default=math.inf)
        assert (batch in used) == (batch not in each or each[batch] <= (1 + NOISE) * fastest)


def measured_as(seconds: dict[int, float], model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> lowering.Executable:
    """The model for these batches, a run of which takes so long."""

    def measured(variant: Variant, *_: Any) -> tuple[float, ...]:
        return (seconds[variant.batch],)

    with monkeypatch.context() as patch:
        patch.setattr(Variant, "measured", measured)
        return compile_forms(forms(model, tuple(seconds)), any_batch=True)


def test_a_batch_that_was_measured_to_be_slower_is_kept_and_not_used(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = measured_as({1: 0.010, 3: 0.040}, model, monkeypatch)
    assert (made.batches, made.pieces, measured_as({1: 0.01, 3: 0.02}, model, monkeypatch).pieces) == ((1, 3), (1,), (1, 3))
    made.save(tmp_path / "m.tar")
    loaded = lowering.load(tmp_path / "m.tar")
    assert ([variant.seconds for variant in loaded.variants], loaded.pieces) == ([0.010, 0.040], (1,))
    np.testing.assert_allclose(
        loaded.run(images(4), np.float32(2.0))[0],
        model(torch.from_numpy(images(4)), torch.tensor(2.0))[0].detach().numpy(),
        **FLOAT32,
    )
    assert loaded.at(3).run(images(3), np.float32(1.0))[0].shape == (3, 4)
    assert (
        batch_line(loaded, loaded.variants[1])
        == "batch 3: 13.33 ms a sample here, slower than a smaller one, which is taken for any number"
    )
    assert batch_line(loaded, loaded.variants[0]) == "batch 1: 10.00 ms a sample here"


def test_runs_of_less_than_a_millisecond_tell_nothing(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    made = measured_as({1: 0.0001, 3: 0.01}, model, monkeypatch)
    assert ([variant.seconds for variant in made.variants], made.pieces) == ([None, None], (1, 3))


@pytest.mark.parametrize("batches", [(), [], (0,), (1, -8), (True,), (1.5,), "18", 8, ("1",)])
def test_batches_are_whole_numbers_from_1(batches: object) -> None:
    with pytest.raises(LoweringError, match=r"batches: found .*expected whole numbers from 1, such as \(1, 8\)"):
        checked_batches(batches)  # type: ignore[arg-type]


def test_wrong_sizes_are_refused_with_any_number_in_the_place_of_the_batch(compiled: lowering.Executable) -> None:
    scale = np.float32(1.0)
    with pytest.raises(LoweringError, match=r"x: found shape \(4, 3, 6, 6\); expected \(n, 3, 6, 5\) of any n"):
        compiled.run(np.zeros((4, 3, 6, 6), "float32"), scale)
    with pytest.raises(LoweringError, match=r"x: found shape \(3, 6, 5\); expected \(n, 3, 6, 5\) of any n"):
        compiled.run(np.zeros((3, 6, 5), "float32"), scale)
    with pytest.raises(LoweringError, match=r"scale: found shape \(4,\); expected \(\)"):
        compiled.run(images(4), np.zeros(4, "float32"))
    with pytest.raises(LoweringError, match="x: found dtype float64; expected float32"):
        compiled.run(images(4).astype("float64"), scale)


def test_inputs_of_several_numbers_of_samples_are_refused() -> None:
    specs = [TensorSpec("x", (2, 3), "float32"), TensorSpec("mask", (2, 5), "float32"), TensorSpec("scale", (), "float32")]
    arrays = [np.zeros(spec.shape) for spec in of_samples(specs, 4)]
    assert samples_in(arrays, specs) == 4
    with pytest.raises(LoweringError, match="found 4 in x, 3 in mask; expected as many samples in every input"):
        samples_in([arrays[0], arrays[1][:3], arrays[2]], specs)


def test_each_batch_is_an_executable_of_one_size(compiled: lowering.Executable) -> None:
    five, x = compiled.at(5), images(5)
    assert (compiled.batches, five.batches, five.inputs[0].shape) == ((2, 5), (), (5, 3, 6, 5))
    np.testing.assert_array_equal(five.run(x, np.float32(1.0))[0], compiled.run(x, np.float32(1.0))[0])
    with pytest.raises(LoweringError, match=r"x: found shape \(2, 3, 6, 5\); expected \(5, 3, 6, 5\)"):
        five.run(images(2), np.float32(1.0))
    with pytest.raises(LoweringError, match=r"batch: found 3; it was compiled for \(2, 5\)"):
        compiled.at(3)
    with pytest.raises(LoweringError, match="batch: found 5; it was compiled for one size"):
        five.at(5)


def test_times_of_pieces_add_up_and_profiles_are_of_one_batch(compiled: lowering.Executable) -> None:
    seven = (images(7), np.float32(1.0))
    for end_to_end in (False, True):
        timing = compiled.timing(*seven, repeat=3, number=2, end_to_end=end_to_end)
        assert (len(timing.seconds), timing.number) == (3, 2)
        assert min(timing.seconds) > 0
    assert compiled.time(repeat=1) > 0
    assert compiled.timing(images(0), np.float32(1.0), repeat=2).seconds == (0.0, 0.0)
    names = {batch: {kernel.name for kernel in compiled.at(batch).kernels} for batch in (2, 5)}
    assert {layer.kernel for layer in profile(compiled, runs=1).layers} <= names[2]
    assert {layer.kernel for layer in profile(compiled, (images(5), np.float32(1.0)), runs=1).layers} <= names[5]
    with pytest.raises(LoweringError, match=r"batch: found 7; it was compiled for \(2, 5\)"):
        profile(compiled, seven)


def test_threads_and_clones_run_any_number_of_samples(compiled: lowering.Executable) -> None:
    clone, wrong = compiled.clone(threads=1), []
    assert (clone.threads, clone.batches) == (1, (2, 5))
    expected = {samples: compiled.run(images(samples), np.float32(1.0))[0] for samples in range(1, 8)}

    def work(samples: int) -> None:
        for executable in (compiled, clone):
            if not np.array_equal(executable.run(images(samples), np.float32(1.0))[0], expected[samples]):
                wrong.append(samples)

    threads = [threading.Thread(target=work, args=(samples,)) for samples in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", ["m.tar", "m.so"])
def test_an_artifact_holds_all_batches_and_each_weight_once(
    compiled: lowering.Executable, model: nn.Module, name: str, tmp_path: Path
) -> None:
    compiled.save(tmp_path / name)
    loaded = lowering.load(tmp_path / name)
    assert (loaded.batches, loaded.inputs, loaded.at(5).kernels) == (compiled.batches, compiled.inputs, compiled.at(5).kernels)
    for again in (loaded, compiled):
        for left, right in zip(*(variant.weights for variant in again.variants), strict=True):
            assert left is right
    loaded.save(tmp_path / f"again-{name}")
    for executable in (loaded, lowering.load(tmp_path / f"again-{name}")):
        for array, wanted in zip(
            executable.run(images(8), 2.0 * np.ones((), "float32")), compiled.run(images(8), np.float32(2.0)), strict=True
        ):
            np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("name", ["m.tar", "m.so"])
@pytest.mark.parametrize("batch", [2, 5])
def test_one_batch_of_what_was_loaded_is_an_archive_and_no_library(
    compiled: lowering.Executable, batch: int, name: str, tmp_path: Path
) -> None:
    compiled.save(tmp_path / name)
    one = lowering.load(tmp_path / name).at(batch)
    with pytest.raises(LoweringError, match=rf"describes {2 if batch == 2 else 0} variants, and 1 shall be saved"):
        one.save(tmp_path / "one.so")
    assert not (tmp_path / "one.so").exists()
    one.save(tmp_path / "one.tar")
    given = images(batch), np.float32(2.0)
    for found, expected in zip(lowering.load(tmp_path / "one.tar").run(*given), compiled.run(*given), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_second_batch_costs_an_archive_its_code_alone(tmp_path: Path) -> None:
    net = nn.Linear(700, 700).eval()
    made = compile_forms([Form(net, torch.zeros(batch, 700)) for batch in (1, 8)], any_batch=True)
    made.save(tmp_path / "m.tar")
    assert (tmp_path / "m.tar").stat().st_size < 1.15 * sum(parameter.nbytes for parameter in net.parameters())


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_packing_is_shared_where_one_of_its_own_costs_more_to_read_than_it_saves(batch: int, kernel: int) -> None:
    shape = ConvShape(batch, 14, 14, 96, 96, (kernel, kernel), padding=(kernel // 2,) * 4)

    def with_memory(form: Algorithm) -> float:
        packed = packing_of(shape, form).of(np.zeros((96, kernel, kernel, 96), "float32"), PACKINGS)
        assert packed.nbytes == form.weight_bytes(shape, AVX2)
        return cycles(shape, form, AVX2) + packed.nbytes / AVX2.costs.cold_bytes

    open_to_it = candidates(shape, AVX2)
    for columns in (8, 16, 24, 32):
        for other in candidates(shape, AVX2, columns):
            packing = packing_of(shape, other)
            found = with_packing(shape, AVX2, open_to_it, [columns], lambda form, p=packing: packing_of(shape, form) == p)
            if packing_of(shape, found) == packing:
                assert cycles(shape, found, AVX2) <= min(map(with_memory, open_to_it))
            else:
                assert with_memory(found) == min(map(with_memory, open_to_it)) < cycles(shape, other, AVX2)


def test_the_tiles_of_a_packing_have_its_columns() -> None:
    shape = ConvShape(1, 14, 14, 96, 96, (3, 3), padding=(1, 1, 1, 1))
    found = candidates(shape, AVX2, 16)
    assert {str(form) for form in found} == {str(form) for form in candidates(shape, AVX2)}
    assert {form.tile.columns for form in found} == {16}
    assert any(isinstance(form, Direct) for form in found)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.reshape(1, -1), r"an output of the shape \(1, 20\) for a batch of 4, and \(1, 5\) for one of 1"),
        (lambda x: x.mean(0), r"an output of the shape \(5,\) for a batch of 4"),
        (lambda x: x.sum(), r"an output of the shape \(\) for a batch of 1"),
        (lambda x: x.unbind(0), "found 4 outputs for a batch of 4, 1 for another"),
        (lambda x: x.t(), r"an output of the shape \(5, 4\) for a batch of 4"),
    ],
)
def test_outputs_that_are_not_of_the_batch_are_named(function: object, message: str) -> None:
    model = Called(function).eval()
    with pytest.raises(LoweringError, match=message + ".*compile it for one size, without batches"):
        compile_forms([Form(model, torch.zeros(batch, 5)) for batch in (1, 4)], any_batch=True)


def test_an_input_that_is_not_of_the_batch_is_named() -> None:
    class Add(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    with pytest.raises(
        LoweringError, match=r"y: found the shape \(1, 3\) beside a batch of 4; every input must have the batch"
    ):
        compile_forms([Form(Add().eval(), (torch.zeros(4, 3), torch.zeros(1, 3)))], any_batch=True)


def test_listings_of_several_batches_stand_under_their_names(model: nn.Module) -> None:
    options = lowering.CompileOptions(sources="tir")
    made = compile_forms(forms(model, (1, 2)), any_batch=True, options=options)
    titles = [line for line in made.listings["tir"].splitlines() if line.startswith("# for")]
    assert titles == [f"# for a batch of {batch}, {made.target}" for batch in (1, 2)]
