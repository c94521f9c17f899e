"""anatomy of Keras files: layers and inputs as the configuration tells them, weights as HDF5 stores them. Nothing is built."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeopt.core import registry
from edgeopt.core.errors import UntrustedError, UsageError

_LARGEST_CONFIG = 100_000_000  # bytes


def keras(path: Path) -> dict[str, Any]:
    """A `.keras` archive, or HDF5 of Keras 2. Sizes of outputs do not stand in either."""
    h5py = registry.need("h5py", "keras")
    stored: Counter[str] = Counter()

    def count(name: str, one: Any) -> None:
        if isinstance(one, h5py.Dataset) and not name.startswith("optimizer"):
            stored[str(one.dtype)] += one.size

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo("config.json").file_size > _LARGEST_CONFIG:
                    raise UntrustedError(
                        f"{path.name}: its config.json expands to more than {_LARGEST_CONFIG:,} bytes", remedy="save it again"
                    )
                config = json.loads(archive.read("config.json"))
                version = json.loads(archive.read("metadata.json"))["keras_version"]
                with archive.open("model.weights.h5") as weights, h5py.File(weights, "r") as opened:
                    opened.visititems(count)
        else:
            with h5py.File(path, "r") as opened:
                config, version = json.loads(opened.attrs["model_config"]), opened.attrs.get("keras_version")
                opened["model_weights"].visititems(count)
        layers = config["config"]["layers"]
        signature = _signature(config["config"], layers)
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, RuntimeError):
        raise UsageError(f"{path.name}: not a whole Keras model, or truncated", remedy="write it with model.save('model.keras')") from None
    floats = ("float", "bfloat")
    return {
        "format": "keras",
        "signature": signature,
        "parameters": sum(size for dtype, size in stored.items() if dtype.startswith(floats)),
        "stored": dict(stored.most_common()),
        "operators": dict(Counter(layer["class_name"] for layer in layers if layer["class_name"] != "InputLayer").most_common()),
        "facts": {"keras": version.decode() if isinstance(version, bytes) else version, "model": config["class_name"]},
    }


def _signature(config: dict[str, Any], layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Inputs and outputs in the order of the configuration; a Sequential model has one of each."""
    by_name = {layer["config"]["name"]: layer["config"] for layer in layers}
    first, last = layers[0]["config"]["name"], layers[-1]["config"]["name"]
    inputs = [by_name[name] for name in _layers_of(config.get("input_layers", [[first, 0, 0]]))]
    outputs = list(_layers_of(config.get("output_layers", [[last, 0, 0]])))
    return {
        "inputs": [{"name": one["name"], "dtype": _dtype(one.get("dtype")), "shape": _shape(one)} for one in inputs],
        "outputs": [{"name": name, "dtype": None, "shape": ["?"]} for name in outputs],
    }


def _layers_of(places: Any) -> Iterator[str]:
    """The layers that places name: [layer, node, tensor], nested in lists or by names."""
    if isinstance(places, dict):
        places = list(places.values())
    if len(places) == 3 and isinstance(places[0], str):
        yield places[0]
    else:
        for one in places:
            yield from _layers_of(one)


def _shape(config: dict[str, Any]) -> list[int | str]:
    """With the names that the import gives to open axes."""
    sizes = config.get("batch_shape") or config.get("batch_input_shape") or ["?"]
    return [size or ("N" if axis == 0 else f"axis_{axis}") for axis, size in enumerate(sizes)]


def _dtype(value: Any) -> str | None:
    """The type of an input; a policy's compute type does not change what is fed."""
    return value if isinstance(value, str) else None
