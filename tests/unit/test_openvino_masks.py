"""Masks of 8-bit numbers in OpenVINO models: where they are found, and that nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import small_onnx as small
from onnx import TensorProto, helper, numpy_helper

from edgeopt.formats.openvino import bodies
from edgeopt.formats.openvino_masks import through_i32

openvino = pytest.importorskip("openvino")


def masking(name: str, least: float) -> list[onnx.NodeProto]:
    """`x` plus `least` where it is not positive."""
    steps = [("Greater", "x", "zero"), ("Cast", "0"), ("Sub", "one", "1"), ("Mul", "2", "least"), ("Add", "3", "x")]
    made = []
    for index, (kind, *inputs) in enumerate(steps):
        own = [f"{name}{one}" if one.isdigit() else one for one in inputs]
        made.append(helper.make_node(kind, own, [f"{name}{index}"], **({"to": TensorProto.FLOAT} if kind == "Cast" else {})))
    return made


def converted(folder: Path, least: float, inside: bool) -> openvino.Model:
    numbers = {"zero": 0.0, "one": 1.0, "least": least}
    stored = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in numbers.items()]
    inputs, nodes = [small.value("x", ["N", 4])], [*masking("a", least), helper.make_node("Identity", ["a4"], ["y"])]
    if inside:
        then, other = (helper.make_graph(masking(name, least), name, [], [small.value(f"{name}4", ["N", 4])]) for name in "ab")
        nodes = [helper.make_node("If", ["which"], ["y"], then_branch=then, else_branch=other)]
        inputs.append(small.value("which", [], TensorProto.BOOL))
    onnx.save(small.model(nodes, inputs, [small.value("y", ["N", 4])], stored), folder / "model.onnx")
    return openvino.convert_model(folder / "model.onnx")


@pytest.mark.parametrize(("least", "inside", "found"), [(-1e9, False, 1), (-1e9, True, 2), (-10.0, False, 0)])
def test_masks_are_found_in_bodies_too_and_mean_the_same(tmp_path: Path, least: float, inside: bool, found: int) -> None:
    model = converted(tmp_path, least, inside)
    assert sum(bool(bodies(one)) for one in model.get_ordered_ops()) == inside
    assert through_i32(model) == found
    x = np.array([[1, -1, 2, -3]], np.float32)
    feeds = {"x": x, "which": np.array(True)} if inside else {"x": x}
    told = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feeds)[0]
    assert np.array_equal(told, x + np.where(x > 0, 0, least).astype(np.float32))
