"""Proof that edgeopt works with no extras, from an installed wheel, outside the clone: `python tests/bare.py`.

Not a pytest file: it makes an environment of its own with pip. CI and `make bare` run it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CLONE = Path(__file__).resolve().parent.parent
MODEL = """
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
w = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])], [w])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "model.onnx")
"""
RECIPE = """\
edgeopt: 1
name: bare
model: {onnx: model.onnx}
data:
  evaluate: {random: normal, samples: 16}
scores: [agreement]
variants:
  fp32: []
targets: ["null"]
measure: {budget_s: 1}
"""


def main() -> None:
    """Build the wheel, install it alone, and walk."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place / "dist"), str(CLONE), quiet=True)
        [wheel] = (place / "dist").glob("*.whl")
        venv.create(place / "venv", with_pip=True)
        run(str(place / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
        edgeopt = str(place / "venv/bin/edgeopt")
        here = place / "elsewhere"
        shutil.copytree(CLONE / "recipes", here / "recipes")
        run(edgeopt, "--help", cwd=here, quiet=True)
        run(edgeopt, "targets", cwd=here, quiet=True)
        run(edgeopt, "passes", cwd=here, quiet=True)
        for recipe in sorted((here / "recipes").glob("*.yaml")):
            run(edgeopt, "plan", str(recipe), cwd=here, quiet=True)
        run(str(place / "venv/bin/python"), "-c", MODEL, cwd=here)
        (here / "bare.yaml").write_text(RECIPE)
        run(edgeopt, "run", "bare.yaml", "--output", "out", cwd=here)
        assert (here / "out/bundles/null/manifest.json").is_file()
    print("bare: help, targets, passes, plan of every recipe and the null walk work with no extras, from the wheel")


def run(*command: str, cwd: Path | None = None, quiet: bool = False) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "EDGEOPT_CACHE")}
    environment["EDGEOPT_CACHE"] = str((cwd or Path(tempfile.gettempdir())) / "store")
    done = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE if quiet else None, text=True, check=False)
    if done.returncode:
        sys.exit(f"bare: {' '.join(command)} ended with {done.returncode}\n{done.stdout or ''}")


if __name__ == "__main__":
    main()
