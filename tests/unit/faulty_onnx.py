"""Small ONNX models with one known fault each for TensorRT, and sound ones; `python tests/unit/faulty_onnx.py FOLDER` writes them all."""

from __future__ import annotations

import sys
from pathlib import Path

import faulty_bodies
import faulty_graphs
import faulty_quantization
import onnx
import sound_onnx
from faulty_parts import FAULTY, GOOD

__all__ = ["FAULTY", "GOOD", "faulty_bodies", "faulty_graphs", "faulty_quantization", "sound_onnx"]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for case in FAULTY + GOOD:
        onnx.save_model(case.make(), folder / f"{case.name}.onnx")
        print(f"{case.level or 'good':8} {case.name}.onnx  {case.node} {case.says}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
