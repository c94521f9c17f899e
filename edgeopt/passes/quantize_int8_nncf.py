"""NNCF as an engine: what it lets one choose, how that is chosen, and how it is told."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from edgeopt.core import registry
from edgeopt.core.errors import EdgeoptError, StepError
from edgeopt.passes.quantize_int8_samples import Calibration, Choice

if TYPE_CHECKING:
    from edgeopt.passes.quantize_int8 import QuantizeInt8
    from edgeopt.passes.quantize_int8_samples import Run

# Trials of several settings use so many samples; the chosen one is then done with all.
TRIAL_SAMPLES = 64
_BIAS = {"full": "full bias correction", "fast": "fast bias correction", "none": "no bias correction"}
_NARROW = {"none": "", "sums": ", no sum above 16 bits", "all": ", 7 bits"}

T = TypeVar("T")


class Settings(NamedTuple):
    """What keeps weights from overflow (none, sums; all: 7 bits), kind of model, range, bias correction, SmoothQuant's alpha (0: none)."""

    narrow: str
    kind: str
    method: str
    bias: str
    alpha: float

    def __str__(self) -> str:
        smooth = f"SmoothQuant {self.alpha:g}" if self.alpha else "no SmoothQuant"
        return f"{self.kind}, {self.method}, {_BIAS[self.bias]}, {smooth}{_NARROW[self.narrow]}"


def search(
    quantize: Callable[[Settings, Calibration], T],
    alternatives: Mapping[str, list[Any]],
    calibration: Calibration,
    reference: Callable[[], Run],
    runner: Callable[[T], Run],
    cause: Callable[[Exception], str],
    remedy: str = "leave quantize-int8 out",
) -> tuple[T, Choice[Settings, T]]:
    """The model quantized with the settings that suit it best, and the choice. Raises StepError when NNCF can do it with none."""

    def build(settings: Settings, samples: Calibration) -> T:
        try:
            with without_torch():
                return quantize(settings, samples)
        except EdgeoptError:
            raise
        except Exception as error:
            raise StepError(f"NNCF cannot quantize this model: {type(error).__name__}: {cause(error)}", remedy=remedy) from error

    searches = any(len(values) > 1 for values in alternatives.values())
    few = calibration.first(TRIAL_SAMPLES) if searches else calibration
    settings = Settings(**{name: values[0] for name, values in alternatives.items()})
    judge = partial(calibration.choose, reference=reference, runner=runner)
    choice: Choice[Settings, T] = judge({settings: partial(build, settings, few)}, alone=not searches)
    for name, values in alternatives.items():  # one thing after the other: all of them together would be too many
        for value in values[1:]:
            settings = choice.settings._replace(**{name: value})
            choice = judge({settings: partial(build, settings, few)}, since=choice)
    return choice.made if few.count == calibration.count else build(choice.settings, calibration), choice


def alternatives(options: QuantizeInt8, target: Mapping[str, Any], attention: bool, bias_samples: int, narrow: str) -> dict[str, list[Any]]:
    """What is tried of each setting, likeliest first. `narrow` is how weights are kept from overflow where the CPU has no VNNI.

    Full bias correction gains some dB on most networks; with attention it takes a minute and cost MiniLM five dB.
    SmoothQuant only with attention: on a CNN's classifier it cost 6 dB on unseen images.
    """
    if options.bias_correction == "full" and not bias_samples:
        raise StepError(
            "full bias correction is not possible: the model has If nodes, or the inputs of its layers are too large to keep",
            remedy="use bias_correction: fast",
        )
    likely = "full" if bias_samples and not attention else "fast"
    bias = likely if options.bias_correction == "auto" else options.bias_correction
    kinds = ["transformer", "plain"] if attention else ["plain", "transformer"]
    likely_alphas = ([0.95, 0.8] if options.searches else [0.95]) if attention else [0]  # 0.95: NNCF's own
    alphas = likely_alphas if options.smooth == "auto" else [options.smooth]
    return {
        "narrow": [narrow if options.reduced(target)[0] else "none"],
        "kind": kinds if options.model_type == "auto" else [options.model_type],
        "method": ["mean-minmax", "minmax"] if options.calibration == "auto" else [options.calibration],
        "bias": [bias],
        "alpha": alphas,
    }


def load() -> Any:
    """NNCF, silent."""
    with without_torch():
        nncf = registry.need("nncf", "openvino")
    nncf.set_log_level(logging.ERROR)
    return nncf


@contextmanager
def without_torch() -> Iterator[None]:
    """NNCF imports torch where it can: 190 MB and 1.5 s that OpenVINO models have no use for.

    The samples have been read once by now, so that code of the user that wants torch has it.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hide:
            del sys.modules["torch"]


def one_scale() -> Any:
    """Of a tensor, instead of one for each of its channels."""
    from nncf.quantization.advanced_parameters import QuantizationParameters

    return QuantizationParameters(per_channel=False)


def parameters(nncf: Any, options: QuantizeInt8, settings: Settings, **more: Any) -> dict[str, Any]:
    """NNCF's arguments; `more` are advanced ones of its own."""
    from nncf.quantization.range_estimator import RangeEstimatorParameters, RangeEstimatorParametersSet

    ranges = {
        "minmax": RangeEstimatorParametersSet.MINMAX,
        "mean-minmax": RangeEstimatorParameters(),  # NNCF's own default: means per tensor, extremes per channel
        "percentile": RangeEstimatorParametersSet.MEAN_QUANTILE,
        "mse": RangeEstimatorParametersSet.HISTOGRAM,  # NNCF's name for the range of least squared error over a histogram
    }
    more["smooth_quant_alphas"] = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=settings.alpha or -1)  # below zero: off
    if not options.per_channel:
        more["weights_quantization_params"] = one_scale()
    more["overflow_fix"] = nncf.OverflowFix.ENABLE if settings.narrow == "all" else nncf.OverflowFix.DISABLE
    return {
        "model_type": nncf.ModelType.TRANSFORMER if settings.kind == "transformer" else None,
        "advanced_parameters": nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=ranges[settings.method], disable_bias_correction=settings.bias == "none", **more
        ),
    }
