"""Quantizers of nvidia-modelopt on the layers of a torch model, and the ranges that samples give them."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError, UsageError, did_you_mean
from edgeopt.core.protocols import Context
from edgeopt.formats import torch as torch_format
from edgeopt.passes.quantize_int8_samples import refuse_few

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from edgeopt.passes.train_int8 import TrainInt8

    Feeds = dict[str, np.ndarray[Any, Any]]

_BATCH = 16


@contextlib.contextmanager
def slow_attention() -> Iterator[None]:
    """torch's one call for a whole transformer layer goes around the layers inside it, and so around their quantizers."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def calibrated(module: nn.Module, options: TrainInt8, model: Artifact, ctx: Context) -> None:
    """Put quantizers into the module and give them ranges. Raises StepError where no layer can have one."""
    from modelopt.torch import quantization
    from modelopt.torch.quantization.nn import QuantModuleRegistry

    chosen, floats = _layers(module, options.keep)
    for name in chosen:
        layer: Any = QuantModuleRegistry.convert(module.get_submodule(name))
        if getattr(layer, "transposed", False):  # its outputs stand on the second axis, of each group
            layer.weight_quantizer.axis = 1 if layer.groups == 1 else None
    refuse_few(ctx.data["calibrate"], "train-int8", "100 to 500 typical ones are good")
    record = torch_format.Record.read(model.path)

    def walk(subject: nn.Module) -> None:
        for feeds in batches(options, ctx, "calibrating"):
            torch_format.run(subject, [torch_format.tensor(feeds[spec.name]) for spec in record.inputs], record.outputs)

    quantization.calibrate(module, "max", forward_loop=walk)
    for name in chosen:
        layer = module.get_submodule(name)
        seen = layer.input_quantizer.amax
        if seen is None or not bool(seen.isfinite().all() & (seen > 0).all()):
            layer.input_quantizer.disable()
            layer.weight_quantizer.disable()
            floats[name] = "its inputs are never seen" if seen is None else f"its inputs reach {float(seen.max()):g}"
    quantized = [name for name in chosen if name not in floats]
    if not quantized:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(floats.items())[:5]) or "it has no convolution or linear layer"
        raise StepError(f"no layer of this model can be trained in INT8 ({told})", remedy="leave train-int8 out")
    ctx.note("quantized", quantized)
    if floats:
        ctx.note("left_float", floats)


def batches(options: TrainInt8, ctx: Context, doing: str) -> Iterator[Feeds]:
    """Calibration samples in small batches."""
    done = 0
    for feeds, labels in ctx.data["calibrate"].batches(_BATCH):
        yield feeds
        done += len(labels)
        ctx.progress(min(done, options.samples), options.samples, doing)
        if done >= options.samples:
            break
    ctx.note("calibration_samples", done)


def _layers(module: nn.Module, keep: list[str]) -> tuple[list[str], dict[str, str]]:
    """Names of the layers that get quantizers, and of those with weights that do not, with the reason."""
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    able = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
    chosen, floats = [], {}
    for name, one in module.named_modules():
        if isinstance(one, (nn.RNNBase, nn.RNNCellBase)):
            floats[name] = "recurrent layers would be unrolled step by step"
        elif isinstance(one, nn.MultiheadAttention):
            floats[name] = "torch's attention computes with its weights outside of layers"
        elif isinstance(one, (_ConvNd, nn.Linear)) and not any(name.startswith(f"{other}.") for other in floats):
            if type(one) not in able:
                floats[name] = f"it is a {type(one).__name__} with a way of its own"
            else:
                chosen.append(name)
    known = [*chosen, *floats]
    for pattern in keep:
        hits = [name for name in known if fnmatch.fnmatchcase(name, pattern) or name.startswith(pattern + ".")]
        if not hits:
            raise UsageError(f"keep: no convolution or linear layer is named '{pattern}'", remedy=did_you_mean(pattern, known))
        floats |= dict.fromkeys((name for name in hits if name in chosen), "named under `keep`")
    return [name for name in chosen if name not in floats], floats
