"""onnxruntime's providers for GPUs as targets: refused in words where they are not, strays told from its own trace."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_onnx as small
from onnx import helper

from edgeopt.backends import onnxruntime as backend
from edgeopt.backends.onnxruntime import Onnxruntime
from edgeopt.cli import call
from edgeopt.core import target
from edgeopt.core.artifact import Artifact
from edgeopt.core.errors import UsageError
from edgeopt.core.places import read_yaml
from edgeopt.core.protocols import Context
from edgeopt.formats.onnx import Onnx
from edgeopt.runner import Problem, tensorrt_library
from edgeopt.runner import onnxruntime as runtime

TARGETS = {"cuda-onnxruntime": "cuda", "tensorrt-onnxruntime": "tensorrt", "rtx-onnxruntime": "tensorrt-rtx"}


@pytest.mark.parametrize(("name", "provider"), TARGETS.items())
def test_each_provider_has_a_target_that_says_why_it_is_not_here(name: str, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = target.load(name, Path()).model_dump(mode="json")
    assert fields["options"]["provider"] == provider and fields["int8"] == "s8s8"
    if no_gpu := tensorrt_library.look("tensorrt").gpu:
        assert Onnxruntime().can_measure(fields) == Onnxruntime().can_build(fields) == no_gpu
    monkeypatch.setattr(tensorrt_library, "look", lambda product: tensorrt_library.Finding("", ""))
    if reason := runtime.why_not(provider):
        assert reason.startswith(f"this onnxruntime has no provider for {provider}: pip") and Onnxruntime().can_measure(fields) == reason
    assert not Onnxruntime().can_measure({**fields, "options": {}})


@pytest.mark.parametrize("int8", ["", ", int8: any", ", int8: u8s8"])
@pytest.mark.parametrize("provider", TARGETS.values())
def test_a_target_for_a_gpu_that_lets_u8_pass_is_not_read(tmp_path: Path, provider: str, int8: str) -> None:
    def read(fields: str) -> target.Target:
        path = tmp_path / "mine.yaml"
        path.write_text(f"{{extends: x86-onnxruntime, name: mine{fields}, options: {{provider: {provider}}}}}")
        return target.extend(read_yaml(path), tmp_path)

    with pytest.raises(UsageError, match=f"provider {provider} takes INT8 as symmetric S8 only") as caught:
        read(int8)
    assert caught.value.remedy == "write `int8: s8s8`" and caught.value.place is not None
    assert read(", int8: s8s8").int8 == "s8s8"


def test_a_gpu_gets_activations_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even from a target that nobody checked."""
    retyped: list[Path] = []
    monkeypatch.setattr(backend, "_retype", lambda path, overflows: retyped.append(path))
    monkeypatch.setattr(Onnxruntime, "can_build", lambda self, fields: "")
    monkeypatch.setattr(runtime, "open", lambda *_, **__: io.BytesIO())
    small.write(small.mlp(), tmp_path)
    signature = Onnx().signature(tmp_path / "model.onnx")
    (tmp_path / "at-rest" / "files").mkdir(parents=True)
    (tmp_path / "model.onnx").rename(tmp_path / "at-rest" / "files" / "model.onnx")
    model = Artifact(tmp_path / "at-rest", "onnx", "model.onnx", "", "", 0, signature)
    for number, provider in enumerate(["cpu", *TARGETS.values()]):
        fields = {"arch": "x86_64", "int8": "u8s8", "options": {"provider": provider}}
        Onnxruntime().compile(model, Context(tmp_path / str(number), target=fields))
    assert [path.parent.name for path in retyped] == ["0"]


def test_a_session_never_opens_on_the_cpu_in_place_of_the_provider(tmp_path: Path) -> None:
    path = small.write(small.cnn(), tmp_path)
    for provider in TARGETS.values():
        if runtime.why_not(provider):
            with pytest.raises(Problem, match=f"no provider for {provider}") as caught:
                runtime.open(path, threads=1, requests=1, options={"provider": provider}, execution={})
            assert caught.value.kind == "missing" and "pip install" in caught.value.remedy


