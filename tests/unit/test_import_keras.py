"""import-keras: trained Keras models become ONNX with their names, open axes and function; files that could run code are refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt.cli import call
from edgeopt.core.errors import UntrustedError, UsageError
from edgeopt.core.protocols import Context
from edgeopt.formats.onnx import Onnx
from edgeopt.passes.import_keras import ImportKeras, as_torch, load
from edgeopt.passes.import_keras_file import examine
from edgeopt.passes.import_keras_layers import keep_whole
from tests.unit import small_keras  # sets Keras's backend

keras, h5py = pytest.importorskip("keras"), pytest.importorskip("h5py")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def trained() -> Callable[[str], small_keras.Trained]:
    """Each model by name, trained once."""
    found: dict[str, small_keras.Trained] = {}

    def get(name: str) -> small_keras.Trained:
        if name not in found:
            keras.utils.set_random_seed(1)
            found[name] = small_keras.MODELS[name]()
        return found[name]

    return get


def imported(folder: Path, file: str) -> tuple[Path, dict[str, Any]]:
    """The ONNX that is made of a file, and the notes of the import."""
    notes: dict[str, Any] = {}
    made = folder / "made"
    made.mkdir(exist_ok=True)
    return ImportKeras(file=file).run(None, Context(made, base=folder, note=notes.__setitem__)), notes  # type: ignore[arg-type]


def predicted(one: small_keras.Trained) -> list[np.ndarray]:
    given = one.inputs if len(one.inputs) > 1 else next(iter(one.inputs.values()))
    found = one.model.predict(given, verbose=0)
    return list(found.values()) if isinstance(found, dict) else [found]


SIGNATURES = {
    "mlp": ("image: float32[N, 28, 28, 1]", "dense: float32[N, 10]"),
    "cnn": ("image: float32[N, 28, 28, 1]", "digit: float32[N, 10]"),
    "memory": ("series: float32[N, axis_1, 12]", "speaker: float32[N, 9]"),
    "attention": ("series: float32[N, 25, 12]", "speaker: float32[N, 9]"),
    "halves": ("top: float32[N, 14, 28]; bottom: float32[N, 14, 28]", "digit: float32[N, 10]; even: float32[N, 1]"),
}


@pytest.mark.parametrize("name", list(small_keras.MODELS))
def test_a_trained_model_keeps_names_axes_and_function(tmp_path: Path, trained: Any, name: str) -> None:
    one = trained(name)
    wanted = predicted(one)
    assert (wanted[0].argmax(-1) == one.labels).mean() >= one.least
    one.model.save(tmp_path / "model.keras")
    path, notes = imported(tmp_path, "model.keras")
    signature = Onnx().signature(path)
    shown = ["; ".join(map(str, side)) for side in (signature.inputs, signature.outputs)]
    if name == "mlp":  # Keras numbers its layers as it makes them
        assert shown[1].startswith("dense")
        shown[1] = f"dense:{shown[1].partition(':')[2]}"
    assert tuple(shown) == SIGNATURES[name]
    assert notes["parameters"] == one.model.count_params()
    run = Onnx().runner(path)
    for count in (1, 5, len(one.labels)):
        same(run({key: value[:count] for key, value in one.inputs.items()}), wanted, count)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    if name == "cnn":  # one before the first layer and one before the last: those between are gone, normalizations folded
        assert kinds.count("Transpose") == 2 and kinds.count("Conv") == 5 and not {"BatchNormalization", "Sub", "Mul"} & set(kinds)
    if name == "memory":
        assert (kinds.count("LSTM"), kinds.count("GRU"), notes["recurrent_layers"]) == (2, 1, {"kept": 3, "unrolled": 0})
        longer = np.concatenate([one.inputs["series"]] * 2, axis=1)[:7]
        same(run({"series": longer}), [one.model.predict(longer, verbose=0)], 7)


@pytest.mark.parametrize("name", ["cnn", "memory", "halves"])
def test_files_of_hdf5_are_the_same_model(tmp_path: Path, trained: Any, name: str) -> None:
    one = trained(name)
    one.model.save(tmp_path / "model.h5")
    same(ImportKeras(file="model.h5").original(tmp_path)(one.inputs), predicted(one), len(one.labels))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_options_that_keras_3_no_longer_has_are_dropped(tmp_path: Path, trained: Any, suffix: str) -> None:
    """As in every file of Keras 2 with depthwise convolutions; with a value that says something Keras refuses them."""

    def older(config: dict[str, Any], groups: int = 1) -> None:
        for one in config["config"]["layers"]:
            if one["class_name"] in ("DepthwiseConv2D", "SeparableConv2D"):
                one["config"]["groups"] = groups

    one = trained("cnn")
    one.model.save(tmp_path / f"new{suffix}")
    for name, groups in (("old", 1), ("other", 2)):
        if suffix == ".keras":
            with_config(tmp_path / "new.keras", tmp_path / f"{name}.keras", lambda config, groups=groups: older(config, groups))
        else:
            (tmp_path / f"{name}.h5").write_bytes((tmp_path / "new.h5").read_bytes())
            with h5py.File(tmp_path / f"{name}.h5", "r+") as opened:
                config = json.loads(opened.attrs["model_config"])
                older(config, groups)
                opened.attrs["model_config"] = json.dumps(config).encode()
    same(ImportKeras(file=f"old{suffix}").original(tmp_path)(one.inputs), predicted(one), len(one.labels))
    with pytest.raises(UsageError, match="cannot be loaded by Keras"):
        ImportKeras(file=f"other{suffix}").original(tmp_path)


def same(found: dict[str, np.ndarray], wanted: list[np.ndarray], count: int) -> None:
    for array, other in zip(found.values(), wanted, strict=True):
        np.testing.assert_allclose(array, other[:count], rtol=1e-3, atol=1e-5)


def recurrent(*first: Any, **options: Any) -> Any:
    layers = keras.layers
    return keras.Sequential([
        keras.Input((6, 3), name="x"),
        *first,
        layers.LSTM(4, return_sequences=True, go_backwards=True, **options),
        layers.GRU(4, return_sequences=True, reset_after=False, **options),
        layers.GRU(5, go_backwards=True, **options),
    ])  # fmt: skip


@pytest.mark.parametrize(("options", "kept"), [({}, 2), ({"recurrent_activation": "hard_sigmoid"}, 0), ({"use_bias": False}, 0)])
@pytest.mark.parametrize("masked", [False, True])
def test_recurrent_layers_compute_the_same_by_torch(options: dict[str, Any], kept: int, masked: bool) -> None:
    """Where torch has other formulas, and for steps that a mask leaves out, Keras's loop stays."""
    import torch

    model = recurrent(*([keras.layers.Masking()] if masked else []), **options)
    given = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)
    given[:3, 4:] = 0
    wanted = model.predict(given, verbose=0)
    assert keep_whole(model) == {"kept": kept, "unrolled": 3 - kept}
    with torch.inference_mode():
        [found] = as_torch(model)(torch.from_numpy(given))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-6)


