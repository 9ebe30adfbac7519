"""Folders of images as calibration data: read, resized and normalised as Pillow and the model's authors do it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node
from reparam_compiler.models.calibration import PreprocessingWarning, batches
from tests.support.calibrated import PAIR, SHAPE, X, an_input, joined, normal

ONE_LEVEL = 1.0 / 255  # Pillow rounds to whole levels after each of two passes
FLOAT32 = 1e-6
PLAIN = {"mean": 0.0, "std": 1.0}


def save_image(path: Path, width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    levels = random.integers(0, 256, (height, width, len(mode)) if len(mode) > 1 else (height, width), np.uint8)
    image = Image.fromarray(levels, mode)
    image.save(path)
    return image


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "class_b").mkdir()
    save_image(tmp_path / "class_b" / "a.png", 9, 14, seed=1)
    save_image(tmp_path / "z.bmp", 30, 11, seed=2)
    save_image(tmp_path / "m.webp", 8, 8, seed=3)
    save_image(tmp_path / "b.JPG", 40, 40, seed=4)
    (tmp_path / "readme.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"not one either")
    return tmp_path


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
class TestImages:
    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        width=st.integers(1, 60),
        height=st.integers(1, 60),
        high=st.integers(1, 20),
        wide=st.integers(1, 20),
        grey=st.booleans(),
        seed=st.integers(0, 999),
    )
    def test_an_image_is_resized_to_cover_the_input_and_its_centre_taken(
        self, width: int, height: int, high: int, wide: int, grey: bool, seed: int, tmp_path: Path
    ) -> None:
        image = save_image(tmp_path / "x.png", width, height, "L" if grey else "RGB", seed)
        (found,) = joined(tmp_path, [an_input(1 if grey else 3, high, wide)], **PLAIN)
        scale = max(high / height, wide / width)
        covering = (max(wide, int(width * scale + 1e-9)), max(high, int(height * scale + 1e-9)))
        left, top = round((covering[0] - wide) / 2), round((covering[1] - high) / 2)
        whole = np.asarray(image.resize(covering, Image.Resampling.BILINEAR), np.float32).reshape(*covering[::-1], -1) / 255
        expected = whole[top : top + high, left : left + wide].transpose(2, 0, 1)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[0], expected, rtol=0, atol=1.01 * ONE_LEVEL)

    def test_folders_are_read_in_the_order_of_their_paths(self, pictures: Path) -> None:
        found = batches(pictures, [an_input(3, 6, 8)], batch=3, **PLAIN)
        assert [len(batch) for (batch,) in found] == [3, 1]
        (all_of_them,) = joined(pictures, [an_input(3, 6, 8)], **PLAIN)
        for place, name in enumerate(["b.JPG", "class_b/a.png", "m.webp", "z.bmp"]):
            alone = pictures / "alone"
            alone.mkdir(exist_ok=True)
            (alone / f"x{Path(name).suffix}").write_bytes((pictures / name).read_bytes())
            np.testing.assert_array_equal(joined(alone, [an_input(3, 6, 8)], **PLAIN)[0][0], all_of_them[place])
            (alone / f"x{Path(name).suffix}").unlink()

    def test_only_the_images_of_a_batch_are_open(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(5):
            save_image(tmp_path / f"{number}.png", 8, 8, seed=number)
        opened: list[str] = []
        open_image = Image.open
        monkeypatch.setattr(Image, "open", lambda p, **options: (opened.append(p.name), open_image(p, **options))[1])
        next(iter(batches(tmp_path, [an_input(3, 8, 8)], batch=2, **PLAIN)))
        assert opened == ["0.png", "1.png"]

    def test_mean_and_std_are_applied_for_each_channel(self, tmp_path: Path) -> None:
        save_image(tmp_path / "x.png", 4, 4)
        (plain,) = joined(tmp_path, [an_input(3, 4, 4)], **PLAIN)
        mean, std = (0.1, 0.2, 0.3), (0.5, 2.0, 4.0)
        (found,) = joined(tmp_path, [an_input(3, 4, 4)], mean=mean, std=std)
        expected = (plain - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
        np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT32)

    @pytest.mark.parametrize(("channels", "said"), [(3, r"0\.485.*0\.229"), (1, r"mean \(0\.0,\).*std \(1\.0,\)")])
    def test_a_guess_at_the_preprocessing_is_a_warning(self, channels: int, said: str, tmp_path: Path) -> None:
        save_image(tmp_path / "x.png", 4, 4)
        with pytest.warns(PreprocessingWarning, match=f"{said}.*the model's own preprocessing"):
            batches(tmp_path, [an_input(channels, 4, 4)])

    @pytest.mark.parametrize("mode", ["RGBA", "L", "1", "P", "CMYK", "LA"])
    def test_other_colours_become_rgb_and_grey(self, mode: str, tmp_path: Path) -> None:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)).convert(mode)
        suffix = "jpg" if mode == "CMYK" else "png"
        image.save(tmp_path / f"x.{suffix}", **({"transparency": bytes([0, 128])} if mode == "P" else {}))
        for channels in (1, 3):
            assert joined(tmp_path, [an_input(channels, 6, 7)], **PLAIN)[0].shape == (1, channels, 6, 7)

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "bmp", "webp"]))
    def test_a_broken_image_is_read_or_named(self, data: st.DataObject, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"broken.{suffix}"
        for old in tmp_path.iterdir():
            old.unlink()
        save_image(path, 12, 9)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 8))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
        try:
            said, found = "", joined(tmp_path, [an_input(3, 5, 4)], **PLAIN)
        except UnsupportedModelError as error:
            said, found = str(error), []
        assert [array.shape for array in found] == [(1, 3, 5, 4)] or f"broken.{suffix} cannot be read as an image" in said

    def test_a_text_with_the_name_of_an_image_is_named(self, tmp_path: Path) -> None:
        save_image(tmp_path / "a.png", 4, 4)
        (tmp_path / "b.png").write_text("no image")
        found = iter(batches(tmp_path, [an_input(3, 4, 4)], batch=1, **PLAIN))
        next(found)
        with pytest.raises(UnsupportedModelError, match=r"b\.png cannot be read as an image.*take it out"):
            next(found)

    def test_sixteen_bits_are_refused(self, tmp_path: Path) -> None:
        Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000).save(tmp_path / "deep.png")
        with pytest.raises(UnsupportedModelError, match=r"deep\.png: found pixels of mode I;16; expected 8 bits"):
            list(batches(tmp_path, [an_input(1, 4, 4)], **PLAIN))

    def test_a_missing_pillow_says_what_to_install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_image(tmp_path / "x.png", 4, 4)
        monkeypatch.setitem(sys.modules, "PIL", None)
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        with pytest.raises(UnsupportedModelError, match="pip install pillow"):
            batches(tmp_path, [an_input(3, 4, 4)], **PLAIN)

    @pytest.mark.parametrize(
        ("inputs", "said"),
        [
            (PAIR, "images are for a model of one input; this one has a, b"),
            ([an_input(4, 6, 6)], r"1 or 3 channels.* x is f32 \('N', 4, 6, 6\)"),
            ([an_input(3, "H", 6)], r"sizes that are known; x is f32"),
            ([an_input(6, 6, 3)], r"N C H W.* x is f32 \('N', 6, 6, 3\)"),
            ([an_input(3, 6, 6, dtype="u8")], r"floating input.* x is u8"),
            ([an_input(12)], r"x is f32 \('N', 12\)"),
            ([Node("x", ops.Input(), (), None)], "x is of unknown shape; give example_inputs"),
        ],
    )
    def test_inputs_that_take_no_images_are_named(self, inputs: list[Node], said: str, tmp_path: Path) -> None:
        save_image(tmp_path / "x.png", 4, 4)
        with pytest.raises(UnsupportedModelError, match=said):
            batches(tmp_path, inputs, **PLAIN)

    @pytest.mark.parametrize(
        ("mean", "std", "said"),
        [
            ((0.1, 0.2), 1.0, r"mean=\(0\.1, 0\.2\); expected a number, or one for each of 3 channels"),
            (float("nan"), 1.0, "mean=nan"),
            (0.0, (1.0, 0.0, 1.0), "every number must be above 0"),
        ],
    )
    def test_normalisations_that_make_no_sense_are_refused(self, mean: Any, std: Any, said: str, tmp_path: Path) -> None:
        save_image(tmp_path / "x.png", 4, 4)
        with pytest.raises(UnsupportedModelError, match=said):
            batches(tmp_path, [an_input(3, 4, 4)], mean=mean, std=std)

    def test_a_folder_of_both_images_and_arrays_is_refused(self, tmp_path: Path) -> None:
        save_image(tmp_path / "x.png", 4, 4)
        np.save(tmp_path / "x.npy", normal(2, *SHAPE))
        with pytest.raises(UnsupportedModelError, match=r"images and \.npy files"):
            batches(tmp_path, X, **PLAIN)
