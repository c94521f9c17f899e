"""The numbers of the walk: start-up, planning, cached runs, our own share of a first run, INT8 on EfficientNet-Lite0.

python benchmarks/walk.py            # about five minutes on two cores; an empty store of its own
python benchmarks/walk.py --quick    # start-up and planning only
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent
EDGEOPT = str(Path(sys.executable).parent / "edgeopt")


def timed(*command: str, store: Path, runs: int = 11) -> list[float]:
    """Wall seconds of whole processes, after one run that is not counted."""
    found = []
    for index in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(command, cwd=CLONE, env=environment(store), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if index:
            found.append(time.perf_counter() - began)
    return found


def environment(store: Path) -> dict[str, str]:
    return {**os.environ, "EDGEOPT_CACHE": str(store), "NO_COLOR": "1"}


def say(what: str, seconds: list[float], limit: float) -> None:
    median = statistics.median(seconds)
    verdict = "ok" if median <= limit else "TOO SLOW"
    print(
        f"{what:<58} median {median:6.3f} s  (min {min(seconds):.3f}, max {max(seconds):.3f}, {len(seconds)} runs; at most {limit} s: {verdict})",
        flush=True,
    )


def first_and_cached(name: str, store: Path, out: Path) -> dict:
    """Run a recipe into an empty store, then unchanged again; prints both."""
    began = time.perf_counter()
    done = subprocess.run(
        [EDGEOPT, "run", f"recipes/{name}.yaml", "--output", str(out)],
        cwd=CLONE,
        env=environment(store),
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"\n{name}: first run {time.perf_counter() - began:.1f} s, exit {done.returncode}")
    if done.returncode:
        print(done.stdout, done.stderr)
    report = json.loads((out / "report.json").read_text())
    shares(out, time.perf_counter() - began)
    say(
        f"{name}: unchanged second run",
        timed(EDGEOPT, "run", f"recipes/{name}.yaml", "--output", str(out) + "-again", store=store, runs=5),
        1.0,
    )
    again = json.loads((Path(str(out) + "-again") / "report.json").read_text())
    print(f"{name}: same rows and gates in both reports: {again['rows'] == report['rows'] and again['gates'] == report['gates']}")
    return report


def shares(out: Path, total: float) -> None:
    """Where a first run's time went; the rest is edgeopt's own."""
    spent = json.loads((out / "build.json").read_text())["seconds"]
    steps = sum(value for label, value in spent.items() if label != "build")
    sessions = [json.loads(path.read_text())["seconds"] for path in out.glob("sessions/*/session.json")]
    score, latency = (sum(one[key] for one in sessions) for key in ("score", "time"))
    rest = total - steps - score - latency
    print(
        f"  libraries and training {steps:.1f} s · scoring {score:.1f} s · timing {latency:.1f} s · the rest {rest:.1f} s = {100 * rest / total:.1f} % (at most 10 %)"
    )
    for label, seconds in sorted(spent.items(), key=lambda item: -item[1])[:8]:
        print(f"    {seconds:7.2f} s  {label}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="start-up and planning only")
    quick = parser.parse_args().quick
    sys.path.insert(0, str(CLONE))
    from edgeopt.core import machine

    facts = machine.fingerprint()
    print(
        f"{facts['cpu']}, {facts['cores_allowed']} cores, {', '.join(facts['isa'])}, {facts['kernel']}, Python {platform.python_version()}\n"
    )
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        say("edgeopt --help", timed(EDGEOPT, "--help", store=place / "store"), 0.15)
        say("edgeopt plan recipes/mnist-cnn.yaml", timed(EDGEOPT, "plan", "recipes/mnist-cnn.yaml", store=place / "store"), 0.4)
        if quick:
            return
        for recipe in ("mnist-mlp", "mnist-cnn"):
            first_and_cached(recipe, place / "store", place / recipe)
        report = first_and_cached("efficientnet-lite0", place / "store", place / "efficientnet")
        [row] = [row for row in report["rows"] if (row["variant"], row["target"]) == ("int8", "x86-openvino")]
        speed, sqnr = row["speedup"], row["scores"]["sqnr"]["value"]
        ok = speed["value"] >= 2.0 and sqnr >= 15
        print(
            f"efficientnet-lite0 INT8, OpenVINO, batch 1: {speed['value']:.2f}× FP32 {speed['ci95']}, SQNR {sqnr:.1f} dB (at least 2.0× and 15 dB: {'ok' if ok else 'SHORT'})"
        )


if __name__ == "__main__":
    main()
