"""Image files as a data source: labels, order, preprocessing, and files that are broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from sources import PAIR, make, refused, signature, take

from edgeopt.core.errors import UsageError

PICTURE = signature(image=("float32", ("N", 3, 4, 5)))
BYTES = signature(image=("uint8", ("N", 3, 4, 5)))


def picture(path: Path, pixels: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def colours(height: int = 4, width: int = 5) -> Any:
    """Red grows downward, green to the right, blue is 200."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 10, columns * 20, np.full_like(rows, 200)], axis=-1).astype(np.uint8)


def test_images_of_class_folders_are_labelled_in_order(tmp_path: Path) -> None:
    for name in ("photos/dog/1.png", "photos/cat/2.png", "photos/cat/deep/1.PNG", "photos/.hidden/1.png"):
        picture(tmp_path / name, colours())
    (tmp_path / "photos/cat/notes.txt").write_text("not an image")
    source = make("images", "photos")
    assert [one.label for one in take(source, tmp_path, BYTES)] == [0, 0, 1]
    assert [path.relative_to(tmp_path / "photos").as_posix() for path in source.user_files(tmp_path)] == [
        "cat/2.png",
        "cat/deep/1.PNG",
        "dog/1.png",
    ]


def test_image_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for name in ("0", "2", "10"):
        picture(tmp_path / f"d/{name}/{name}.png", np.full((4, 5, 3), int(name)))
    found = take(make("images", "d"), tmp_path, BYTES)
    assert [(one.label, int(one.inputs["image"].max())) for one in found] == [(0, 0), (1, 2), (2, 10)]


def test_images_of_a_flat_folder_have_no_label(tmp_path: Path) -> None:
    for name in "ba":
        picture(tmp_path / f"{name}.png", colours())
    found = take(make("images", ".", samples=1), tmp_path, BYTES)
    assert len(found) == 1 and found[0].label is None
    assert make("images", ".", samples=1).user_files(tmp_path) == [tmp_path / "a.png"]


def test_images_take_labels_from_a_csv_file(tmp_path: Path) -> None:
    for name in ("d/a.png", "d/sub/b.png"):
        picture(tmp_path / name, colours())
    (tmp_path / "labels.csv").write_text("name,label\nsub/b.png,7\na.png,0.5\n")
    source = make("images", "d", labels="labels.csv")
    assert [one.label for one in take(source, tmp_path, BYTES)] == [0.5, 7]
    assert tmp_path / "labels.csv" in source.user_files(tmp_path)
    (tmp_path / "labels.csv").write_text("a.png,1\n")
    refused(UsageError, source, tmp_path, BYTES, "no label for d/sub/b.png")
    (tmp_path / "labels.csv").write_text("a.png,1\na.png,2\n")
    refused(UsageError, source, tmp_path, BYTES, "labels.csv:2", "two labels")
    (tmp_path / "labels.csv").unlink()
    refused(UsageError, source, tmp_path, BYTES, "no such file: labels.csv")


def test_images_of_a_list_are_relative_to_it(tmp_path: Path) -> None:
    for name in ("lists/a.png", "other/b,c.png"):
        picture(tmp_path / name, colours())
    (tmp_path / "lists/list.txt").write_text('# all\na.png,3\n\n"../other/b,c.png",4\n')
    source = make("images", "lists/list.txt")
    assert [one.label for one in take(source, tmp_path, BYTES)] == [3, 4]
    assert len(source.user_files(tmp_path)) == 3
    (tmp_path / "lists/list.txt").write_text("a.png,cat\n")
    refused(UsageError, source, tmp_path, BYTES, "list.txt:1", "a number as label")
    (tmp_path / "lists/list.txt").write_text("gone.png,1\n")
    refused(UsageError, source, tmp_path, BYTES, "no such image: lists/gone.png")


