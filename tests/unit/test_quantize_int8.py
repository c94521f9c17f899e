"""quantize-int8: both engines, both flavours, on models of every habit; samples streamed, layers kept, errors said."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import weakref
from functools import partial

import numpy as np
import onnx
import onnx.version_converter
import pytest
import small_onnx as small
from onnx import TensorProto, helper, numpy_helper

from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import StepError, UsageError
from edgeopt.core.protocols import Context, Sample, Split, stack
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import saturation
from edgeopt.formats.onnx import Onnx, examples, load
from edgeopt.formats.openvino import Openvino
from edgeopt.formats.openvino import load as load_openvino
from edgeopt.passes.cast_fp16 import CastFp16
from edgeopt.passes.convert_openvino import ConvertOpenvino
from edgeopt.passes.import_onnx import ImportOnnx
from edgeopt.passes.quantize_int8 import QuantizeInt8
from edgeopt.passes.quantize_int8_onnx import flavour_of, quantized_layers, refuse_unsigned
from edgeopt.passes.quantize_int8_onnx_prepare import rename_shapes
from edgeopt.passes.quantize_int8_openvino import kinds, named, operations
from edgeopt.passes.quantize_int8_ranges import _least_squares, find_ranges
from edgeopt.passes.quantize_int8_samples import Calibration
from edgeopt.runner import onnxruntime as runtime

X86 = {"backend": "onnxruntime", "arch": "x86_64", "int8": "u8s8"}
TENSORRT = {"backend": "tensorrt", "arch": "sm89", "int8": "s8s8"}
OPENVINO = {"backend": "openvino", "arch": "x86_64", "int8": "any"}


def samples(signature, count, seed=0):
    """Samples of every input, sizes of open axes changing from one to the next."""
    for index in range(count):
        feeds = examples(signature, seed + index, {signature.batch_symbol: 1}, other=6 + index % 3)
        inputs = {}
        for spec in signature.inputs:
            axis = signature.batch_axis(spec)
            inputs[spec.name] = feeds[spec.name] if axis is None else feeds[spec.name].take(0, axis)
        yield Sample(inputs)


def split(signature, count=40, seed=0, name="calibrate"):
    return Split(name, lambda: samples(signature, count, seed), signature)


def imported(folder, proto):
    small.write(proto, folder)
    files = folder / "imported" / "files"
    files.mkdir(parents=True)
    path = ImportOnnx(file="model.onnx").run(None, Context(files, base=folder))
    return Artifact(folder / "imported", "onnx", path.name, "", "", 0, Onnx().signature(path))


def in_openvino(folder, made):
    files = folder / "converted" / "files"
    files.mkdir(parents=True)
    path = ConvertOpenvino().run(made, Context(files))
    return Artifact(folder / "converted", "openvino", path.name, "", "", 0, Openvino().signature(path))


def prepared(folder, proto, target):
    made = imported(folder, proto)
    return in_openvino(folder, made) if target["backend"] == "openvino" else made


PLAIN = {"calibration": "minmax", "model_type": "plain"}  # where settings are not the matter: to try them takes three times as long


def quantize(folder, made, target, count=40, **options):
    """The result's path and what the pass noted."""
    notes = {}
    result = folder / "result"
    result.mkdir(exist_ok=True)
    data = {"calibrate": split(made.signature, count)}
    return QuantizeInt8(**options).run(made, Context(result, data=data, target=target, note=notes.__setitem__)), notes


def decibels(made, path):
    run = {"onnx": Onnx, "openvino": Openvino}[made.format]()
    before, after = run.runner(made.path), run.runner(path)
    signal = noise = 0.0
    for sample in samples(made.signature, 20, seed=1000):
        feeds = stack([sample], made.signature)
        exact, rounded = before(feeds), after(feeds)
        assert list(exact) == list(rounded)
        for name, array in exact.items():
            assert rounded[name].shape == array.shape and rounded[name].dtype == array.dtype
            signal += float((array.astype(np.float64) ** 2).sum())
            noise += float(((array.astype(np.float64) - rounded[name]) ** 2).sum())
    return 10 * np.log10(signal / noise)


def constant_cnn():
    return small.cnn(constants=True)


def old_cnn():
    return small.cnn(opset=9)


def fixed_cnn():
    return small.cnn(batch=1, size=(8, 8))


def batch_of_four():
    return small.mlp(batch=4)


def gru():
    return small.recurrent("GRU")


def unnamed():
    return small.mlp(unnamed=True)


def one_layer():
    nodes = [small.constant("w", 8, 4), helper.make_node("MatMul", ["x", "w"], ["y"])]
    return small.model(nodes, [small.value("x", ["N", 8])], [small.value("y", ["N", 4])])


