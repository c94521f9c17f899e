"""The runner: frames on the wire, the serving child, and what each runtime answers through it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import small_onnx as small

from edgeopt.core import registry
from edgeopt.core.errors import MissingError, StepError, UsageError
from edgeopt.runner import frames, null, serve
from edgeopt.stages.children import Child

SERVE = [sys.executable, "-m", "edgeopt.runner", "serve"]
REASONS = {name: registry.load("backends", name)().probe() for name in ("onnxruntime", "openvino")}
RUNTIMES = [pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=reason or "-")) for name, reason in REASONS.items()]
both_runtimes = pytest.mark.parametrize("runtime", RUNTIMES)


def open_in(child: Child, runtime: str, path: Path, requests: int | str = 1, threads: int = 1, **options: str) -> dict:
    return child.ask(
        "open", path=str(path), backend=runtime, threads=threads, requests=requests, options=options, execution={"float": "f32"}
    )[0]


@pytest.fixture
def child():
    with Child("model") as made:
        yield made


@pytest.fixture
def null_model(tmp_path: Path) -> Path:
    path = tmp_path / "null.json"
    path.write_text(json.dumps({"inputs": [["x", "float32", ["N", 8]]], "outputs": [["y", "float16", ["N", 3, "other"]]]}))
    return path


@pytest.fixture
def mlp(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    made = small.mlp()
    return small.write(made, tmp_path, "mlp.onnx"), {one.name: onnx.numpy_helper.to_array(one) for one in made.graph.initializer}


@pytest.fixture
def reshaper(tmp_path: Path) -> Path:
    """A model whose output shape hangs on a value, not on an input's shape."""
    nodes = [onnx.helper.make_node("Reshape", ["x", "shape"], ["y"], name="culprit")]
    inputs = [small.value("x", ["N", 64]), small.value("shape", [2], small.INT64)]
    return small.write(small.model(nodes, inputs, [small.value("y", ["a", "b"])]), tmp_path, "reshape.onnx")


# --- frames


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "bool", "int8", "uint8", "int64", "uint64", "complex64"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (5,), (2, 3, 4)])
def test_arrays_of_any_number_type_and_shape_come_back_as_they_went(dtype, shape):
    array = np.asarray(np.random.default_rng(1).integers(0, 2, shape), dtype)
    stream = io.BytesIO()
    frames.write(stream, {"do": "x", "text": "größe"}, {"a": array, "b": array.T})
    frames.write(stream, {"do": "next"})
    stream.seek(0)
    header, arrays = frames.read(stream)
    assert header == {"do": "x", "text": "größe"}
    for got, sent in ((arrays["a"], array), (arrays["b"], array.T)):
        assert got.dtype == sent.dtype and got.shape == sent.shape
        np.testing.assert_array_equal(got, sent)
    assert frames.read(stream) == ({"do": "next"}, {})


def test_strings_and_objects_are_not_written():
    for array in (np.array(["a"]), np.array([{}], dtype=object)):
        with pytest.raises(ValueError, match="not numbers"):
            frames.write(io.BytesIO(), {}, {"a": array})


def test_a_frame_that_names_objects_is_refused():
    header = json.dumps({"arrays": [["a", "O", [1]]]}).encode()
    with pytest.raises(ValueError, match="not numbers"):
        frames.read(io.BytesIO(len(header).to_bytes(8, "little") + header + b"\0" * 8))


def test_the_end_of_a_stream_is_told_wherever_it_comes():
    stream = io.BytesIO()
    frames.write(stream, {}, {"a": np.arange(10)})
    whole = stream.getvalue()
    for length in (0, 3, 12, len(whole) - 1):
        with pytest.raises(EOFError):
            frames.read(io.BytesIO(whole[:length]))


def test_bytes_that_are_no_frame_are_refused():
    with pytest.raises(ValueError, match="no frame"):
        frames.read(io.BytesIO(b"garbage garbage garbage"))


