"""What a Keras file may hold: the configuration of Keras's own layers, and plain weights.

A `.keras` file is a zip archive of config.json, metadata.json and weights in HDF5; an `.h5` file of Keras 2 is HDF5 with the
configuration among its attributes. Layers of code of their own, pickles, and HDF5 that names other files are refused here,
before Keras opens the file: of the two formats it has a safe mode for the first only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import registry
from edgeopt.core.errors import MissingError, UntrustedError, UsageError

if TYPE_CHECKING:
    import h5py

ARCHIVE, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
_SUFFIXES = {ARCHIVE: (".keras",), HDF5: (".h5", ".hdf5")}  # Keras goes by these
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_PARTS = (_CONFIG, _WEIGHTS, "metadata.json", "assets/")
_LARGEST_CONFIG = 100_000_000  # bytes; that of a network of thousands of layers takes a few millions
_AGAIN = "save the whole model again: model.save('model.keras')"
_ELSEWHERE = "build it of Keras's own layers, or export it where its code is: model.export('model.onnx', format='onnx')"
# Layers that run what the file or another file brings: Python, pickles, programs of other frameworks, vocabularies by name.
_FOREIGN = {
    "Lambda": "Python code",
    "__lambda__": "Python code",
    "TorchModuleWrapper": "a pickle",
    "TFSMLayer": "a TensorFlow program",
    "JaxLayer": "a JAX function",
    "FlaxLayer": "a JAX function",
    "__typespec__": "a type of TensorFlow",
    "StringLookup": "a vocabulary of text",
    "IntegerLookup": "a vocabulary that may lie in another file",
    "TextVectorization": "a vocabulary of text",
}
# Where Keras keeps what a model is built of. Other modules of it load files, or fetch them.
_ROOMS = ("layers", "models", "initializers", "regularizers", "constraints", "activations", "dtype_policies", "ops", "random")
_MODULES = tuple(f"keras.{inner}{room}" for inner in ("", "src.") for room in _ROOMS)
_FUNCTIONS = ("builtins", "keras.activations", "keras.src.activations")
_TOP = ("Sequential", "Functional", "Model", "DTypePolicy", "FloatDTypePolicy")  # of the module `keras`
# What Keras 2 wrote among the options of layers and Keras 3 refuses, where it says nothing.
_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D")
_TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_GONE = {
    **dict.fromkeys((*_DEPTHWISE, *_TRANSPOSED), ("groups", 1)),
    **dict.fromkeys(("RNN", "SimpleRNN", "LSTM", "GRU"), ("time_major", False)),
}
# Words of the file formats that are no classes.
_MARKS = ("function", "__keras_tensor__", "__tensor__", "__numpy__", "__tuple__", "__slice__", "__ellipsis__", "Policy")


def examine(path: Path) -> dict[str, Any]:
    """The configuration of the model in a file that holds no code. Raises UsageError or UntrustedError."""
    if path.is_dir():
        raise UsageError(
            f"{path.name} is a folder, as TensorFlow saves a program without its layers (SavedModel)",
            remedy="save the model from Keras as one file: model.save('model.keras')",
        )
    if not path.is_file():
        raise UsageError(f"no such file: {path}", remedy="paths are relative to the recipe's folder")
    with path.open("rb") as file:
        head = file.read(8)
    kind = next((one for one in _SUFFIXES if head.startswith(one)), None)
    if kind is None:
        raise UsageError(f"{path.name} is no Keras model, or is cut off", remedy=_AGAIN)
    if path.suffix.lower() not in _SUFFIXES[kind]:
        what = "a zip archive" if kind == ARCHIVE else "HDF5"
        raise UsageError(f"{path.name} is {what} inside", remedy=f"rename it to {path.stem}{_SUFFIXES[kind][0]}")
    try:
        config = _archive(path) if kind == ARCHIVE else _hdf5(path)
        if not isinstance(config, dict):
            raise TypeError
        # What the model was trained with is not loaded.
        _refuse_code(path.name, {key: value for key, value in config.items() if key != "compile_config"})
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, RuntimeError, NotImplementedError):
        raise UsageError(f"{path.name} is no Keras model, or is damaged", remedy=_AGAIN) from None
    return config


@contextlib.contextmanager
def readable(path: Path, config: dict[str, Any]) -> Iterator[Path]:
    """The file, or a copy of it for the time being, without options of layers that Keras no longer knows. Changes `config`."""
    gone = False
    for one in _objects(config):
        option, value = _GONE.get(str(one["class_name"]), ("", None))
        options = one.get("config")
        if isinstance(options, dict) and option in options and options[option] == value:
            del options[option]
            gone = True
    if not gone:
        yield path
        return
    text = json.dumps(config).encode()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        if path.suffix.lower() in _SUFFIXES[ARCHIVE]:
            with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
                for name in old.namelist():
                    new.writestr(name, text if name == _CONFIG else old.read(name))
        else:
            shutil.copyfile(path, copy)
            with registry.need("h5py", "keras").File(copy, "r+") as opened:
                opened.attrs["model_config"] = text
        yield copy


def _archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if _CONFIG not in names:
            raise UsageError(f"{path.name} is an archive, but of no Keras model: it has no {_CONFIG}", remedy=_AGAIN)
        strange = next((name for name in names if name not in _PARTS), None)
        if strange or len(set(names)) < len(names):
            what = f"'{strange}', which is no part of a plain Keras model" if strange else "two files of one name"
            raise UntrustedError(f"{path.name} holds {what}", remedy=_ELSEWHERE)
        if archive.getinfo(_CONFIG).file_size > _LARGEST_CONFIG:
            raise UntrustedError(f"{path.name}: its {_CONFIG} expands to more than {_LARGEST_CONFIG:,} bytes", remedy=_AGAIN)
        with archive.open(_WEIGHTS) as weights, registry.need("h5py", "keras").File(weights, "r") as opened:
            _refuse_links(path.name, opened)
        return json.loads(archive.read(_CONFIG))


def _hdf5(path: Path) -> Any:
    with registry.need("h5py", "keras").File(path, "r") as opened:
        config = opened.attrs.get("model_config")
        if config is None:
            raise UsageError(f"{path.name} holds weights alone, or no Keras model", remedy=_AGAIN)
        _refuse_links(path.name, opened)
        return json.loads(config)


def _refuse_links(file: str, root: h5py.Group) -> None:
    """Raises UntrustedError when anything in HDF5 lies elsewhere: behind a link, in another file."""
    import h5py

    waiting, seen = [root], set()
    while waiting:
        group = waiting.pop()
        for name in group:
            one = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
            if one is None or (isinstance(one, h5py.Dataset) and (one.is_virtual or one.external)):
                raise UntrustedError(f"{file}: its weights '{group.name}/{name}' are named in the file and lie elsewhere", remedy=_AGAIN)
            place = h5py.h5o.get_info(one.id).addr
            if isinstance(one, h5py.Group) and place not in seen:  # a group may hold itself
                seen.add(place)
                waiting.append(one)


def _refuse_code(file: str, config: Any) -> None:
    for one in _objects(config):
        name, module, registered = str(one["class_name"]), one.get("module"), one.get("registered_name")
        if name in _FOREIGN:
            raise UntrustedError(f"{file} holds {_FOREIGN[name]} in a layer {name}, and is not opened", remedy=_ELSEWHERE)
        if ">" in name or ">" in str(registered) or not (_known(name) if module is None else _own(str(module), name)):
            shown = f"{module}.{name}" if module else str(registered or name)
            raise UntrustedError(f"{file} needs code that is no part of Keras: {shown}", remedy=_ELSEWHERE)


def _own(module: str, name: str) -> bool:
    """Whether a class that is named with its module is one that Keras builds models of."""
    if name == "function":
        return module in _FUNCTIONS
    inside = any(f"{module}.".startswith(f"{one}.") for one in _MODULES)
    return (module == "keras" and name in _TOP) or (inside and name[:1].isupper())  # in small letters stand functions, that load files too


def _known(name: str) -> bool:
    """The same of a class that is named alone, as files of Keras 2 do."""
    keras = framework()
    return name in (*_TOP, *_MARKS) or any(isinstance(getattr(getattr(keras, room), name, None), type) for room in _ROOMS)


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every object in a configuration: what has a class."""
    waiting = [config]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "class_name" in one:
                yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def framework() -> Any:
    """Keras on its torch backend. Raises MissingError where it is not installed, or at work on another."""
    registry.need("torch", "torch")
    os.environ["KERAS_BACKEND"] = "torch"  # read once, when Keras is imported
    keras = registry.need("keras", "keras")
    if keras.backend.backend() != "torch":
        raise MissingError(
            f"Keras was imported before on the backend '{keras.backend.backend()}', and torch's is needed here",
            remedy="set KERAS_BACKEND=torch for this run",
        )
    return keras
