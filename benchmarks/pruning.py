"""What prune-channels and distillation give on the MNIST CNN, alone and with INT8 behind: multiply-accumulates, accuracy, latency.

python benchmarks/pruning.py     # about 4 minutes on two quiet cores

Four variants of recipes/mnist-cnn.yaml walk to both CPU runtimes in an empty store and are measured in one session for each.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CLONE))

import yaml

import edgeopt
from edgeopt.core import machine
from edgeopt.core.report import Report

VARIANTS = ("fp32", "int8", "pruned", "pruned-int8")
FEWER_MACS, LOST = 3.0, 0.005  # at least so many times fewer, at most so much of top-1


def main() -> bool:
    facts = machine.fingerprint()
    print(f"{facts['cpu']}, {facts['cores_allowed']} cores, load {machine.load()}\n")
    recipe = yaml.safe_load((CLONE / "recipes/mnist-cnn.yaml").read_text())
    recipe["variants"] = {name: recipe["variants"][name] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "mnist-cnn").symlink_to(CLONE / "recipes/mnist-cnn")
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        report = edgeopt.run(place / "recipe.yaml", place / "run", store=edgeopt.Store(place / "store"))
    return told(report)


def told(report: Report) -> bool:
    """Print the rows; True when the pruned ones meet what is asked of them."""
    good = True
    print("| target | variant | MACs | top-1 | lost | p50 ms | speed-up |\n|---|---|---|---|---|---|---|")
    for row in report.rows:
        assert row.status == "measured" and row.latency_ms, row.reason
        before, after = next((step.notes["macs"] for step in row.history if step.step == "prune-channels"), (1, 1))
        top1, drop = row.scores["top1"].value, row.scores["top1"].drop or 0.0
        low, high = row.speedup.ci95 if row.speedup else (1.0, 1.0)
        speed = f"{row.speedup.value:.2f}× [{low:.2f}, {high:.2f}]" if row.speedup else "–"
        macs = f"{after / 1e6:.1f} M, {before / after:.2f}× fewer" if before != after else "–"
        print(f"| {row.target} | {row.variant} | {macs} | {100 * top1:.2f} % | {100 * drop:+.2f} | {row.latency_ms.p50:.3f} | {speed} |")
        if row.variant == "pruned":
            good &= before / after >= FEWER_MACS and drop <= LOST
    print(f"\nat least {FEWER_MACS:g}× fewer MACs with at most {100 * LOST:g} points lost: {'ok' if good else 'NOT MET'}")
    return good


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