def shared_weight():
    """A branch of an If reads the weight of an outer layer, and that layer's output."""
    then = helper.make_graph([helper.make_node("MatMul", ["h", "w"], ["to"])], "then", [], [small.value("to", ["N", 8])])
    other = helper.make_graph([helper.make_node("Identity", ["h"], ["eo"])], "else", [], [small.value("eo", ["N", 8])])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other)]
    inputs = [small.value("x", ["N", 8]), small.value("flag", [], small.BOOL)]
    return small.model(nodes, inputs, [small.value("y", ["N", 8])], [small.weight("w", 8, 8)])


def input_as_output():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Identity", ["x"], ["same"])]
    outputs = [small.value("y", ["N", 4]), small.value("same", ["N", 8])]
    return small.model(nodes, [small.value("x", ["N", 8])], outputs, [small.weight("w", 8, 4)])


MODELS = [
    small.mlp, small.cnn, small.branches, small.loop, small.recurrent, gru, small.embedding, small.attention, constant_cnn,
    old_cnn, fixed_cnn, batch_of_four, unnamed, one_layer, shared_weight, input_as_output,
]  # fmt: skip


@pytest.mark.parametrize("target", [X86, TENSORRT, OPENVINO], ids=lambda target: target["backend"])
@pytest.mark.parametrize("make", MODELS)
def test_models_keep_their_signature_and_most_of_their_function(tmp_path, make, target):
    made = prepared(tmp_path, make(), target)
    path, notes = quantize(tmp_path, made, target, **({} if make in (small.cnn, small.attention) else PLAIN))
    assert {"onnx": Onnx, "openvino": Openvino}[made.format]().signature(path) == made.signature
    assert notes["quantized_layers"]
    assert decibels(made, path) > (10 if make is small.embedding else 15)
    if target is TENSORRT:
        refuse_unsigned(load(path))
        assert notes["flavour"] == "s8s8"


def test_only_cpus_that_are_known_to_read_it_right_get_u8():
    assert flavour_of(X86) == "u8s8"
    assert flavour_of({**X86, "int8": "any"}) == "u8s8"
    assert flavour_of({**X86, "int8": "any", "arch": "aarch64"}) == "s8s8"
    assert flavour_of({**X86, "int8": "s8s8"}) == "s8s8"
    for asked in ("any", "u8s8", "s8s8"):
        assert flavour_of({"backend": "tensorrt", "arch": "x86_64", "int8": asked}) == "s8s8"
        assert flavour_of({"backend": "somebody-elses", "arch": "x86_64", "int8": asked}) == "s8s8"


def test_the_tensorrt_form_is_symmetric_and_keeps_biases_in_float(tmp_path):
    made = imported(tmp_path, small.cnn())
    path, _ = quantize(tmp_path, made, TENSORRT, **PLAIN)
    kinds = {TensorProto.DataType.Name(tensor.data_type) for tensor in load(path).graph.initializer}
    assert "INT8" in kinds and not kinds & {"UINT8", "INT32"}
    (tmp_path / "x86").mkdir()
    unsigned, _ = quantize(tmp_path / "x86", made, X86, **PLAIN)
    with pytest.raises(StepError, match="not symmetric S8"):
        refuse_unsigned(load(unsigned))


@pytest.mark.parametrize("make", [small.cnn, small.attention, one_layer])
def test_the_tensorrt_form_parses(tmp_path, make):
    tensorrt = pytest.importorskip("tensorrt_rtx")
    path, _ = quantize(tmp_path, imported(tmp_path, make()), TENSORRT, **PLAIN)
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(index).desc() for index in range(parser.num_errors)]


@pytest.mark.parametrize("target", [X86, OPENVINO], ids=lambda target: target["backend"])
def test_layers_under_keep_stay_float(tmp_path, target):
    made = prepared(tmp_path, small.cnn(), target)
    path, notes = quantize(tmp_path, made, target, keep=["Conv"], **PLAIN)
    assert not {"Conv", "Convolution", "GroupConvolution"} & set(notes["quantized_layers"])
    (tmp_path / "all").mkdir()
    with pytest.raises(StepError, match="nothing was quantized"):
        quantize(tmp_path / "all", made, target, keep=["*"])
    with pytest.raises(UsageError, match="'conv9'"):
        quantize(tmp_path / "all", made, target, keep=["conv9"])
    assert path.exists()


@pytest.mark.parametrize("target", [X86, OPENVINO], ids=lambda target: target["backend"])
def test_a_layer_with_a_bias_is_kept_by_its_name(tmp_path, target):
    """OpenVINO gives the name to the addition of the bias, and calls the layer otherwise."""
    made = prepared(tmp_path, small.cnn(), target)
    _, notes = quantize(tmp_path, made, target, keep=["conv1"], **PLAIN)
    found = notes["quantized_layers"]
    assert found.get("Conv", 0) + found.get("Convolution", 0) == 1
    _, notes = quantize(tmp_path, made, target, keep=["conv?"], **PLAIN)
    assert not {"Conv", "Convolution"} & set(notes["quantized_layers"])