# --- the child's life


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("stopped", [False, True])
def test_the_child_dies_with_its_parent_even_while_stopped_and_with_its_pipes_open(stopped):
    requests, to_child = os.pipe()
    from_child, replies = os.pipe()
    code = """
import subprocess, sys
child = subprocess.Popen(sys.argv[3:], stdin=int(sys.argv[1]), stdout=int(sys.argv[2]))
print(child.pid, flush=True)
child.wait()
"""
    pipes = [requests, replies]
    parent = subprocess.Popen([sys.executable, "-c", code, *map(str, pipes), *SERVE], pass_fds=pipes, stdout=subprocess.PIPE)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    with os.fdopen(to_child, "wb") as stdin, os.fdopen(from_child, "rb") as stdout:
        frames.write(stdin, {"do": "usage"})
        assert frames.read(stdout)[0]["ok"]
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 20
        while not gone(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone(pid)
    parent.stdout.close()
    os.close(requests)
    os.close(replies)


def test_the_child_ends_in_silence_when_stdin_ends():
    result = subprocess.run(SERVE, input=b"", capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_a_request_cut_in_the_middle_ends_the_child_too():
    assert subprocess.run(SERVE, input=b"\x40\0\0", capture_output=True, timeout=60, check=False).returncode == 0


def test_the_child_ignores_ctrl_c_and_ends_on_close(child, null_model):
    open_in(child, "null", null_model)
    os.kill(child.process.pid, signal.SIGINT)
    assert child.ask("usage")[0]["ok"]
    assert child.ask("close")[0] == {"ok": True}
    assert child.process.wait(20) == 0


def test_the_child_imports_no_framework():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *SERVE[1:]], input="", capture_output=True, text=True, timeout=60, check=True
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "numpy" in imported
    assert not imported & {"pydantic", "onnx", "torch", "click", "yaml", "rich", "scipy", "onnxruntime", "openvino"}


def test_another_command_line_is_refused():
    result = subprocess.run([*SERVE[:-1], "dance"], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0 and "usage:" in result.stderr


@both_runtimes
def test_an_idle_child_costs_no_cpu(child, mlp, runtime):
    open_in(child, runtime, mlp[0], threads=2)
    child.ask("feeds", {"0/x": np.ones((1, 8), np.float32)})
    child.ask("time", runs=200)
    time.sleep(0.3)  # the threads of onnxruntime spin for a while after a run
    before = child.cpu_seconds()
    time.sleep(1)
    assert child.cpu_seconds() - before <= 0.1


# --- runtimes of others, and what libraries print


def install(folder: Path, name: str, source: str) -> None:
    (folder / f"{name}_runtime.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[edgeopt.runner]\n{name} = {name}_runtime\n")


def test_what_a_runtime_prints_does_not_reach_the_frames(tmp_path, null_model, monkeypatch):
    source = """
import ctypes, os, sys
from edgeopt.runner import null
def library():
    print("the library prints", flush=True)
def open(path, **wanted):
    print("python prints", flush=True); os.write(1, b"and so does the system\\n"); ctypes.CDLL(None).puts(b"and C")
    assert sys.stdin.read() == ""
    return null.open(path, **wanted)
"""
    install(tmp_path, "noisy", source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (tmp_path / "log").open("wb") as log, Child("noisy", log=log) as child:
        assert open_in(child, "noisy", null_model)["ok"]
        assert child.ask("infer", {"x": np.zeros((2, 8), np.float32)})[1]["y"].shape == (2, 3, 1)
        child.ask("close")
    assert "the library prints\npython prints\nand so does the system\n" in (tmp_path / "log").read_text()


def test_a_runtime_that_cannot_be_imported_is_missing(tmp_path, null_model, monkeypatch):
    install(tmp_path, "broken", "import no_such_library")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child("broken") as child, pytest.raises(MissingError, match="no_such_library"):
        open_in(child, "broken", null_model)


# --- requests that cannot be done


def test_requests_out_of_order_or_unknown_are_usage_errors(child, null_model):
    for request in ("time", "first", "infer", "facts", "feeds"):
        with pytest.raises(UsageError):
            child.ask(request)
    open_in(child, "null", null_model)
    wrong = {"time": {}, "dance": {}, "flood": {"minutes": 1}, "open": {"path": str(null_model)}, "first": {}}
    for request, fields in wrong.items():
        with pytest.raises(UsageError):
            child.ask(request, **fields)
    with pytest.raises(UsageError, match="open already"):
        open_in(child, "null", null_model)
    assert child.ask("usage")[0]["ok"], "the child lives on"


def test_an_unknown_runtime_or_a_missing_file_is_a_usage_error(child, null_model, tmp_path):
    with pytest.raises(UsageError, match="tensorflow") as caught:
        open_in(child, "tensorflow", null_model)
    assert "openvino" in caught.value.remedy
    with pytest.raises(UsageError, match=r"no such file.*absent"):
        open_in(child, "null", tmp_path / "absent.json")


@both_runtimes
def test_a_file_that_is_no_model_fails_in_one_line(child, runtime, tmp_path):
    for name, data in (("bad.onnx", b"garbage" * 50), ("empty.onnx", b""), ("bad.xml", b"<net>")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(StepError, match=name) as caught:
            open_in(child, runtime, tmp_path / name)
        assert "\n" not in caught.value.cause and "Exception from" not in caught.value.cause


def test_a_damaged_record_of_the_null_runtime_fails_in_one_line(child, tmp_path):
    (tmp_path / "null.json").write_text("{")
    with pytest.raises(StepError, match="open: JSONDecodeError"):
        open_in(child, "null", tmp_path / "null.json")


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"wrong": np.zeros((1, 8), np.float32)}, "no input 'wrong'"),
        ({}, "nothing is fed to the input 'x'"),
        ({"x": np.zeros((1, 8), np.float64)}, "takes float32, not float64"),
        ({"x": np.zeros((1, 5), np.float32)}, r"takes \[N, 8\], not \[1, 5\]"),
        ({"x": np.zeros(4, np.float32)}, r"takes \[N, 8\], not \[4\]"),
    ],
)
def test_feeds_that_do_not_fit_are_usage_errors_that_name_the_inputs(child, null_model, feeds, said):
    open_in(child, "null", null_model)
    for request, arrays in (("infer", feeds), ("feeds", {f"0/{name}": array for name, array in feeds.items()})):
        with pytest.raises(UsageError, match=said if arrays or request == "infer" else "no feeds") as caught:
            child.ask(request, arrays)
        assert "x: float32[N, 8]" in caught.value.remedy or not arrays


