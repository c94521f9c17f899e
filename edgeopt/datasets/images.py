"""Samples from image files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from edgeopt.core import registry
from edgeopt.core.artifact import Signature
from edgeopt.core.errors import Place, UsageError
from edgeopt.core.protocols import Dataset, Sample
from edgeopt.core.samples import sample_shape

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_MODES = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}

_Size = Annotated[int, Field(gt=0)]
_Pair = Annotated[list[_Size], Field(min_length=2, max_length=2)]
_Scale = Annotated[float, Field(gt=0)]
_Fraction = Annotated[str, Field(pattern=r"^[1-9]\d{0,5}/[1-9]\d{0,5}$")]


@dataclass(frozen=True)
class _Image:
    path: Path
    label: Any = None


class Images(Dataset):
    """Image files: a folder, a folder with one subfolder per class, or a text file of lines `path[,label]`.

    Steps in this order: decode (upright as its EXIF data say), `color`, `resize`, centre `crop`,
    (pixel · `scale` − `mean`) / `std` with pixels in 0 … 255, `layout`. Pixels stay uint8 where none of the
    three is given, else they become float32. `scale: 1/255` makes `mean` and `std` those of pixels in 0 … 1:
    {scale: 1/255, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}. The label of a class subfolder is its
    number in sorted order (numerically when all names are numbers). Images go by name.
    """

    source: str = Field(description="folder, or list file whose paths are relative to it")
    labels: str | None = Field(default=None, description="a CSV file of lines `name,label` for the images in the folder")
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    resize: _Size | _Pair | None = Field(default=None, description="length of the shorter side, or [height, width]")
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field(default="bilinear", description="how resizing interpolates")
    crop: _Size | _Pair | None = Field(default=None, description="centre square, or [height, width]")
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    scale: _Scale | _Fraction | None = Field(default=None, description="pixels are multiplied by it first: a number or a fraction, 1/255")
    mean: float | list[float] | None = Field(default=None, description="then subtracted; one value or one per channel, of scaled pixels")
    std: _Scale | list[_Scale] | None = Field(default=None, description="then divided by; one value or one per channel, of scaled pixels")

    def user_files(self, base: Path) -> list[Path]:
        lists = [base / self.labels] if self.labels else []
        if (base / self.source).is_file():
            lists.append(base / self.source)
        return [*lists, *(image.path for image in self._images(base))]

    def packages(self, base: Path) -> list[str]:
        return ["pillow", "numpy"]

    def read(self, base: Path, signature: Signature) -> Iterator[Sample]:
        if len(signature.inputs) != 1:
            remedy = "write a python data source that yields all of them"
            raise UsageError(f"data: images feed one input, and the model has {len(signature.inputs)}", remedy=remedy)
        spec = signature.inputs[0]
        flat = self.color == "gray" and len(sample_shape(spec, signature)) == 2
        for image in self._images(base):
            pixels = self._pixels(image.path, self._shown(image.path, base))
            yield Sample({spec.name: pixels.reshape([size for size in pixels.shape if size != 1]) if flat else pixels}, image.label)

    def _pixels(self, path: Path, shown: str) -> Any:
        """One image as an array; uint8 unless `scale`, `mean` or `std` say how pixels become floats."""
        import numpy as np

        pillow = registry.need("PIL.Image", "images")
        operations = registry.need("PIL.ImageOps", "images")
        try:
            with pillow.open(path) as file:
                if file.mode.startswith(("I", "F")):
                    raise UsageError(f"{shown} has more than 8 bits per channel", remedy="convert it, or read it with a python data source")
                image = operations.exif_transpose(file).convert(_MODES[self.color])
        except UsageError:
            raise
        except FileNotFoundError:
            raise UsageError(f"no such image: {shown}", remedy="mend the list") from None
        except pillow.DecompressionBombError as error:
            raise UsageError(f"{shown}: {error}", remedy="leave the image out") from None
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (decoders raise a dozen kinds, struct.error and zlib.error among them)
            raise UsageError(f"{shown} is not a whole image: {error}", remedy="mend or remove the file") from None
        array = np.asarray(self._cropped(self._resized(image, pillow), shown))
        array = array[..., None] if array.ndim == 2 else array
        if self.color == "bgr":
            array = array[..., ::-1]
        if (self.scale, self.mean, self.std) != (None, None, None):
            mean, std = (self._channels(value, array.shape[-1]) for value in (self.mean or 0.0, self.std or 1.0))
            array = (array.astype(np.float32) * np.float32(self._factor()) - mean) / std
        return array if self.layout == "NHWC" else array.transpose(2, 0, 1)

    def _factor(self) -> float:
        if isinstance(self.scale, str):
            above, below = self.scale.split("/")
            return float(above) / float(below)
        return 1.0 if self.scale is None else self.scale

    def _channels(self, value: float | list[float], count: int) -> Any:
        import numpy as np

        if isinstance(value, list) and len(value) != count:
            raise UsageError(f"data: {len(value)} values of mean or std for {count} channels", remedy="give one value, or one per channel")
        return np.asarray(value, np.float32)

    def _resized(self, image: Image.Image, pillow: Any) -> Image.Image:
        if self.resize is None:
            return image
        width, height = image.size
        if isinstance(self.resize, list):
            height, width = self.resize
        else:
            shorter = min(width, height)
            height, width = (max(1, int(self.resize * side / shorter)) for side in (height, width))
        return image.resize((width, height), getattr(pillow.Resampling, self.resample.upper()))

    def _cropped(self, image: Image.Image, shown: str) -> Image.Image:
        if self.crop is None:
            return image
        height, width = self.crop if isinstance(self.crop, list) else (self.crop, self.crop)
        if height > image.height or width > image.width:
            raise UsageError(
                f"{shown} is {image.height}×{image.width} after resizing, less than the crop {height}×{width}", remedy="add `resize`"
            )
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def _images(self, base: Path) -> list[_Image]:
        """All images in order, at most `samples`."""
        source = base / self.source
        if source.is_dir():
            found = self._labelled(source, base) if self.labels else _in_folder(source, self.source)
            if not found:
                raise UsageError(f"data: {self.source} holds no images", remedy=f"edgeopt takes {' '.join(sorted(SUFFIXES))}")
        elif source.is_file():
            if self.labels:
                raise UsageError("data: `labels` goes with a folder", remedy="write the labels into the list: path,label")
            found = [_Image(source.parent / name, label) for name, label, _ in _lines(source, self.source)]
        else:
            raise UsageError(f"no such file or folder: {self.source}", remedy="paths are relative to the recipe's folder")
        return found[: self.samples]

    def _labelled(self, folder: Path, base: Path) -> list[_Image]:
        """The images of a folder, however deep, with the labels of the CSV file."""
        labels: dict[str, Any] = {}
        path, name = base / str(self.labels), str(self.labels)
        if not path.is_file():
            raise UsageError(f"no such file: {name}", remedy="paths are relative to the recipe's folder")
        for image, label, line in _lines(path, name, header=True):
            if labels.setdefault(image, label) != label:
                raise UsageError(f"'{image}' has two labels", place=Place(name, line), remedy="keep one of them")
        found = [_Image(one, labels.get(one.relative_to(folder).as_posix(), labels.get(one.name))) for one in _files(folder)]
        for one in found:
            if one.label is None:
                raise UsageError(f"no label for {self._shown(one.path, base)} in {name}", remedy="add a line `name,label`")
        return found

    def _shown(self, path: Path, base: Path) -> str:
        return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def _in_folder(folder: Path, shown: str) -> list[_Image]:
    """The images of a folder; those of class subfolders get the class's number."""
    flat = [_Image(path) for path in sorted(folder.iterdir()) if _is_image(path)]
    classes = [path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name)]
    numbers = all(path.name.isdecimal() for path in classes)
    classes.sort(key=lambda path: (int(path.name) if numbers else 0, path.name))
    nested = [_Image(path, index) for index, one in enumerate(classes) for path in _files(one)]
    if flat and nested:
        raise UsageError(
            f"data: {shown} holds images and folders of images", remedy="put every image into the folder of its class, or give a list"
        )
    return flat or nested


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if _is_image(path)]
    return sorted(path for path in found if not any(_hidden(part) for part in path.relative_to(folder).parts))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not _hidden(path.name) and path.is_file()


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _lines(path: Path, shown: str, *, header: bool = False) -> Iterator[tuple[str, Any, int]]:
    """(name, label or None, line) of a text file `name[,label]`; blank lines and those that start with # are passed over."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            for row in rows:
                if not row or not row[0].strip() or row[0].startswith("#"):
                    continue
                label = _label(row[1].strip()) if len(row) > 1 else None
                if len(row) > 2 or (len(row) == 2 and label is None):
                    if header and rows.line_num == 1 and Path(row[0]).suffix.lower() not in SUFFIXES:
                        continue
                    place = Place(shown, rows.line_num)
                    raise UsageError("not a line `path,label` with a number as label", place=place, remedy="quote paths that hold commas")
                yield row[0].strip(), label, rows.line_num
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{shown} is not a list of images: {error}", remedy="write lines `path` or `path,label` in UTF-8") from None


def _label(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
