"""Calibration data, in any of the forms that people have, as batches: an array for each model input.

    an array                    for a model of one input
    a tuple of arrays           an array for each input
    a mapping                   arrays by the names of the inputs; in order where none of its names is an input's
    a path: .npz                the same as a mapping, read from the file a batch at a time
    a path: .npy                the same as an array, mapped into memory
    a path: a folder of .npy    each file as above, in the order of their names
    a path: a folder of images  png, jpg, bmp or webp, also in folders below, in the order of their paths (needs Pillow)
    an iterable                 of batches, each an array, tuple or mapping: a list, a DataLoader, a generator

What a batch holds beyond the inputs (labels) is left out. Arrays longer than a batch are cut along their first axis, unless
they are just as long as a batch that the model fixes; a number alone goes with every batch. An image x is brought to the
input's size H x W as

    resize so that it just covers H x W (bilinear, antialiased), crop the centre, (x / 255 - mean) / std

which must be what the model was trained with: everything that is calibrated depends on it.

The data is gone over as often as a pass needs it, and gives the same batches each time. Files are read anew; an iterable that
can be used only once is held in memory; a DataLoader shuffles and augments with torch's generator, which is seeded for it.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import IO, Any, TypeVar
from zipfile import ZipFile

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from reparam_compiler.advice import ask_for_inputs, in_words_of
from reparam_compiler.core.files import UNREADABLE
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir.graph import Node
from reparam_compiler.models.fitting import Array, Batch, fitted, selected
from reparam_compiler.vocabulary.dtypes import FLOATING

Calibration = np.ndarray | Tensor | tuple[Any, ...] | Mapping[str, Any] | str | os.PathLike[str] | Iterable[Any]
Floats = float | Sequence[float]
Held = TypeVar("Held")
BATCH = 32
"""Samples in a batch, where it is not the caller who makes batches."""
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std of the channels of ImageNet's images, from 0 to 1: what models of colour images are mostly trained with."""
PLAIN = ((0.0,), (1.0,))
"""Mean and std that leave grey values from 0 to 1 as they are."""


class PreprocessingWarning(UserWarning):
    """Images are normalised by a guess, for the caller did not say how the model's own were.

    What to do: give `mean` and `std` (`--mean`, `--std`) as the model was trained with; the message names those taken.
    """


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """Calibration data for the inputs of a model; it can be iterated again and again.

    Iterating raises UnsupportedModelError where there is no batch, or one does not fit the inputs; the message names the
    input, what was found and what was expected.
    """

    inputs: tuple[Node, ...]
    exact: int | None
    _start: Callable[[], Iterator[Any]]
    _names: Mapping[str, str]

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for number, batch in enumerate(self._start()):
            arrays = fitted(batch, self.inputs, self._names)
            _check_numbers(arrays, self.inputs, number)
            for piece in _exactly(arrays, self.exact):
                if all(array.size for array in piece):
                    empty = False
                    yield piece
        if empty:
            least = "" if self.exact is None else f" of the {self.exact} samples that the model takes at a time"
            raise UnsupportedModelError(
                f"the calibration data holds no batch{least}; give a few dozen samples of what the model will see"
            )