def test_a_loop_of_fixed_length_is_unrolled(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2, 2), name="x"), keras.layers.GRU(2, reset_after=False)])
    model.save(tmp_path / "model.keras")
    path, notes = imported(tmp_path, "model.keras")
    assert notes["recurrent_layers"] == {"kept": 0, "unrolled": 1}
    given = np.random.default_rng(0).normal(size=(5, 2, 2)).astype(np.float32)
    same(Onnx().runner(path)({"x": given}), [model.predict(given, verbose=0)], 5)


# Files that could run code


def small() -> Any:
    return keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, "relu"), keras.layers.Dense(2)])


def with_config(source: Path, target: Path, change: Callable[[dict[str, Any]], None], **more: bytes) -> Path:
    """A copy of an archive with its configuration changed in place, and with other parts."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                change(config)
                data = json.dumps(config).encode()
            new.writestr(name, more.pop(name, data))
        for name, data in more.items():
            new.writestr(name, data)
    return target


def layer(config: dict[str, Any], index: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = config["config"]["layers"][index]
    return found


FETCHES = {"module": "keras.utils", "class_name": "function", "config": "get_file", "registered_name": "get_file"}
CODE = {
    "another module": (lambda config: layer(config).update(module="os", class_name="system"), "os.system"),
    "a module of Keras that fetches": (lambda config: layer(config)["config"].update(activation=FETCHES), "keras.utils"),
    "a function that loads": (lambda config: layer(config).update(module="keras.models", class_name="load_model"), "load_model"),
    "a class that is registered": (lambda config: layer(config).update(registered_name="mine>Dense", module=None), "mine>Dense"),
    "a class without a module": (lambda config: layer(config).update(module=None, class_name="Mine"), "Mine"),
    "a pickle": (lambda config: layer(config).update(class_name="TorchModuleWrapper"), "a pickle"),
    "deep inside": (lambda config: layer(config)["config"].update(kernel_initializer={"a": [{"class_name": "__lambda__"}]}), "Python code"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(CODE))
def test_code_of_a_model_is_refused(tmp_path: Path, what: str) -> None:
    change, told = CODE[what]
    small().save(tmp_path / "small.keras")
    with pytest.raises(UntrustedError, match=told):
        examine(with_config(tmp_path / "small.keras", tmp_path / "model.keras", change))


def test_layers_of_own_code_end_with_6_and_do_not_run(tmp_path: Path, own_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = str(tmp_path / "ran")
    layers = [keras.Input((4,)), keras.layers.Lambda(lambda x: open(ran, "w") and x, output_shape=(4,)), keras.layers.Dense(2)]  # noqa: PTH123, SIM115
    for suffix in (".keras", ".h5"):
        keras.Sequential(layers).save(tmp_path / f"model{suffix}")
    Path(ran).unlink(missing_ok=True)
    with pytest.raises(UntrustedError, match="Python code in a layer Lambda"):
        ImportKeras(file="model.h5").original(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        "edgeopt: 1\nname: own\nmodel: {keras: model.keras}\ndata: {evaluate: {random: normal, samples: 8}}\n"
        'scores: [sqnr]\nvariants: {fp32: []}\ntargets: ["null"]\n'
    )
    assert call(["run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out"), "--quiet"]) == 6
    assert "Python code in a layer" in capsys.readouterr().err
    assert not Path(ran).exists()


@keras.saving.register_keras_serializable("mine")
class Mine(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_classes_that_are_registered_are_refused(tmp_path: Path, suffix: str) -> None:
    keras.Sequential([keras.Input((4,)), Mine(), keras.layers.Dense(2)]).save(tmp_path / f"model{suffix}")
    with pytest.raises(UntrustedError, match=r"[.>]Mine"):
        examine(tmp_path / f"model{suffix}")


def test_what_a_model_was_trained_with_is_not_loaded(tmp_path: Path) -> None:
    model = small()
    model.compile("adam", lambda truth, found: keras.ops.mean(found))
    model.save(tmp_path / "model.keras")
    assert not load(tmp_path / "model.keras").compiled


@pytest.mark.parametrize("part", ["model.weights.npz", "assets/words.txt", "model.weights.json"])
def test_other_parts_of_an_archive_are_refused(tmp_path: Path, part: str) -> None:
    small().save(tmp_path / "small.keras")
    with pytest.raises(UntrustedError, match=part):
        examine(with_config(tmp_path / "small.keras", tmp_path / "model.keras", lambda config: None, **{part: b""}))


def externally(group: Any) -> None:
    group["away"] = h5py.ExternalLink("/etc/hostname", "/")


def softly(group: Any) -> None:
    group["away"] = h5py.SoftLink("/elsewhere")


def stored_outside(group: Any) -> None:
    group.create_dataset("away", (4,), "uint8", external=[("/etc/hostname", 0, 4)])


def virtually(group: Any) -> None:
    layout = h5py.VirtualLayout((4,), "uint8")
    layout[:] = h5py.VirtualSource("/etc/hostname", "data", (4,))
    group.create_virtual_dataset("away", layout)


@pytest.mark.parametrize("add", [externally, softly, stored_outside, virtually])
def test_weights_that_lie_in_another_file_are_refused(tmp_path: Path, add: Callable[[Any], None]) -> None:
    small().save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as opened:
        add(opened["model_weights"].create_group("more"))
    with pytest.raises(UntrustedError, match="more/away"):
        examine(tmp_path / "model.h5")
    small().save(tmp_path / "small.keras")
    with zipfile.ZipFile(tmp_path / "small.keras") as archive:
        (tmp_path / "inner.h5").write_bytes(archive.read("model.weights.h5"))
    with h5py.File(tmp_path / "inner.h5", "r+") as opened:
        add(opened.create_group("more"))
    inner = (tmp_path / "inner.h5").read_bytes()
    with pytest.raises(UntrustedError, match="more/away"):
        examine(with_config(tmp_path / "small.keras", tmp_path / "model.keras", lambda config: None, **{"model.weights.h5": inner}))


# Files that are none


def test_what_is_no_keras_model(tmp_path: Path) -> None:
    small().save(tmp_path / "whole.keras")
    small().save(tmp_path / "whole.h5")
    for suffix in (".keras", ".h5"):
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        for data in (b"", b"nothing", whole[:1000], whole[: len(whole) // 2], whole[:-1000]):
            (tmp_path / f"model{suffix}").write_bytes(data)
            with pytest.raises(UsageError, match="no Keras model"):
                examine(tmp_path / f"model{suffix}")
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("other.json", "{}")
    with pytest.raises(UsageError, match=r"it has no config\.json"):
        examine(tmp_path / "model.keras")
    small().save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(UsageError, match="weights alone"):
        examine(tmp_path / "model.weights.h5")
    (tmp_path / "whole.h5").rename(tmp_path / "other.keras")
    with pytest.raises(UsageError, match=r"HDF5 inside\n.*other\.h5"):
        examine(tmp_path / "other.keras")
    (tmp_path / "saved").mkdir()
    with pytest.raises(UsageError, match="SavedModel"):
        examine(tmp_path / "saved")
    with pytest.raises(UsageError, match="no such file"):
        examine(tmp_path / "gone.keras")


def test_models_that_no_sample_can_judge(tmp_path: Path) -> None:
    model = small()
    model.layers[0].bias.assign([0.0, float("nan"), 0.0])
    model.save(tmp_path / "broken.keras")
    keras.Sequential([keras.layers.Dense(3)]).save(tmp_path / "open.keras")
    keras.Sequential([keras.Input(batch_shape=(1, 6, 3)), keras.layers.LSTM(4, stateful=True)]).save(tmp_path / "stateful.keras")
    for name, told in {"broken": "NaN or infinity: .*bias", "open": "what it takes", "stateful": "depend on earlier calls"}.items():
        with pytest.raises(UsageError, match=told):
            imported(tmp_path, f"{name}.keras")


# Commands


WALK = """\
edgeopt: 1
name: digits
model: {{keras: {file}}}
data:
  calibrate: {{npz: calibrate.npz}}
  evaluate: {{npz: evaluate.npz}}