def test_strays_are_the_nodes_that_handle_data_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Shape", ["h"], ["size"], name="size"),
        helper.make_node("Reshape", ["h", "size"], ["y"], name="same"),
    ]
    proto = small.model(nodes, [small.value("x", ["N", 4])], [small.value("y", ["N", 4])], [small.weight("w", 4, 4)])
    feeds = {"x": np.ones((2, 4), np.float32)}
    options = {"graph_optimization": "off"}
    session = runtime.open(small.write(proto, tmp_path), threads=1, requests=1, options=options, execution={})
    events, _ = session._nodes(feeds, range(1))
    assert {one[0]["args"]["op_name"] for one in events.values()} >= {"MatMul", "Shape"}
    assert runtime.strays(events.values(), runtime.PROVIDERS["cpu"]) == []
    assert runtime.strays(events.values(), runtime.PROVIDERS["tensorrt"]) == ["product (MatMul)", "same (Reshape)"]
    session._providers = runtime.PROVIDERS["cuda"]  # as if it had been asked for: the trace is that of the CPU
    monkeypatch.setattr(session, "_open", lambda profile: runtime.OnnxruntimeSession._open(_on_cpu(session), profile))
    with pytest.raises(Problem, match=r"fell back to another provider: product \(MatMul\), same \(Reshape\)"):
        session.facts(feeds)


@pytest.mark.parametrize(
    ("kind", "given", "astray"),
    [
        ("Transpose", {"float": [1, 8, 4]}, True),
        ("QuantizeLinear", {"int8": [1, 8, 4]}, True),
        ("Gather", {"int64": [2]}, False),
        ("Cast", {"float": [4]}, False),  # scales of a Resize, out of a shape
        ("NonZero", {"int64": [2, 9]}, False),
    ],
)
def test_only_sizes_and_shapes_may_be_moved_elsewhere(kind: str, given: dict[str, list[int]], astray: bool) -> None:
    args = {"op_name": kind, "provider": "CPUExecutionProvider", "input_type_shape": [{"float": [1, 8, 4]}], "output_type_shape": [given]}
    found = runtime.strays([[{"name": "n_kernel_time", "args": args}]], runtime.PROVIDERS["cuda"])
    assert found == ([f"n ({kind})"] if astray else [])


def test_a_gpu_computes_fp32_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ort, asked = runtime.library(), list[Any]()

    def refuse(path: Path, settings: Any, providers: list[Any]) -> None:
        asked.extend(providers)
        raise RuntimeError("no GPU is here")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    monkeypatch.setattr(ort, "preload_dlls", lambda: asked.append("preloaded"), raising=False)
    monkeypatch.setattr(runtime, "why_not", lambda provider: "")
    for provider, wanted in {
        "tensorrt": ["preloaded", "TensorrtExecutionProvider", ("CUDAExecutionProvider", {"use_tf32": "0"})],
        "cpu": ["CPUExecutionProvider"],
    }.items():
        asked.clear()
        with pytest.raises(Problem, match="no GPU is here"):
            runtime.open(small.write(small.mlp(), tmp_path), threads=1, requests=1, options={"provider": provider}, execution={})
        assert asked == wanted
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    runtime.ready(tmp_path)
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def _on_cpu(session: runtime.OnnxruntimeSession) -> runtime.OnnxruntimeSession:
    """The same session with the CPU's provider."""
    twin = object.__new__(runtime.OnnxruntimeSession)
    twin.__dict__ |= {**session.__dict__, "_providers": runtime.PROVIDERS["cpu"]}
    return twin


def test_bench_on_a_provider_that_is_not_here_ends_with_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small.write(small.mlp(), tmp_path)
    if not Onnxruntime().can_measure(target.load("cuda-onnxruntime", Path()).model_dump(mode="json")):
        pytest.fail("this machine has what the test takes to be missing: run tests/hardware")
    assert call(["bench", str(path), "--target", "cuda-onnxruntime", "--json"]) == 5
    told = capsys.readouterr()
    assert "NVIDIA driver" in told.err + json.dumps(told.out)
