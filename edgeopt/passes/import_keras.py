"""The import of a Keras model: loaded without any code of its own, on Keras's torch backend, and exported to ONNX as torch models are."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeopt.core import registry
from edgeopt.core.artifact import Artifact, TensorSpec
from edgeopt.core.errors import UsageError
from edgeopt.core.model import FileRef
from edgeopt.core.protocols import Context, Pass
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import torch as torch_format
from edgeopt.passes import export_onnx, import_keras_file, import_keras_layers

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto
    from torch import Tensor, nn

    Feeds = dict[str, np.ndarray[Any, Any]]


class ImportKeras(Pass, FileRef, produces="onnx", needs=("keras", "h5py", "torch", "onnx", "onnxscript", "onnxruntime")):
    """Load a Keras model (`.keras`, or `.h5` of Keras 2) without what it was compiled with, and export it to ONNX through torch.

    Layers with code of their own (Lambda, custom classes) are refused. Input and output names are Keras's.
    """

    extra: ClassVar[str] = "keras"

    def user_files(self, base: Path) -> list[Path]:
        return [self.locate(base)]

    def run(self, model: Artifact, ctx: Context) -> Path:
        registry.need("onnxscript", "torch")
        keras_model = load(self.locate(ctx.base))
        inputs, outputs = input_specs(keras_model), output_names(keras_model)
        recurrent = import_keras_layers.keep_whole(keras_model)
        if any(recurrent.values()):
            ctx.note("recurrent_layers", recurrent)
        ctx.note("parameters", keras_model.count_params())
        module = as_torch(keras_model)
        signature = torch_format.describe(module, inputs, outputs)
        proto = channels_first(export_onnx.export(module, signature, outputs, ctx))
        onnx_format.name_axes(proto, signature)
        return onnx_format.save(proto, ctx.folder / onnx_format.MAIN)

    def original(self, base: Path) -> Callable[[Feeds], Feeds]:
        """The Keras model itself, layer by layer, as its `predict` computes."""
        keras_model = load(self.locate(base))
        inputs, outputs, module = input_specs(keras_model), output_names(keras_model), as_torch(keras_model)
        return lambda feeds: torch_format.arrays(
            torch_format.run(module, [torch_format.tensor(feeds[spec.name]) for spec in inputs], outputs)
        )


def load(path: Path) -> Any:
    """The model of a file that holds no code, ready to infer. Raises UsageError or UntrustedError."""
    config = import_keras_file.examine(path)
    keras = import_keras_file.framework()
    try:
        with warnings.catch_warnings(), import_keras_file.readable(path, config) as file:
            warnings.simplefilter("ignore")
            model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except MemoryError:
        raise
    except Exception as error:
        raise UsageError(
            f"{path.name} cannot be loaded by Keras {keras.__version__}: {_line(error)}",
            remedy="save it as Keras does now: model.save('model.keras')",
        ) from error
    if not getattr(model, "inputs", None):
        raise UsageError(f"{path.name} does not say what it takes", remedy="begin the model with keras.Input(shape), and save it again")
    _refuse_broken(model, path.name)
    model.eval()
    return model


def _refuse_broken(model: Any, file: str) -> None:
    """Raises UsageError for weights of a training that diverged, and for a model whose answer depends on the call before."""
    import numpy as np

    broken = [one.path for one in model.weights if not np.isfinite(one.numpy().astype(np.float64)).all()]
    if broken:
        raise UsageError(f"{file} holds NaN or infinity: {', '.join(broken[:5])}", remedy="take a model from before the training diverged")
    keeps = next((one.name for one in import_keras_layers.layers(model) if getattr(one, "stateful", False)), None)
    if keeps:
        raise UsageError(
            f"{file}: the layer '{keeps}' is stateful: its outputs depend on earlier calls",
            remedy="build it with stateful=False, and with its states as inputs and outputs where they are needed",
        )


def input_specs(model: Any) -> list[TensorSpec]:
    """The inputs in order, with Keras's names. The open first axis is N, the batch; another one is `axis_1` wherever it stands second."""
    found = []
    for one in model.inputs:
        if one.dtype == "string":
            raise UsageError(f"the input '{one.name}' is text, which no runtime here takes", remedy="give the model numbers")
        shape = tuple(size or ("N" if axis == 0 else f"axis_{axis}") for axis, size in enumerate(one.shape))
        found.append(TensorSpec(one.name, one.dtype, shape))
    return found


def output_names(model: Any) -> list[str]:
    """The keys of a dict of outputs, else the names of the layers that give them; one that is taken gets a number."""
    structure = getattr(model, "output", None)  # a Sequential model has none
    wanted = list(structure) if isinstance(structure, dict) else [one._keras_history.operation.name for one in model.outputs]
    taken = [one.name for one in model.inputs]
    for name in wanted:
        unique, copy = name, 0
        while unique in taken:
            copy += 1
            unique = f"{name}_{copy}"
        taken.append(unique)
    return taken[len(model.inputs) :]


def as_torch(model: Any) -> nn.Module:
    """The model as a module that takes its inputs one by one and returns a tuple, in inference."""
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            names = [one.name for one in model.inputs]
            found = model(dict(zip(names, inputs, strict=True)) if len(inputs) > 1 else inputs[0], training=False)
            return tuple(found.values() if isinstance(found, dict) else found if isinstance(found, list | tuple) else [found])

        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            return self  # Keras copies a model by saving and loading it, which would lose what was changed for the export

    return Network().eval()


def _line(error: BaseException) -> str:
    """The first line of a reason: Keras goes on with the whole configuration."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def channels_first(proto: ModelProto) -> ModelProto:
    """The model without the transpositions that Keras's channels, which stand last, need around each convolution of ONNX.

    By the basic rewrites of onnxruntime, which also fold the normalizations that stood behind them.
    """
    onnxruntime = registry.need("onnxruntime", "onnxruntime")
    if onnx_format.too_large(proto):
        return proto
    with tempfile.TemporaryDirectory() as folder:
        options = onnx_format.session_options(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
        options.optimized_model_filepath = str(Path(folder) / "rewritten.onnx")
        source = onnx_format.save(proto, Path(folder) / onnx_format.MAIN)
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        made = onnx_format.load(Path(options.optimized_model_filepath))
    used = {node.domain for node in onnx_format.nodes(made)}
    kept = [entry for entry in made.opset_import if entry.domain in (used or {""})]  # it names all that it knows
    del made.opset_import[:]
    made.opset_import.extend(kept)
    onnx_format.name_nodes(made)
    return made
