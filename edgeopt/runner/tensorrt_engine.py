"""Builds engines: ONNX in, engine out, in a child of its own, because a build may crash or never end.

`python -m edgeopt.runner.tensorrt_engine` reads one request (JSON) from stdin and answers one line.
Both products go through here, told apart by features; always strongly typed: precision comes from the ONNX.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.runner import Problem, children, understood
from edgeopt.runner import tensorrt_library as library
from edgeopt.runner import tensorrt_log as log
from edgeopt.runner.tensorrt_library import trt

if TYPE_CHECKING:
    from collections.abc import Mapping

# 50 s for a two-step GRU of batch 1, more than anyone waits for a longer one: some builds of RTX 1.7 grow without end.
_ENDLESS = "recurrent layers of batch 1 are known for it: give the batch axis a range to 2 under profiles, or raise build_limit_s"


def ask(request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
    """Have a child do a request (`build` or `support`). Raises a Problem when it cannot, crashes or takes longer than `limit_s`."""
    doing = "the parser of TensorRT" if request["do"] == "support" else "building the engine"
    process = subprocess.Popen(
        children.python("edgeopt.runner.tensorrt_engine"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=sys.stderr.fileno() if _has_file(sys.stderr) else subprocess.DEVNULL,
        text=True,
        env=children.environment(),
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(json.dumps(request), timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise Problem("step", f"{doing} has not ended within {limit_s:g} s", _ENDLESS) from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if not out.strip():
        how = signal.Signals(-process.returncode).name if process.returncode < 0 else f"exit code {process.returncode}"
        if how == "SIGKILL":
            raise Problem("resource", f"{doing}: killed by the system, most likely out of memory", "build on a larger machine")
        raise Problem("step", f"{doing} crashed inside TensorRT ({how})", log.OPERATORS)
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    if problem := answer.pop("problem", None):
        raise Problem(**problem)
    return answer


def _has_file(stream: Any) -> bool:
    try:
        return isinstance(stream.fileno(), int)
    except (AttributeError, OSError, ValueError):
        return False


# -- in the child ----------------------------------------------------------------------------------


def build(request: Mapping[str, Any]) -> dict[str, Any]:
    """Build `request["model"]` into `request["engine"]`. Returns versions, seconds, size, sha256 and warnings."""
    library.load(request["product"])
    options, started = request["options"], time.monotonic()
    with log.collected() as said:
        builder = log.started(trt.Builder, said)
        network, _parser = _parsed(builder, request["model"], said)
        config = _configured(builder, options)
        _profile(builder, config, network, request["profile"])
        cache = _timing_cache(config, request.get("timing_cache"))
        engine = _checked("building the engine", builder.build_serialized_network(network, config), said)
        _keep(cache, request.get("timing_cache"))
    path = Path(request["engine"])
    path.write_bytes(memoryview(engine))
    return {
        "version": trt.__version__,
        "seconds": round(time.monotonic() - started, 3),
        "size_bytes": path.stat().st_size,
        "sha256": hashlib.sha256(memoryview(engine)).hexdigest(),
        "warnings": log.warnings(said),
    }


def support(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the parser says of a model without building it: the nodes it refuses, and its warnings."""
    library.load(request["product"])
    with log.collected() as said:
        builder = log.started(trt.Builder, said)
        network = builder.create_network(_flags())  # the parser keeps no hold of it
        parser = trt.OnnxParser(network, log.logger())
        path = request["model"]
        supported = parser.supports_model_v2(Path(path).read_bytes(), path)
        refused = [_refusal(parser.get_error(index)) for index in range(parser.num_errors)]
    return {"version": trt.__version__, "supported": supported, "refused": refused, "warnings": log.warnings(said)}


def _refusal(error: Any) -> dict[str, str]:
    """A parser's error: node, cause, remedy. Where the parser only says "false", the operator is unknown to it."""
    texts = log.errors([log.Line("ERROR", error.desc())])
    node = error.node_name() or log.culprit("\n".join(texts)) or error.node_operator()
    cause, remedy = log.meaning(texts)
    if texts in (["false"], []):
        cause, remedy = f"TensorRT has no {error.node_operator()}", "replace the operator before export, or put simplify first"
    return {"node": node, "cause": cause, "remedy": remedy}