def batches(
    data: Calibration,
    inputs: Sequence[Node],
    *,
    batch: int = BATCH,
    exact: int | None = None,
    mean: Floats | None = None,
    std: Floats | None = None,
    names: Mapping[str, str] | None = None,
) -> Batches:
    """The batches of calibration data for these input nodes.

    Args:
        data: see the module. A generator is used up at once and kept.
        inputs: the model's.
        batch: samples in a batch, for arrays, files and images; an iterable's batches stay as they are.
        exact: for a model that runs on so many samples only (`models/batch_size.py`): every batch is cut to that,
            and what is left of it does not count.
        mean, std: for images, of the values from 0 to 1: a number, or one for each channel. By default those of ImageNet for
            3 channels and 0 and 1 for grey images, with a warning: they must be those of the model's own preprocessing.
        names: what the model calls its inputs, by their ids, where these are others: torch.fx renames `input` to `input_1`.

    Raises:
        UnsupportedModelError: the data is of no kind that is known, images do not suit the model, Pillow is missing, or an
            option makes no sense. What single batches lack is raised when they are reached.
    """
    nodes, called = tuple(inputs), names or {}
    batch = batch if exact is None else exact
    if batch < 1:
        raise UnsupportedModelError(f"calibration: batch={batch}; give a number of samples, at least 1")
    path = Path(data) if isinstance(data, str | os.PathLike) else None
    if path is not None:
        check_path(path)
    images = _images_in(path) if path is not None and path.is_dir() else []
    if not images and not (mean is None and std is None):
        raise UnsupportedModelError(
            "calibration: mean and std are for a folder of images; arrays are taken as they are, so normalise them before"
        )
    if path is not None and images:
        return Batches(nodes, exact, _ImageFolder.of(path, images, nodes, batch, mean, std).start, called)
    if path is not None:
        return Batches(nodes, exact, _of_files(path, nodes, batch, called), called)
    if isinstance(data, np.ndarray | Tensor | tuple | Mapping):
        arrays = selected(data, nodes, called)
        return Batches(nodes, exact, lambda: _cut(arrays, nodes, batch), called)
    if not isinstance(data, Iterable):
        raise UnsupportedModelError(
            f"found calibration data of type {type(data).__name__}; expected arrays, a path, or an iterable of batches"
        )
    return Batches(nodes, exact, _Replay.of(data).start, called)


def check_path(path: Path) -> None:
    """Raises UnsupportedModelError where there is no such data, or Pillow is missing for it: to be asked before work."""
    if not path.exists():
        raise UnsupportedModelError(f"{path}: no such calibration file; expected an .npz, an .npy or a folder")
    if path.is_dir() and _images_in(path) and importlib.util.find_spec("PIL") is None:
        raise UnsupportedModelError(
            f"{path}: reading images needs Pillow, which is not installed; pip install pillow, or give an .npz of arrays"
        )


def again(data: Held) -> Held | list[Any]:
    """The same data, held in memory where it is a generator, which can be gone over once."""
    return list(data) if isinstance(data, Iterator) else data


def _check_numbers(batch: Batch, inputs: Sequence[Node], number: int) -> None:
    """Raises UnsupportedModelError for a batch with NaN in it."""
    for array, node in zip(batch, inputs, strict=True):
        if array.dtype.kind == "f" and np.isnan(array).any():
            first = int(np.argwhere(np.isnan(array)).flat[0]) if array.ndim else 0
            raise UnsupportedModelError(
                f"calibration batch {number}: sample {first} (both counted from 0) holds NaN for {node.id}, and all that is "
                "fitted to it would be NaN; take it out"
            )


def _exactly(batch: Batch, size: int | None) -> Iterator[Batch]:
    """The pieces of this size of a batch; an array that has no sample axis of its own is all of it in each."""
    if size is None:
        yield batch
        return
    length = max((len(array) for array in batch if array.ndim), default=0)
    for first in range(0, length - size + 1, size):
        yield tuple(array[first : first + size] if array.ndim and len(array) == length else array for array in batch)


@dataclass(frozen=True, slots=True, eq=False)
class _Replay:
    """An iterable that gives the same batches at every start.

    generators: those that a DataLoader draws its order from, each with the state that it had at first.
    """

    data: Iterable[Any]
    generators: tuple[tuple[torch.Generator, Tensor], ...]

    @staticmethod
    def of(data: Iterable[Any]) -> "_Replay":
        data = again(data)
        owned = (getattr(holder, "generator", None) for holder in (data, getattr(data, "sampler", None)))
        return _Replay(data, tuple((g, g.get_state()) for g in owned if isinstance(g, torch.Generator)))

    def start(self) -> Iterator[Any]:
        for generator, state in self.generators:
            generator.set_state(state)
        found, end = None, object()
        for number in count():
            with torch.random.fork_rng(devices=[]):  # only round the loader's own code: the caller's draws go on as they would
                torch.default_generator.manual_seed(number)
                found = iter(self.data) if found is None else found
                batch = next(found, end)
            if batch is end:
                return
            yield batch