@both_runtimes
def test_an_inference_that_fails_names_the_node_and_leaves_the_child_alive(child, reshaper, runtime):
    open_in(child, runtime, reshaper, requests=2, threads=2)
    x = np.zeros((1, 64), np.float32)
    with pytest.raises(StepError, match="reshape") as caught:
        child.ask("infer", {"x": x, "shape": np.array([7, 7])})
    assert "\n" not in caught.value.cause and "/src/" not in caught.value.cause and ".cc" not in caught.value.cause
    child.ask("feeds", {"0/x": x, "0/shape": np.array([7, 7])})
    with pytest.raises(StepError, match="reshape"):
        child.ask("flood", seconds=0.05)
    for shape in ([2, 32], [4, 16], [64, 1]):
        assert list(child.ask("infer", {"x": x, "shape": np.array(shape)})[1]["y"].shape) == shape


# --- results


@both_runtimes
@pytest.mark.parametrize("requests", [1, 2, "auto"])
def test_outputs_agree_with_numpy_at_any_batch(child, mlp, runtime, requests):
    path, weights = mlp
    opened = open_in(child, runtime, path, requests=requests, threads=2)
    assert [entry[:2] for entry in opened["inputs"] + opened["outputs"]] == [["x", "float32"], ["y", "float32"]]
    assert isinstance(opened["inputs"][0][2][0], str) and opened["inputs"][0][2][1] == 8
    assert opened["load_ms"] > 0 and opened["bare_rss_mb"] > 1 and opened["slots"] >= 1
    for batch in (1, 3, 3, 2):
        x = np.random.default_rng(batch).standard_normal((batch, 8), np.float32)
        wanted = np.maximum(x @ weights["w1"].T + weights["b1"], 0) @ weights["w2"].T + weights["b2"]
        np.testing.assert_allclose(child.ask("infer", {"x": x})[1]["y"], wanted, rtol=1e-5, atol=1e-5)


@both_runtimes
def test_every_numpy_type_goes_in_and_comes_out(child, runtime, tmp_path):
    kind, shapes = (
        onnx.helper.np_dtype_to_tensor_dtype,
        {"float16": [2], "bool": [3], "float64": [2, 1], "int64": [1], "uint8": [2, 0], "float32": []},
    )
    kinds = {name: kind(np.dtype(name)) for name in shapes}
    nodes = [
        onnx.helper.make_node("Concat" if shape else "Add", [f"in_{name}", f"in_{name}"], [f"out_{name}"], **({"axis": 0} if shape else {}))
        for name, shape in shapes.items()
    ]
    inputs = [small.value(f"in_{name}", shape, kinds[name]) for name, shape in shapes.items()]
    outputs = [small.value(f"out_{name}", [shape[0] * 2, *shape[1:]] if shape else [], kinds[name]) for name, shape in shapes.items()]
    open_in(child, runtime, small.write(small.model(nodes, inputs, outputs), tmp_path))
    feeds = {name: np.asarray(np.random.default_rng(2).integers(0, 2, shape), name) for name, shape in shapes.items()}
    answers = child.ask("infer", {f"in_{name}": array for name, array in feeds.items()})[1]
    for name, array in feeds.items():
        assert answers[f"out_{name}"].dtype == name
        np.testing.assert_array_equal(answers[f"out_{name}"], np.concatenate([array, array]) if array.ndim else array + array)