def test_images_are_laid_out_and_coloured_as_asked(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", colours())
    upright = colours()
    wide = signature(image=("uint8", ("N", 4, 5, 3)))
    gray = signature(image=("uint8", ("N", 1, 4, 5)))
    assert np.array_equal(take(make("images", "."), tmp_path, BYTES)[0].inputs["image"], upright.transpose(2, 0, 1))
    assert np.array_equal(take(make("images", ".", color="bgr", layout="NHWC"), tmp_path, wide)[0].inputs["image"], upright[..., ::-1])
    found = take(make("images", ".", color="gray"), tmp_path, gray)[0].inputs["image"]
    assert np.array_equal(found[0], np.asarray(Image.fromarray(upright).convert("L")))
    plain = signature(image=("uint8", ("N", 4, 5)))
    assert take(make("images", ".", color="gray"), tmp_path, plain)[0].inputs["image"].shape == (4, 5)


def test_images_become_floats_only_by_scale_mean_and_std(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", colours())
    refused(UsageError, make("images", "."), tmp_path, PICTURE, "uint8, and the model wants float32", "`scale`, `mean`, `std`")
    found = take(make("images", ".", std=255), tmp_path, PICTURE)[0].inputs["image"]
    assert found.dtype == np.float32 and np.allclose(found, colours().transpose(2, 0, 1) / 255)
    found = take(make("images", ".", mean=[1, 2, 3], std=[4, 5, 6]), tmp_path, PICTURE)[0].inputs["image"]
    assert np.allclose(found, ((colours() - [1.0, 2, 3]) / [4, 5, 6]).transpose(2, 0, 1))
    for scale in ("1/255", 1 / 255):
        found = take(make("images", ".", scale=scale, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]), tmp_path, PICTURE)[0].inputs["image"]
        assert found.dtype == np.float32
        assert np.allclose(found, ((colours() / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]).transpose(2, 0, 1), atol=1e-6)
    assert np.array_equal(take(make("images", ".", scale=1), tmp_path, PICTURE)[0].inputs["image"], colours().transpose(2, 0, 1))
    refused(UsageError, make("images", ".", mean=[1, 2]), tmp_path, PICTURE, "2 values of mean or std for 3 channels")


def test_images_are_resized_by_the_shorter_side_and_cropped_in_the_middle(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", colours(40, 80))
    resized = take(make("images", ".", resize=20), tmp_path, signature(image=("uint8", ("N", 3, 20, 40))))[0].inputs["image"]
    assert resized.shape == (3, 20, 40)
    cropped = take(make("images", ".", crop=[4, 6]), tmp_path, signature(image=("uint8", ("N", 3, 4, 6))))[0].inputs["image"]
    assert np.array_equal(cropped, colours(40, 80)[18:22, 37:43].transpose(2, 0, 1))
    exact = take(make("images", ".", resize=[7, 9], resample="nearest"), tmp_path, signature(image=("uint8", ("N", 3, 7, 9))))
    assert exact[0].inputs["image"].shape == (3, 7, 9)
    refused(UsageError, make("images", ".", crop=50), tmp_path, BYTES, "a.png is 40×80", "less than the crop 50×50")


def test_images_stand_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    picture(tmp_path / "a.jpg", colours(50, 40), exif=exif, quality=95)
    found = take(make("images", "."), tmp_path, signature(image=("uint8", ("N", 3, 40, 50))))[0].inputs["image"]
    assert found[0, :, 0].mean() > found[0, :, -1].mean()  # red grew downward: now it grows to the left


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "CMYK"])
def test_images_of_any_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    Image.fromarray(colours()).convert(mode).save(tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}")
    assert take(make("images", "."), tmp_path, BYTES)[0].inputs["image"].shape == (3, 4, 5)


def test_images_that_are_broken_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", colours(64, 64))
    whole = (tmp_path / "a.png").read_bytes()
    for data in (b"", b"hello", whole[:60], whole[: len(whole) // 2]):
        (tmp_path / "a.png").write_bytes(data)
        refused(UsageError, make("images", "."), tmp_path, BYTES, "a.png is not a whole image")


def test_images_of_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(tmp_path / "a.png")
    refused(UsageError, make("images", ".", color="gray"), tmp_path, BYTES, "a.png has more than 8 bits")


def test_images_that_would_fill_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", colours(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    refused(UsageError, make("images", "."), tmp_path, BYTES, "a.png", "decompression bomb")


def test_image_folders_that_are_wrong_are_refused(tmp_path: Path) -> None:
    source = make("images", "d")
    refused(UsageError, source, tmp_path, BYTES, "no such file or folder: d")
    with pytest.raises(UsageError):
        source.user_files(tmp_path)
    (tmp_path / "d").mkdir()
    refused(UsageError, source, tmp_path, BYTES, "d holds no images", ".png")
    picture(tmp_path / "d/a.png", colours())
    picture(tmp_path / "d/cat/b.png", colours())
    refused(UsageError, source, tmp_path, BYTES, "images and folders of images")
    refused(UsageError, make("images", "d/a.png"), tmp_path, BYTES, "not a list of images")
    refused(UsageError, make("images", "d/cat"), tmp_path, PAIR, "images feed one input, and the model has 2")
    refused(UsageError, make("images", "d/cat"), tmp_path, signature(i=("uint8", ("N", 3, 8, 8))), "[3, 4, 5]", "wants [3, 8, 8]")


@pytest.mark.parametrize(
    "options",
    [{"resize": 0}, {"crop": [3]}, {"std": 0}, {"layout": "CHW"}, {"scale": 0}, {"scale": "255/0"}, {"scale": "x"}, {"color": "cmyk"}],
)
def test_image_options_are_checked_without_reading(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make("images", "d", **options)