def _of_files(path: Path, inputs: tuple[Node, ...], batch: int, names: Mapping[str, str]) -> Callable[[], Iterator[Any]]:
    """The start of what an .npz, an .npy or a folder of .npy holds."""
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    if not files:
        raise UnsupportedModelError(f"{path}: found no .npy and no image ({', '.join(IMAGES)}) in this folder; expected either")
    if not path.is_dir() and path.suffix not in (".npz", ".npy"):
        raise UnsupportedModelError(
            f"{path}: found the calibration file {path.name}; expected an .npz, an .npy, or a folder of images or of .npy"
        )
    read = partial(_npz, names=names) if path.suffix == ".npz" and not path.is_dir() else _npy
    return lambda: (piece for file in files for piece in read(file, inputs, batch))


def _npy(path: Path, inputs: tuple[Node, ...], batch: int) -> Iterator[Batch]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not isinstance(array, np.ndarray):
        raise _unreadable(path, "it holds several arrays; name it .npz")
    return _cut([array], inputs, batch)


def _npz(path: Path, inputs: tuple[Node, ...], batch: int, names: Mapping[str, str]) -> Iterator[Batch]:
    """The arrays of an .npz, read from the archive as far as they are needed: numpy itself reads each as a whole."""
    try:
        with ExitStack() as stack:
            archive = stack.enter_context(ZipFile(path))
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            wanted = selected(members, inputs, names)
            stored = [_Stored.of(stack.enter_context(archive.open(member))) for member in wanted]
            rows = _rows([array.shape for array in stored], inputs, batch)
            if rows is None or any(array.fortran or not array.shape for array in stored):
                yield from _cut([array.whole() for array in stored], inputs, batch)
            else:
                yield from (tuple(array.rows(size) for array in stored) for size in rows)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """An array in a file, after its header."""

    file: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @staticmethod
    def of(file: IO[bytes]) -> "_Stored":
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"an array of format {version}")
        shape, fortran, dtype = readers[version](file)
        if dtype.hasobject:
            raise ValueError("an array of objects")
        return _Stored(file, shape, dtype, fortran)

    def rows(self, count: int) -> Array:
        return self._read((count, *self.shape[1:]))

    def whole(self) -> Array:
        return self._read(self.shape[::-1]).T if self.fortran else self._read(self.shape)

    def _read(self, shape: tuple[int, ...]) -> Array:
        size = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        found = self.file.read(size)
        if len(found) < size:
            raise ValueError(f"the file ends after {len(found)} of {size} bytes")
        return np.frombuffer(found, self.dtype).reshape(shape)


def _unreadable(path: Path, error: object) -> UnsupportedModelError:
    return UnsupportedModelError(f"{path} cannot be read as plain arrays: {error}; write it with numpy.save or numpy.savez")


def _cut(arrays: Sequence[Any], inputs: tuple[Node, ...], batch: int) -> Iterator[Batch]:
    """Arrays, an input each, in batches."""
    arrays = [array if isinstance(array, Tensor | np.ndarray) else np.asarray(array) for array in arrays]
    rows = _rows([tuple(array.shape) for array in arrays], inputs, batch)
    if rows is None:
        yield tuple(arrays)
        return
    first = 0
    for size in rows:
        yield tuple(array[first : first + size] if array.ndim else array for array in arrays)
        first += size


def _rows(shapes: Sequence[tuple[int, ...]], inputs: tuple[Node, ...], batch: int) -> list[int] | None:
    """The samples of each batch that arrays of these shapes are cut into; None where they are one. Numbers are not cut."""
    lengths = {shape[0] for shape in shapes if shape}
    length = lengths.pop() if len(lengths) == 1 else -1
    fixed = {node.type.shape[0] for node in inputs if node.type is not None and node.type.shape}
    if length <= batch or length in fixed:
        return None
    return [min(batch, length - first) for first in range(0, length, batch)]


