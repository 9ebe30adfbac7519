"""Calibration data in every form becomes the same batches, again and again, and what does not fit is refused by name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, TensorDataset

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, TensorType
from reparam_compiler.models.calibration import batches
from tests.support.calibrated import PAIR, SHAPE, X, an_input, joined, normal, sizes

# Arrays, in memory and in files


def as_array(x: np.ndarray, _: Path) -> Any:
    return x


def as_tensor(x: np.ndarray, _: Path) -> Any:
    return torch.from_numpy(x)


def as_tuple_with_labels(x: np.ndarray, _: Path) -> Any:
    return x, np.arange(len(x))


def as_mapping(x: np.ndarray, _: Path) -> Any:
    return {"label": np.arange(len(x)), "x": x}


def as_npy(x: np.ndarray, folder: Path) -> Any:
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


def as_npz(x: np.ndarray, folder: Path) -> Any:
    np.savez(folder / "x.npz", label=np.arange(len(x)), x=x)
    return str(folder / "x.npz")


def as_compressed_npz(x: np.ndarray, folder: Path) -> Any:
    np.savez_compressed(folder / "c.npz", images=x)
    return folder / "c.npz"


def as_fortran_npz(x: np.ndarray, folder: Path) -> Any:
    np.savez(folder / "f.npz", x=np.asfortranarray(x))
    return folder / "f.npz"


def as_big_endian_npy(x: np.ndarray, folder: Path) -> Any:
    np.save(folder / "big.npy", x.astype(">f4"))
    return folder / "big.npy"


def as_generator(x: np.ndarray, _: Path) -> Any:
    return (x[first : first + 7] for first in range(0, len(x), 7))


def as_list(x: np.ndarray, _: Path) -> Any:
    return [(piece, "label") for piece in np.array_split(x, 3)]


def as_loader(x: np.ndarray, _: Path) -> Any:
    return DataLoader(TensorDataset(torch.from_numpy(x), torch.arange(len(x))), batch_size=4)


FORMS: list[Callable[[np.ndarray, Path], Any]] = [
    as_array, as_tensor, as_tuple_with_labels, as_mapping, as_npy, as_npz, as_compressed_npz, as_fortran_npz,
    as_big_endian_npy, as_generator, as_list, as_loader,
]  # fmt: skip


def test_lists_and_mappings_in_a_batch_are_taken_apart_for_a_model_that_takes_several_tensors() -> None:
    x, y, inputs = normal(4, 3, 4, 4), normal(4, 3, 4, 4, seed=1), [an_input(3, 4, 4), an_input(3, 4, 4, name="y")]
    for batch in ([x, y], ([x, y], "label"), ((x, [y]),), ({"y": y, "x": x}, y), ({"a": x, "b": y}, "label")):
        (found,) = batches([batch], inputs)
        assert np.array_equal(found[0], x)
        assert np.array_equal(found[1], y)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(3, 20), batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_form_gives_all_samples_in_order_at_every_pass(
    form: Callable[[np.ndarray, Path], Any], length: int, batch: int, seed: int, tmp_path: Path
) -> None:
    x = normal(length, *SHAPE, seed=seed)
    found = batches(form(x, tmp_path), X, batch=batch)
    for _ in range(2):
        (given,) = zip(*found, strict=True)
        np.testing.assert_array_equal(np.concatenate(given), x)
        for array in given:
            assert array.dtype == np.float32
            assert array.flags.writeable
            torch.from_numpy(array)


@pytest.mark.parametrize("form", [as_array, as_tensor, as_tuple_with_labels, as_mapping, as_npy, as_npz, as_compressed_npz])
def test_long_arrays_are_cut_into_batches_of_32(form: Callable[[np.ndarray, Path], Any], tmp_path: Path) -> None:
    assert sizes(form(normal(70, *SHAPE), tmp_path)) == [32, 32, 6]


@pytest.mark.parametrize("form", [as_array, as_npy, as_npz])
def test_arrays_as_long_as_a_batch_that_the_model_fixes_stay_whole(form: Callable[..., Any], tmp_path: Path) -> None:
    assert sizes(form(normal(40, *SHAPE), tmp_path), [an_input(*SHAPE, batch=40)]) == [40]
    assert sizes(form(normal(40, *SHAPE), tmp_path), [an_input(*SHAPE, batch=2)]) == [32, 8]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_several_inputs_are_cut_together_by_name(save: Callable[..., None], tmp_path: Path) -> None:
    a, b = normal(50, 3), normal(50, 2, 2, seed=1)
    save(tmp_path / "pair.npz", b=b, a=a)
    for data in (tmp_path / "pair.npz", {"b": b, "a": a}, (a, b)):
        assert sizes(data, PAIR) == [32, 18]
        found = joined(data, PAIR)
        np.testing.assert_array_equal(found[0], a)
        np.testing.assert_array_equal(found[1], b)


def test_a_number_goes_with_every_batch(tmp_path: Path) -> None:
    x, number = normal(50, 3), np.float32(0.5)
    np.savez(tmp_path / "scaled.npz", x=x, t=number)
    inputs = [an_input(3, name="x"), Node("t", ops.Input(), (), TensorType("f32", ()))]
    for data in (tmp_path / "scaled.npz", {"x": x, "t": number}, (x, number)):
        assert [(len(a), float(b)) for a, b in batches(data, inputs)] == [(32, 0.5), (18, 0.5)]


def test_arrays_of_unequal_length_are_one_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "pair.npz", a=normal(50, 3), b=normal(1, 2, 2))
    assert sizes(tmp_path / "pair.npz", PAIR) == [50]


def test_an_array_in_a_file_is_not_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", normal(70, *SHAPE))
    np.savez(tmp_path / "x.npz", x=normal(70, *SHAPE))
    maps: list[object] = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: (maps.append(kwargs["mmap_mode"]), load(*args, **kwargs))[1])
    next(iter(batches(tmp_path / "x.npy", X)))
    assert maps == ["r"]
    next(iter(batches(tmp_path / "x.npz", X)))
    assert maps == ["r"]  # an .npz is read as a stream, for numpy reads each of its arrays whole


def test_a_folder_of_npy_goes_by_name(tmp_path: Path) -> None:
    first, second = normal(40, *SHAPE), normal(5, *SHAPE, seed=1)
    np.save(tmp_path / "b.npy", second)
    np.save(tmp_path / "a.npy", first)
    assert sizes(tmp_path) == [32, 8, 5]
    np.testing.assert_array_equal(joined(tmp_path)[0], np.concatenate([first, second]))


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_fixes_its_batch_gets_no_other(form: Callable[[np.ndarray, Path], Any], tmp_path: Path) -> None:
    x = normal(11, *SHAPE)
    found = batches(form(x, tmp_path), [an_input(*SHAPE, batch=2)], exact=2)
    given = [array for (array,) in found]
    assert {len(array) for array in given} == {2}
    kept = {array.tobytes() for array in x}
    assert all(sample.tobytes() in kept for array in given for sample in array)
    assert len(given) >= 4  # at most one sample of each of three batches is left out


def test_too_few_samples_for_a_fixed_batch_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="holds no batch of the 8 samples that the model takes at a time"):
        list(batches(normal(7, *SHAPE), [an_input(*SHAPE, batch=8)], exact=8))


@pytest.mark.parametrize("form", [as_array, as_npy, as_npz])
def test_nan_is_named_by_batch_and_sample(form: Callable[[np.ndarray, Path], Any], tmp_path: Path) -> None:
    x = normal(40, *SHAPE)
    x[35, 1, 2, 3] = np.nan
    with pytest.raises(UnsupportedModelError, match=r"calibration batch 1: sample 3 .* holds NaN for x"):
        list(batches(form(x, tmp_path), X))


def test_infinite_numbers_are_taken() -> None:
    x = np.where(normal(4, *SHAPE) > 0, np.float32(0), np.float32(-np.inf))  # a mask of an attention
    assert np.isinf(joined(x)[0]).any()


@pytest.mark.parametrize("data", [normal(0, *SHAPE), [normal(0, *SHAPE)], (normal(0, *SHAPE), np.zeros(0))])
def test_batches_without_a_sample_are_none(data: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="holds no batch"):
        list(batches(data, X))


@pytest.mark.parametrize("given", [(None,), (True, None, 2.0), (None, 0, "text")])
def test_what_is_no_array_is_no_input(given: tuple[Any, ...]) -> None:
    a, b = normal(4, 3), normal(4, 2, 2)
    (batch,) = batches([(*given, a, b, np.arange(4))], PAIR)
    np.testing.assert_array_equal(batch[0], a)
    np.testing.assert_array_equal(batch[1], b)


def test_bfloat16_tensors_are_taken() -> None:
    x = torch.randn(4, *SHAPE).bfloat16()
    np.testing.assert_array_equal(joined(x)[0], x.float().numpy())


# Iterables


class Noisy(Dataset[Any]):
    """Augments with torch's generator, as most transforms do."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return torch.full(SHAPE, float(index)) + torch.rand(SHAPE), index


