"""`python -m edgeopt.runner build BUNDLE`: compile a bundle's ONNX with the TensorRT of this device, and test it before it is used.

Engines lie in `BUNDLE/engines/<key>/`; `engines/current.json` names the one to use and is replaced in one
step, only when a new engine reproduces the bundle's golden outputs. `engines/log.jsonl` tells what was done.
Needs numpy, tensorrt (or tensorrt_rtx) and cuda-bindings.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from edgeopt.runner import Problem, frames, tensorrt_engine
from edgeopt.runner import tensorrt_library as library

EXIT_CODES = {"usage": 2, "missing": 5, "untrusted": 6, "resource": 7, "step": 8}
EXIT_INTERRUPTED = 130
PLAN, ENGINE, RECORD, CURRENT, LOG = "build-plan.json", "engine.plan", "build.json", "current.json", "log.jsonl"


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m edgeopt.runner build BUNDLE", file=sys.stderr)
        return EXIT_CODES["usage"]
    try:
        print(build(Path(arguments[0])))
    except Problem as problem:
        print(f"error: {problem.cause}" + (f"\n  → {problem.remedy}" if problem.remedy else ""), file=sys.stderr)
        return EXIT_CODES[problem.kind]
    except KeyboardInterrupt:
        print("cancelled: the engine in use is the one that was", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def build(bundle: Path) -> str:
    """Make sure that the bundle's current engine is for this TensorRT, GPU, driver and options. Returns what was done, in words."""
    manifest = verified(bundle)
    model = bundle / manifest["model"]["main"]
    plan = _read(model.with_name(PLAN), "the bundle has no build plan")
    here = _here(plan)
    folder, name = bundle / "engines", key(plan, here)
    folder.mkdir(exist_ok=True)
    now, told = current(folder), {**here._asdict(), **driver(here)}
    if now == name and _sound(folder / name):
        return f"up to date: engines/{name}/{ENGINE}"
    began, reused = time.monotonic(), _sound(folder / name)
    try:
        if not reused:
            _compile(plan, model, folder / name, here)
        worst = _test(bundle, manifest, folder / name / ENGINE, plan["options"])
    except Problem as problem:
        _note(folder, key=name, outcome="failed", cause=problem.cause, kept=now, here=told)
        if not reused:
            shutil.rmtree(folder / name, ignore_errors=True)
        raise
    _replace(folder / CURRENT, {"key": name, "engine": f"{name}/{ENGINE}"})
    outcome = "reused" if reused else "built"
    _note(
        folder,
        key=name,
        outcome=outcome,
        seconds=round(time.monotonic() - began, 3),
        worst_error=worst,
        before=now,
        here=told,
    )
    return f"{outcome}: engines/{name}/{ENGINE} reproduces the golden outputs (worst error {worst:.2g} of the largest value)"


