"""`python -m edgeopt.runner build BUNDLE`: compile a bundle's ONNX with the TensorRT of this device, and test it before it is used.

Engines lie in `BUNDLE/engines/<key>/`; `engines/current.json` names the one to use, and names a new one only when
that reproduces the bundle's golden outputs; one that does not is kept as `engines/<key>.failed/`, to be looked at.
`engines/log.jsonl` tells what was done.
Needs numpy, tensorrt (or tensorrt_rtx) and cuda-bindings.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from edgeopt.runner import Problem, children, engines, frames, tensorrt_engine, understood
from edgeopt.runner import tensorrt_library as library
from edgeopt.runner.engines import ENGINE, RECORD

EXIT_CODES = {"usage": 2, "missing": 5, "untrusted": 6, "resource": 7, "step": 8}
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143
PLAN = "build-plan.json"
_REMEDY = "the engine in use is the one that was; look at the model's precision, or report it"
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)
_SAYS_NOTHING = ("missing", "resource")  # kinds of problems in a test that are none of the engine's


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where the program stands, so that every `finally` runs."""


class Golden(NamedTuple):
    """Inputs and the outputs wanted for them, by sample; how far an engine's may be off, as a share of the largest value."""

    inputs: dict[str, frames.Arrays]
    outputs: dict[str, frames.Arrays]
    tolerance: float


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m edgeopt.runner build BUNDLE", file=sys.stderr)
        return EXIT_CODES["usage"]
    signal.signal(signal.SIGTERM, _terminate)
    try:
        print(build(Path(arguments[0])))
    except KeyboardInterrupt as cancelled:
        print("cancelled: the engine in use is the one that was", file=sys.stderr)
        exec("")  # Python ends by SIGINT, not this code, after an interrupt within an `exec` of a string, unless another follows
        return EXIT_TERMINATED if isinstance(cancelled, Terminated) else EXIT_INTERRUPTED
    except Exception as error:
        problem = _problem(error, arguments[0])
        if problem is None:
            raise
        print(f"error: {problem.cause}" + (f"\n  → {problem.remedy}" if problem.remedy else ""), file=sys.stderr)
        return EXIT_CODES[problem.kind]
    return 0


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _problem(error: Exception, bundle: str) -> Problem | None:
    """What an exception means to the user; None where it is a bug of ours."""
    if found := understood(error, f"building for {bundle}"):
        return found
    if not isinstance(error, OSError):
        return None
    cause = f"{error.filename or bundle}: {error.strerror}"
    if error.errno in _NOT_OURS:
        return Problem("usage", cause, "copy the bundle to a folder where you may read and write, and build it there")
    return Problem("step", cause, "see that the disk is sound, and copy the bundle again")


def build(bundle: Path) -> str:
    """Make sure that the bundle's current engine is for this TensorRT, GPU, driver and options. Returns what was done, in words."""
    manifest = verified(bundle)
    golden = golden_of(bundle, manifest)
    model = bundle / manifest["model"]["main"]
    plan = _read(model.with_name(PLAN), "the bundle has no build plan", ("files", "product", "options", "profile"))
    here = _here(plan)
    place = bundle / "engines" / key(plan, here)
    if _in_use(place):
        return _up_to_date(place)
    with engines.held(place.parent):
        if _in_use(place):  # another build made it while this one waited
            return _up_to_date(place)
        return _renew(place, plan, model, golden, here)


def _in_use(place: Path) -> bool:
    return engines.current(place.parent) == place.name and engines.sound(place)


def _up_to_date(place: Path) -> str:
    return f"up to date: engines/{place.name}/{ENGINE}"


def _renew(place: Path, plan: dict[str, Any], model: Path, golden: Golden, here: library.Finding) -> str:
    """Compile an engine, or take the one that lies there, test it, and make it the one in use. A Problem leaves the one in use as it is."""
    folder, before, told = place.parent, engines.current(place.parent), {**here._asdict(), **driver(here)}
    began, reused = time.monotonic(), engines.sound(place)
    try:
        if not reused:
            _compile(plan, model, place, here)
        worst = _test(golden, place / ENGINE, plan["options"])
    except Problem as problem:
        aside = None
        if problem.kind not in _SAYS_NOTHING and engines.sound(place):
            aside = f"engines/{engines.put_aside(place).name}"
            problem = Problem(problem.kind, f"{problem.cause}; it was put aside as {aside}", problem.remedy)
        engines.note(folder, key=place.name, outcome="failed", cause=problem.cause, put_aside=aside, kept=before, here=told)
        raise problem from None
    engines.use(place)
    outcome, seconds = "reused" if reused else "built", round(time.monotonic() - began, 3)
    engines.note(folder, key=place.name, outcome=outcome, seconds=seconds, worst_error=worst, before=before, here=told)
    return f"{outcome}: engines/{place.name}/{ENGINE} reproduces the golden outputs (worst error {worst:.2g} of the largest value)"


