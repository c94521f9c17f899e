"""The numbers of the walk: start-up, planning, cached runs, our own share of a first run, INT8 and calibration on EfficientNet-Lite0.

python benchmarks/walk.py               # about 25 minutes on two quiet cores; an empty store of its own
python benchmarks/walk.py --only start  # start-up and planning
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = ("start", "mnist-mlp", "mnist-cnn", "efficientnet-lite0", "calibration")
CLONE = Path(__file__).resolve().parent.parent
EDGEOPT = str(Path(sys.executable).parent / "edgeopt")
FRAMEWORKS = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "tensorrt_rtx", "scipy")
MISSED: list[str] = []
# Put before all else on the path of a run: frameworks are found, as the planner looks, but whoever imports one is written down and fails.
POISON = """\
import importlib.machinery, sys
class Poisoned:
    def create_module(self, spec):
        with open({log!r}, "a") as file:
            print(spec.name, file=file)
        raise ImportError(spec.name + " is not to be imported in a cached run")
    def exec_module(self, module): ...
class Finder:
    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in {names!r} else None
        if spec:
            spec.loader = Poisoned()
        return spec
sys.meta_path.insert(0, Finder())
"""


def timed(*command: str, store: Path, runs: int = 11, codes: tuple[int, ...] = (0,)) -> list[float]:
    """Wall seconds of whole processes, after one run that is not counted. Each must end with one of `codes`."""
    found = []
    for index in range(runs + 1):
        began = time.perf_counter()
        done = subprocess.run(command, cwd=CLONE, env=environment(store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        if done.returncode not in codes:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
        if index:
            found.append(time.perf_counter() - began)
    return found


def environment(store: Path, *first: str) -> dict[str, str]:
    return {**os.environ, "EDGEOPT_CACHE": str(store), "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join([*first, str(CLONE)])}


def verdict(good: bool, bad: str) -> str:
    """`ok`, or what is wrong; remembered for the exit code."""
    MISSED.extend([] if good else [bad])
    return "ok" if good else bad


def say(what: str, seconds: list[float], limit: float) -> None:
    median = statistics.median(seconds)
    told = verdict(median <= limit, "TOO SLOW")
    print(
        f"{what:<58} median {median:6.3f} s  (min {min(seconds):.3f}, max {max(seconds):.3f}, {len(seconds)} runs; at most {limit} s: {told})",
        flush=True,
    )


def first_and_cached(name: str, place: Path, *, most: float | None = None, cached: float | None = None) -> dict[str, Any]:
    """Run a recipe into an empty store, stage by stage, then unchanged again; prints both."""
    out, store = place / name, place / "store"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--stages", f"recipes/{name}.yaml", str(out)],
        cwd=CLONE,
        env=environment(store),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    total = time.perf_counter() - began
    report = json.loads((out / "report.json").read_text())
    print(f"\n{name}: first run {total:.1f} s, exit {report['exit_code']}", *report["exit_reasons"], sep="\n  ")
    shares(out, store, json.loads(done.stdout.splitlines()[-1]), total, most)
    again = Path(f"{out}-again")
    command = (EDGEOPT, "run", f"recipes/{name}.yaml", "--output", str(again))
    codes = (report["exit_code"],)
    if cached is None:
        timed(*command, store=store, runs=0, codes=codes)
    else:
        say(f"{name}: unchanged second run", timed(*command, store=store, runs=5, codes=codes), cached)
        found, tried = with_poison(command, store, place / "poison", codes)
        told = verdict(found and not tried, "ASKED FOR " + " ".join(tried))
        print(f"{name}: second run with {', '.join(FRAMEWORKS)} made unimportable: {told}")
    same = json.loads((again / "report.json").read_text())
    print(
        f"{name}: second run, same rows and gates: {verdict(all(same[key] == report[key] for key in ('rows', 'gates')), 'OTHERS')}",
        flush=True,
    )
    return report


def with_poison(command: tuple[str, ...], store: Path, place: Path, codes: tuple[int, ...]) -> tuple[bool, list[str]]:
    """Run where no framework can be imported, in no process; which ones were asked for."""
    place.mkdir(exist_ok=True)
    log = place / "asked"
    log.write_text("")
    (place / "sitecustomize.py").write_text(POISON.format(names=FRAMEWORKS, log=str(log)))
    done = subprocess.run(command, cwd=CLONE, env=environment(store, str(place)), capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        print(done.stdout, done.stderr)
    return done.returncode in codes, sorted(set(log.read_text().split()))


def shares(out: Path, store: Path, spent: dict[str, float], total: float, most: float | None) -> None:
    """Where a first run's time went. The libraries' part is what ran inside passes, compiles, scoring and timing."""
    build = json.loads((out / "build.json").read_text())["seconds"]
    keys = json.loads((out / "plan.json").read_text())["steps"]
    events = {
        event["key"]: event["seconds"]
        for path in store.glob("artifacts/*/*/artifact.json")
        for event in json.loads(path.read_text())["history"]
    }
    steps = sum(seconds for key, seconds in events.items() if key in keys)
    surveys = sum(seconds for label, seconds in build.items() if label.startswith("data: "))
    labelled = sum(seconds for label, seconds in build.items() if label != "build")
    sessions = [json.loads(path.read_text())["seconds"] for path in out.glob("sessions/*/session.json")]
    theirs = {"build": steps, "measure": sum(sum(one.values()) for one in sessions)}
    spent = {"start": total - sum(spent.values()), **spent}
    print(f"  {'stage':<9}{'total':>9}{'libraries':>11}{'edgeopt':>9}{'share of the run':>18}")
    for stage, seconds in {**spent, "all": total}.items():
        by_libraries = sum(theirs.values()) if stage == "all" else theirs.get(stage, 0.0)
        own = seconds - by_libraries
        print(f"  {stage:<9}{seconds:7.2f} s{by_libraries:9.2f} s{own:7.2f} s{100 * own / total:16.1f} %")
    own = 100 * (total - sum(theirs.values())) / total
    told = "" if most is None else f" (at most {most:.0f} %: {verdict(own <= most, 'TOO MUCH')})"
    print(
        f"  edgeopt's own: {own:.1f} %{told}; in build: {surveys:.2f} s walking the data, {labelled - surveys - steps:.2f} s parity and digests"
    )


def stages(recipe: str, out: str) -> None:
    """In the child: walk a recipe stage by stage and print the seconds of each."""
    import edgeopt

    spent: dict[str, float] = {}

    def clocked(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = work()
        spent[name] = time.perf_counter() - began
        return found

    folder = Path(out)
    folder.mkdir(parents=True)
    plan = clocked("plan", lambda: edgeopt.plan(edgeopt.load_recipe(Path(recipe))))
    for name in ("build", "measure", "report", "bundle"):
        clocked(name, functools.partial(getattr(edgeopt, name), plan, folder))
    print(json.dumps(spent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="just these parts")
    parser.add_argument("--stages", nargs=2, metavar=("RECIPE", "OUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stages:
        return stages(*asked.stages)
    sys.path.insert(0, str(CLONE))
    from edgeopt.core import machine

    facts = machine.fingerprint()
    print(
        f"{facts['cpu']}, {facts['cores_allowed']} cores, {', '.join(facts['isa'])}, {facts['kernel']}, Python {platform.python_version()}\n"
    )
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        parts = asked.only or PARTS
        if "start" in parts:
            say("edgeopt --help", timed(EDGEOPT, "--help", store=place / "store"), 0.15)
            say("edgeopt plan recipes/mnist-cnn.yaml", timed(EDGEOPT, "plan", "recipes/mnist-cnn.yaml", store=place / "store"), 0.4)
        if "mnist-mlp" in parts:
            first_and_cached("mnist-mlp", place, cached=1.0)
        if "mnist-cnn" in parts:
            first_and_cached("mnist-cnn", place, most=10, cached=1.0)
        if "efficientnet-lite0" in parts:
            report = first_and_cached("efficientnet-lite0", place)
            [row] = [row for row in report["rows"] if (row["variant"], row["target"]) == ("int8", "x86-openvino")]
            speed, sqnr = row["speedup"], row["scores"]["sqnr"]["value"]
            low, high = speed["ci95"]
            print(
                f"efficientnet-lite0 INT8, OpenVINO, batch 1: {speed['value']:.2f}× FP32 [{low:.2f}, {high:.2f}], SQNR {sqnr:.1f} dB "
                f"(at least 2.0× and 15 dB: {verdict(speed['value'] >= 2.0 and sqnr >= 15, 'SHORT')})\n",
                flush=True,
            )
        if "calibration" in parts:
            calibrated = subprocess.run(
                [sys.executable, str(CLONE / "benchmarks/calibration.py")], env=environment(place / "store"), check=False
            )
            verdict(calibrated.returncode == 0, "calibration")
    sys.exit(bool(MISSED))


if __name__ == "__main__":
    main()