def _flags() -> int:
    """Strong typing: the only kind that 11.x and RTX have."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parsed(builder: trt.Builder, path: str, said: list[log.Line]) -> tuple[trt.INetworkDefinition, trt.OnnxParser]:
    """The network, and the parser: it owns the weights that the network points at."""
    network = builder.create_network(_flags())
    parser = trt.OnnxParser(network, log.logger())
    if not parser.parse_from_file(path) or log.errors(said):
        refused = [_refusal(parser.get_error(index)) for index in range(parser.num_errors)]
        if not refused:
            raise log.problem("reading the ONNX", log.errors(said))
        raise Problem("step", f"reading the ONNX: '{refused[0]['node']}': {refused[0]['cause']}", refused[0]["remedy"])
    return network, parser


def _configured(builder: trt.Builder, options: Mapping[str, Any]) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)  # kernels that skip zeros may be chosen where weights are 2:4
    if options["tf32"]:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options["workspace_mb"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options["workspace_mb"] * 1_000_000)
    if options["builder_level"] is not None:
        config.builder_optimization_level = options["builder_level"]
    if options["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options["hardware_compatibility"] != "none":
        config.hardware_compatibility_level = _compatible(options["hardware_compatibility"])
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(config, "num_compute_capabilities"):
        _aim(config, options["compute_capabilities"])
    return config


def _compatible(wanted: str) -> trt.HardwareCompatibilityLevel:
    try:
        level: trt.HardwareCompatibilityLevel = getattr(trt.HardwareCompatibilityLevel, wanted.upper())
    except AttributeError:
        cause = f"TensorRT {trt.__version__} knows no hardware_compatibility '{wanted}'"
        raise Problem("usage", cause, "leave it out, or install a newer TensorRT") from None
    return level


def _aim(config: Any, wanted: list[str]) -> None:
    """The GPUs that an RTX engine is for; full TensorRT builds for the GPU it finds."""
    rtx: Any = trt
    known = {_dotted(name): name for name in dir(rtx.ComputeCapability) if name.startswith("SM")}
    if strange := [one for one in wanted if one not in known]:
        remedy = f"it builds for {', '.join(sorted(known, key=float))}; other GPUs take `product: tensorrt`, compiled on the device"
        raise Problem("usage", f"this tensorrt_rtx {rtx.__version__} has no compute capability {strange[0]}", remedy)
    config.num_compute_capabilities = len(wanted)
    for index, one in enumerate(wanted):
        if not config.set_compute_capability(getattr(rtx.ComputeCapability, known[one]), index):
            raise Problem("step", f"tensorrt_rtx refuses compute capability {one}", "leave it out of compute_capabilities")


def _dotted(name: str) -> str:
    return f"{name[2:-1]}.{name[-1]}"


def _profile(
    builder: trt.Builder, config: trt.IBuilderConfig, network: trt.INetworkDefinition, wanted: Mapping[str, list[list[int]]]
) -> None:
    """One optimization profile: min, opt and max shape of each input that may vary."""
    profile, used = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            cause = f"the input '{tensor.name}' decides a shape: TensorRT would need a range of its values"
            raise Problem("step", cause, "export the model with that input as a constant")
        if -1 not in tuple(tensor.shape):
            continue
        if tensor.name not in wanted:
            remedy = "give their range: options: {profiles: {AXIS: [min, opt, max]}}"
            raise Problem("usage", f"axes of the input '{tensor.name}' may vary and no range is given for them", remedy)
        profile.set_shape(tensor.name, *wanted[tensor.name])
        used = True
    if used and config.add_optimization_profile(profile) < 0:
        raise Problem("usage", "TensorRT refuses the profile", f"look at the ranges: {json.dumps(wanted)}")


def _timing_cache(config: trt.IBuilderConfig, path: str | None) -> trt.IBuilderConfig | None:
    """The tactics timed so far on this GPU; RTX times none. Returns the config where there is one to keep.

    TensorRT calls a cache that is damaged, or of another machine or version, an error, and goes on without: so do we, with an empty one.
    """
    if path is None or hasattr(config, "num_compute_capabilities"):
        return None
    try:
        known = Path(path).read_bytes()
    except OSError:
        known = b""
    with log.collected():
        for data in (known, b""):
            cache: Any = config.create_timing_cache(data)
            if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
                return config
    return None


def _keep(config: trt.IBuilderConfig | None, path: str | None) -> None:
    """Write the timing cache, whole or not at all. Where that cannot be, the next build times again: no reason to lose this one."""
    if config is None or path is None:
        return
    place = Path(path)
    part = place.with_name(f".{place.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(memoryview(config.get_timing_cache().serialize()))
        part.replace(place)


def _checked(doing: str, made: Any, said: list[log.Line]) -> Any:
    """What TensorRT made, unless it logged an error: then it is not to be trusted."""
    if made is None or log.lasting(said):
        raise log.problem(doing, log.lasting(said) or log.errors(said))
    return made


def _main() -> None:
    children.die_with_parent()  # a build without end dies with who asked for it
    request = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # TensorRT prints
    try:
        answer = {"build": build, "support": support}[request["do"]](request)
    except Exception as error:  # noqa: BLE001 (whatever a binding raises becomes an answer)
        problem = understood(error, "building the engine")
        if problem is None:
            traceback.print_exc()
            problem = Problem("step", f"building the engine: {type(error).__name__}: {error}", "the full traceback is in the run's log")
        answer = {"problem": {"kind": problem.kind, "cause": problem.cause, "remedy": problem.remedy}}
    out.write(json.dumps(answer) + "\n")
    out.flush()
    sys.stderr.flush()
    os._exit(0)  # the libraries' exit handlers may crash, and nothing here needs them


if __name__ == "__main__":
    _main()