def test_additions_of_biases_are_no_layers_of_their_own(tmp_path):
    made = prepared(tmp_path, small.cnn(), OPENVINO)
    model = load_openvino(made.path)
    assert kinds(model).items() >= {"conv1": "Conv", "conv2": "Conv", "add": "Add", "head": "MatMul"}.items()
    assert named(["Add"], model) == ["add"] and "y" not in kinds(model)
    assert set(named(["head"], model)) == {"head/WithoutBiases", "y"}
    assert set(named(["conv1/WithoutBiases"], model)) == set(named(["conv1"], model)) == {"conv1", "conv1/WithoutBiases"}


def test_names_of_onnx_layers_are_found_in_openvino(tmp_path):
    made = in_openvino(tmp_path, imported(tmp_path, small.cnn()))
    assert set(kinds(load_openvino(made.path)).values()) >= {"Conv", "Add", "MatMul"}


@pytest.mark.parametrize("target", [X86, OPENVINO], ids=lambda target: target["backend"])
def test_too_few_samples_are_refused_and_few_are_warned_of(tmp_path, target):
    made = prepared(tmp_path, small.mlp(), target)
    with pytest.raises(UsageError, match="quantization needs at least 8 samples, and 'calibrate' has 7"):
        quantize(tmp_path, made, target, count=7)
    _, notes = quantize(tmp_path, made, target, count=8, calibration="minmax", model_type="plain")
    assert notes["calibration_samples"] == 8 and "only 8" in notes["warning"]
    _, notes = quantize(tmp_path, made, target, count=80, samples=64, **PLAIN)
    assert notes["calibration_samples"] == 64 and "warning" not in notes


