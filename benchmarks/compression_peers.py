"""Peers of benchmarks/compression.py at their default settings; runs in a process of its own, under any Python that has the peer.

python benchmarks/compression_peers.py PEER MODEL.onnx CALIBRATE.npz FOLDER     # writes below FOLDER, prints one line of JSON

All get the same static ONNX file and the same calibration samples. Imports do not count as building.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MAIN = "model.onnx"


class Samples:
    """The calibration samples as feeds with a batch of one."""

    def __init__(self, path: Path, inputs: list[str]) -> None:
        data = np.load(path)
        self.arrays = {name: data[name] for name in inputs}

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: array[index : index + 1] for name, array in self.arrays.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


def fp32_onnx(model: Path, samples: Samples, folder: Path) -> Callable[[], object]:
    """The file as it is."""
    return lambda: (folder / MAIN).write_bytes(model.read_bytes())


def fp32_openvino(model: Path, samples: Samples, folder: Path) -> Callable[[], None]:
    """Converted by OpenVINO, weights as they are."""
    import openvino

    return lambda: openvino.save_model(openvino.convert_model(model), folder / "model.xml", compress_to_fp16=False)


def quantize_static(model: Path, samples: Samples, folder: Path) -> Callable[[], None]:
    """onnxruntime: its own preparation, then quantize_static with nothing but the samples given."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(samples)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    def build() -> None:
        prepared = folder.with_suffix(".prepared.onnx")
        try:
            quant_pre_process(str(model), str(prepared))
        except Exception:  # noqa: BLE001  (symbolic shape inference refuses some models, and need not be)
            quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantize_static(str(prepared), str(folder / MAIN), Reader())

    return build


def nncf_onnx(model: Path, samples: Samples, folder: Path) -> Callable[[], None]:
    """nncf.quantize on the ONNX model."""
    import nncf
    import onnx

    return lambda: onnx.save(nncf.quantize(onnx.load(model), nncf.Dataset(samples)), folder / MAIN)


def nncf_openvino(model: Path, samples: Samples, folder: Path) -> Callable[[], None]:
    """nncf.quantize on the OpenVINO model."""
    import nncf
    import openvino

    def build() -> None:
        converted = openvino.convert_model(model)
        openvino.save_model(nncf.quantize(converted, nncf.Dataset(samples)), folder / "model.xml", compress_to_fp16=False)

    return build


def olive(model: Path, samples: Samples, folder: Path) -> Callable[[], None]:
    """Olive's OnnxStaticQuantization with nothing but the data given."""
    import torch
    from olive.data.registry import Registry
    from olive.workflows import run

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> Any:
            return {name: torch.from_numpy(array[0]) for name, array in samples[index].items()}, 0

    Registry.register_dataset("benchmark_rows")(lambda **_: Rows())
    config = {
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "data_configs": [
            {
                "name": "rows",
                "load_dataset_config": {"type": "benchmark_rows"},
                "dataloader_config": {"type": "default_dataloader", "batch_size": 1},
            }
        ],
        "passes": {"quantized": {"type": "OnnxStaticQuantization", "data_config": "rows"}},
        "output_dir": str(folder.with_suffix(".out")),
        "cache_dir": str(folder.with_suffix(".cache")),
        "log_severity_level": 3,
    }

    def build() -> None:
        run(config)
        [made] = folder.with_suffix(".out").rglob("*.onnx")
        for path in list(made.parent.iterdir()):
            if path.suffix != ".json":
                path.rename(folder / (MAIN if path == made else path.name))

    return build


PEERS = {
    "fp32-onnx": fp32_onnx,
    "fp32-openvino": fp32_openvino,
    "quantize_static": quantize_static,
    "nncf-onnx": nncf_onnx,
    "nncf-openvino": nncf_openvino,
    "olive": olive,
}


def main() -> None:
    name, model, calibrate, folder = sys.argv[1], *map(Path, sys.argv[2:5])
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail, as Python documents
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    build = PEERS[name](model, Samples(calibrate, [value.name for value in graph.input]), folder)
    began = time.monotonic()
    build()
    print(json.dumps({"seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main()