def verified(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files are all there and unchanged. Raises a Problem (untrusted) otherwise."""
    manifest = _read(bundle / "manifest.json", f"{bundle} is no bundle", ("files", "target", "model"))
    again = "make the bundle again, and copy it whole"
    for name, entry in manifest.get("files", {}).items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name:
            raise Problem("untrusted", f"the manifest names a file outside of the bundle: {name}", again)
        path = bundle / place
        if not path.is_file() or not path.resolve().is_relative_to(bundle.resolve()):
            raise Problem("untrusted", f"{name} is missing from the bundle, or a link out of it", again)
        if engines.sha256(path) != entry["sha256"].removeprefix("sha256:"):
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


def _here(plan: dict[str, Any]) -> library.Finding:
    """TensorRT, GPU and CUDA bindings of this device. Raises a Problem that says which is missing."""
    if plan["product"] not in library.PACKAGES:
        raise Problem("usage", f"the build plan is for an unknown product: {plan['product']}", "make the bundle again")
    if reason := library.why_not_run(plan["product"]):
        raise Problem("missing", reason, "run this on the device that the bundle is for, with its TensorRT and cuda-bindings installed")
    here = library.look(plan["product"])
    wanted = plan["options"]["compute_capabilities"]
    if wanted and here.gpus[0]["compute_capability"] not in wanted:
        cause = f"the bundle is for compute capability {' or '.join(wanted)}, this GPU ({here.gpus[0]['name']}) has "
        raise Problem("usage", cause + here.gpus[0]["compute_capability"], "make a bundle for this GPU")
    return here


def _compile(plan: dict[str, Any], model: Path, place: Path, here: library.Finding) -> None:
    """Build into a folder that appears whole or not at all."""
    part = place.with_name(engines.PART)
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


def golden_of(bundle: Path, manifest: dict[str, Any]) -> Golden:
    """What an engine of the bundle is tested with. Raises a Problem where there is none, or where it cannot be read."""
    golden = manifest.get("golden")
    if not golden:
        raise Problem("usage", "the bundle has no golden outputs to test an engine with", "make the bundle again from a run with data")
    inputs, outputs = (_samples(bundle, golden[which]) for which in ("inputs", "outputs"))
    if not inputs or inputs.keys() != outputs.keys():
        raise Problem("untrusted", "the golden inputs and outputs are not of the same samples", "make the bundle again")
    return Golden(inputs, outputs, golden["tolerance"])


def _test(golden: Golden, engine: Path, options: dict[str, Any]) -> float:
    """Run the golden inputs in a child. Returns the worst error as a share of the largest value; raises a Problem when it is too large."""
    worst = 0.0
    with Runner() as runner:
        runner.ask(
            {"do": "open", "path": str(engine), "backend": "tensorrt", "threads": 1, "requests": 1, "options": options, "execution": {}}
        )
        for index, feeds in golden.inputs.items():
            found = runner.ask({"do": "infer"}, feeds)
            for name, wanted in golden.outputs[index].items():
                worst = max(worst, error(wanted, found[name]))
    if not worst <= golden.tolerance:  # not a number is too large as well
        cause = f"the new engine does not reproduce the golden outputs: {worst:.2g} of the largest value, {golden.tolerance:.2g} is allowed"
        raise Problem("step", cause, _REMEDY)
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
        self.process = subprocess.Popen(
            children.python("edgeopt.runner", "serve"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=children.environment(),
            start_new_session=True,
        )

    def ask(self, header: dict[str, Any], arrays: frames.Arrays | None = None) -> frames.Arrays:
        assert self.process.stdin and self.process.stdout
        try:
            frames.write(self.process.stdin, header, arrays)  # type: ignore[arg-type, unused-ignore]
            reply, found = frames.read(self.process.stdout)  # type: ignore[arg-type, unused-ignore]
        except (BrokenPipeError, EOFError):
            raise Problem("step", f"the new engine crashed during '{header['do']}'", _REMEDY) from None
        if not reply["ok"]:
            raise Problem(**reply["error"])
        return found

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()


def _samples(bundle: Path, name: str) -> dict[str, frames.Arrays]:
    """Arrays named INDEX/NAME in an npz, by index."""
    found: dict[str, frames.Arrays] = {}
    try:
        with zipfile.ZipFile(bundle / name), np.load(bundle / name, allow_pickle=False) as file:
            for label in file.files:
                index, _, port = label.partition("/")
                found.setdefault(index, {})[port] = file[label]
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Problem("untrusted", f"{name} holds no arrays that can be read: {error}", "make the bundle again") from None
    return found


def _read(path: Path, missing: str, wanted: tuple[str, ...]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise Problem("usage", f"{missing} ({path.name} is missing or damaged)", "name the folder of a bundle that edgeopt made") from None
    if not isinstance(found, dict):
        raise Problem("usage", f"{missing} ({path.name} holds no object)", "name the folder of a bundle that edgeopt made")
    if lacking := [name for name in wanted if name not in found]:
        raise Problem("usage", f"{missing} ({path.name} lacks '{lacking[0]}')", "name the folder of a bundle that edgeopt made")
    return found