@pytest.mark.parametrize("method", ["minmax", "mean-minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("target", [X86, OPENVINO], ids=lambda target: target["backend"])
def test_each_engine_offers_what_it_has(tmp_path, target, method):
    made = prepared(tmp_path, small.cnn(), target)
    if method == "entropy" and target is OPENVINO:
        with pytest.raises(UsageError, match=f"'{method}' is not offered for {made.format} models"):
            quantize(tmp_path, made, target, calibration=method)
        return
    path, notes = quantize(tmp_path, made, target, calibration=method, model_type="plain")
    assert notes["chosen"].startswith(f"plain, {method}")
    assert decibels(made, path) > 10


def test_bias_correction_and_smoothing_are_not_asked_of_onnxruntime(tmp_path):
    made = imported(tmp_path, small.cnn())
    for number, (options, told) in enumerate(
        [
            ({"bias_correction": "none"}, "no bias correction"),
            ({"bias_correction": "full"}, "full bias"),
            ({"smooth": 0.5}, "SmoothQuant 0.5"),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        path, notes = quantize(
            tmp_path / str(number), prepared(tmp_path / str(number), small.cnn(), OPENVINO), OPENVINO, **PLAIN, **options
        )
        assert told in notes["chosen"] and path.is_file()
        with pytest.raises(UsageError, match=f"{next(iter(options))} is not offered for onnx models"):
            quantize(tmp_path, made, X86, **options)


def test_the_range_of_least_squared_error_cuts_outliers_off():
    values = np.append(np.random.default_rng(0).normal(size=1_000_000), 8.0).astype(np.float32)
    counts, edges = np.histogram(values, 2048, range=(-8, 8))
    low, high = _least_squares(counts, edges, values.min(), values.max())
    assert low.dtype == np.float32 and values.min() <= low < 0 < high < 7

    def error(low, high):
        step = (high - low) / 255
        return np.square(np.clip(np.round(values / step), np.round(low / step), np.round(high / step)) * step - values).sum()

    assert error(low, high) < 0.8 * error(values.min(), values.max())
    flat = _least_squares(np.array([0, 5, 0]), np.array([-1.0, -0.5, 0.5, 1.0]), np.float32(0), np.float32(0))
    assert flat == (0, 0)


@pytest.mark.parametrize("target", [X86, OPENVINO], ids=lambda target: target["backend"])
def test_a_model_without_layers_to_quantize_and_a_quantized_one(tmp_path, target):
    relu = small.model([helper.make_node("Relu", ["x"], ["y"])], [small.value("x", ["N", 4])], [small.value("y", ["N", 4])])
    with pytest.raises(StepError, match="nothing was quantized"):
        quantize(tmp_path, prepared(tmp_path, relu, target), target)
    (tmp_path / "twice").mkdir()
    made = prepared(tmp_path / "twice", small.mlp(), target)
    path, _ = quantize(tmp_path / "twice", made, target, **PLAIN)
    path.parent.rename(tmp_path / "files")
    again = Artifact(tmp_path, made.format, path.name, "", "", 0, made.signature)
    with pytest.raises(StepError, match="quantized already"):
        quantize(tmp_path, again, target)


def test_one_scale_for_all_channels_that_keeps_sums_within_16_bits(tmp_path):
    made = imported(tmp_path, small.cnn())
    path, _ = quantize(tmp_path, made, X86, per_channel=False, reduce_range=True)
    weights = [numpy_helper.to_array(tensor) for tensor in load(path).graph.initializer if tensor.data_type == TensorProto.INT8]
    large = [array for array in weights if array.ndim > 1]
    reach = [saturation.reach(array.astype(int), (2, 3, 1) if array.ndim == 4 else (1,)).max() for array in large]
    assert large and max(reach) <= 128 and all(np.abs(array.astype(int)).max() > 64 for array in large)
    assert not any("axis" in [attribute.name for attribute in node.attribute] for node in load(path).graph.node if "Linear" in node.op_type)


def test_one_scale_for_all_channels_of_an_openvino_model(tmp_path):
    made = prepared(tmp_path, small.cnn(), OPENVINO)
    path, _ = quantize(tmp_path, made, OPENVINO, per_channel=False, calibration="minmax", model_type="plain")
    scales = [
        one.input_value(1).get_node().get_output_shape(0) for one in load_openvino(path).get_ops() if one.get_type_name() == "Multiply"
    ]
    assert scales and all(np.prod(shape) == 1 for shape in scales)
    assert decibels(made, path) > 10


def test_matrix_products_give_their_output_unrounded(tmp_path):
    path, _ = quantize(tmp_path, imported(tmp_path, small.mlp()), X86, **PLAIN)
    assert {name: node.op_type for node in load(path).graph.node for name in node.output}["y"] == "Gemm"


def calibration(signature, count=40, data=None, **options):
    data = data or {"calibrate": split(signature, count)}
    return Calibration(Context(None, data=data), **{"samples": 300, "judge": False, **options})


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_streamed_ranges_are_those_of_all_samples_at_once(tmp_path, method):
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    made = imported(tmp_path, fixed_cnn())
    types = ["Conv", "Gemm", "Add", "Relu"]
    streamed = find_ranges(made.path, types, calibration(made.signature), [method], tmp_path).ranges[method]

    class All:
        feeds = iter([stack([sample], made.signature) for sample in samples(made.signature, 40)])

        def get_next(self):
            return next(self.feeds, None)

    kind = {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy, "percentile": CalibrationMethod.Percentile}[method]
    whole = create_calibrator(made.path, types, str(tmp_path / "whole.onnx"), kind, extra_options={"symmetric": False})
    whole.collect_data(All())
    expected = {name: one.range_value for name, one in whole.compute_data().data.items()}
    assert set(streamed) == set(expected)
    for name, (low, high) in expected.items():
        np.testing.assert_allclose([streamed[name][0], streamed[name][1]], [low, high], rtol=1e-5)


@pytest.mark.parametrize("target", [X86, OPENVINO], ids=lambda target: target["backend"])
@pytest.mark.parametrize("method", ["auto", "percentile"])
def test_samples_are_not_collected(tmp_path, target, method):
    made = prepared(tmp_path, fixed_cnn(), target)
    alive, most = weakref.WeakSet(), 0

    class Counted(np.ndarray):
        __hash__ = object.__hash__
        __eq__ = object.__eq__

    def counted():
        nonlocal most
        for sample in samples(made.signature, 100):
            array = sample.inputs["x"].view(Counted)
            alive.add(array)
            most = max(most, len(alive))
            yield Sample({"x": array})
            del array, sample

    data = {"calibrate": Split("calibrate", counted, made.signature)}
    (tmp_path / "out").mkdir()
    QuantizeInt8(calibration=method).run(made, Context(tmp_path / "out", data=data, target=target))
    assert most < 8


def test_what_judges_never_sets_ranges(tmp_path):
    signature = imported(tmp_path, small.mlp()).signature
    firsts = [sample.inputs["x"][0] for sample in samples(signature, 100)]

    def seen(feeds):
        return [one["x"][0, 0] for one in feeds]

    def held(one):
        return seen(feeds for feeds, _ in one.held())

    held_back = calibration(signature, 50, judge=True)
    assert seen(held_back) == firsts[:40] and held(held_back) == firsts[40:50]
    plenty = calibration(signature, 100, judge=True, samples=30)
    assert seen(plenty) == firsts[:30] and held(plenty)[0] == firsts[30]
    tune = {"calibrate": split(signature, 40), "tune": split(signature, 20, seed=500, name="tune")}
    tuned = calibration(signature, data=tune, judge=True)
    assert seen(tuned) == firsts[:40]
    assert held(tuned) == [sample.inputs["x"][0] for sample in samples(signature, 20, seed=500)]


def test_a_batch_that_is_fixed_is_filled(tmp_path):
    made = imported(tmp_path, batch_of_four())
    batches = list(calibration(made.signature, 41))
    assert [batch["x"].shape for batch in batches] == [(4, 8)] * 11


def test_progress_is_told(tmp_path):
    made = imported(tmp_path, small.mlp())
    told = []
    context = Context(tmp_path / "r", data={"calibrate": split(made.signature)}, target=X86, progress=lambda *step: told.append(step))
    context.folder.mkdir()
    QuantizeInt8().run(made, context)
    assert told[-1][:2] == (32, 32)


def masked_attention(folder, stored, least=None):
    """torch's own attention as it is exported: where the mask is false, minus infinity is added to the scores, or by hand `least`."""
    import torch

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 4)
            self.register_buffer("causal", torch.ones(6, 6, dtype=torch.bool).tril())

        def forward(self, x):
            q, k, v = (one.reshape(-1, 6, 2, 8).transpose(1, 2) for one in self.qkv(x).chunk(3, dim=-1))
            positive = torch.cat([torch.ones_like(x[:, :1, 0], dtype=torch.bool), x[:, 1:, 0] > 0], dim=1)
            mask = self.causal if stored else positive[:, None, None, :]
            if least is None:
                mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            else:
                mixed = (q @ k.transpose(-1, -2) / 8**0.5 + (1 - mask.float()) * least).softmax(-1) @ v
            return self.out(mixed.transpose(1, 2).reshape(-1, 6, 16))

    torch.manual_seed(0)
    path, names = folder / "exported.onnx", {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "N"}, "y": {0: "N"}}}
    torch.onnx.export(Attention().eval(), (torch.randn(2, 6, 16),), str(path), dynamo=False, opset_version=17, **names)
    return onnx.load(path)


@pytest.mark.parametrize("calibration", ["auto", "entropy", "mse"])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "computed"])
def test_a_mask_of_infinity_leaves_only_what_it_touches_in_float(tmp_path, stored, calibration):
    made = imported(tmp_path, masked_attention(tmp_path, stored))
    path, notes = quantize(tmp_path, made, X86, model_type="plain", calibration=calibration)
    assert [name for name in notes["kept_without_range"] if "Add" in name]
    assert notes["quantized_layers"]["MatMul"] == 4 and decibels(made, path) > 15