def verified(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files are all there and unchanged. Raises a Problem (untrusted) otherwise."""
    manifest = _read(bundle / "manifest.json", f"{bundle} is no bundle")
    again = "make the bundle again, and copy it whole"
    for name, entry in manifest.get("files", {}).items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name:
            raise Problem("untrusted", f"the manifest names a file outside of the bundle: {name}", again)
        path = bundle / place
        if not path.is_file() or not path.resolve().is_relative_to(bundle.resolve()):
            raise Problem("untrusted", f"{name} is missing from the bundle, or a link out of it", again)
        if _sha256(path) != entry["sha256"].removeprefix("sha256:"):
            raise Problem("untrusted", f"{name} is not the file that the manifest names: it was changed", again)
    if manifest.get("target", {}).get("compile_on") != "device":
        raise Problem("usage", "the bundle is not one to compile on the device", "give its target `compile_on: device`, and make it again")
    main, golden = str(manifest.get("model", {}).get("main")), manifest.get("golden") or {}
    used = [main, str(PurePosixPath(main).with_name(PLAN)), *(golden[which] for which in ("inputs", "outputs") if golden)]
    if strangers := [name for name in used if name not in manifest.get("files", {})]:
        raise Problem("untrusted", f"the manifest does not vouch for {strangers[0]}", again)
    return manifest


def key(plan: dict[str, Any], here: library.Finding) -> str:
    """What an engine depends on: the model's files, the product and its version, the GPU, the driver, the options and the shapes.

    Of a driver that does not tell its version only its CUDA counts; `log.jsonl` says which it was.
    """
    parts = {
        "files": plan["files"],
        "product": plan["product"],
        "version": here.version,
        "gpu": here.gpus[0],
        "cuda": here.cuda,
        "driver": here.driver,
        "options": plan["options"],
        "profile": plan["profile"],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def driver(here: library.Finding) -> dict[str, Any]:
    """The driver as evidence tells it: its version, or null where it cannot be read, and the CUDA that it is for (13020: 13.2)."""
    return {"driver": here.driver or None, "cuda": here.cuda}


def current(folder: Path) -> str | None:
    """The key of the engine in use."""
    try:
        return str(json.loads((folder / CURRENT).read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _here(plan: dict[str, Any]) -> library.Finding:
    """TensorRT, GPU and CUDA bindings of this device. Raises a Problem that says which is missing."""
    if plan["product"] not in library.PACKAGES:
        raise Problem("usage", f"the build plan is for an unknown product: {plan['product']}", "make the bundle again")
    if reason := library.why_not_run(plan["product"]):
        raise Problem("missing", reason, "run this on the device that the bundle is for, with its TensorRT installed")
    try:
        bound = find_spec("cuda.bindings")
    except ModuleNotFoundError:
        bound = None
    if bound is None:
        raise Problem("missing", "cuda-bindings is not installed", "pip install cuda-bindings")
    here = library.look(plan["product"])
    wanted = plan["options"]["compute_capabilities"]
    if wanted and here.gpus[0]["compute_capability"] not in wanted:
        cause = f"the bundle is for compute capability {' or '.join(wanted)}, this GPU ({here.gpus[0]['name']}) has "
        raise Problem("usage", cause + here.gpus[0]["compute_capability"], "make a bundle for this GPU")
    return here


def _compile(plan: dict[str, Any], model: Path, place: Path, here: library.Finding) -> None:
    """Build into a folder that appears whole or not at all."""
    part = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        cache = place.with_name(f"{plan['product']}-{here.version}.timing")
        request = {
            **plan,
            "do": "build",
            "model": str(model.resolve()),
            "engine": str((part / ENGINE).resolve()),
            "timing_cache": str(cache),
        }
        made = tensorrt_engine.ask(request, plan["options"]["build_limit_s"])
        capabilities = plan["options"]["compute_capabilities"] if plan["product"] == "rtx" else [here.gpus[0]["compute_capability"]]
        record = {**plan, **made, "engine": ENGINE, "gpu": here.gpus[0], **driver(here), "compute_capabilities": capabilities}
        (part / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _test(bundle: Path, manifest: dict[str, Any], engine: Path, options: dict[str, Any]) -> float:
    """Run the golden inputs in a child. Returns the worst error as a share of the largest value; raises a Problem when it is too large."""
    golden = manifest.get("golden")
    if not golden:
        raise Problem("usage", "the bundle has no golden outputs to test an engine with", "make the bundle again from a run with data")
    inputs, outputs = (_samples(bundle / golden[which]) for which in ("inputs", "outputs"))
    worst = 0.0
    with Runner() as runner:
        runner.ask(
            {"do": "open", "path": str(engine), "backend": "tensorrt", "threads": 1, "requests": 1, "options": options, "execution": {}}
        )
        for index, feeds in inputs.items():
            found = runner.ask({"do": "infer"}, feeds)
            for name, wanted in outputs[index].items():
                worst = max(worst, error(wanted, found[name]))
    if not worst <= golden["tolerance"]:  # not a number is too large as well
        cause = (
            f"the new engine does not reproduce the golden outputs: {worst:.2g} of the largest value, {golden['tolerance']:.2g} is allowed"
        )
        raise Problem("step", cause, "the old engine stays in use; look at the model's precision, or report it")
    return worst


def error(wanted: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    """The largest difference as a share of the largest wanted value; infinite for other shapes, NaN or infinity."""
    if wanted.shape != found.shape or not np.isfinite(found.astype(np.float64)).all():
        return float("inf")
    difference = np.abs(wanted.astype(np.float64) - found.astype(np.float64)).max(initial=0.0)
    return float(difference / max(np.abs(wanted.astype(np.float64)).max(initial=0.0), 1e-12))


class Runner:
    """The child that opens the engine: a crash in it is an answer too."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "edgeopt.runner", "serve"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, header: dict[str, Any], arrays: frames.Arrays | None = None) -> frames.Arrays:
        assert self.process.stdin and self.process.stdout
        try:
            frames.write(self.process.stdin, header, arrays)  # type: ignore[arg-type, unused-ignore]
            reply, found = frames.read(self.process.stdout)  # type: ignore[arg-type, unused-ignore]
        except (BrokenPipeError, EOFError):
            raise Problem("step", f"the new engine crashed during '{header['do']}'", "the old engine stays in use") from None
        if not reply["ok"]:
            raise Problem(**reply["error"])
        return found

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()


def _samples(path: Path) -> dict[str, frames.Arrays]:
    """Arrays named INDEX/NAME in an npz, by index."""
    found: dict[str, frames.Arrays] = {}
    with np.load(path, allow_pickle=False) as file:
        for label in file.files:
            index, _, name = label.partition("/")
            found.setdefault(index, {})[name] = file[label]
    return found


def _sound(folder: Path) -> bool:
    """Whether an engine lies there and is the one that its record describes."""
    try:
        return bool(_sha256(folder / ENGINE) == json.loads((folder / RECORD).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read(path: Path, missing: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        raise Problem("usage", f"{missing} ({path.name} is missing or damaged)", "name the folder of a bundle that edgeopt made") from None
    if not isinstance(found, dict):
        raise Problem("usage", f"{missing} ({path.name} holds no object)", "name the folder of a bundle that edgeopt made")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(path: Path, value: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value) + "\n")
    part.replace(path)


def _note(folder: Path, **what: Any) -> None:
    """One line for what was done, kept for ever."""
    with (folder / LOG).open("a") as file:
        file.write(json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **what}) + "\n")
