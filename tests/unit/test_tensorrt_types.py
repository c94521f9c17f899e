"""Our calls of the full TensorRT API, which nobody can run without its GPU, held against its type stubs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBS = Path(os.environ.get("EDGEOPT_TENSORRT_STUBS") or ROOT / ".venv" / "stubs")
INSTALL = "pip install --no-deps --target .venv/stubs tensorrt-stubs"  # its dependencies fetch TensorRT from elsewhere
pytestmark = pytest.mark.skipif(not (STUBS / "tensorrt_bindings").is_dir(), reason=f"tensorrt-stubs is not here: {INSTALL}")


@pytest.fixture(scope="module")
def stubs(tmp_path_factory) -> Path:
    """A copy that parses: the stubs of 10.13 have a parameter called `in`, and one without a default after one that has it."""
    place = tmp_path_factory.mktemp("stubs")
    for name in ("tensorrt", "tensorrt_bindings"):
        shutil.copytree(STUBS / name, place / name)
    path = place / "tensorrt_bindings" / "tensorrt.pyi"
    text = re.sub(r"\bin: list\[", "in_: list[", path.read_text())
    path.write_text(text.replace("channel_axis: int) -> IScaleLayer", "channel_axis: int = ...) -> IScaleLayer"))
    return place


def complaints(stubs: Path, *asked: str) -> list[str]:
    """What mypy says of our files, and not of the stubs themselves."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(stubs / "cache"), *asked],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "MYPYPATH": str(stubs)}, check=False,
    )  # fmt: skip
    assert "source file" in done.stdout, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line and not line.startswith(str(stubs))]


def test_what_we_call_exists(stubs):
    assert complaints(stubs, "-p", "edgeopt.runner") == []


def test_the_check_would_find_a_call_that_does_not(stubs, tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from edgeopt.runner.tensorrt_library import trt\n\nbuilder = trt.Builder(trt.Logger())\nbuilder.build_everything()\n")
    (one,) = complaints(stubs, str(wrong))
    assert '"Builder" has no attribute "build_everything"' in one