@pytest.mark.parametrize("least", [-1e4, -1e9, float(np.finfo(np.float32).min)])
def test_large_numbers_added_to_masked_scores_do_not_round_the_others_away(tmp_path, least):
    """OpenVINO took the mask for 8-bit numbers to dequantize, and moved the -1e9 in front of the addition: 16 dB."""
    made = prepared(tmp_path, masked_attention(tmp_path, False, least), OPENVINO)
    path, _ = quantize(tmp_path, made, OPENVINO, **PLAIN)
    assert decibels(made, path) > 30


def rows_that_are_chosen(least):
    """A layer on those rows of the input that begin with more than `least`: with one sample, often on none."""
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["lead"], name="lead", axis=1),
        helper.make_node("Greater", ["lead", "least"], ["chosen"], name="greater"),
        helper.make_node("Compress", ["x", "chosen"], ["some"], name="choose", axis=0),
        helper.make_node("MatMul", ["some", "w"], ["h"], name="of_some"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("ReduceSum", ["r", "rows"], ["sum"], name="sum", keepdims=1),
        helper.make_node("MatMul", ["x", "v"], ["g"], name="of_all"),
        helper.make_node("Add", ["g", "sum"], ["y"], name="add"),
    ]
    weights = [small.weight("w", 8, 4), small.weight("v", 8, 4, seed=1), small.ints("rows", 0)]
    weights += [numpy_helper.from_array(np.array(0, np.int64), "first"), numpy_helper.from_array(np.array(least, np.float32), "least")]
    return small.model(nodes, [small.value("x", ["N", 8])], [small.value("y", ["N", 4])], weights)


@pytest.mark.parametrize("calibration", ["minmax", "mean-minmax", "percentile", "entropy", "mse"])
def test_a_tensor_that_is_empty_on_some_samples_gets_the_range_of_the_others(tmp_path, calibration):
    made = imported(tmp_path, rows_that_are_chosen(0.0))
    path, notes = quantize(tmp_path, made, X86, calibration=calibration)
    assert "kept_without_range" not in notes and notes["quantized_layers"]["MatMul"] == notes["quantized_layers"]["Gemm"] == 1
    assert decibels(made, path) > (8 if calibration == "mean-minmax" else 15)


def test_a_layer_that_never_sees_anything_stays_float(tmp_path):
    made = imported(tmp_path, rows_that_are_chosen(1e9))
    path, notes = quantize(tmp_path, made, X86)
    assert set(notes["kept_without_range"]) == {"of_some", "relu"} and "MatMul" not in notes["quantized_layers"]
    assert decibels(made, path) > 15


