"""Weight-only quantization by NNCF on OpenVINO models."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import EdgeoptError, StepError
from edgeopt.core.protocols import Context
from edgeopt.formats import openvino as openvino_format
from edgeopt.passes import quantize_int8_nncf as engine
from edgeopt.passes import quantize_int8_openvino as int8
from edgeopt.passes.quantize_int8_samples import Calibration

if TYPE_CHECKING:
    from edgeopt.passes.quantize_weights import QuantizeWeights

# NNCF's name of the argument that switches a method on.
_SWITCHES = {"awq": "awq", "scale-estimation": "scale_estimation", "gptq": "gptq"}


def quantize(model: Artifact, options: QuantizeWeights, ctx: Context) -> Path:
    """The quantized model's file. Raises StepError when nothing in it could be quantized."""
    made = openvino_format.load(model.path)
    if int8.quantized_layers(made) or openvino_format.narrow_weights(made):
        raise StepError("the model is quantized already", remedy="leave quantize-weights out, or give the model before quantization")
    kept = int8.named(options.keep, made)
    calibration = Calibration(ctx, options.samples, judge=False) if options.by_data else None
    nncf = engine.load()
    with engine.without_torch():
        arguments: dict[str, Any] = {"ignored_scope": nncf.IgnoredScope(names=kept)}
        if options.bits == 4:
            fallback = nncf.GroupSizeFallbackMode.ADJUST
            arguments["group_size"] = options.group_size
            arguments["advanced_parameters"] = nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=fallback, min_adjusted_group_size=16
            )
        if calibration:
            arguments |= {"dataset": nncf.Dataset(calibration), "subset_size": calibration.count, _SWITCHES[options.method]: True}
        mode = nncf.CompressWeightsMode[f"INT{options.bits}_{'SYM' if options.symmetric else 'ASYM'}"]
        try:
            made = nncf.compress_weights(made, mode=mode, **arguments)
        except EdgeoptError:
            raise
        except Exception as error:
            raise StepError(
                f"NNCF cannot quantize the weights of this model: {type(error).__name__}: {openvino_format.cause(error)}",
                remedy="choose another method, or leave quantize-weights out",
            ) from error
    found = openvino_format.narrow_weights(made)
    if not found:
        raise StepError(
            "nothing was quantized: the model has no layer whose weights NNCF quantizes, or all are kept",
            remedy="leave quantize-weights out",
        )
    note(ctx, "nncf", options, found, kept)
    return openvino_format.save(made, ctx.folder / openvino_format.MAIN, model.signature)


def note(ctx: Context, engine: str, options: QuantizeWeights, found: dict[str, tuple[str, int]], kept: list[str]) -> None:
    """Put into the history what was done: layers by type and bits, the kept ones by name."""
    ctx.note("engine", engine)
    ctx.note("method", options.method)
    ctx.note("quantized_weights", dict(sorted(Counter(f"{kind}, {bits} bits" for kind, bits in found.values()).items())))
    if kept:
        ctx.note("kept", kept)