@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(5)])
def test_a_loader_that_shuffles_and_augments_gives_the_same_at_every_pass(generator: torch.Generator | None) -> None:
    loader = DataLoader(Noisy(), batch_size=5, shuffle=True, generator=generator)
    found = batches(loader, X)
    first = [batch[0] for batch in found]
    torch.rand(7)  # the caller goes on with other things
    second = [batch[0] for batch in found]
    assert [len(batch) for batch in first] == [5, 5, 2]
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))
    assert (np.diff(np.concatenate(first)[:, 0, 0, 0]) < 0).any()  # it does shuffle


def test_going_over_a_loader_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    drawn = [torch.rand(1) for _ in batches(DataLoader(Noisy(), batch_size=3, shuffle=True), X)]
    torch.testing.assert_close(torch.cat(drawn), expected, rtol=0, atol=0)


def test_a_generator_is_used_up_once_and_kept() -> None:
    pulled = []

    def source() -> Iterator[np.ndarray]:
        for number in range(3):
            pulled.append(number)
            yield normal(2, *SHAPE)

    found = batches(source(), X)
    assert [len(list(found)) for _ in range(3)] == [3, 3, 3]
    assert pulled == [0, 1, 2]


# Refusals


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (normal(4, 3, 5, 5), r"calibration data for x has shape \(4, 3, 5, 5\); expected N 3 5 4"),
        (normal(3, 5, 4), r"for x has shape \(3, 5, 4\)"),
        ([], "holds no batch"),
        (iter(()), "holds no batch"),
        ((), "a calibration batch holds 0 arrays; the model has the inputs x"),
        ({}, "holds 0 arrays"),
        (3, "found calibration data of type int"),
        (np.array(["a"] * 4), r"for x is of type <U1; expected numbers"),
        ([([[1.0], [1.0, 2.0]],)], "for x is no array"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_name(data: Any, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        list(batches(data, X))


def test_fewer_arrays_than_inputs_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="holds 1 arrays; the model has the inputs a, b"):
        list(batches(normal(4, 3), PAIR))


RENAMED = {"input_1": "input"}
"""What torch.fx calls an input, and what the model does."""


@pytest.mark.parametrize("form", [dict, lambda given: [given], "npz"])
@pytest.mark.parametrize(
    "keys", [("input", "other"), ("other", "input"), ("other", "input_1"), ("label", "other", "input"), ("first", "second")]
)
def test_arrays_go_by_the_models_own_names_of_its_inputs(form: Any, keys: tuple[str, ...], tmp_path: Path) -> None:
    inputs = [an_input(2, name="input_1"), an_input(2, name="other")]
    values = dict(zip(keys, (normal(4, 2, seed=seed) for seed in range(3)), strict=False))
    expected = [values.get("input", values.get("input_1", values.get("first"))), values.get("other", values.get("second"))]
    if form == "npz":
        np.savez(tmp_path / "x.npz", **values)
    data = tmp_path / "x.npz" if form == "npz" else form(values)
    (found,) = batches(data, inputs, names=RENAMED)
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("keys", [("other", "inptu"), ("input", "othr"), ("label", "input")])
def test_a_name_that_is_missing_beside_one_that_fits_is_refused(keys: tuple[str, str], tmp_path: Path) -> None:
    inputs = [an_input(2, name="input_1"), an_input(2, name="other")]
    values = {key: normal(4, 2) for key in keys}
    np.savez(tmp_path / "x.npz", **values)
    for data in (values, [values], tmp_path / "x.npz"):
        with pytest.raises(UnsupportedModelError, match=f"holds {', '.join(keys)}; expected .* by their names, input, other"):
            list(batches(data, inputs, names=RENAMED))


@pytest.mark.parametrize(
    ("dtype", "data", "said"),
    [
        ("f32", normal(4, 3).astype(np.uint8), "of type uint8; the input is float32: expected floating numbers, .* pixels"),
        ("f16", np.zeros((4, 3), bool), "of type bool; the input is float16: expected floating"),
        ("i64", normal(4, 3), "of type float32; the input is int64: expected whole numbers"),
    ],
)
def test_pixels_are_no_floats_and_floats_no_indices(dtype: str, data: np.ndarray, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        list(batches(data, [an_input(3, dtype=dtype)]))


def test_whole_numbers_take_the_dtype_of_their_input() -> None:
    (array,) = joined(np.arange(12, dtype=np.int16).reshape(4, 3), [an_input(3, dtype="i64")])
    assert array.dtype == np.int64
    assert joined(normal(4, 3).astype(float), [an_input(3)])[0].dtype == np.float64  # passes compute in it


@pytest.mark.parametrize("batch", [0, -3])
def test_a_batch_needs_a_sample(batch: int) -> None:
    with pytest.raises(UnsupportedModelError, match=f"batch={batch}"):
        batches(normal(4, *SHAPE), X, batch=batch)


@pytest.mark.parametrize("name", ["none.npz", "none.npy"])
def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{name}: no such calibration file"):
        batches(tmp_path / name, X)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").touch()
    with pytest.raises(UnsupportedModelError, match=r"found the calibration file data\.csv; expected an \.npz, an \.npy"):
        batches(tmp_path / "data.csv", X)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"found no \.npy and no image \(\.png"):
        batches(tmp_path, X)


def test_normalising_arrays_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="mean and std are for a folder of images"):
        batches(normal(4, *SHAPE), X, mean=0.5, std=0.5)


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_a_truncated_file_is_refused_by_name(save: Callable[..., None], share: float, tmp_path: Path) -> None:
    path = tmp_path / ("x.npy" if save is np.save else "x.npz")
    save(path, normal(40, *SHAPE))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * (len(whole) - 1))])
    with pytest.raises(UnsupportedModelError, match=f"{path.name} cannot be read as plain arrays"):
        list(batches(path, X))


@pytest.mark.parametrize("save", [np.save, np.savez])
def test_arrays_of_objects_are_never_unpickled(save: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / ("x.npy" if save is np.save else "x.npz")
    save(path, np.array([print, 1], object))
    with pytest.raises(UnsupportedModelError, match="cannot be read as plain arrays"):
        list(batches(path, X))