def test_a_model_that_makes_nan_is_a_failed_step(tmp_path):
    nodes = [helper.make_node("Log", ["x"], ["l"]), helper.make_node("MatMul", ["l", "w"], ["y"])]
    proto = small.model(nodes, [small.value("x", ["N", 8])], [small.value("y", ["N", 4])], [small.weight("w", 8, 4)])
    with pytest.raises(StepError, match="is NaN"):
        quantize(tmp_path, imported(tmp_path, proto), X86)


def test_weights_of_bodies_stay_float(tmp_path):
    path, _ = quantize(tmp_path, imported(tmp_path, small.loop()), X86)
    proto = load(path)
    body = next(node for node in proto.graph.node if node.op_type == "Loop")
    assert onnx_format.bodies(body)[0].initializer[0].data_type == TensorProto.FLOAT
    assert quantized_layers(proto) == {"MatMul": 1}
    onnx.checker.check_model(proto)


def leaves_early():
    """A Relu whose result is read by a layer beside it, and by a branch of an If."""
    layers = [helper.make_node("MatMul", ["r", "k1"], ["deep"], name="deep")]
    other = helper.make_graph(layers, "other", [], [small.value("deep", ["N", 4])], [small.weight("k1", 16, 4, seed=3)])
    then = helper.make_graph([helper.make_node("Identity", ["e"], ["early"])], "then", [], [small.value("early", ["N", 4])])
    made = [
        helper.make_node("MatMul", ["x", "k0"], ["h"], name="stem"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "k2"], ["e"], name="exit"),
        helper.make_node("ReduceMax", ["e"], ["most"], keepdims=0, axes=[0, 1]),
        helper.make_node("Greater", ["most", "limit"], ["sure"]),
        helper.make_node("If", ["sure"], ["y"], name="choose", then_branch=then, else_branch=other),
    ]
    limit = numpy_helper.from_array(np.array(1000, np.float32), "limit")
    weights = [small.weight("k0", 8, 16), small.weight("k2", 16, 4, seed=2), limit]
    return small.model(made, [small.value("x", ["N", 8])], [small.value("y", ["N", 4])], weights)


def test_a_relu_that_a_branch_reads_stays(tmp_path):
    """The quantizer took it out, since its own rounding makes the cut: the branch read what stood before it."""
    made = imported(tmp_path, leaves_early())
    path, notes = quantize(tmp_path, made, X86)
    assert notes["quantized_layers"]["MatMul"] == 2 and decibels(made, path) > 30


def test_a_bias_that_layers_share_is_not_copied_over_another_tensor(tmp_path):
    """onnxruntime calls the copy of bias `b` `b0` or `b2`, as a model of Keras calls a result."""
    made = [helper.make_node("Conv", ["x", "k1", "b"], ["b0"], name="first"), helper.make_node("Neg", ["b0"], ["b1"])]
    made += [helper.make_node("Conv", ["b1", "k2", "b"], ["b2"], name="second"), helper.make_node("Neg", ["b2"], ["y"])]
    weights = [small.weight("k1", 4, 3, 1, 1), small.weight("k2", 4, 4, 1, 1, seed=1), small.weight("b", 4, seed=2)]
    shared = small.model(made, [small.value("x", ["N", 3, 6, 6])], [small.value("y", ["N", 4, 6, 6])], weights)
    imports = imported(tmp_path, shared)
    path, notes = quantize(tmp_path, imports, X86)
    assert notes["quantized_layers"]["Conv"] == 2 and decibels(imports, path) > 30


def test_recurrent_layers_stay_float_in_openvino(tmp_path):
    made = in_openvino(tmp_path, imported(tmp_path, gru()))
    path, notes = quantize(tmp_path, made, OPENVINO, **PLAIN)
    assert notes["kept_types"] == ["GRUSequence"]
    layer = next(operation for operation in operations(load_openvino(path)) if operation.get_type_name() == "GRUSequence")
    assert "FakeQuantize" not in [layer.input_value(index).get_node().get_type_name() for index in range(layer.get_input_size())]


