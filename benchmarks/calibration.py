"""The memory that calibration needs: EfficientNet-Lite0 quantized on 512 samples by each engine, in a process of its own.

python benchmarks/calibration.py     # some minutes; at most 2.5 × the model plus 500 MB are allowed

The figure is the peak of the whole process (VmHWM): interpreter, libraries, model, samples and all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent
SAMPLES = 512
VARIANT = f"""\
variants:
  int8: [{{quantize-int8: {{samples: {SAMPLES}}}}}]

targets: [x86-openvino, x86-onnxruntime]
"""


def main() -> bool:
    """Build all, then quantize again for each engine in a process that does nothing else; True when both kept the limit."""
    sys.path.insert(0, str(CLONE))
    import edgeopt

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        text = (CLONE / "recipes/efficientnet-lite0.yaml").read_text()
        head = text.split("variants:\n")[0].split("reference:")[0]
        recipe = place / "recipe.yaml"
        recipe.write_text(head.replace("efficientnet-lite0/", f"{CLONE}/recipes/efficientnet-lite0/") + VARIANT)
        store = edgeopt.Store(place / "store")
        plan = edgeopt.plan(edgeopt.load_recipe(recipe), store)
        built = edgeopt.build(plan, place / "run", store=store)
        good = True
        for row in plan.rows:
            if row.variant != "int8":
                continue
            if built.of(row.variant, row.target).status != "built":
                raise SystemExit(built.of(row.variant, row.target).reason)
            key = next(key for key in row.steps if plan.steps[key].plug == "quantize-int8")
            good &= _peak(place, key, row.target)
    return good


def _peak(place: Path, key: str, target: str) -> bool:
    command = [sys.executable, __file__, "--step", str(place / "run"), str(place / "store"), key]
    environment = {**os.environ, "PYTHONPATH": str(CLONE)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    started, libraries, peak, model = (int(word) / 1e6 for word in done.stdout.split()[-4:])
    limit = 2.5 * model + 500
    good = peak <= limit
    print(
        f"calibration on {SAMPLES} samples, {target:<16} peak {peak:5.0f} MB, at most {limit:.0f} MB (2.5 × {model:.1f} + 500): "
        f"{'ok' if good else 'TOO MUCH'}  (python and edgeopt {started:.0f}, with the libraries {libraries:.0f})",
        flush=True,
    )
    return good


def _step(run: Path, root: Path, key: str) -> None:
    """In the child: quantize once more, and print four figures in bytes."""
    from edgeopt.core import registry
    from edgeopt.core.plan import Plan
    from edgeopt.core.store import Store
    from edgeopt.stages import apply, survey

    plan, store = Plan.read(run), Store(root)
    step = plan.steps[key]
    before = apply.load(store, step.before or "")
    assert before and survey
    started = _status("VmRSS")
    if before.format == "onnx":
        for module in ("onnx", "onnxruntime.quantization"):
            registry.need(module, "all")
    else:
        from edgeopt.passes.quantize_int8_nncf import load as engine

        registry.need("openvino", "all")
        engine()
    libraries = _status("VmRSS")
    store.drop("artifacts", key)
    apply.apply(plan, step, store, run, lambda done, total, text: None)
    print(started, libraries, _status("VmHWM"), before.size_bytes)


def _status(name: str) -> int:
    """A figure of this process in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}:"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        _step(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        sys.exit(not main())
