"""What needs an NVIDIA GPU: engines built, run and timed. Skips with the backend's own words where there is none.

Nothing below ran yet: it was written on a machine without a GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.backends.tensorrt import Tensorrt, TensorrtOptions
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import UsageError
from edgeopt.core.protocols import Context
from edgeopt.formats.onnx import Onnx
from edgeopt.runner import tensorrt_library as library
from edgeopt.stages.children import Child

PRODUCTS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=reason or "-"))
    for name in library.PACKAGES
    for reason in [library.why_not_run(name)]
]
every_product = pytest.mark.parametrize("product", PRODUCTS)
FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}


def cnn(root: Path) -> Artifact:
    """Conv, ReLU, pool and a linear layer, with an open batch axis."""
    (root / "files").mkdir(parents=True)
    numbers = np.random.default_rng(1)
    weights = {"w": (8, 3, 3, 3), "v": (5, 8)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "v"], ["y"], name="head", transB=1),
    ]
    tensors = [numpy_helper.from_array(numbers.standard_normal(shape).astype(np.float32), name) for name, shape in weights.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", ["N", 3, 16, 16]), ("y", ["N", 5]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    path = root / "files" / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return Artifact(root, "onnx", path.name, "", "", path.stat().st_size, Onnx().signature(path))


def compiled(model: Artifact, folder: Path, product: str, **options) -> Path:
    folder.mkdir()
    here = library.look(product).gpus[0]["compute_capability"]
    chosen = TensorrtOptions(product=product, compute_capabilities=(here,), **options).model_dump(mode="json")
    return Tensorrt().compile(model, Context(folder=folder, target={"batch": 4, "compile_on": "host", "int8": "s8s8", "options": chosen}))


def opened(child: Child, path: Path, requests: int | str = 1, **options) -> None:
    child.ask("open", path=str(path), backend="tensorrt", threads=1, requests=requests, options=options, execution={"float": "f32"})


@every_product
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_an_engine_computes_what_the_onnx_does(product, cuda_graph, tmp_path):
    model = cnn(tmp_path / "model")
    engine = compiled(model, tmp_path / "out", product)
    with Child("tensorrt") as child:
        opened(child, engine, cuda_graph=cuda_graph)
        for size in (2, 1, 4, 2):  # every change of shape makes the graph anew
            feeds = {"x": np.resize(FEEDS["x"], (size, 3, 16, 16))}
            found = child.ask("infer", feeds)[1]["y"]
            np.testing.assert_allclose(found, Onnx().runner(model.path)(feeds)["y"], rtol=1e-3, atol=1e-4)


@every_product
def test_copy_and_compute_are_apart_and_the_conditions_recorded(product, tmp_path):
    engine = compiled(cnn(tmp_path / "model"), tmp_path / "out", product)
    with Child("tensorrt") as child:
        opened(child, engine)
        child.ask("feeds", {"0/x": FEEDS["x"]})
        assert child.ask("first")[0]["first_ms"] > 0
        times = child.ask("time", runs=50)[1]
        facts = child.ask("facts")[0]
        layers = child.ask("profile")[0]["layers"]
    assert all((times[name] > 0).all() and len(times[name]) == 50 for name in ("load_ns", "compute_ns", "read_ns"))
    assert facts["events_ms"]["compute"] > 0 and facts["events_ms"]["runs"] == 100
    assert facts["cuda_graph"] is True and facts["spin_wait"] is True and facts["transfers"] == "timed apart"
    assert (
        facts["runtime_cache"] in ("none", "cold", "warm") and isinstance(facts["warnings"], list) and isinstance(facts["conditions"], dict)
    )
    assert layers and all(layer["us"] >= 0 for layer in layers)


@every_product
def test_slots_compute_side_by_side(product, tmp_path):
    engine = compiled(cnn(tmp_path / "model"), tmp_path / "out", product)
    with Child("tensorrt") as child:
        opened(child, engine, requests="auto")
        child.ask("feeds", {"0/x": FEEDS["x"]})
        assert child.ask("flood", seconds=0.2)[0]["count"] > 2


@every_product
def test_a_shape_outside_the_profile_is_told_with_what_to_do(product, tmp_path):
    engine = compiled(cnn(tmp_path / "model"), tmp_path / "out", product)
    with Child("tensorrt") as child:
        opened(child, engine)
        with pytest.raises(UsageError, match="outside the engine's profile") as caught:
            child.ask("infer", {"x": np.zeros((5, 3, 16, 16), np.float32)})
    assert "profiles" in caught.value.remedy