def test_nncf_comes_without_torch_and_torch_can_come_later(tmp_path):
    in_openvino(tmp_path, imported(tmp_path, small.mlp()))
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(small.__file__.rpartition("/")[0])!r})
import test_quantize_int8 as own
folder = Path({str(tmp_path)!r})
model = folder / "converted/files/model.xml"
made = own.Artifact(folder / "converted", "openvino", model.name, "", "", 0, own.Openvino().signature(model))
own.quantize(folder, made, own.OPENVINO)
print("torch" in sys.modules)
import torch
print(torch.ones(2).sum().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["False", "2.0"]


def test_the_cut_of_a_last_relu_is_kept(tmp_path):
    """The quantizer takes the Relu out, because the range of its output's Q/DQ pair makes the same cut."""
    made = imported(tmp_path, small.ends_in_relu())
    path, _ = quantize(tmp_path, made, X86)
    feeds = examples(made.signature, 3, {"N": 4})
    assert Onnx().runner(path)(feeds)["y"].min() >= 0 and decibels(made, path) > 20


def test_stacks_of_matrices_run_as_quantized(tmp_path):
    """One scale per column of a stack loads, and is refused by the kernel at the first run."""
    made = imported(tmp_path, small.stacked())
    path, notes = quantize(tmp_path, made, X86)
    assert notes["quantized_layers"]["MatMul"] == 2
    with contextlib.closing(runtime.open(path, threads=1, requests=1, options={}, execution={"float": "f32"})) as session:
        session.load(examples(made.signature, 1, {"N": 1}))
        session.start()
        assert session.read()["y"].shape == (1, 3, 5, 4)


def test_transposed_convolutions_in_groups_stay_float_in_onnxruntime(tmp_path):
    made = imported(tmp_path, small.transposed_in_groups())
    path, notes = quantize(tmp_path, made, X86)
    assert notes["quantized_layers"] == {"Conv": 1} and decibels(made, path) > 20


def half(folder, proto):
    """What cast-fp16 makes of it, at rest."""
    made = imported(folder, proto)
    files = folder / "half" / "files"
    files.mkdir(parents=True)
    path = CastFp16().run(made, Context(files))
    return Artifact(folder / "half", "onnx", path.name, "", "", 0, Onnx().signature(path))


def test_a_cubic_resize_goes_beyond_the_range_of_what_it_reads(tmp_path):
    made = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Resize", ["r", "", "twice"], ["u"], name="up", mode="cubic"),
        helper.make_node("Conv", ["u", "v"], ["y"], name="last"),
    ]
    weights = [small.weight("w", 8, 3, 3, 3), small.weight("v", 4, 8, 1, 1), numpy_helper.from_array(np.float32([1, 1, 2, 2]), "twice")]
    made = imported(tmp_path, small.model(made, [small.value("x", ["N", 3, 9, 9])], [small.value("y", ["N", 4, 14, 14])], weights))
    path, notes = quantize(tmp_path, made, X86, calibration="minmax")
    assert notes["quantized_layers"]["Conv"] == 2 and decibels(made, path) > 30


@pytest.mark.parametrize("target", [X86, TENSORRT], ids=lambda target: target["backend"])
@pytest.mark.parametrize("opset", [13, 17, 19])
@pytest.mark.parametrize("make", [small.cnn, small.mlp])
def test_float16_models_are_raised_to_an_opset_that_quantizes_them(tmp_path, make, opset, target):
    made = half(tmp_path, make(opset=opset))
    assert any(tensor.data_type == TensorProto.FLOAT16 for tensor in load(made.path).graph.initializer)
    path, notes = quantize(tmp_path, made, target, **PLAIN)
    assert onnx_format.opset(load(path)) == 19 and notes["quantized_layers"]
    assert decibels(made, path) > 15
    with contextlib.closing(runtime.open(path, threads=1, requests=1, options={}, execution={"float": "f32"})) as session:
        session.load(examples(made.signature, 1, {"N": 1}))
        session.start()
        assert np.isfinite(session.read()["y"]).all()


def test_a_float16_model_that_cannot_be_raised_is_told_what_to_do(tmp_path, monkeypatch):
    def fails(model, version):
        raise RuntimeError("no adapter")

    made = half(tmp_path, small.mlp())
    monkeypatch.setattr(onnx.version_converter, "convert_version", fails)
    with pytest.raises(StepError, match="float16 at opset 17, and only from 19 on") as caught:
        quantize(tmp_path, made, X86)
    assert "quantize-int8 before cast-fp16" in caught.value.remedy


def test_a_model_that_is_quantized_as_it_runs_is_quantized_already(tmp_path):
    with pytest.raises(StepError, match="quantized already"):
        quantize(tmp_path, imported(tmp_path, small.integers_inside()), X86)


def test_a_kernel_that_computes_nonsense_is_not_given_the_layer(tmp_path):
    made = prepared(tmp_path, small.to_a_mask(), OPENVINO)
    path, notes = quantize(tmp_path, made, OPENVINO, **PLAIN)
    assert notes["quantized_layers"]["Convolution"] == 1 and decibels(made, path) > 25


def types_of(path):
    return [node.op_type for node in load(path).graph.node]


def executed(made, path):
    session = runtime.open(path, threads=1, requests=1, options={}, execution={"float": "f32"})
    return session.facts(stack([next(samples(made.signature, 1))], made.signature))["precision"]