def _images_in(folder: Path) -> list[Path]:
    """The images in a folder and below, by their paths, but hidden ones; an error where arrays are there as well."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file()]
    shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if shown and any(folder.glob("*.npy")):
        raise UnsupportedModelError(f"{folder}: found images and .npy files; expected one kind of calibration data in a folder")
    return sorted(shown, key=lambda path: path.relative_to(folder).as_posix())


@dataclass(frozen=True, slots=True, eq=False)
class _ImageFolder:
    """Images for an input `N C H W`."""

    files: tuple[Path, ...]
    size: tuple[int, int]
    mean: Float32[np.ndarray, "C 1 1"]
    std: Float32[np.ndarray, "C 1 1"]
    batch: int

    @staticmethod
    def of(
        folder: Path, files: Sequence[Path], inputs: tuple[Node, ...], batch: int, mean: Floats | None, std: Floats | None
    ) -> "_ImageFolder":
        channels, *size = _image_shape(folder, inputs)
        usual = IMAGENET if channels == 3 else PLAIN
        if mean is None or std is None:
            warnings.warn(
                f"{folder}: images are normalised by a guess, the mean {usual[0] if mean is None else mean} and the std "
                f"{usual[1] if std is None else std}; it must be the model's own preprocessing: give mean and std",
                PreprocessingWarning,
                stacklevel=3,
            )
        shift = _per_channel("mean", usual[0] if mean is None else mean, channels)
        scale = _per_channel("std", usual[1] if std is None else std, channels)
        if not (scale > 0).all():
            raise UnsupportedModelError(f"calibration: std={std}; every number must be above 0")
        return _ImageFolder(tuple(files), (size[0], size[1]), shift, scale, batch)

    def start(self) -> Iterator[Array]:
        files = iter(self.files)
        while chunk := list(islice(files, self.batch)):
            yield np.stack([self._image(file) for file in chunk])

    def _image(self, path: Path) -> Float32[np.ndarray, "C H W"]:
        """One image."""
        from PIL import Image

        try:
            with Image.open(path, formats=("PNG", "JPEG", "BMP", "WEBP")) as image:
                if image.mode.startswith(("I", "F")):
                    raise UnsupportedModelError(f"{path}: found pixels of mode {image.mode}; expected 8 bits, or give an .npz")
                whole = image.convert("RGBA") if image.mode == "P" else image  # a palette may have transparent colours
                plain = whole.convert("RGB" if len(self.mean) == 3 else "L")
        except (*UNREADABLE, Image.DecompressionBombError) as error:
            raise UnsupportedModelError(f"{path} cannot be read as an image: {error}; take it out of the folder") from error
        pixels = np.asarray(plain.resize(self.size[::-1], Image.Resampling.BILINEAR, box=_centre(plain.size, self.size)))
        levels = pixels.astype(np.float32).reshape(*self.size, -1).transpose(2, 0, 1) / np.float32(255)
        return np.ascontiguousarray((levels - self.mean) / self.std)


def _centre(found: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of an image (width, height) that, resized to cover (height, width), lies in the centre.

    Left, top, right and bottom, in pixels of the image. Taking it out while resizing gives what resizing first does, and no
    long image is ever made larger than it need be.
    """
    (width, height), (high, wide) = found, size
    is_wide = width * high >= height * wide
    covering = (width * high // height, high) if is_wide else (wide, height * wide // width)
    left, top = (round((covers - kept) / 2) for covers, kept in zip(covering, (wide, high), strict=True))
    across, down = width / covering[0], height / covering[1]
    return left * across, top * down, min((left + wide) * across, width), min((top + high) * down, height)


def _image_shape(folder: Path, inputs: tuple[Node, ...]) -> tuple[int, int, int]:
    """C, H and W of the one input that takes images."""
    if len(inputs) != 1:
        names = ", ".join(node.id for node in inputs)
        raise UnsupportedModelError(f"{folder}: images are for a model of one input; this one has {names}; give an .npz")
    known = inputs[0].type
    shape = known.shape if known is not None else ()
    match shape:
        case (_, (1 | 3) as channels, int(high), int(wide)) if known is not None and known.dtype in FLOATING:
            return channels, high, wide
    raise UnsupportedModelError(
        f"{folder}: images are for a floating input N C H W with 1 or 3 channels and sizes that are known; {inputs[0].id} is "
        f"{'of unknown shape' if known is None else f'{known.dtype} {shape}'}; "
        f"{in_words_of(python='give example_inputs', command=ask_for_inputs())}, or an .npz"
    )


def _per_channel(name: str, value: Floats, channels: int) -> Float32[np.ndarray, "C 1 1"]:
    numbers = np.asarray(value, np.float32)
    if numbers.size not in (1, channels) or numbers.ndim > 1 or not np.isfinite(numbers).all():
        raise UnsupportedModelError(f"calibration: {name}={value}; expected a number, or one for each of {channels} channels")
    return np.broadcast_to(numbers.reshape(-1, 1, 1), (channels, 1, 1))
