"""benchmarks/gpu.py where there is no GPU: what fails costs its own row, and models are made when a row asks for them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.mark.parametrize("error", [ImportError("no onnxruntime"), ValueError("no such model"), KeyError("events_ms")])
def test_whatever_fails_is_told_in_its_row(gpu: Any, error: Exception) -> None:
    def fails(what: str) -> dict[str, Any]:
        raise error

    told = gpu.row("onnxruntime cuda", "CNN fp32", fails, "cuda")
    assert told["model"] == "CNN fp32" and told["note"].startswith(f"ERROR: {type(error).__name__}: ")
    gpu.table([told])


def test_models_are_made_once_when_a_row_asks(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = gpu.models(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert made["CNN fp16"]().size_bytes < 0.6 * made["CNN fp32"]().size_bytes and made["CNN fp32"]() is made["CNN fp32"]()
    monkeypatch.setattr(gpu, "residual_cnn", lambda: 1 / 0)
    assert "ZeroDivisionError" in gpu.row("r", "m", lambda model: model(), gpu.models(tmp_path / "other")["CNN fp16"])["note"]