scores: [top1, agreement, sqnr]
variants:
  fp32: []
  int8: [{{quantize-int8: {{calibration: minmax, model_type: plain, samples: 32}}}}]
targets: [x86-openvino, x86-onnxruntime]
gates:
  - {{score: top1, max_drop: 0.03, inconclusive: pass}}
measure: {{budget_s: 0.3}}
"""


def test_from_recipe_to_report(tmp_path: Path, trained: Any, own_store: Path) -> None:
    one = trained("cnn")
    one.model.save(tmp_path / "model.keras")
    images, labels = small_keras.digits("calibrate", 64)
    np.savez(tmp_path / "calibrate.npz", image=images, labels=labels)
    np.savez(tmp_path / "evaluate.npz", **one.inputs, labels=one.labels)
    (tmp_path / "recipe.yaml").write_text(WALK.format(file="model.keras"))
    report = edgeopt.run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert report.exit_code == 0, report.exit_reasons
    rows = {(row.variant, row.target): row for row in report.rows}
    accuracy = float((predicted(one)[0].argmax(-1) == one.labels).mean())
    for target in ("x86-openvino", "x86-onnxruntime"):
        fp32, int8 = rows["fp32", target], rows["int8", target]
        assert fp32.scores["top1"].value == pytest.approx(accuracy, abs=0.004)
        assert fp32.history[0].step == "import-keras" and fp32.history[0].parity is not None
        assert fp32.history[0].parity["sqnr_db"] > 100 and fp32.history[0].parity["not_compared"] is None
        assert int8.precision is not None and int8.precision["int8"] >= 5
        assert int8.scores["sqnr"].value > 15


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_is_looked_into_and_a_recipe_written_for_it(
    tmp_path: Path, trained: Any, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = trained("halves")
    one.model.save(tmp_path / f"model{suffix}")
    assert call(["inspect", str(tmp_path / f"model{suffix}"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["parameters"], told["stored"]) == (
        "keras",
        one.model.count_params(),
        {"float32": one.model.count_params()},
    )
    assert told["operators"] == {"Flatten": 2, "Concatenate": 1, "Dense": 3}
    assert told["signature"]["inputs"] == [
        {"name": "top", "dtype": "float32", "shape": ["N", 14, 28]},
        {"name": "bottom", "dtype": "float32", "shape": ["N", 14, 28]},
    ]
    assert call(["init", str(tmp_path / f"model{suffix}"), "-o", str(tmp_path / "model.yaml")]) == 0
    recipe = edgeopt.load_recipe(tmp_path / "model.yaml")
    assert recipe.model.keras is not None and recipe.model.keras.file == f"model{suffix}"
    edgeopt.plan(recipe)
    (tmp_path / f"model{suffix}").write_bytes((tmp_path / f"model{suffix}").read_bytes()[:2000])
    assert call(["inspect", str(tmp_path / f"model{suffix}")]) == 2