def odd_lstm(direction="bidirectional", unread=False):
    """Two directions or one, an initial state and peepholes; an output nobody reads."""
    both = 2 if direction == "bidirectional" else 1
    made = ["", "last", "cell"] if unread else ["all", "last", "cell"]
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b", "", "h0", "", "p"], made, name="rnn", direction=direction, hidden_size=6),
        helper.make_node("Transpose", ["last"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "flat"], ["y"]),
    ]
    weights = [small.weight("w", both, 24, 3), small.weight("r", both, 24, 6, seed=1), small.weight("b", both, 48, seed=2)]
    weights += [small.weight("p", both, 18, seed=3), small.weight("h0", both, 1, 6, seed=4), small.ints("flat", 1, both * 6)]
    outputs = [small.value("y", [1, both * 6]), small.value("cell", [both, 1, 6])]
    return small.model(nodes, [small.value("x", [7, 1, 3])], outputs, weights, 14)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    "make",
    [small.recurrent, odd_lstm, partial(odd_lstm, "reverse"), partial(odd_lstm, unread=True)],
)
def test_lstm_layers_compute_in_int8_in_onnxruntime(tmp_path, make, per_channel):
    made = imported(tmp_path, make())
    path, notes = quantize(tmp_path, made, X86, per_channel=per_channel)
    assert "DynamicQuantizeLSTM" in types_of(path) and "LSTM" not in types_of(path)
    assert notes["quantized_layers"]["DynamicQuantizeLSTM"] == 1
    assert decibels(made, path) > 25
    assert executed(made, path)["int8"] >= 1
    assert not [tensor.name for tensor in load(path).graph.initializer if tensor.name in ("w", "r")]


def test_lstm_layers_stay_float_where_nothing_else_would_do(tmp_path):
    made = imported(tmp_path, small.recurrent())
    for target, options in ((TENSORRT, {}), (X86 | {"int8": "s8s8"}, {}), (X86, {"keep": ["rnn"]}), (X86, {"activations": "static"})):
        path, _ = quantize(tmp_path, made, target, **options)
        assert "LSTM" in types_of(path)


def test_activations_are_rounded_by_ranges_of_each_call(tmp_path):
    made = imported(tmp_path, small.attention())
    path, notes = quantize(tmp_path, made, X86, activations="dynamic")
    assert notes["chosen"] == "dynamic" and notes["quantized_layers"] == {"DynamicQuantizeMatMul": 4}
    assert types_of(path).count("MatMul") == 2  # products of activations
    assert decibels(made, path) > 30
    _, notes = quantize(tmp_path, made, X86)
    assert "dynamic" in notes["tried_db"]
    for target in (TENSORRT, OPENVINO):
        with pytest.raises(UsageError, match="activations: dynamic"):
            quantize(tmp_path, made if target is TENSORRT else in_openvino(tmp_path, made), target, activations="dynamic")


def test_gemm_layers_of_every_form_keep_their_function(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "turned", "b"], ["h"], name="turned", transB=1),
        helper.make_node("Gemm", ["h", "w"], ["i"], name="plain"),
        helper.make_node("Gemm", ["i", "w", "b"], ["j"], name="scaled", alpha=0.5),
        helper.make_node("MatMul", ["j", "turned"], ["y"], name="shared"),
    ]
    stored = [small.weight("turned", 8, 8), small.weight("w", 8, 8, seed=1), small.weight("b", 8, seed=2)]
    made = imported(tmp_path, small.model(nodes, [small.value("x", ["N", 8])], [small.value("y", ["N", 8])], stored))
    path, notes = quantize(tmp_path, made, X86, activations="dynamic")
    assert notes["quantized_layers"] == {"DynamicQuantizeMatMul": 3}
    assert decibels(made, path) > 25


def test_shapes_that_onnxruntime_named_are_renamed_in_bodies_too():
    inner = [helper.make_node("Reshape", ["x", "gemm_input_shape"], ["t"])]
    then = helper.make_graph(inner, "then", [], [small.value("t", [2, 4])])
    other = helper.make_graph([helper.make_node("Identity", ["r"], ["e"])], "else", [], [small.value("e", [2, 4])])
    nodes = [
        helper.make_node("Reshape", ["x", "gemm_input_shape"], ["r"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
    ]
    inputs = [small.value("x", [8]), small.value("flag", [], small.BOOL)]
    proto = small.model(nodes, inputs, [small.value("y", [2, 4])], [small.ints("gemm_input_shape", 2, 4)])
    feeds = {"x": np.arange(8, dtype=np.float32), "flag": np.array(True)}
    wanted = onnx_format.runner_of(proto.SerializeToString())(feeds)
    rename_shapes(proto.graph)
    assert [tensor.name for tensor in proto.graph.initializer] == ["prepared_gemm_input_shape"]
    np.testing.assert_array_equal(onnx_format.runner_of(proto.SerializeToString())(feeds)["y"], wanted["y"])