def test_the_null_runtime_answers_zeros_that_follow_the_batch(child, null_model):
    assert open_in(child, "null", null_model, requests="auto")["slots"] == 1
    outputs = child.ask("infer", {"x": np.ones((5, 8), np.float32)})[1]
    assert outputs["y"].shape == (5, 3, 1) and outputs["y"].dtype == np.float16 and not outputs["y"].any()
    assert child.ask("facts")[0]["layers"] == 0 and child.ask("profile")[0]["layers"] == []


def test_a_hundred_megabytes_pass_both_ways(child, tmp_path):
    (tmp_path / "null.json").write_text(json.dumps({"inputs": [["x", "uint8", ["N"]]], "outputs": [["y", "uint8", ["N"]]]}))
    open_in(child, "null", tmp_path / "null.json")
    assert child.ask("infer", {"x": np.ones(100_000_000, np.uint8)})[1]["y"].size == 100_000_000


# --- measuring


@pytest.mark.parametrize("runtime", ["null", *RUNTIMES])
def test_timing_gives_three_series_of_one_length(child, mlp, null_model, runtime):
    open_in(child, runtime, null_model if runtime == "null" else mlp[0])
    assert child.ask("feeds", {f"{index}/x": np.full((1, 8), index, np.float32) for index in range(3)})[0]["sets"] == 3
    assert child.ask("first")[0]["first_ms"] > 0
    for wanted, length in (({"runs": 7}, 7), ({"runs": 3, "seconds": 60}, 3), ({"seconds": 0}, 1), ({"runs": 0}, 1)):
        series = child.ask("time", **wanted)[1]
        assert {name: (array.dtype.name, len(array)) for name, array in series.items()} == dict.fromkeys(
            ("compute_ns", "load_ns", "read_ns"), ("int64", length)
        )
        assert all((array > 0).all() for array in series.values())
    assert len(child.ask("time", seconds=0.05)[1]["compute_ns"]) > 10
    usage = child.ask("usage")[0]
    assert usage["peak_rss_mb"] >= usage["rss_mb"] > 1 and usage["cpu_s"] > 0


@pytest.mark.parametrize("runtime", ["null", *RUNTIMES])
@pytest.mark.parametrize("requests", [1, 3])
def test_a_flood_keeps_every_slot_busy(child, mlp, null_model, runtime, requests):
    assert open_in(child, runtime, null_model if runtime == "null" else mlp[0], requests=requests)["slots"] == requests
    child.ask("feeds", {f"{index}/x": np.full((1, 8), index, np.float32) for index in range(2)})
    reply = child.ask("flood", seconds=0.2)[0]
    assert reply["seconds"] >= 0.2 and reply["count"] >= 3 * requests


@pytest.mark.skipif(bool(REASONS["onnxruntime"]), reason=REASONS["onnxruntime"] or "-")
def test_onnxruntime_writes_no_telemetry(mlp, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS")}
    environment = {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    request = {"do": "open", "path": str(mlp[0]), "backend": "onnxruntime", "threads": 1, "requests": 1, "options": {}, "execution": {}}
    stream = io.BytesIO()
    frames.write(stream, request)
    frames.write(stream, {"do": "infer"}, {"x": np.zeros((1, 8), np.float32)})
    result = subprocess.run(SERVE, input=stream.getvalue(), capture_output=True, env=environment, timeout=60, check=True)
    assert frames.read(io.BytesIO(result.stdout))[0]["ok"]
    assert not list(home.rglob("*"))


def test_what_a_runtime_asks_of_the_machine_is_not_part_of_loading(null_model, monkeypatch):
    slow = SimpleNamespace(ready=lambda path: time.sleep(0.5), open=null.open)
    monkeypatch.setattr(serve, "runtime_of", lambda backend: slow)
    assert serve.Child().open({}, str(null_model), "null", 1, 1, {}, {})[0]["load_ms"] < 250
