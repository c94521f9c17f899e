"""Bundles: how far the device may miss the golden outputs is decided by what the model computes with."""

from __future__ import annotations

import json
from pathlib import Path

import faulty_parts
import onnx
import pytest
import small_onnx as small
from sound_onnx import half_precision, weights_rounded_to_4_bits

import edgeopt
from edgeopt.core.artifact import Artifact
from edgeopt.formats.onnx import Onnx
from edgeopt.stages import bundle
from tests import walks


def artifact(folder: Path, path: Path, signature, kind: str = "onnx") -> Artifact:
    return Artifact(folder, kind, path.relative_to(folder / "files").as_posix(), "key", "digest", 1, signature)


def in_onnx(proto: onnx.ModelProto, folder: Path) -> Artifact:
    (folder / "files").mkdir(parents=True)
    path = small.write(proto, folder / "files")
    return artifact(folder, path, Onnx().signature(path))


@pytest.mark.parametrize(
    ("make", "allowed"),
    [
        (lambda: small.cnn(size=(16, 16), batch=1), 1e-3),
        (half_precision, 1e-2),
        (faulty_parts.conv, 5e-2),  # as train-int8 and mixed-precision make them, whose names tell nothing
        (weights_rounded_to_4_bits, 5e-2),
    ],
    ids=["fp32", "fp16", "int8", "4-bit weights"],
)
def test_the_model_decides(make, allowed, tmp_path):
    made = in_onnx(make(), tmp_path)
    assert bundle.tolerance(made, None, {}) == allowed
    assert bundle.tolerance(made, None, {"tf32": True}) == max(allowed, 1e-2)
    engine = artifact(tmp_path, tmp_path / "files" / "engine.plan", made.signature, "tensorrt")
    assert bundle.tolerance(engine, made, {}) == allowed, "an engine is what it was made of"


def test_openvino_models_tell_it_too(tmp_path):
    openvino = pytest.importorskip("openvino")
    plain = small.write(small.cnn(size=(16, 16), batch=1), tmp_path)
    eight = small.write(faulty_parts.conv(), tmp_path, "eight.onnx")
    for path, allowed in ((plain, 1e-3), (eight, 5e-2)):
        folder = tmp_path / path.stem
        (folder / "files").mkdir(parents=True)
        openvino.save_model(openvino.convert_model(path), folder / "files" / "model.xml", compress_to_fp16=allowed == 1e-3)
        made = artifact(folder, folder / "files" / "model.xml", Onnx().signature(path), "openvino")
        assert bundle.tolerance(made, None, {}) == allowed


@pytest.mark.parametrize(("passes", "allowed"), [("[]", 1e-3), ("[cast-fp16]", 1e-2), ("[quantize-int8]", 5e-2)])
def test_a_bundle_for_a_device_allows_what_its_variant_needs(passes, allowed, tmp_path):
    recipe = walks.RECIPE.replace('["null"]', "[h100]").replace("  fp32: []\n", f"  fp32: []\n  last: {passes}\n")
    edgeopt.run(walks.write(tmp_path / "r", recipe), tmp_path / "out", store=edgeopt.Store(tmp_path / "store"))
    folder = tmp_path / "out" / "bundles" / "h100"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["variant"] == "last" and manifest["golden"]["tolerance"] == allowed
    assert sorted(path.name for path in (folder / "golden").iterdir()) == ["inputs.npz", "outputs.npz"]
